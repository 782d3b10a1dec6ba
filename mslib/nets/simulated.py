"""Slices of simulated people as preprocessing would give them, without its cost: for pre-training and ``cause``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mslib.cohort import render
from mslib.cohort.acquisition import bias_field
from mslib.prep import select_slices

from .data import evenly

#: Seeds of the patients of the ``cause`` networks start here, far from those of every cohort.
CAUSE_SEED = 2_000_003
#: Areas in mm2 per slice that pre-training learns beside the class.
AREAS = ("lesion", "black_hole", "ventricle")
#: Area in mm2 at which the logarithmic scale of areas bends.
AREA_MM2 = 20.0
#: Least lesion area in mm2 of a slice of the ``cause`` networks.
LEAST_MM2 = 20.0
#: Share of a bias field that N4 leaves in preprocessed images.
BIAS_LEFT = 0.3
#: Variance in mm2 of the weights of linear interpolation between voxels of 1 mm, over all offsets.
LINEAR_MM2 = 1 / 6


def noise_left(interpolated: bool, mm: float) -> tuple[float, float]:
    """Noise SD over the scan's own, in voxels of 1 mm on the T1w grid and in the pixels of `mm` of a slice.

    A pixel is the average of the voxels that it covers. Between voxels of white noise linear interpolation leaves,
    over all offsets, 2/3 of the variance along each axis, and 1/6 between neighbours.
    """
    if not interpolated:
        return 1.0, 1 / mm
    return (2 / 3) ** 1.5, (2 / 3) ** 0.5 * (mm - 1 / 3) / mm**2


def _spread(image, variance, axes):
    """Blur by three weights of that variance (in squared voxels) along each of `axes`."""
    for axis in axes:
        image = ndimage.convolve1d(image, [variance / 2, 1 - variance, variance / 2], axis, mode="constant")
    return image


def scan_slices(heads: Sequence[dict[str, np.ndarray]], brain: np.ndarray, person, chosen: np.ndarray,
                sequences: Sequence[str], mm: float, percentiles: tuple[float, float], rng: np.random.Generator,
                wide: bool = False) -> list[np.ndarray]:
    """Axial slices of aligned heads as scanning and preprocessing would leave them.

    T1w stays on its grid; T2w and FLAIR are interpolated twice, when the moved head is scanned and on the way back.
    Thick slices blur along z: the variance of their box profile and of the linear interpolation back to thin slices
    is a quarter of the squared thickness. The noise of magnitude images lifts dark tissue to sqrt(A^2 + SD^2) (Rician
    second moment), and widens the range that the percentiles find before pixels average it.

    Parameters
    ----------
    heads : sequence of dict of str to ndarray, (X, Y, Z)
        Noise-free scans of one person, of `mslib.cohort.render`. All get the bias field, the noise and the intensity
        scale of the first, so that they stay equal wherever they were equal.
    brain : ndarray of bool, (X, Y, Z)
    chosen : ndarray of int
        Axial slices, ascending.
    mm : float
        Voxel size of the heads, the pixel size of the slices.
    percentiles : (float, float)
        Of the intensities in the brain that become 0 and 1.
    wide : bool
        Vary noise, sharpness and the border of the brain mask beyond the study's own scans.

    Returns
    -------
    list of ndarray of float32, (X, Y, n, M)
        One per head, 0 outside the brain.
    """
    brain = brain[:, :, chosen]
    if wide and (cut := int(rng.integers(0, 3))):
        brain = ndimage.binary_erosion(brain, np.ones((3, 3, 1)), iterations=cut)
    slice_mm = mm * float(np.diff(chosen).mean()) if len(chosen) > 1 else mm
    channels = []
    for sequence in sequences:
        scan, interpolated = person.nuisance[sequence], sequence != "T1w"
        thick, in_voxel, in_pixel = scan.slice_mm > mm, *noise_left(interpolated, mm)
        field = bias_field(rng, brain, (mm, mm, slice_mm), BIAS_LEFT * scan.bias)
        noise = rng.standard_normal(brain.shape, dtype=np.float32)
        more_noise, blur = np.exp(wide * rng.uniform(-0.5, 0.5)), wide * rng.uniform(0, 0.4)
        versions = []
        for head in heads:
            image = head[sequence]
            if thick:
                image = ndimage.gaussian_filter1d(image, scan.slice_mm / 2 / mm, axis=2)
            elif interpolated:
                image = _spread(image, 2 * LINEAR_MM2 / mm**2, [2])
            image = image[:, :, chosen]
            if interpolated:
                image = _spread(image, 2 * LINEAR_MM2 / mm**2, (0, 1))
            image = (image * field).astype(np.float32)
            if not versions:
                lift = np.float32(more_noise * image[brain].mean() / scan.snr)
                noise *= lift
                low, high = np.percentile((np.hypot(image, lift) + in_voxel * noise)[brain], percentiles)
            pixels = np.clip((np.hypot(image, lift) - low) / (high - low), 0, 1) * brain
            pixels = _spread(pixels, blur, (0, 1))
            versions.append(np.clip(pixels + in_pixel * noise / (high - low), 0, 1) * brain)
        channels.append(versions)
    return [np.stack(each, -1) for each in zip(*channels)]


def cut(volume: np.ndarray, brain: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Chosen slices (X, Y, n[, M]) in the order of `mslib.prep.slice_stack`, (n, rows, columns[, M]).

    The field of view of `size` pixels is centred on `brain`, the whole (X, Y, Z) mask.
    """
    part = np.moveaxis(volume[::-1, ::-1], 2, 0).swapaxes(1, 2)
    for axis, n in ((1, size[0]), (2, size[1])):
        present = np.flatnonzero(brain[::-1, ::-1].any((axis - 1, 2)))
        start = round((present[0] + present[-1] + 1 - n) / 2)
        padded = np.pad(part, [(n, n) if a == axis else (0, 0) for a in range(part.ndim)])
        part = np.take(padded, np.arange(start + n, start + 2 * n), axis)
    return part


