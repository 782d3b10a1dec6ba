"""Pre-training on simulated people outside every cohort, from coarse to fine pixels: what `weights/` ships."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.cohort import draw_participants
from mslib.study import read_json, write_json
from mslib.study.config import Pretraining

from .data import SliceSet, predict, slice_table
from .scope import image_features, scope_of
from .simulated import AREAS, pretraining_slices
from .train import Recipe, fit
from .vgg import build_trainable

#: Seeds of the pre-training cohort start here, far from those of the study's cohorts.
PRETRAINING_SEED = 1_000_003
#: Added to the seed by every stage: its epochs draw other slices, and move them otherwise, than the stage before.
STAGE_SEEDS = 1000
#: Share of the people of every group who validate, and of their slices that are looked at after every epoch.
VALIDATION, LOOKED_AT = 0.1, 5


def pretraining_people(recipe: Pretraining) -> list:
    """People of the pre-training cohort, in equal shares of the groups; every study has other people."""
    counts = dict.fromkeys(recipe.groups, recipe.people // len(recipe.groups))
    return draw_participants(counts, recipe.seed + PRETRAINING_SEED, prefix="P")


def cohort_name(recipe: Pretraining) -> str:
    """Folder of the cohort, named by what decides it."""
    return f"cohort-{zlib.crc32(recipe.model_dump_json(include=set(Pretraining.COHORT)).encode()):08x}"


def make_person(number: int, recipe: Pretraining, folder: Path, template) -> None:
    """Slices of one of `pretraining_people` into its place in ``images.npy``, and last ``<id>.json``."""
    person = pretraining_people(recipe)[number]
    made = pretraining_slices(person, recipe.slices_per_person, recipe.variation, mm=recipe.pixel_mm,
                              size=recipe.image_size, n_slices=recipe.prep.n_slices,
                              percentiles=recipe.prep.percentiles, sequences=recipe.sequences, template=template)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[number * recipe.slices_per_person:(number + 1) * recipe.slices_per_person] = made.pop("images")
    images.flush()
    write_json(folder / f"{person.id}.json", {"group": person.group, **made, "areas": made["areas"].tolist()})


def missing_people(recipe: Pretraining, folder: Path) -> list[int]:
    """Numbers of the people whose slices are not there yet; makes room for all of them in ``images.npy``."""
    people, path = pretraining_people(recipe), folder / "images.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (len(people) * recipe.slices_per_person, *recipe.image_size, len(recipe.sequences))
        np.lib.format.open_memmap(folder / "images.part", "w+", np.float16, shape).flush()
        os.replace(folder / "images.part", path)
    return [number for number, person in enumerate(people) if not (folder / f"{person.id}.json").is_file()]


def read_cohort(recipe: Pretraining, folder: Path) -> tuple[SliceSet, np.ndarray]:
    """All slices with `areas`, mapped from the file, and which belong to people who validate."""
    people = pretraining_people(recipe)
    notes = [read_json(folder / f"{person.id}.json") for person in people]
    groups = pd.Series({person.id: person.group for person in people})
    table = slice_table(dict.fromkeys(groups.index, recipe.slices_per_person), groups, recipe.groups)
    held = groups.groupby(groups).cumcount() < VALIDATION * len(groups) / groups.nunique()
    areas = np.concatenate([note["areas"] for note in notes]).astype("float32")
    images = np.load(folder / "images.npy", mmap_mode="r")
    return SliceSet(images, table, areas), table["subject"].map(held).to_numpy()


def build_pretrained(backbone: str, recipe: Pretraining, shape: tuple[int, int, int], precision: str) -> keras.Model:
    """The network of `build_trainable` with a second output: the areas that a slice shows, from the pooled features.

    Numbers, never places, so that where its maps point is not taught.
    """
    model = build_trainable(backbone, len(recipe.groups), shape, precision)
    areas = keras.layers.Dense(len(AREAS), name="areas", dtype="float32")(model.get_layer("gap").output)
    return keras.Model(model.input, [model.output, areas], name=backbone)


def pretrain_stage(number: int, model: keras.Model, slices: SliceSet, held: np.ndarray, recipe: Pretraining,
                   folder: Path) -> pd.DataFrame:
    """Train one stage (counted from 0) on slices of its pixels; some slices of those `held` decide which epoch is kept.

    Returns what `fit` does; `model`, of `build_pretrained`, is left with the kept weights, and `folder` with the
    seconds of every epoch.
    """
    stage = recipe.stages[number]
    own = Recipe(stage.epochs, stage.slices_per_subject, stage.learning_rate, stage.batch_size, recipe.weight_decay,
                 stage.epochs, recipe.seed + STAGE_SEEDS * number, recipe.augmentation, area_weight=recipe.area_weight)
    label = f"{model.name} pre-training, stage {number + 1} of {len(recipe.stages)}"
    return fit(model, slices, np.flatnonzero(~held), np.flatnonzero(held)[::LOOKED_AT], own, folder, label,
               [_clock(folder / "seconds.txt")])


def _clock(path):
    """Appends the seconds of every epoch to a file."""
    begun = []

    def end(epoch, logs):
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() - begun[-1]:.1f}\n")

    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(time.monotonic()),
                                          on_epoch_end=end)


def scope(slices: SliceSet, recipe: Pretraining) -> dict[str, list[float]]:
    """Ranges of `mslib.nets.scope` over everybody of the cohort."""
    rows = slices.table.groupby("subject", sort=False).indices.values()
    return scope_of(pd.DataFrame([image_features(slices.images[own[::5]], recipe.sequences, recipe.pixel_mm)
                                  for own in rows]))


def evaluate(model: keras.Model, slices: SliceSet, held: np.ndarray) -> dict:
    """Accuracy per slice and per person, and correlation of true and predicted log areas, of the validation people."""
    rows = np.flatnonzero(held)
    joined = keras.Model(model.input, keras.ops.concatenate(model.outputs, axis=1))
    found = predict(joined, slices, label="validation people", rows=rows)
    logits, areas = found[:, :-len(AREAS)], found[:, -len(AREAS):]
    table = slices.table.iloc[rows].reset_index(drop=True)
    people = pd.DataFrame(logits).groupby(table["subject"]).mean()
    target = table.groupby("subject")["target"].first()
    return {"slices": len(rows), "people": len(people),
            "accuracy_slices": float((logits.argmax(1) == table["target"]).mean()),
            "accuracy_people": float((people.to_numpy().argmax(1) == target).mean()),
            **{f"correlation_{name}": float(np.corrcoef(areas[:, k], slices.areas[rows, k])[0, 1])
               for k, name in enumerate(AREAS)}}
