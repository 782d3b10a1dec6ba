"""Pre-training on further simulated subjects: what ImageNet is for the published nets, where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from mslib.cohort import phantom
from mslib.prep import slice_stack
from mslib.study import StudyConfig, atomic_path, progress

from .data import SliceSet, gather
from .splits import split_subjects
from .training import Recipe, choose_precision, fit
from .vgg import build_trainable

#: Seeds of further subjects start here, far from those of the study's cohorts.
FURTHER_SEED = 1_000_003


def _further_stack(person, config: StudyConfig, every: int, cache: Path) -> np.ndarray:
    """Aligned slices of one further subject, with noise and a residual bias, scaled like preprocessed ones."""
    mm = config.model.pixel_mm
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
    stack = slice_stack(channels, brain, rendered.affine, n_slices=round(config.prep.n_slices / mm),
                        image_size=config.model.image_size, pixel_mm=mm)
    return stack["images"][::every]


def further_slices(config: StudyConfig, run_dir: str | Path, every: int = 2) -> SliceSet:
    """Slices of further simulated subjects outside every cohort of the study, made once per run.

    Parameters
    ----------
    config : StudyConfig
        ``training.pretraining_subjects`` in equal thirds of the groups.
    run_dir : path
        Keeps them as ``pretraining.npz``.
    every : int
        Distance of neighbouring slices, in slices of ``model.pixel_mm``.
    """
    path = Path(run_dir) / "pretraining.npz"
    per_group = config.training.pretraining_subjects // len(config.groups)
    people = phantom.draw_participants(dict.fromkeys(config.groups, per_group), config.seed + FURTHER_SEED, prefix="P")
    groups = pd.Series({person.id: person.group for person in people})
    if not path.exists():
        cache = Path(run_dir) / f"template_{config.model.pixel_mm:g}mm.npz"
        phantom.template(config.model.pixel_mm, cache=cache)
        made = Parallel(n_jobs=2, return_as="generator")(
            delayed(_further_stack)(person, config, every, cache) for person in people)
        bar = progress(made, total=len(people), desc="simulate further subjects", unit="subject")
        stacks = {f"sub_{person.id}": stack for person, stack in zip(people, bar)}
        with atomic_path(path) as temporary:
            np.savez(temporary, **stacks)
    with np.load(path, allow_pickle=False) as stored:
        stacks = {key.removeprefix("sub_"): stored[key] for key in stored}
    return gather(stacks, groups, config.groups)


def pretrained_weights(backbone: str, config: StudyConfig, run_dir: str | Path) -> list[np.ndarray]:
    """Weights of a net (with batch norm) trained on further simulated subjects; a finished one is taken up."""
    folder = Path(run_dir) / "nets" / backbone / "pretraining"
    slices = further_slices(config, run_dir)
    training = config.training
    precision = choose_precision(training.precision)
    shape = (*slices.images.shape[1:3], len(config.sequences))
    model = build_trainable(backbone, len(config.groups), shape, precision)
    groups = slices.table.groupby("subject")["group"].first()
    parts = slices.table["subject"].map(split_subjects(groups, training.split, config.seed)).to_numpy()
    recipe = Recipe(training.pretraining, training.augmentation, training.batch_size, training.weight_decay,
                    training.pretraining.epochs, config.seed, None)
    fit(model, slices, np.flatnonzero(parts != "validation"), np.flatnonzero(parts == "validation"), folder, recipe,
        f"{backbone} pre-training")
    return model.get_weights()