def pretraining_slices(person, count: int, variation: float, *, mm: float, size: tuple[int, int], n_slices: int,
                       percentiles: tuple[float, float], sequences: Sequence[str], template) -> dict:
    """Slices of one person, spread over the brain, with how much of what they show: numbers, never places.

    Parameters
    ----------
    variation : float
        Spread of contrast between people as a multiple of the study's; above 1 noise, sharpness and mask vary more too.
    mm : float
        Pixel size and distance of the slices from which `count` are taken.
    size : (int, int)
        Rows and columns.
    n_slices : int
        Millimetres of the brain from bottom to top that are covered.
    percentiles, sequences
        As of `scan_slices`.
    template : mslib.cohort.anatomy.Template
        At `mm`.

    Returns
    -------
    dict
        ``images``, float16 (count, rows, columns, sequences); ``areas``, (count, 3), log(1 + area / 20 mm2) of `AREAS`;
        ``lesion_load_ml``, ``ventricle_volume_ml``.
    """
    rendered = render(person, mm, template, variation=variation)
    rng = np.random.default_rng([person.seed, 5])
    window = select_slices(rendered.brain, round(n_slices / mm))
    chosen = window[((np.arange(count) + rng.random()) * len(window) / count).astype(int)]
    images, = scan_slices([rendered.images], rendered.brain, person, chosen, sequences, mm, percentiles, rng,
                          variation > 1)
    areas = [mask[:, :, chosen].sum((0, 1)) * mm**2
             for mask in (rendered.lesions, rendered.black_holes, rendered.ventricles)]
    return {"images": cut(images, rendered.brain, size).astype(np.float16),
            "areas": np.log1p(np.stack(areas, 1) / AREA_MM2), "lesion_load_ml": rendered.volumes["lesion_ml"],
            "ventricle_volume_ml": rendered.volumes["ventricle_ml"]}


def cause_slices(person, count: int, *, mm: float, size: tuple[int, int], n_slices: int,
                 percentiles: tuple[float, float], sequences: Sequence[str], template) -> dict:
    """Slices of a patient with and without the lesions, all else equal, bit for bit: only lesions tell them apart.

    At most `count` slices with at least `LEAST_MM2` of lesion, spread evenly; other parameters as of
    `pretraining_slices`.

    Returns
    -------
    dict
        ``images``, float16 (2, n, rows, columns, sequences), without lesions first; ``lesions``, ``brain``, bool
        (n, rows, columns); ``slices``, (n,), numbers in the patient's `n_slices`; ``areas_mm2``, (n,), of lesion.
    """
    rendered = render(person, mm, template)
    window = select_slices(rendered.brain, round(n_slices / mm))
    area = rendered.lesions[:, :, window].sum((0, 1)) * mm**2
    index = evenly(np.flatnonzero(area >= LEAST_MM2), count)
    chosen, rng = window[index], np.random.default_rng([person.seed, 6])
    versions = scan_slices([rendered.images, rendered.lesion_free], rendered.brain, person, chosen, sequences, mm,
                           percentiles, rng) if len(index) else [
                               np.empty((*rendered.brain.shape[:2], 0, len(sequences)))] * 2
    lesions, brain = (cut(mask[:, :, chosen], rendered.brain, size) for mask in (rendered.lesions, rendered.brain))
    return {"images": np.stack([cut(images, rendered.brain, size).astype(np.float16) for images in versions[::-1]]),
            "lesions": lesions, "brain": brain, "slices": index, "areas_mm2": area[index]}
