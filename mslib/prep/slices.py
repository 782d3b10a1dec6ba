"""Brain slices for the networks: choice of slices, in-plane resampling, and the way back to a volume.

Conventions: stacks are (slice, row, column[, sequence]); slices run inferior to superior, row 0 is anterior,
column 0 is the patient's right (radiological display).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import sparse

from mslib.study import StudyError, atomic_path, read_arrays, write_json


@dataclass(frozen=True)
class SliceStack:
    """The axial slices of one subject that the networks see.

    `images`: float16, (n, H, W, M), intensities in [0, 1], 0 outside the brain; `brain`, `lesions`: bool, (n, H, W);
    `z_mm`: float32, (n,), height of the slices' centre (RAS); `affine`: (4, 4), (column, row, slice) to mm (RAS).
    """

    images: np.ndarray
    brain: np.ndarray
    lesions: np.ndarray
    z_mm: np.ndarray
    affine: np.ndarray


def select_slices(mask: np.ndarray, n: int) -> np.ndarray:
    """The contiguous window of `n` axial slices that holds most brain (the lowest of equal ones), ascending indices.

    `mask`: bool, (X, Y, Z), inferior to superior, not empty. Where fewer than `n` slices hold brain, all from the first
    to the last that do are taken.
    """
    content = mask.sum(axis=(0, 1))
    first, last = np.flatnonzero(content)[[0, -1]]
    if last - first + 1 <= n:
        return np.arange(first, last + 1)
    total = np.concatenate([[0], np.cumsum(content)])
    return np.argmax(total[n:] - total[:-n]) + np.arange(n)


def _shares(n_in: int, size_in: float, n_out: int, size_out: float, first: float) -> sparse.csr_array:
    """Share of each output pixel that each input voxel covers, (n_out, n_in).

    Sizes in mm; `first` is the lower edge of output pixel 0 minus that of voxel 0. What lies beyond the volume is 0.
    """
    low = (first + size_out * np.arange(n_out))[:, None]
    voxel = size_in * np.arange(n_in)
    shared = np.minimum(low + size_out, voxel + size_in) - np.maximum(low, voxel)
    return sparse.csr_array(np.where(shared > 1e-6 * size_in, shared / size_out, 0).astype(np.float32))


def slice_stack(volumes, brain, affine, lesion=None, *, n_slices: int = 135,
                image_size: tuple[int, int] = (192, 168), pixel_mm: float = 1.0) -> SliceStack:
    """Cut preprocessed volumes into the stack of axial slices that the networks see.

    The field of view is centred, in plane, on the bounding box of the brain, to the next edge of a voxel. A pixel is
    the average of the voxels that it covers: of the voxels' size, it is one voxel as it is; across slices nothing is
    averaged. A mask's pixel is set where at least half of its area is.

    Parameters
    ----------
    volumes : sequence of ndarray, each (X, Y, Z)
        One per sequence, in [0, 1], axes right, anterior, superior.
    brain, lesion : ndarray of bool, shape (X, Y, Z)
        `lesion` may be None: no pixel is set.
    affine : ndarray of shape (4, 4)
        Voxel indices to mm (RAS).
    image_size : (int, int)
        Rows and columns.

    Raises
    ------
    StudyError
        Axes in another order.
    """
    if (codes := "".join(nib.aff2axcodes(affine))) != "RAS":
        raise StudyError(f"volumes: axes must run right, anterior, superior (RAS; got {codes})")
    chosen = select_slices(brain, n_slices)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = image_size[::-1]
    weights, first = [], []
    for axis, n_out in enumerate(size):
        present = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        low = (present[0] + present[-1] + 1 - n_out * pixel_mm / spacing[axis]) / 2
        low = spacing[axis] * np.floor(low + 0.5)
        first.append((low + (n_out - 0.5) * pixel_mm) / spacing[axis] - 0.5)
        # From right to left and from anterior to posterior: against the axes of the volume.
        weights.append(_shares(brain.shape[axis], spacing[axis], n_out, pixel_mm, low)[::-1])

    def cut(volume):
        part = np.asarray(volume[:, :, chosen[0]:chosen[-1] + 1], np.float32)
        part = (weights[0] @ part.reshape(len(part), -1)).reshape(size[0], -1, len(chosen)).swapaxes(0, 1)
        return (weights[1] @ part.reshape(len(part), -1)).reshape(*image_size, -1).transpose(2, 0, 1)

    grid = np.eye(4)
    grid[:3, :3] = affine[:3, :3] / spacing * [-pixel_mm, -pixel_mm, spacing[2]]
    grid[:3, 3] = (affine @ [*first, chosen[0], 1])[:3]
    z_mm = grid[2, :2] @ [(size[0] - 1) / 2, (size[1] - 1) / 2] + grid[2, 2] * np.arange(len(chosen)) + grid[2, 3]
    images = np.stack([cut(volume).astype(np.float16) for volume in volumes], axis=-1)
    masks = (brain, np.zeros_like(brain) if lesion is None else lesion)
    return SliceStack(images, *(np.ascontiguousarray(cut(mask) >= 0.5 - 1e-6) for mask in masks),
                      z_mm.astype(np.float32), grid)


def save_stack(path: str | Path, stack: SliceStack) -> Path:
    """Write a stack as ``.npz``, not compressed (fast to read), masks as bits; the same bytes for the same stack."""
    bits = {name: np.packbits(getattr(stack, name), axis=-1) for name in ("brain", "lesions")}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(stack) | bits)
    return Path(path)


def load_stack(path: str | Path) -> SliceStack:
    """Read a stack written by `save_stack`; StudyError: file absent or damaged."""
    stored = read_arrays(path)
    width = stored["images"].shape[2]
    masks = {name: np.unpackbits(stored[name], axis=-1, count=width).view(bool) for name in ("brain", "lesions")}
    return SliceStack(**stored | masks)


def plane_to_volume(maps: np.ndarray, stack: SliceStack, reference: nib.Nifti1Image) -> np.ndarray:
    """Put one map per slice, (n, H, W), back into the grid of `reference`, for instance the preprocessed T1w image.

    Float32 (X, Y, Z): linear between pixels, 0 outside the stack's field of view and slices. ValueError: the axes of
    `reference` do not run along those of the slices.
    """
    to_map = np.linalg.inv(stack.affine) @ reference.affine
    scale = np.diag(to_map)[:3]
    if not np.allclose(to_map[:3, :3], np.diag(scale), atol=1e-4):
        raise ValueError("reference: axes must run along those of the slices (got "
                         f"{reference.affine[:3, :3].tolist()})")
    maps = np.asarray(maps, np.float32).transpose(2, 1, 0)
    weights = [np.maximum(0, 1 - abs(step * np.arange(m)[:, None] + start - np.arange(n))).astype(np.float32)
               for step, start, m, n in zip(scale, to_map[:3, 3], reference.shape, maps.shape)]
    return np.einsum("xi,yj,zk,ijk->xyz", *weights, maps, optimize=True)


def write_volume(path: Path, maps: dict[str, np.ndarray], stack: SliceStack, reference: Path, names: str,
                 facts: dict, dtype=np.float32) -> Path:
    """Write maps (n, H, W) of all slices as a 4-D ``.nii.gz``, in the order of `maps`, with a JSON file beside it.

    `reference`: image whose grid is the volume's; the JSON file holds the names of the maps as entry `names` and
    `facts`; `dtype` is that of the file (integers are scaled).
    """
    grid = nib.load(reference)
    volumes = [plane_to_volume(one, stack, grid) for one in maps.values()]
    image = nib.Nifti1Image(np.stack(volumes, axis=-1), grid.affine)
    image.header.set_data_dtype(dtype)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")),
               {**facts, names: list(maps), "Sources": [reference.name]})
    return path
