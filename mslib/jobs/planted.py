"""Jobs of notebook 04: nets whose reason is planted, what they use, and what every method says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.explain.model import batches_of, logits_of
from mslib.measure import bootstrap_subjects
from mslib.nets import SliceSet, gather, split_subjects
from mslib.nets.planted import Marked, plant, train_planted
from mslib.nets.spread import evenly_of_subjects
from mslib.study import StudyConfig, progress

from .cohort import usable_subjects
from .explained import stack_of
from .words import CONTROL

#: Slices count whose brain has at least this share of the largest one's area: marks then fit in.
WIDE = 0.7
SHORTCUT = "shortcut"
#: With the shortcut no mark tells the class: a mark that did so in 80 % of slices was learnt instead of the corner.
SHORTCUT_AGREEMENT = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Experiment:
    """One planted truth: which sequence decides, and whether there is a shortcut."""

    name: str
    deciding: int
    shortcut: bool = False

    def planted(self, slices: SliceSet, config: StudyConfig, seed: int) -> Marked:
        """Slices with this experiment's marks."""
        if self.shortcut:
            return plant(slices, self.deciding, config.model.pixel_mm, seed, SHORTCUT_AGREEMENT, shortcut=1.0)
        return plant(slices, self.deciding, config.model.pixel_mm, seed)


def experiments(config: StudyConfig) -> list[Experiment]:
    """Each sequence decides once; last, a shortcut beside the mark of the last sequence."""
    own = [Experiment(sequence, number) for number, sequence in enumerate(config.sequences)]
    return [*own, Experiment(SHORTCUT, len(config.sequences) - 1, shortcut=True)]


def has_planted(config: StudyConfig) -> bool:
    """Whether planted nets can be trained: a study that trains, with controls to draw on."""
    return config.cohort.source != "open_ms" and CONTROL in config.groups


def _controls(config, run_dir) -> dict[str, list]:
    """Controls by part: test, the independent ones (or the study's test part); validation, one of the others."""
    people = usable_subjects(config, run_dir)
    study = [person for person in people if person.cohort == "study"]
    parts = split_subjects(pd.Series({person.id: person.group for person in study}), config.training.split, config.seed)
    controls = [person for person in people if person.group == CONTROL]
    test = [person for person in controls if person.cohort == "independent"] or [
        person for person in controls if parts[person.id] == "test"]
    seen = [person for person in controls if person not in test]
    return {"train": seen[:-1], "validation": seen[-1:], "test": test}


def control_slices(config: StudyConfig, run_dir: str | Path) -> dict[str, SliceSet]:
    """Slices of controls with much brain, for training, validation and test; no subject is in two of them."""
    found = {}
    for part, people in _controls(config, run_dir).items():
        stacks = {}
        for person in progress(people, desc=f"planted nets, {part}", unit="subject"):
            stack = stack_of(run_dir, person.id)
            area = stack["brain"].sum(axis=(1, 2))
            wide = area >= WIDE * area.max()
            stacks[person.id] = stack["images"][wide] * stack["brain"][wide][..., None]
        found[part] = gather(stacks, pd.Series(CONTROL, index=list(stacks)), config.groups)
    return found


def spread(slices: SliceSet, count: int) -> SliceSet:
    """`count` slices or a few more, spread evenly over the subjects and over their slices."""
    each = -(-count // slices.table["subject"].nunique())
    index = evenly_of_subjects(slices.table, np.arange(len(slices.table)), each)
    return SliceSet(slices.images[index], slices.table.iloc[index].reset_index(drop=True))


def planted_net(experiment: Experiment, slices: dict[str, SliceSet], config: StudyConfig, run_dir: str | Path,
                repeat: int = 0) -> keras.Model:
    """The net of an experiment, trained or taken up.

    Parameters
    ----------
    slices : dict of str to SliceSet
        From `control_slices`.
    repeat : int
        Nets of other numbers see the same slices and start from other weights.
    """
    validation = spread(slices["validation"], config.attribution.planted.slices_per_subject)
    joined = SliceSet(np.concatenate([slices["train"].images, validation.images]),
                      pd.concat([slices["train"].table, validation.table], ignore_index=True))
    parts = np.array(["train"] * len(slices["train"].table) + ["validation"] * len(validation.table))
    marked = experiment.planted(joined, config, config.seed)
    return train_planted(marked, parts, config, planted_folder(run_dir, experiment, repeat), config.seed + repeat,
                         f"planted net, {experiment.name} {repeat + 1}")


def planted_folder(run_dir: str | Path, experiment: Experiment, repeat: int = 0) -> Path:
    """Where a planted net and its maps lie."""
    return Path(run_dir) / "planted" / f"{experiment.name}_{repeat + 1}"


def explained_set(experiment: Experiment, slices: dict[str, SliceSet], config: StudyConfig) -> Marked:
    """Marked test slices whose maps are made."""
    return experiment.planted(spread(slices["test"], config.attribution.planted.test_slices), config, config.seed + 1)


def use_table(model: keras.Model, experiment: Experiment, slices: dict[str, SliceSet],
              config: StudyConfig) -> pd.DataFrame:
    """What a planted net goes by: accuracy where one sequence alone tells the class, the others by chance.

    With the shortcut: where the corner tells it, and where it tells the opposite.

    Returns
    -------
    pandas.DataFrame
        ``tells`` (sequence, ``corner`` or ``corner, reversed``), ``value``, ``low``, ``high`` (subject bootstrap),
        ``slices``, ``subjects``.
    """
    test, rows = spread(slices["test"], 4 * config.attribution.planted.test_slices), []
    mm, seed = config.model.pixel_mm, config.seed + 2
    if experiment.shortcut:
        sets = {"corner": plant(test, experiment.deciding, mm, seed, SHORTCUT_AGREEMENT, shortcut=1.0),
                "corner, reversed": plant(test, experiment.deciding, mm, seed, SHORTCUT_AGREEMENT, shortcut=0.0)}
    else:
        sets = {sequence: plant(test, number, mm, seed + number, (1.0, 0.5, 0.5))
                for number, sequence in enumerate(config.sequences)}
    for tells, marked in sets.items():
        images, target = marked.slices.images.astype("float32"), marked.slices.table["target"].to_numpy()
        right = logits_of(model, batches_of(images, 64)).argmax(1) == target
        found = bootstrap_subjects(right, marked.slices.table["subject"], n=config.statistics.bootstrap,
                                   confidence=config.statistics.confidence, seed=config.seed)
        rows.append({"experiment": experiment.name, "tells": tells, "value": found.estimate, "low": found.low,
                     "high": found.high, "slices": len(target), "subjects": marked.slices.table["subject"].nunique()})
    return pd.DataFrame(rows)
