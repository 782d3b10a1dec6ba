"""Quality control of one preprocessed subject: numbers, flags with reasons, and one picture."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from mslib.study import atomic_path

from .images import array_of, bounding_box
from .registration import Registration

BRAIN_ML = (700.0, 2200.0)
QC_MM = 2.0  # edge of the cubes on which sequences are compared, whatever the scans' own grids; voxels may be larger
EDGE_AGREEMENT = 16.0  # right pairs: 20 and more; heads of two people: 13 at most
MIN_VALUES = 64
BRIGHT, THICKEST_MM = 1.2, 20.0  # of FLAIR in white matter; simulated and real people: 16 at most; strokes of 20 mL: 25
STEPS = np.eye(3, dtype=int)  # of a voxel along each axis
ZOOM = 1.5  # pixels a mm
OUTLINES = ((0.3, (255, 176, 0)), (0.62, (0, 208, 255)))  # level of T1w, colour


def _directions(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Gradient directions (3, n) at voxels (3, n), shortened where the gradient drowns in noise (0.02 per voxel)."""
    ahead, behind = (np.stack([values.ravel()[np.ravel_multi_index(points + step[:, None], values.shape, mode="clip")]
                               for step in steps]) for steps in (STEPS, -STEPS))
    gradient = (ahead - behind) / 2
    return gradient / np.sqrt(np.square(gradient).sum(axis=0) + 0.02 ** 2)


