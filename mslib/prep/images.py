"""Between SimpleITK (LPS, arrays z-y-x) and NIfTI files (RAS, arrays x-y-z)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from mslib.study import StudyError


def matrix_of(image: sitk.Image) -> np.ndarray:
    """Voxel indices to mm (LPS) from the image's origin, shape (3, 3)."""
    return np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()


def affine_of(image: sitk.Image) -> np.ndarray:
    """Voxel indices to mm (RAS), shape (4, 4)."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([matrix_of(image), image.GetOrigin()])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def array_of(image: sitk.Image) -> np.ndarray:
    """Values with axes x, y, z (a copy, which outlives the image)."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def reoriented_grid(image: sitk.Image, voxel_mm: float | None = None) -> sitk.Image:
    """An image whose grid has the axes of `image` put in the order right, anterior, superior; values do not count.

    With `voxel_mm` the grid has cubic voxels of that edge and covers the same field of view.
    """
    grid = sitk.DICOMOrient(image, "RAS")
    if voxel_mm is None:
        return grid
    extent = np.array(grid.GetSize()) * grid.GetSpacing()
    size = np.maximum(1, np.round(extent / voxel_mm)).astype(int)
    index = ((extent - size * voxel_mm) / 2 + voxel_mm / 2) / grid.GetSpacing() - 0.5
    origin = grid.TransformContinuousIndexToPhysicalPoint(index.tolist())
    return sitk.Resample(grid, size.tolist(), sitk.Transform(), sitk.sitkNearestNeighbor, origin, [voxel_mm] * 3,
                         grid.GetDirection())


def as_image(source: str | Path | sitk.Image) -> sitk.Image:
    """Give `source` as a 3-D float32 image, read if it is a path; StudyError: not readable, not three-dimensional."""
    if not isinstance(source, sitk.Image):
        try:
            # To its end: ITK fills what a truncated one lacks without a word, and does not say what a disk has said.
            with (gzip.open if str(source).endswith(".gz") else open)(source, "rb") as stream:
                while stream.read(1 << 22):
                    pass
            source = sitk.ReadImage(str(source))
        except (RuntimeError, OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or "truncated or not NIfTI"
            raise StudyError(f"{source}: is not a readable image ({reason})") from error
    if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1:
        raise StudyError(f"image of size {source.GetSize()}: must have three dimensions and one value per voxel")
    return sitk.Cast(source, sitk.sitkFloat32)


def bounding_box(mask: np.ndarray, margin: tuple[int, int, int] = (0, 0, 0)) -> tuple[slice, ...]:
    """Slices of the smallest box around the True voxels of `mask`, widened by `margin` voxels per axis."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(part.start - extra, 0), min(part.stop + extra, n))
                 for part, extra, n in zip(box, margin, mask.shape))


def reduce_to(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Average whole voxels together until each axis comes near `spacing_mm`; thick slices stay as they are."""
    factors = [min(n, max(1, round(spacing_mm / s))) for n, s in zip(image.GetSize(), image.GetSpacing())]
    return sitk.BinShrink(image, factors) if max(factors) > 1 else image


def apply_points(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """Map points (n, 3) in mm by an Euler or affine transform, all at once."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.array([transform.TransformPoint(tuple(row)) for row in np.eye(3)]).T - origin[:, None]
    return np.asarray(points) @ matrix.T + origin


def checked_mask(mask, image: sitk.Image, allow_empty: bool = False) -> sitk.Image:
    """Give `mask` as 0/1 on the grid of `image`; StudyError: another grid, or empty where that is not allowed."""
    name = "mask" if isinstance(mask, sitk.Image) else str(mask)
    mask = sitk.Cast(as_image(mask) > 0, sitk.sitkUInt8)
    if not mask.IsSameImageGeometryAs(image, 0.1 / image.GetSpacing()[0], 1e-2):  # of the first voxel size: 0.1 mm
        found, wanted = (f"(size {one.GetSize()}, origin {tuple(round(value, 1) for value in one.GetOrigin())})"
                         for one in (mask, image))
        raise StudyError(f"{name}: is on another grid {found} than its image {wanted}")
    if not allow_empty and not sitk.GetArrayViewFromImage(mask).any():
        raise StudyError(f"{name}: is empty (must hold at least one voxel)")
    mask.CopyInformation(image)
    return mask
