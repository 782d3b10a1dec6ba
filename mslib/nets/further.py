"""Further simulated subjects, outside every cohort of the study: what nets are pre-trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import ndimage

from mslib.cohort import phantom
from mslib.cohort.acquisition import bias_field
from mslib.prep import select_slices
from mslib.study import StudyConfig, atomic_path, progress, stamped_folder
from mslib.study.provenance import made_by

from .data import SliceSet, slice_table

#: Seeds of further subjects start here, far from those of the study's cohorts.
FURTHER_SEED = 1_000_003
#: Area in mm2 at which the logarithmic scale of lesion and black-hole area bends.
FACT_MM2 = 20.0
#: Share of a bias field that N4 leaves in preprocessed images.
BIAS_LEFT = 0.3


#: Variance in mm2 of linear interpolation's weights between voxels of 1 mm, and their sum of squares: over all offsets.
LINEAR_MM2, LINEAR_SQUARES = 1 / 6, 2 / 3


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


def _further_subject(person, config: StudyConfig, mm: float, cache: Path) -> dict:
    """Slices of one further subject, scaled like preprocessed ones, their facts, and the true volumes.

    The head is sampled at points `mm` apart, as sharp as voxels of 1 mm show it: each slice is one of those that
    preprocessing would give, not a mean of several.
    """
    rendered = phantom.render(person, voxel_mm=mm, template=phantom.template(cache=cache))
    rng = np.random.default_rng([person.seed, 5])
    brain = rendered.brain
    chosen = select_slices(brain, round(config.prep.n_slices / mm))
    size = further_size(config)
    channels = [_cut(_scan(rendered.images[sequence], getattr(person.nuisance, sequence),
                           sequence != "T1w", brain, mm, config.prep.percentiles, rng),
                     brain, chosen, size) for sequence in config.sequences]
    areas = [mask[:, :, chosen].sum((0, 1)) * mm**2 for mask in (rendered.lesions, rendered.black_holes)]
    return {"images": np.stack(channels, -1).astype(np.float16), "facts": np.log1p(np.stack(areas, 1) / FACT_MM2),
            "volumes": [rendered.volumes["lesion_ml"], rendered.volumes["ventricle_ml"]]}


def further_size(config: StudyConfig) -> tuple[int, int]:
    """Rows and columns of further subjects' slices: the study's field of view at the coarser pixel, even numbers."""
    scale = config.model.pixel_mm / config.training.pretraining_pixel_mm
    return tuple(2 * round(size * scale / 2) for size in config.model.image_size)


def _write_slices(made, path: Path) -> None:
    """Write subjects as they come: ``images.npy``, then facts, volumes and slices of each, so that both or none are.

    Memory holds one subject. The header's room for the number of rows is numpy's own, made for arrays that grow.
    """
    small: dict[str, list] = {"facts": [], "volumes": [], "counts": []}
    with atomic_path(path.with_name("images.npy")) as temporary, temporary.open("wb") as file:
        for subject in made:
            images = np.ascontiguousarray(subject["images"], np.float16)
            header = {"descr": "<f2", "fortran_order": False, "shape": (sum(small["counts"]), *images.shape[1:])}
            if not small["counts"]:
                np.lib.format.write_array_header_1_0(file, header)
            file.write(images.data)
            for key, value in {**subject, "counts": len(images)}.items():
                if key in small:
                    small[key].append(value)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (sum(small["counts"]), *images.shape[1:])})
    with atomic_path(path) as temporary:
        np.savez(temporary, facts=np.concatenate(small["facts"]).astype("float32"), counts=small["counts"],
                 volumes=small["volumes"])


def _further_folder(config: StudyConfig, run_dir: str | Path) -> tuple[list, Path]:
    """People, in the order of their ids, and the folder that holds their slices, made once per run."""
    facts = {"settings": json.loads(config.model_dump_json(include={"seed", "groups", "sequences", "prep", "model"})),
             "subjects": config.training.pretraining_subjects, "pixel_mm": config.training.pretraining_pixel_mm,
             "code": made_by("mslib.nets.further")}
    path = stamped_folder(Path(run_dir) / "further", facts) / "slices.npz"
    per_group = config.training.pretraining_subjects // len(config.groups)
    people = phantom.draw_participants(dict.fromkeys(config.groups, per_group), config.seed + FURTHER_SEED, prefix="P")
    if not path.exists():
        mm = config.training.pretraining_pixel_mm
        cache = path.with_name("template.npz")
        phantom.template(cache=cache)
        made = Parallel(n_jobs=2, return_as="generator")(
            delayed(_further_subject)(person, config, mm, cache) for person in people)
        _write_slices(progress(made, total=len(people), desc="simulate further subjects", unit="subject"), path)
    return people, path.parent


def further_slices(config: StudyConfig, run_dir: str | Path) -> SliceSet:
    """Slices of further simulated subjects outside every cohort of the study, made once per run.

    Parameters
    ----------
    config : StudyConfig
        ``training.pretraining_subjects`` in equal shares of the groups, at ``training.pretraining_pixel_mm``.
    run_dir : path
        Keeps them in ``further/``.

    Returns
    -------
    SliceSet
        Images mapped from the file, not held in memory, with ``facts``: log(1 + area / 20 mm2) of lesions and of
        black holes in the slice.
    """
    people, folder = _further_folder(config, run_dir)
    with np.load(folder / "slices.npz", allow_pickle=False) as stored:
        counts, facts = stored["counts"], stored["facts"]
    groups = pd.Series({person.id: person.group for person in people})
    table = slice_table(dict(zip(groups.index, counts)), groups, config.groups)
    return SliceSet(np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False), table, facts)


def further_truth(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """``subject, group, lesion_load_ml, ventricle_volume_ml`` of the further subjects."""
    people, folder = _further_folder(config, run_dir)
    with np.load(folder / "slices.npz", allow_pickle=False) as stored:
        volumes = stored["volumes"]
    rows = [(person.id, person.group, *volume) for person, volume in zip(people, volumes)]
    return pd.DataFrame(rows, columns=["subject", "group", "lesion_load_ml", "ventricle_volume_ml"])
