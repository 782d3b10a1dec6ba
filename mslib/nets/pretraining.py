"""Pre-training on a cohort of simulated people outside the study, where ImageNet weights cannot be had.

It gives more than ImageNet does: these people belong to the same groups. Beside the group of the subject the network
learns how much lesion and how much black hole a slice shows: numbers, never places, so that where its maps point is
not taught.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy import ndimage

from mslib.cohort import draw_participants, render
from mslib.cohort.acquisition import bias_field
from mslib.prep import select_slices
from mslib.study.errors import StudyError
from mslib.study.files import atomic_path

from .data import SliceSet, slice_table
from .train import Recipe, fit

#: Seeds of the pre-training cohort start here, far from those of the study's cohorts.
PRETRAINING_SEED = 1_000_003
#: Added to the seed by every stage: its epochs draw other slices, and move them otherwise, than the stage before.
STAGE_SEEDS = 1000
#: Area in mm2 at which the logarithmic scale of lesion and black-hole area bends.
AREA_MM2 = 20.0
#: Share of a bias field that N4 leaves in preprocessed images.
BIAS_LEFT = 0.3
#: Variance in mm2 of linear interpolation's weights between voxels of 1 mm, and their sum of squares: over all offsets.
LINEAR_MM2, LINEAR_SQUARES = 1 / 6, 2 / 3


def pretraining_people(groups: Sequence[str], subjects: int, seed: int) -> list:
    """People of the pre-training cohort, in equal shares of the groups; `seed` of the study, which has other people."""
    counts = dict.fromkeys(groups, subjects // len(groups))
    return draw_participants(counts, seed + PRETRAINING_SEED, prefix="P")


def pretraining_size(image_size: tuple[int, int], pixel_mm: float, mm: float) -> tuple[int, int]:
    """Rows and columns of slices with pixels of `mm` over the field of view of the study, even numbers."""
    return tuple(2 * round(size * pixel_mm / mm / 2) for size in image_size)


def _pixel_mm2(mm):
    """Variance along an axis of a pixel: the average over it of the linear interpolation between voxels of 1 mm."""
    return mm**2 / 12 + LINEAR_MM2


def noise_left(interpolated: bool, mm: float) -> tuple[float, float]:
    """Noise SD over the scan's own, in voxels of 1 mm on the T1w grid and in the pixels of `mm` of a slice.

    Sums of squared weights: `LINEAR_SQUARES` along each interpolated axis, in the slice those of a normal density of
    the pixel's variance.
    """
    spread = _pixel_mm2(mm) + LINEAR_MM2 * interpolated
    in_pixel = 1 / (4 * np.pi * spread) ** 0.5
    return (LINEAR_SQUARES**1.5, LINEAR_SQUARES**0.5 * in_pixel) if interpolated else (1.0, in_pixel)


def _spread(image, variance, axes):
    """Blur by three weights of that variance (in squared voxels) along each of `axes`."""
    for axis in axes:
        image = ndimage.convolve1d(image, [variance / 2, 1 - variance, variance / 2], axis, mode="constant")
    return image


def _scan(image, scan, interpolated, brain, mm, percentiles, rng):
    """What a scan of the aligned head would look like after preprocessing, without the cost of either.

    T1w stays on its grid; T2w and FLAIR are interpolated twice, when the moved head is scanned and on the way back.
    Thick slices blur along z: the variance of their box profile and of the linear interpolation back to thin slices
    is a quarter of the squared thickness. The noise of magnitude images lifts dark tissue to sqrt(A^2 + SD^2) (Rician
    second moment), and widens the range that the percentiles find before pixels average it.
    """
    thick = scan.slice_mm > mm
    if interpolated:
        image = _spread(image, 2 * LINEAR_MM2 / mm**2, (0, 1) if thick else (0, 1, 2))
    if thick:
        image = ndimage.gaussian_filter1d(image, scan.slice_mm / 2 / mm, axis=2)
    image = image * bias_field(rng, brain, (mm,) * 3, BIAS_LEFT * scan.bias)
    noise_sd = image[brain].mean() / scan.snr
    noise = noise_sd * rng.standard_normal(image.shape, dtype=np.float32)
    in_voxel, in_pixel = noise_left(interpolated, mm)
    lifted = np.hypot(image, noise_sd)
    low, high = np.percentile((lifted + in_voxel * noise)[brain], percentiles)
    pixels = _spread(np.clip((lifted - low) / (high - low), 0, 1) * brain, _pixel_mm2(mm) / mm**2, (0, 1))
    return np.clip(pixels + in_pixel * noise / (high - low) * brain, 0, 1)


def _cut(volume, brain, chosen, size):
    """Slices in the order of `slice_stack`, voxels as pixels, the field of view centred on the brain."""
    part = np.moveaxis(volume[::-1, ::-1, chosen], 2, 0).swapaxes(1, 2)
    for axis, n in ((1, size[0]), (2, size[1])):
        present = np.flatnonzero(brain[::-1, ::-1].any((axis - 1, 2)))
        start = round((present[0] + present[-1] + 1 - n) / 2)
        padded = np.pad(part, [(n, n) if a == axis else (0, 0) for a in range(3)])
        part = np.take(padded, np.arange(start + n, start + 2 * n), axis)
    return part


def pretraining_subject(person, *, mm: float, size: tuple[int, int], n_slices: int, percentiles: tuple[float, float],
                        sequences: Sequence[str], template) -> dict:
    """Slices of one person of `pretraining_people`, scaled like preprocessed ones.

    The head is sampled at points `mm` apart, as sharp as voxels of 1 mm show it: each slice is one of those that
    preprocessing would give, not a mean of several.

    Parameters
    ----------
    mm : float
        Pixel size and distance of slices.
    size : (int, int)
        Rows and columns, from `pretraining_size`.
    n_slices : int
        Slices per subject of the study, 1 mm apart: here as many millimetres are covered.
    percentiles : (float, float)
        Of the intensities in the brain that become 0 and 1.
    sequences : sequence of str
        Order of the channels.
    template : mslib.cohort.anatomy.Template

    Returns
    -------
    dict
        ``subject``, ``group``; ``images``, float16 (n, rows, columns, sequences); ``areas``, (n, 2),
        log(1 + area / 20 mm2) of lesions and of black holes in the slice; ``volumes``, millilitres of lesions and of
        ventricles.
    """
    rendered = render(person, voxel_mm=mm, template=template)
    rng = np.random.default_rng([person.seed, 5])
    brain = rendered.brain
    chosen = select_slices(brain, round(n_slices / mm))
    channels = [_cut(_scan(rendered.images[sequence], getattr(person.nuisance, sequence), sequence != "T1w", brain, mm,
                           percentiles, rng), brain, chosen, size) for sequence in sequences]
    areas = [mask[:, :, chosen].sum((0, 1)) * mm**2 for mask in (rendered.lesions, rendered.black_holes)]
    return {"subject": person.id, "group": person.group, "images": np.stack(channels, -1).astype(np.float16),
            "areas": np.log1p(np.stack(areas, 1) / AREA_MM2),
            "volumes": [rendered.volumes["lesion_ml"], rendered.volumes["ventricle_ml"]]}


def write_pretraining(made: Iterable[dict], folder: str | Path) -> None:
    """Write what `pretraining_subject` makes as it comes; memory holds one subject.

    The folder gets ``images.npy`` and then, so that both or none are whole, ``slices.npz``.
    """
    folder, rest = Path(folder), []
    # The header's room for the number of rows is numpy's own, made for arrays that grow.
    with atomic_path(folder / "images.npy") as temporary, temporary.open("wb") as file:
        for subject in made:
            images = np.ascontiguousarray(subject["images"], np.float16)
            rest.append({**subject, "images": len(images)})
            header = {"descr": "<f2", "fortran_order": False,
                      "shape": (sum(one["images"] for one in rest), *images.shape[1:])}
            if len(rest) == 1:
                np.lib.format.write_array_header_1_0(file, header)
            file.write(images.data)
        if not rest:
            raise StudyError("training.pretraining_subjects: must be at least one per group (got none)")
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)
    rest = pd.DataFrame(rest)
    with atomic_path(folder / "slices.npz") as temporary:
        np.savez(temporary, subjects=rest["subject"].tolist(), groups=rest["group"].tolist(), counts=rest["images"],
                 areas=np.concatenate(rest["areas"]).astype("float32"), volumes=rest["volumes"].tolist())


def read_pretraining(folder: str | Path, classes: Sequence[str]) -> tuple[SliceSet, pd.DataFrame]:
    """What `write_pretraining` wrote: slices with `areas`, whose images are mapped from the file, and volumes.

    Volumes are a table: ``subject, group, lesion_load_ml, ventricle_volume_ml``.
    """
    folder = Path(folder)
    with np.load(folder / "slices.npz", allow_pickle=False) as stored:
        groups = pd.Series(stored["groups"].tolist(), index=stored["subjects"].tolist())
        counts, areas, volumes = stored["counts"], stored["areas"], stored["volumes"]
    table = slice_table(dict(zip(groups.index, counts)), groups, list(classes))
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    return SliceSet(images, table, areas), pd.DataFrame({
        "subject": groups.index, "group": groups.to_numpy(), "lesion_load_ml": volumes[:, 0],
        "ventricle_volume_ml": volumes[:, 1]})


def pretrain_stage(slices: SliceSet, parts: pd.Series, model: keras.Model, recipe: Recipe, folder: str | Path,
                   label: str) -> pd.DataFrame:
    """Train one stage: the class, and the areas beside it.

    Stages go from coarse to fine pixels (`SliceSet.shrunk`), each from the weights of the one before, with a seed
    `STAGE_SEEDS` above it. `parts` of every slice: those of ``validation`` (every third) decide which epoch is kept,
    all others train. The other parameters, and what is returned, are those of `fit`.
    """
    held = np.asarray(parts) == "validation"
    head = keras.layers.Dense(slices.areas.shape[1], name="areas",
                              kernel_initializer=keras.initializers.GlorotUniform(recipe.seed))
    return fit(model, slices, np.flatnonzero(~held), np.flatnonzero(held)[::3], recipe, folder, label, head)
