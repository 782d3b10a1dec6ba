"""Between SimpleITK (LPS, arrays z-y-x) and NIfTI files (RAS, arrays x-y-z), and what is known of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from mslib.study import atomic_path

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(image: sitk.Image) -> np.ndarray:
    """Voxel indices to mm (RAS), shape (4, 4)."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return FLIP @ affine


def array_of(image: sitk.Image) -> np.ndarray:
    """Values with axes x, y, z (a view where possible)."""
    return sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)


def image_like(values: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """Image of `values` (axes x, y, z) on the grid of `grid`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.CopyInformation(grid)
    return image


def save_nifti(path: str | Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """Write `values` (axes x, y, z) as NIfTI: same values, same bytes (no time stamp; gzip level 1)."""
    image = nib.Nifti1Image(np.asarray(values), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reoriented_grid(image: sitk.Image, voxel_mm: float | None = None) -> sitk.Image:
    """Empty image with the axes of `image` put in the order right, anterior, superior.

    With `voxel_mm` the grid has cubic voxels of that edge and covers the same field of view.
    """
    grid = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    grid.CopyInformation(image)
    grid = sitk.DICOMOrient(grid, "RAS")
    if voxel_mm is None:
        return grid
    extent = np.array(grid.GetSize()) * grid.GetSpacing()
    size = np.maximum(1, np.round(extent / voxel_mm)).astype(int)
    index = ((extent - size * voxel_mm) / 2 + voxel_mm / 2) / grid.GetSpacing() - 0.5
    fine = sitk.Image(size.tolist(), sitk.sitkUInt8)
    fine.SetOrigin(grid.TransformContinuousIndexToPhysicalPoint(index.tolist()))
    fine.SetSpacing([voxel_mm] * 3)
    fine.SetDirection(grid.GetDirection())
    return fine
