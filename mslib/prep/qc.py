"""Quality control of one preprocessed subject: numbers, flags with reasons, and one picture."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mslib.study import atomic_path

from .images import array_of, bounding_box
from .registration import Registration

BRAIN_ML = (700.0, 2200.0)
EDGE_AGREEMENT = 12.0  # right pairs: 14 and more; heads of two persons: 9 at most
MARGIN = SHIFT = 6  # voxels


def _unit_gradients(values: np.ndarray) -> np.ndarray:
    """Gradient directions, shortened where the gradient drowns in noise (below 0.02 per voxel)."""
    gradient = np.stack(np.gradient(values.astype(np.float32)))
    length = np.einsum("i...,i...->...", gradient, gradient)
    length += np.float32(0.02 ** 2)
    gradient /= np.sqrt(length, out=length)
    return gradient


def edge_agreement(first: np.ndarray, second: np.ndarray, brain: np.ndarray) -> float:
    """How much better edges of two images run together than when one image is displaced.

    Agreement is the mean squared cosine between intensity gradients inside the brain (normalised gradient fields;
    Haber and Modersitzki 2006). It is compared with the agreement after displacing the second image by 6
    voxels to either side along each axis.

    Parameters
    ----------
    first, second : ndarray of shape (X, Y, Z), in [0, 1]
    brain : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    float
        Agreement in place minus the mean of the six displaced ones, over their standard deviation: within about
        +-3 for unrelated images, at most 9 for two persons' heads.
    """
    box = bounding_box(brain, (SHIFT + 1,) * 3)
    a, b, inside = _unit_gradients(first[box]), _unit_gradients(second[box]), np.flatnonzero(brain[box])
    a = a.reshape(3, -1)[:, inside]

    def agreement(other):
        cosine = np.einsum("ij,ij->j", a, other.reshape(3, -1)[:, inside])
        return float(np.square(cosine, out=cosine).mean())

    displaced = [agreement(np.roll(b, step, axis)) for axis in (1, 2, 3) for step in (-SHIFT, SHIFT)]
    return (agreement(b) - np.mean(displaced)) / max(np.std(displaced), 1e-6)


def quality_row(subject: str, registrations: dict[str, Registration], agreement: dict[str, float],
                brain_ml: float, n_slices: int, wanted: int, mask_source: str) -> dict:
    """One flat row of numbers of a subject, ready for JSON; ``flags`` lists the reasons for doubt.

    `registrations` and `agreement` (`edge_agreement` after registration) are of each sequence with T1w, `brain_ml` is
    the volume of the brain mask in mL, `wanted` the slices asked for, `mask_source` ``given`` or ``template``.
    """
    row = {"subject": subject, "brain_ml": round(brain_ml, 1), "mask": mask_source, "n_slices": n_slices}
    flags = []
    for sequence, found in registrations.items():
        numbers = {"mi_start": found.metric_start, "mi_end": found.metric_end, "motion_mm": found.motion_mm,
                   "motion_deg": found.motion_deg, "overlap": found.overlap, "edges": agreement[sequence]}
        row |= {f"{sequence}_{key}": round(value, 4) if math.isfinite(value) else None
                for key, value in numbers.items()}
        flags += [f"{sequence}: {reason}" for reason in found.flags]
        if agreement[sequence] < EDGE_AGREEMENT:
            flags.append(f"{sequence}: edges do not run along those of T1w ({agreement[sequence]:.1f} SD, "
                         f"at least {EDGE_AGREEMENT:g} expected)")
    if not BRAIN_ML[0] <= brain_ml <= BRAIN_ML[1]:
        flags.append(f"brain mask of {brain_ml:.0f} mL (expected {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f})")
    note = "" if n_slices == wanted else f"only {n_slices} slices hold brain, all are used ({wanted} wanted)"
    return row | {"flags": flags, "note": note}


def _planes(brain: np.ndarray) -> list[tuple[int, int, tuple[slice, ...]]]:
    """An axial and a sagittal plane: axis, index, box."""
    box = bounding_box(brain, (MARGIN,) * 3)
    middle = [(part.start + part.stop) // 2 for part in box]
    return [(2, middle[2], box), (0, max(box[0].start, middle[0] - 8), box)]


def _cut(values: np.ndarray, plane: tuple) -> np.ndarray:
    axis, index, box = plane
    part = list(box)
    part[axis] = index
    return values[tuple(part)].T


def registration_figure(path, t1w: np.ndarray, brain: np.ndarray, before: dict, after: dict, spacing,
                        title: str):
    """Draw edges of T1w over each other sequence, before and after registration; the same bytes for the same input.

    Good is: lines follow ventricles, cortex and brain outline in the columns "after". Images are (X, Y, Z) on the T1w
    grid, T1w in [0, 1]; `before` and `after` map a sequence to its intensities by headers alone, and registered;
    `spacing` is in mm.
    """
    planes = _planes(brain)
    figure = Figure(figsize=(8.6, 2.6 * len(after)), dpi=64, facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=9)
    axes = figure.subplots(len(after), 2 * len(planes), squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.88, 0.03, 0.08)
    for row, sequence in zip(axes, after):
        for column, (stage, plane) in enumerate((s, p) for p in planes for s in (before, after)):
            ax, axis = row[column], plane[0]
            inplane = [spacing[a] for a in range(3) if a != axis]
            values = _cut(stage[sequence], plane)
            ax.imshow(values, cmap="gray", origin="lower", aspect=inplane[1] / inplane[0],
                      interpolation="bilinear", vmin=0, vmax=max(float(np.percentile(values, 99.5)), 1e-6))
            smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(
                sitk.GetImageFromArray(np.ascontiguousarray(_cut(t1w, plane))), 1.5))
            ax.contour(smooth, levels=[0.3, 0.62], colors=["#ffb000", "#00d0ff"], linewidths=0.6)
            ax.set_axis_off()
            ax.set_title(f"{sequence} {'before' if stage is before else 'after'}", color="white", fontsize=8)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    with atomic_path(path) as temporary:
        picture.save(temporary, format="png", optimize=True)
    return path


def header_alignment(moving: sitk.Image, grid: sitk.Image, brain: np.ndarray) -> np.ndarray:
    """`moving` on `grid` by the headers alone, only in the planes that `registration_figure` shows."""
    values = np.zeros(brain.shape, np.float32)
    for axis, index, box in _planes(brain):
        part = list(box)
        part[axis] = slice(index, index + 1)
        piece = grid[part[0], part[1], part[2]]
        values[tuple(part)] = array_of(sitk.Resample(moving, piece, sitk.Transform(), sitk.sitkLinear, 0.0,
                                                     sitk.sitkFloat32))
    return values
