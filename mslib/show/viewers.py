"""One offline page per patient: a slider goes through the layers of a network, over the scan, in three planes.

The page holds NiiVue (`niivue/`), the scans on voxels of 1.5 mm and the maps on voxels of 4 mm, the cells of block 3;
it loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.image import resample_img
from scipy import ndimage

from mslib.study import StudyError, write_text

HERE = Path(__file__).parent
SCAN_MM, MAP_MM = 1.5, 4.0


def _read(path: str | Path, dimensions: int) -> nib.Nifti1Image:
    """A volume (3) or a series of volumes (4), as floats."""
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise StudyError(f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())})") from error
    if data.ndim != dimensions or not np.isfinite(data).all():
        raise StudyError(f"{path}: must be a {dimensions}-D image of finite values (got {data.ndim}-D)")
    return nib.Nifti1Image(data, image.affine)


def _packed(image: nib.Nifti1Image, box_mm: np.ndarray, mm: float, interpolation: str = "linear") -> str:
    """The part in a box (2, 3) of RAS mm on voxels of `mm`, each volume scaled to 0 to 255; gzipped NIfTI in base64."""
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = box_mm[0]
    shape = np.ceil((box_mm[1] - box_mm[0]) / mm).astype(int) + 1
    data = resample_img(image, affine, shape, interpolation=interpolation).get_fdata(dtype=np.float32).clip(0)
    top = data.max((0, 1, 2), keepdims=True)
    scaled = np.rint(255 * data / np.where(top > 0, top, 1)).astype(np.uint8)
    stored = nib.Nifti1Image(scaled, affine).to_bytes()
    return base64.b64encode(gzip.compress(stored, 9, mtime=0)).decode()


def write_viewer(path: str | Path, scans: Mapping[str, str | Path], maps: Mapping[str, str | Path],
                 layers: Sequence[tuple[str, int, int]], *, lesions: str | Path | None = None, first: str = "",
                 slices: Sequence[tuple[float, str]] = (), title: str = "", note: str = "",
                 link: str = "../index.html") -> Path:
    """Write heat maps of every layer over the scans of a patient as one HTML file (`path`) that opens offline.

    The patient's right is at the left, as in all figures. Every layer is scaled to its own maximum over the head.
    ``#layer=NAME&method=NAME&scan=NAME&lesions=0`` after the page's address opens it there. StudyError: an image that
    cannot be read, is blank, or has another number of volumes than `layers`.

    Parameters
    ----------
    scans : mapping of str to path
        3-D NIfTI images by sequence, in one world space (mm); the first is shown first.
    maps : mapping of str to path
        4-D NIfTI images by CAM method in the same space, one volume per layer; what is negative is not shown.
    layers : sequence of (str, int, int)
        Name, rows and columns of cells of every layer, in the order of the volumes.
    lesions : path, optional
        3-D mask, drawn as an outline.
    first : str
        Layer that is shown first.
    slices : sequence of (float, str)
        Height in mm (RAS) of slices, and what is said of each: the network's verdict.
    title, note, link : str
        Heading, a sentence below it, and address of the page to go back to.
    """
    images = {name: _read(file, 3) for name, file in scans.items()}
    head = next(iter(images.values()))
    inside = np.argwhere(head.get_fdata() > 0)
    if not len(inside):
        raise StudyError(f"{next(iter(scans.values()))}: is blank")
    corners = nib.affines.apply_affine(head.affine, [inside.min(0), inside.max(0)])
    box = np.array([corners.min(0) - SCAN_MM, corners.max(0) + SCAN_MM])
    data = {"scans": {name: _packed(image, box, SCAN_MM) for name, image in images.items()}, "maps": {}}
    for name, file in maps.items():
        image = _read(file, 4)
        if image.shape[3] != len(layers):
            raise StudyError(f"{file}: must hold {len(layers)} volumes, one per layer (got {image.shape[3]})")
        data["maps"][name] = _packed(image, box, MAP_MM)
    start = box.mean(0)
    if lesions is not None:
        mask = _read(lesions, 3)
        solid = mask.get_fdata() > 0
        edge = solid & ~ndimage.binary_erosion(solid, np.ones((3, 3, 1)))
        if solid.any():
            data["lesions"] = _packed(nib.Nifti1Image(edge.astype(np.float32), mask.affine), box, 1.0, "nearest")
            row, column = np.nonzero(solid[..., (level := solid.sum((0, 1)).argmax())])
            start = nib.affines.apply_affine(mask.affine, [row[len(row) // 2], column[len(row) // 2], level])
    library = gzip.compress((HERE / "niivue" / "niivue.min.js").read_bytes(), 9, mtime=0)
    data |= {"layers": [{"name": name, "rows": rows, "columns": columns} for name, rows, columns in layers],
             "first": first, "slices": [{"z": float(z), "text": text} for z, text in slices],
             "start": [float(value) for value in start], "library": base64.b64encode(library).decode()}
    words = {"TITLE": html.escape(title), "NOTE": html.escape(note), "LINK": html.escape(link),
             "DATA": json.dumps(data).replace("<", "\\u003c")}
    page = (HERE / "viewer.html").read_text(encoding="utf-8")
    return write_text(path, re.sub("|".join(words), lambda place: words[place[0]], page))  # words in words stay
