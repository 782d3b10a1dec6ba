"""Pre-training on further simulated subjects, where ImageNet weights cannot be had.

It gives more than ImageNet does: the further subjects belong to the same three groups. They are other people than
those of every cohort of the study.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.study import StudyConfig, stamped_folder, write_table
from mslib.study.provenance import made_by

from .data import SliceSet
from .further import further_slices
from .splits import split_subjects
from .training import Recipe, choose_precision, finish, fit
from .vgg import build_trainable, load_weights

#: Every how many-th slice of a validation subject is looked at after an epoch.
VALIDATION_STEP = 3
#: Seeds of a stage: its epochs draw other slices, and move them otherwise, than those of the stage before.
STAGE_SEEDS = 1000


def _learn(model, slices, config, schedule, folder, label, seed):
    """Train a stage: the class, and the known facts beside it."""
    parts = _parts(slices, config)
    recipe = Recipe.of(schedule, config, patience=schedule.epochs, seed=seed)
    validation = np.flatnonzero(parts == "validation")[::VALIDATION_STEP]
    fit(model, slices.shrunk(schedule.shrink), np.flatnonzero(parts != "validation"), validation, folder, recipe,
        label, keras.layers.Dense(slices.facts.shape[1], name="facts"))


def _parts(slices, config):
    groups = slices.table.groupby("subject")["group"].first()
    return slices.table["subject"].map(split_subjects(groups, config.training.split, config.seed)).to_numpy()


def training_rows(slices: SliceSet, config: StudyConfig) -> np.ndarray:
    """Rows of the further subjects that pre-training learns from; those of validation are left out."""
    return np.flatnonzero(_parts(slices, config) != "validation")


def pretrained_weights(backbone: str, config: StudyConfig, run_dir: str | Path, shrink: int = 1) -> list[np.ndarray]:
    """Weights of a net (with batch norm) trained on further simulated subjects; finished stages are taken up.

    Beside the group of the subject the net learns how much lesion and how much black hole a slice shows: numbers,
    never places, so that where its maps point is not taught. Stages go from coarse to fine pixels, each from the
    weights of the one before.

    Parameters
    ----------
    backbone : {"vgg16", "vgg19"}
    config : StudyConfig
    run_dir : path
        Keeps the stages under ``nets/<backbone>/pretraining/``.
    shrink : int
        Pixels of the training that starts from these weights; the last stage that is not finer is taken.

    Returns
    -------
    list of ndarray
    """
    training = config.training
    slices = further_slices(config, run_dir)
    settings = {"split", "augmentation", "precision", "batch_size", "weight_decay", "facts_weight"}
    facts = {"training": json.loads(training.model_dump_json(include=settings)), "seed": config.seed,
             "input": config.model.input,
             "slices": slices.digest(), "code": made_by("mslib.nets.pretraining")}
    folder = Path(run_dir) / "nets" / backbone / "pretraining"
    size = slices.images.shape[1:3]
    weights, curves = None, []
    for number, schedule in enumerate(training.pretraining, start=1):
        if number > 1 and schedule.shrink < shrink:
            break
        facts["stages"] = [stage.model_dump() for stage in training.pretraining[:number]]
        kept = stamped_folder(folder / f"stage{number}", facts) / "weights.weights.h5"
        keras.utils.set_random_seed(config.seed)
        shape = (*(n // schedule.shrink for n in size), len(config.sequences))
        model = build_trainable(backbone, len(config.groups), shape, choose_precision(training.precision))
        if kept.exists():
            load_weights(model, kept)
        else:
            if weights is not None:
                model.set_weights(weights)
            _learn(model, slices, config, schedule, kept.parent, f"{backbone} pre-training, stage {number}",
                   config.seed + STAGE_SEEDS * (number - 1))
            finish(model, kept)
        curves.append(pd.read_csv(kept.with_name("history.csv")).assign(stage=number))
        weights = model.get_weights()
    if len(curves) == len(training.pretraining):
        write_table(folder / "history.csv", pd.concat(curves, ignore_index=True))
    return weights
