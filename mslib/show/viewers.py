"""3-D viewers: one offline HTML file each, in which a reader scrolls through a heat map over the scan."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.image import resample_to_img
from nilearn.image.resampling import resample_img
from nilearn.plotting import view_img

from mslib.study import StudyError, write_text

EXTERNAL = re.compile(
    r"""<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)


def _volume(path: str | Path, index: int | None, what: str) -> nib.Nifti1Image:
    """Read a 3-D volume, or volume `index` of a 4-D file."""
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(f"{path}: {what} cannot be read as NIfTI ({reason})") from error
    if data.ndim == 4:
        if index is None or not 0 <= index < data.shape[3]:
            raise StudyError(f"{path}: {what} holds {data.shape[3]} volumes: index must be 0 to "
                             f"{data.shape[3] - 1} (got {index})")
        data = data[..., index]
    if data.ndim != 3:
        raise StudyError(f"{path}: {what} must be 3-D or 4-D (got {data.ndim}-D)")
    if not np.isfinite(data).all():
        raise StudyError(f"{path}: {what} holds values that are not finite")
    return nib.Nifti1Image(data, image.affine)


def _stable_offline(page: str) -> str:
    """Drop the page's remote icon and its random element names, so that one input gives one file."""
    page = re.sub(r"""<link rel="icon"[^>]*>""", "", page)
    drawn = re.search(r"div_viewer-([0-9a-f]{32})", page)
    return page.replace(drawn.group(1), "map") if drawn else page


def write_viewer(path: str | Path, background: str | Path, overlay: str | Path, *, index: int | None = None,
                 title: str = "", resolution_mm: float = 2.0, threshold: float = 0.2) -> Path:
    """Write a heat map over a scan as one HTML file that opens without a network.

    The patient's right is at the left, as in all figures.

    Parameters
    ----------
    path : str or Path
        The HTML file.
    background, overlay : str or Path
        NIfTI files in one world space (mm): scan, and non-negative heat map.
    index : int, optional
        Volume of a 4-D overlay (the layer).
    title : str
        Written into the viewer, ``<`` and ``>`` as ‹ and ›.
    resolution_mm : float
        Voxel size shown.
    threshold : float
        Share of the map's maximum below which nothing is drawn.

    Returns
    -------
    Path

    Raises
    ------
    StudyError
        An unreadable file, an index out of range, a blank overlay, or a page that would load something
        from elsewhere.
    """
    scan = _volume(background, None, "background")
    heat = _volume(overlay, index, "overlay")
    top = float(heat.dataobj.max())
    if not top > 0:
        raise StudyError(f"{overlay}: overlay is blank (maximum {top:g}): there is nothing to view")
    scan = resample_img(scan, target_affine=np.diag([resolution_mm] * 3), interpolation="linear")
    heat = resample_to_img(nib.Nifti1Image(heat.get_fdata(dtype=np.float32) / top, heat.affine), scan,
                           interpolation="linear")
    view = view_img(heat, bg_img=scan, threshold=threshold, vmin=0, vmax=1, symmetric_cmap=False,
                    cmap="inferno", colorbar=True, black_bg=True, dim=0, opacity=0.7,
                    resampling_interpolation="continuous",
                    radiological=True, title=title.replace("<", "‹").replace(">", "›"))
    page = _stable_offline(view.get_standalone())
    if EXTERNAL.search(page):
        raise StudyError(f"{path}: the viewer would load something from elsewhere and is not written")
    return write_text(path, page)
