"""Checks of one image file: every voxel is read once, nothing is scaled or copied."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

FORM_TOLERANCE_MM = 1.0  # between the places that qform and sform give to a corner of the image
VOXEL_TOLERANCE = 0.005  # relative, between the voxel sizes of the sform and of pixdim: 1 mm over a head
MIN_VOXELS = 8           # along each axis: fewer are no scan of a head
LARGEST = 1e12           # squares still fit into float32
SKEW_TOLERANCE = 2e-4    # |R'R - 1| of an sform without a qform beside it: SimpleITK refuses to read more
PREFERRED_SKEW = 1e-4    # of an sform with a qform beside it: SimpleITK reads the qform if there is more
FORM, WHOLE = "an invertible qform or sform", "a whole NIfTI file"


def printable(text: str) -> str:
    """A text of a dataset in one line: line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Fault:
    """What is wrong with one subject: who, which file (relative to the cohort's root), found, allowed."""

    subject: str
    file: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return printable(f"{self.subject}: {self.file}: {self.found}; allowed: {self.allowed}")


class ImageFault(Exception):
    """An image that cannot be used: ``ImageFault(found, allowed)``."""


def _content(path: Path) -> bytes:
    """The whole uncompressed file; a gzip file is read to its end, so that its checksum is verified."""
    if path.is_dir():
        raise ImageFault("is a folder", "a NIfTI file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageFault(f"cannot be read ({error.strerror or error})", "a readable NIfTI file") from error
    if not path.name.endswith(".gz"):
        return data
    if data and not data.startswith(b"\x1f\x8b"):
        raise ImageFault("is not gzip-compressed", "a gzip-compressed NIfTI file, or the ending .nii")
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise ImageFault("is truncated (the compressed data ends early)", WHOLE) from error
    except (OSError, zlib.error) as error:
        raise ImageFault(f"is damaged ({error})", WHOLE) from error


def _header(content: bytes) -> nib.Nifti1Header:
    """The header as it stands: nibabel's silent repairs (a voxel size of 0 becomes 1) are not wanted."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")
        if kind.sizeof_hdr in size and len(content) >= kind.sizeof_hdr:
            try:
                header = kind.from_fileobj(io.BytesIO(content), check=False)
            except (HeaderDataError, ValueError, OverflowError) as error:
                raise ImageFault(f"has a broken header ({error})", "a NIfTI-1 or NIfTI-2 file") from error
            if header["magic"].item() in (b"n+1", b"n+2"):
                if header["pixdim"][0] == 0:  # which the standard reads as 1
                    header["pixdim"][0] = 1
                return header
    raise ImageFault("is not NIfTI" if content else "is empty", "a NIfTI-1 or NIfTI-2 file")


def _check_extent(header: nib.Nifti1Header) -> None:
    shape = tuple(int(n) for n in header["dim"][1:1 + min(max(int(header["dim"][0]), 0), 7)])
    if len(shape) < 3 or min(shape[:3]) < MIN_VOXELS or max(shape[3:], default=1) > 1:
        raise ImageFault(f"is {len(shape)}-D with shape {shape}",
                         f"one 3-D volume, at least {MIN_VOXELS} voxels along each axis")
    try:
        kind = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ImageFault(f"has data type code {int(header['datatype'])}", "real numbers") from error
    if kind.kind not in "iuf":
        raise ImageFault(f"has data type {kind}", "real numbers")


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij"), dtype=float).reshape(4, -1)


def _form(header: nib.Nifti1Header, name: str) -> np.ndarray | None:
    """The matrix of ``qform`` or ``sform``; None where its code is 0."""
    if int(header[f"{name}_code"]) == 0:
        return None
    try:
        form = header.get_qform() if name == "qform" else header.get_sform()
    except (HeaderDataError, ValueError) as error:
        raise ImageFault(f"has a broken {name} ({error})", FORM) from error
    sizes = np.linalg.norm(form[:3, :3], axis=0)
    if not np.isfinite(form).all() or sizes.min() <= 0:
        raise ImageFault(f"has a broken {name} (not finite, or a voxel size of 0)", FORM)
    if abs(np.linalg.det(form[:3, :3] / sizes)) < 1e-3:
        raise ImageFault(f"has a singular {name}", FORM)
    return form


def _voxel_to_world(header: nib.Nifti1Header) -> np.ndarray:
    """The 4 x 4 matrix from voxels to mm (RAS+) that SimpleITK reads from a header, checked."""
    unit = int(header["xyzt_units"]) & 7
    if unit in (1, 3):
        # SimpleITK would scale these to mm, nibabel would not.
        raise ImageFault(f"has its sizes in {'metres' if unit == 1 else 'micrometres'}", "mm")
    qform, sform = _form(header, "qform"), _form(header, "sform")
    if qform is None and sform is None:
        raise ImageFault("has neither qform nor sform (both codes are 0)", "a code above 0 for one of them")
    pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
    if not np.isfinite(pixdim).all() or pixdim.min() <= 0:
        raise ImageFault(f"has voxel sizes {_numbers(pixdim)} in pixdim", "sizes above 0 mm")
    if sform is None:
        return qform
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    if np.abs(sizes / pixdim - 1).max() > VOXEL_TOLERANCE:
        raise ImageFault(f"has voxel sizes {_numbers(sizes)} mm in the sform and {_numbers(pixdim)} mm in pixdim",
                         "the same sizes in both")
    axes = sform[:3, :3] / sizes
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if qform is not None:
        gap = np.linalg.norm(((qform - sform) @ _corners(header.get_data_shape()[:3]))[:3], axis=0).max()
        if gap > FORM_TOLERANCE_MM:
            raise ImageFault(f"has a qform and an sform {gap:.1f} mm apart",
                             f"at most {FORM_TOLERANCE_MM:g} mm, or one of them with code 0")
        return sform if int(header["sform_code"]) == 1 and skew <= PREFERRED_SKEW else qform
    if skew > SKEW_TOLERANCE:
        raise ImageFault(f"has an sform skewed by {skew:.2g}", "perpendicular axes, or a qform beside it")
    return sform


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in np.round(values, 4))


def _read(path: Path) -> tuple[tuple[int, ...], np.ndarray, tuple[float, float], np.ndarray, tuple[float, float]]:
    """Of a file that is read wholly: shape, voxels to mm, lowest and highest value, voxels as stored, their scaling."""
    content = _content(path)
    header = _header(content)
    _check_extent(header)
    affine, shape, kind = _voxel_to_world(header), header.get_data_shape(), header.get_data_dtype()
    offset, need = float(header["vox_offset"]), int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if not header.sizeof_hdr <= offset < np.inf:  # also NaN
        raise ImageFault(f"has its voxels at byte {offset:g}", "a vox_offset after the header")
    start = int(offset)
    if len(content) - start < need:
        raise ImageFault(f"is truncated ({max(len(content) - start, 0)} of {need} bytes of voxels)", WHOLE)
    voxels = np.frombuffer(content, kind, need // kind.itemsize, start)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (np.isfinite(slope) and slope != 0 and not np.isfinite(intercept)):
        raise ImageFault(f"has scaling factors {slope:g}, {intercept:g}", "finite factors")
    # A NaN anywhere makes minimum and maximum NaN, so that two passes without a copy find it.
    with np.errstate(invalid="ignore"):
        low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():
        raise ImageFault(f"has {np.count_nonzero(~np.isfinite(voxels))} NaN or infinite voxels", "finite values")
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    low, high = sorted(slope * value + intercept for value in (low, high))
    if max(-low, high) > LARGEST:
        raise ImageFault(f"has values from {low:g} to {high:g}", f"values from {-LARGEST:g} to {LARGEST:g}")
    return tuple(shape[:3]), affine, (low, high), voxels, (slope, intercept)


def check_image(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Read one ``.nii`` or ``.nii.gz`` file wholly and check it: shape, and voxels to mm (4 x 4, RAS+).

    ImageFault: unreadable, truncated, not NIfTI, not one 3-D volume, not real numbers, NaN or infinite values, zero
    variance, no value above 0, broken or conflicting qform and sform, or sizes that are not in mm.
    """
    shape, affine, (low, high), *_ = _read(Path(path))
    if low == high:
        raise ImageFault(f"has zero variance (every voxel is {low:g})", "an image with contrast")
    if high <= 0:
        raise ImageFault(f"has values from {low:g} to {high:g}", "a signal above 0")
    return shape, affine


def check_mask(path: str | Path, shape: tuple[int, ...], affine: np.ndarray, *, may_be_empty: bool) -> None:
    """Read one mask wholly and check it as `check_image` does, and that it lies in the grid of the T1w image.

    ImageFault: also of another grid (corners over 0.1 mm apart), values between whole numbers (probabilities, or
    interpolated), or empty where that is not allowed.
    """
    found, matrix, (low, high), voxels, (slope, intercept) = _read(Path(path))
    if found != shape or np.abs((matrix - affine) @ _corners(shape)).max() > 0.1:
        raise ImageFault(f"has another grid than the T1w image (shape {found})", f"its grid, shape {shape}")
    if low < 0 or (high <= 0 and not may_be_empty):
        raise ImageFault(f"has values from {low:g} to {high:g}", "0 outside and above 0 inside")
    if voxels.dtype.kind == "f" or slope % 1 or intercept % 1:
        values = voxels * slope + intercept
        if np.abs(values - np.rint(values)).max() > 1e-3:
            raise ImageFault("has values between whole numbers (of probabilities, or interpolated)",
                             "0 outside and whole numbers above 0 inside")