def edge_agreement(first: np.ndarray, second: np.ndarray, brain: np.ndarray) -> float:
    """How much better edges of two images run together than when one image is displaced.

    Agreement is the mean squared cosine between intensity gradients of the images, (X, Y, Z) in [0, 1], at voxels all
    over the brain (normalised gradient fields; Haber and Modersitzki 2006). Given is the agreement in place minus the
    mean of six displacements of the second image (by 3 voxels to either side along each axis), over their standard
    deviation: within about +-3 for unrelated images.
    """
    inside = np.flatnonzero(brain)
    points = np.stack(np.unravel_index(inside[:: max(1, len(inside) // 50_000)], brain.shape))
    edges = _directions(first, points)

    def agreement(shift):
        return float(np.square((edges * _directions(second, points + shift[:, None])).sum(axis=0)).mean())

    displaced = [agreement(shift) for shift in np.concatenate([STEPS, -STEPS]) * 3]
    return (agreement(np.zeros(3, int)) - np.mean(displaced)) / max(np.std(displaced), 1e-6)


def label_doubts(images: dict[str, sitk.Image]) -> list[str]:
    """Reasons to doubt that images as scanned are no label maps: a measured one has many values."""
    counts = {name: len(np.unique(sitk.GetArrayViewFromImage(image)[::3, ::3, ::3])) for name, image in images.items()}
    return [f"{name}: has {count} different values (a label map?)" for name, count in counts.items()
            if count < MIN_VALUES]


def contrast_doubts(volumes: dict[str, np.ndarray], brain: np.ndarray) -> list[str]:
    """Reasons to doubt that images are what their names say.

    Voxels well inside the brain are parted by T1w into fluid, grey and white matter (Otsu's thresholds). In T2w fluid
    must be brightest and grey matter brighter than white, in FLAIR fluid must be darkest, as their physics has it; a
    T1w that is none puts the others out of order. `volumes`: T1w and any of T2w, FLAIR, (X, Y, Z) in [0, 1],
    co-registered on cubes; `brain`: bool, (X, Y, Z).
    """
    inside = ndimage.binary_erosion(brain, iterations=2)  # without the rim, which is mixed with what lies outside
    values = {name: volume[inside] for name, volume in volumes.items()}
    if len(np.unique(values["T1w"])) < MIN_VALUES:
        return ["T1w: shows no tissues well inside the brain"]
    tissue, doubts = np.digitize(values["T1w"], threshold_multiotsu(values["T1w"], 3)), []
    for name in [name for name in ("T2w", "FLAIR") if name in values]:
        fluid, grey, white = (float(np.median(values[name][tissue == k])) for k in range(3))
        if not (fluid > grey > white if name == "T2w" else fluid < min(grey, white)):
            doubts.append(f"{name}: fluid, grey and white matter by T1w are {fluid:.2f}, {grey:.2f}, {white:.2f}, not "
                          f"as in {name} (another sequence?)")
    return doubts


def solid_doubts(volumes: dict[str, np.ndarray], brain: np.ndarray, edge_mm: float) -> list[str]:
    """Reason to doubt that what is bright in FLAIR is multiple sclerosis: a ball of `THICKEST_MM` fits into it.

    A fresh stroke or a tumour is solid; lesions that have run together are long and thin. Bright is `BRIGHT` times the
    median of white matter (the brightest part of T1w by Otsu). Parameters as of `contrast_doubts`; `edge_mm`: of cubes.
    """
    if not {"T1w", "FLAIR"} <= set(volumes) or len(np.unique(volumes["T1w"][brain])) < MIN_VALUES:
        return []
    t1w, flair = (volumes[name] for name in ("T1w", "FLAIR"))
    white = brain & (t1w > threshold_multiotsu(t1w[brain], 3)[1])
    bright = brain & (flair > BRIGHT * np.median(flair[white]))
    thickness = edge_mm * (2 * float(ndimage.distance_transform_edt(np.pad(bright, 1)).max()) - 1)
    return [f"FLAIR: is bright in a piece {thickness:.0f} mm thick ({THICKEST_MM:g} at most expected; a stroke or a "
            "tumour?)"] * (thickness > THICKEST_MM)


def quality_row(subject: str, registrations: dict[str, Registration], agreement: dict[str, float],
                brain_ml: float, n_slices: int, wanted: int, mask_source: str, doubts: list[str]) -> dict:
    """One flat row of numbers of a subject, ready for JSON; ``flags`` lists `doubts` and other reasons for doubt.

    `registrations`, `agreement` (`edge_agreement` after registration): of each sequence with T1w; `brain_ml`: volume of
    the brain mask; `wanted`: slices asked for; `mask_source`: ``given`` or ``template``.
    """
    row = {"subject": subject, "brain_ml": round(brain_ml, 1), "mask": mask_source, "n_slices": n_slices}
    flags = [*doubts]
    for sequence, found in registrations.items():
        numbers = {"mi_start": found.metric_start, "mi_end": found.metric_end, "motion_mm": found.motion_mm,
                   "motion_deg": found.motion_deg, "overlap": found.overlap, "edges": agreement[sequence]}
        row |= {f"{sequence}_{key}": round(value, 4) if math.isfinite(value) else None
                for key, value in numbers.items()}
        flags += [f"{sequence}: {reason}" for reason in found.flags]
        if agreement[sequence] < EDGE_AGREEMENT:
            flags.append(f"{sequence}: edges do not run along those of T1w ({agreement[sequence]:.1f} SD, "
                         f"at least {EDGE_AGREEMENT:g} expected; another head?)")
    if not BRAIN_ML[0] <= brain_ml <= BRAIN_ML[1]:
        flags.append(f"brain mask of {brain_ml:.0f} mL (expected {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f})")
    note = "" if n_slices == wanted else f"only {n_slices} slices hold brain, all are used ({wanted} wanted)"
    return row | {"flags": flags, "note": note}


def _panel(values: np.ndarray, t1w: np.ndarray, pixel_mm, title: str) -> np.ndarray:
    """A plane (across, up) in grey with the outlines of T1w over it: RGB, `ZOOM` pixels a mm."""
    size = [round(n * mm * ZOOM) for n, mm in zip(values.shape, pixel_mm)]
    grey, outline = (np.asarray(Image.fromarray(one.T[::-1].astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
                     for one in (values / max(np.percentile(values, 99.5), 1e-6), ndimage.gaussian_filter(t1w, 1.5)))
    panel = np.repeat(np.uint8(255 * np.clip(grey, 0, 1))[..., None], 3, axis=2)
    for level, colour in OUTLINES:
        inside = outline > level
        panel[(inside != np.roll(inside, 1, 0)) | (inside != np.roll(inside, 1, 1))] = colour
    picture = Image.fromarray(panel)
    ImageDraw.Draw(picture).text((3, 2), title, "white")
    return np.asarray(picture)


def registration_figure(path, volumes: dict[str, np.ndarray], images: dict[str, sitk.Image], grid: sitk.Image,
                        brain: np.ndarray) -> None:
    """Draw edges of T1w over each other sequence, before and after registration; the same bytes for the same input.

    An axial and a sagittal plane. Good is: lines follow ventricles, cortex and brain outline in the columns "after".
    `volumes`: (X, Y, Z) on `grid` in [0, 1], T1w first; `images`: the same as scanned.
    """
    (_, t1w), *others = volumes.items()
    box = bounding_box(brain, (6, 6, 6))
    middle = [(part.start + part.stop) // 2 for part in box]
    rows = []
    for name, registered in others:
        row = []
        for axis, index in ((2, middle[2]), (0, max(box[0].start, middle[0] - 8))):
            part = tuple(slice(index, index + 1) if a == axis else box[a] for a in range(3))
            by_header = sitk.Resample(images[name], grid[part], sitk.Transform(), sitk.sitkLinear, 0.0)
            pixel_mm = np.delete(grid.GetSpacing(), axis)
            row += [_panel(plane.squeeze(axis), t1w[part].squeeze(axis), pixel_mm, f"{name} {stage}")
                    for stage, plane in (("before", array_of(by_header)), ("after", registered[part]))]
        height = max(panel.shape[0] for panel in row)
        rows.append(np.concatenate([np.pad(one, ((0, height - len(one)), (0, 4), (0, 0))) for one in row], axis=1))
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="png")
