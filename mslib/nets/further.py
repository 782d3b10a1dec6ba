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
from mslib.prep import select_slices, slice_stack
from mslib.study import StudyConfig, atomic_path, progress, stamped_folder
from mslib.study.provenance import made_by

from .data import SliceSet, gather

#: Seeds of further subjects start here, far from those of the study's cohorts.
FURTHER_SEED = 1_000_003
#: Area in mm2 at which the logarithmic scale of lesion and black-hole area bends.
FACT_MM2 = 20.0
#: Share of a bias field that is left in preprocessed images, and noise SD over the 99th percentile of the brain.
BIAS_LEFT, NOISE = 0.3, (0.005, 0.02)


def _scan(image, scan, brain, mm, rng):
    """What a scan of the aligned head would look like after preprocessing, without the cost of either.

    Thick slices blur along z: the variance of their box profile and of the linear interpolation back to thin slices
    is a quarter of the squared thickness. N4 leaves about `BIAS_LEFT` of the bias field.
    """
    if scan.slice_mm > mm:
        image = ndimage.gaussian_filter1d(image, scan.slice_mm / 2 / mm, axis=2)
    image = image * bias_field(rng, brain, (mm,) * 3, BIAS_LEFT * scan.bias)
    noise = rng.uniform(*NOISE) * np.percentile(image[brain], 99)
    return np.hypot(image + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape))


def _further_subject(person, config: StudyConfig, mm: float, cache: Path) -> dict:
    """Slices of one further subject, scaled like preprocessed ones, their facts, and the true volumes."""
    rendered = phantom.render(person, voxel_mm=mm, template=phantom.template(mm, cache=cache))
    rng = np.random.default_rng([person.seed, 5])
    brain = rendered.brain
    channels = []
    for sequence in config.sequences:
        image = _scan(rendered.images[sequence], getattr(person.nuisance, sequence), brain, mm, rng)
        low, high = np.percentile(image[brain], config.prep.percentiles)
        channels.append(np.clip((image - low) / (high - low), 0, 1) * brain)
    n_slices = round(config.prep.n_slices / mm)
    stack = slice_stack(channels, brain, rendered.affine, n_slices=n_slices, image_size=further_size(config),
                        pixel_mm=mm)
    chosen = select_slices(brain, n_slices)
    areas = [mask[:, :, chosen].sum((0, 1)) * mm**2 for mask in (rendered.lesions, rendered.black_holes)]
    return {"images": stack["images"], "facts": np.log1p(np.stack(areas, 1) / FACT_MM2),
            "volumes": [rendered.volumes["lesion_ml"], rendered.volumes["ventricle_ml"]]}


def further_size(config: StudyConfig) -> tuple[int, int]:
    """Rows and columns of further subjects' slices: the study's field of view at the coarser pixel, even numbers."""
    scale = config.model.pixel_mm / config.training.pretraining_pixel_mm
    return tuple(2 * round(size * scale / 2) for size in config.model.image_size)


def _further_arrays(config: StudyConfig, run_dir: str | Path) -> tuple[list, dict[str, np.ndarray]]:
    """People and arrays of ``further/slices.npz``, made once per run."""
    facts = {"settings": json.loads(config.model_dump_json(include={"seed", "groups", "sequences", "prep", "model"})),
             "subjects": config.training.pretraining_subjects, "pixel_mm": config.training.pretraining_pixel_mm,
             "code": made_by("mslib.nets.further")}
    path = stamped_folder(Path(run_dir) / "further", facts) / "slices.npz"
    per_group = config.training.pretraining_subjects // len(config.groups)
    people = phantom.draw_participants(dict.fromkeys(config.groups, per_group), config.seed + FURTHER_SEED, prefix="P")
    if not path.exists():
        mm = config.training.pretraining_pixel_mm
        cache = path.with_name("template.npz")
        phantom.template(mm, cache=cache)
        made = Parallel(n_jobs=2, return_as="generator")(
            delayed(_further_subject)(person, config, mm, cache) for person in people)
        bar = progress(made, total=len(people), desc="simulate further subjects", unit="subject")
        arrays = {f"{key}_{person.id}": value for person, subject in zip(people, bar) for key, value in subject.items()}
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return people, dict(stored)


def further_slices(config: StudyConfig, run_dir: str | Path) -> SliceSet:
    """Slices of further simulated subjects outside every cohort of the study, made once per run.

    Parameters
    ----------
    config : StudyConfig
        ``training.pretraining_subjects`` in equal shares of the groups, at ``training.pretraining_pixel_mm``.
    run_dir : path
        Keeps them as ``further/slices.npz``.

    Returns
    -------
    SliceSet
        With ``facts``: log(1 + area / 20 mm2) of lesions and of black holes in the slice.
    """
    people, arrays = _further_arrays(config, run_dir)
    stacks, facts = ({person.id: arrays[f"{key}_{person.id}"] for person in people} for key in ("images", "facts"))
    return gather(stacks, pd.Series({person.id: person.group for person in people}), config.groups, facts)


def further_truth(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """``subject, group, lesion_load_ml, ventricle_volume_ml`` of the further subjects."""
    people, arrays = _further_arrays(config, run_dir)
    rows = [(person.id, person.group, *arrays[f"volumes_{person.id}"]) for person in people]
    return pd.DataFrame(rows, columns=["subject", "group", "lesion_load_ml", "ventricle_volume_ml"])
