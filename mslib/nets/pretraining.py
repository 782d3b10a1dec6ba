"""Pre-training on further simulated subjects: what ImageNet is for the published nets, where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from mslib.cohort import phantom
from mslib.prep import select_slices, slice_stack
from mslib.study import StudyConfig, atomic_path, progress, stamped_folder
from mslib.study.provenance import code_digest

from .data import SliceSet, gather
from .splits import split_subjects
from .training import Recipe, choose_precision, fit
from .vgg import build_trainable

#: Seeds of further subjects start here, far from those of the study's cohorts.
FURTHER_SEED = 1_000_003
#: Area in mm2 at which the logarithmic scale of lesion and black-hole area bends.
FACT_MM2 = 20.0


def _further_stack(person, config: StudyConfig, mm: float, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Aligned slices of one further subject with noise, scaled like preprocessed ones, and their facts."""
    rendered = phantom.render(person, voxel_mm=mm, template=phantom.template(mm, cache=cache))
    rng = np.random.default_rng([person.seed, 5])
    brain = rendered.brain
    channels = []
    for sequence in config.sequences:
        image = rendered.images[sequence] * np.exp(rng.normal(0, 0.02))
        noise = rng.uniform(0.005, 0.02) * np.percentile(image[brain], 99)
        image = np.hypot(image + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape))
        low, high = np.percentile(image[brain], config.prep.percentiles)
        channels.append(np.clip((image - low) / (high - low), 0, 1) * brain)
    n_slices = round(config.prep.n_slices / mm)
    stack = slice_stack(channels, brain, rendered.affine, n_slices=n_slices, image_size=further_size(config),
                        pixel_mm=mm)
    chosen = select_slices(brain, n_slices)
    areas = [mask[:, :, chosen].sum((0, 1)) * mm**2 for mask in (rendered.lesions, rendered.black_holes)]
    return stack["images"], np.log1p(np.stack(areas, 1) / FACT_MM2)


def further_size(config: StudyConfig) -> tuple[int, int]:
    """Rows and columns of further subjects' slices: the study's field of view at the coarser pixel, even numbers."""
    scale = config.model.pixel_mm / config.training.pretraining_pixel_mm
    return tuple(2 * round(size * scale / 2) for size in config.model.image_size)


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
    facts = {"settings": json.loads(config.model_dump_json(include={"seed", "groups", "sequences", "prep", "model"})),
             "subjects": config.training.pretraining_subjects, "pixel_mm": config.training.pretraining_pixel_mm,
             "code": code_digest("mslib.nets.pretraining")}
    path = stamped_folder(Path(run_dir) / "further", facts) / "slices.npz"
    per_group = config.training.pretraining_subjects // len(config.groups)
    people = phantom.draw_participants(dict.fromkeys(config.groups, per_group), config.seed + FURTHER_SEED, prefix="P")
    if not path.exists():
        mm = config.training.pretraining_pixel_mm
        cache = path.with_name("template.npz")
        phantom.template(mm, cache=cache)
        made = Parallel(n_jobs=2, return_as="generator")(
            delayed(_further_stack)(person, config, mm, cache) for person in people)
        bar = progress(made, total=len(people), desc="simulate further subjects", unit="subject")
        arrays = {}
        for person, (images, facts) in zip(people, bar):
            arrays |= {f"images_{person.id}": images, f"facts_{person.id}": facts}
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        stacks = {person.id: stored[f"images_{person.id}"] for person in people}
        facts = {person.id: stored[f"facts_{person.id}"] for person in people}
    return gather(stacks, pd.Series({person.id: person.group for person in people}), config.groups, facts)


def pretrained_weights(backbone: str, config: StudyConfig, run_dir: str | Path) -> list[np.ndarray]:
    """Weights of a net (with batch norm) trained on further simulated subjects; a finished one is taken up.

    Beside the group of the subject the net learns how much lesion and how much black hole a slice shows: numbers,
    never places, so that where its maps point is not taught.
    """
    slices = further_slices(config, run_dir)
    facts = {"training": json.loads(config.training.model_dump_json()), "slices": slices.digest(),
             "code": code_digest("mslib.nets.pretraining")}
    folder = stamped_folder(Path(run_dir) / "nets" / backbone / "pretraining", facts)
    training = config.training
    precision = choose_precision(training.precision)
    shape = (*slices.images.shape[1:3], len(config.sequences))
    model = build_trainable(backbone, len(config.groups), shape, precision)
    groups = slices.table.groupby("subject")["group"].first()
    parts = slices.table["subject"].map(split_subjects(groups, training.split, config.seed)).to_numpy()
    recipe = Recipe(training.pretraining, training.augmentation, training.batch_size, training.weight_decay,
                    training.pretraining.epochs, config.seed, None)
    fit(model, slices, np.flatnonzero(parts != "validation"), np.flatnonzero(parts == "validation"), folder, recipe,
        f"{backbone} pre-training", keras.layers.Dense(slices.facts.shape[1], name="facts"))
    return model.get_weights()
