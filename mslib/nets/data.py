"""Slices in memory or mapped from a file: a float16 array with a table row per slice, batches on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mslib.study.progress import progress

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class SliceSet:
    """Slices of many subjects."""

    images: np.ndarray  #: float16 (n, H, W, M): intensities in [0, 1], or activations of frozen blocks
    table: pd.DataFrame  #: one row per slice: ``subject``, ``slice`` (0 is the lowest), ``group``, ``target``
    areas: np.ndarray | None = None  #: float32 (n, k): auxiliary targets of pre-training

    def shrunk(self, factor: int) -> SliceSet:
        """The same slices on pixels `factor` times as large, by averaging (rows and columns left over are cut)."""
        if factor == 1:
            return self
        n, height, width, channels = self.images.shape
        rows, columns = height // factor, width // factor
        images = np.empty((n, rows, columns, channels), np.float16)
        for start in range(0, n, 512):
            part = self.images[start:start + 512, :rows * factor, :columns * factor].astype("float32")
            images[start:start + 512] = part.reshape(-1, rows, factor, columns, factor, channels).mean((2, 4))
        return SliceSet(images, self.table, self.areas)

    def targets(self, index: np.ndarray):
        """Targets of a training step for the slices at `index`: classes, with areas where there are any."""
        classes = self.table["target"].to_numpy()[index]
        return classes if self.areas is None else (classes, self.areas[index])

    def batch(self, index: np.ndarray, channels: list[int] | None = None) -> np.ndarray:
        """float32 images at `index`; one channel replicated three times where `channels` says so."""
        images = self.images[index].astype("float32")
        return images if channels is None else images[..., channels]


def slice_table(counts: dict[str, int], groups: pd.Series, classes: list[str]) -> pd.DataFrame:
    """One row per slice of subjects with so many of them, in that order: ``subject, slice, group, target``."""
    table = pd.DataFrame({"subject": np.repeat(list(counts), list(counts.values()))})
    group = table["subject"].map(groups)
    return table.assign(slice=table.groupby("subject").cumcount(), group=group, target=group.map(classes.index))


def gather(stacks: dict[str, np.ndarray], groups: pd.Series, classes: list[str]) -> SliceSet:
    """Join the stacks of several subjects, (n, H, W, M) each, in alphabetical order; `groups` per subject."""
    subjects = sorted(stacks)
    table = slice_table({subject: len(stacks[subject]) for subject in subjects}, groups, classes)
    return SliceSet(np.concatenate([stacks[subject] for subject in subjects]), table)


def channels_of(model_input: str, sequences: list[str] | tuple[str, ...]) -> list[int] | None:
    """Channels of a stack that a network sees: all (None) for ``fused``, or one sequence three times."""
    return None if model_input == "fused" else [list(sequences).index(model_input)] * len(sequences)


def evenly(index: np.ndarray, count: int, staggered: bool = False) -> np.ndarray:
    """One element of each of `count` equal parts, the middle one; at most all elements.

    At the ends of a brain lesions are smallest. `staggered`: the first one of the first part, one place further in
    every next part; of slices in the order of subjects and heights, not everybody's at one height.
    """
    parts, number = max(min(count, len(index)), 1), np.arange(min(count, len(index)))
    if staggered:
        return index[number * len(index) // parts + number % max(len(index) // parts, 1)]
    return index[(2 * number + 1) * len(index) // (2 * parts)]


def balanced_draw(targets: np.ndarray, index: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw about `n` of the slices at `index`, equally many of each class, in random order."""
    classes = np.unique(targets[index])
    chosen, wanted = [], max(1, round(n / len(classes)))
    for value in classes:
        pool = index[targets[index] == value]
        chosen.append(rng.choice(pool, wanted, replace=wanted > len(pool)))
    return rng.permutation(np.concatenate(chosen))


def predict(model: keras.Model, slices: SliceSet, channels: list[int] | None = None, label: str = "predict",
            dtype: str = "float32", rows: np.ndarray | None = None) -> np.ndarray:
    """Output of a network, with one output of known shape, in evaluation mode, batch by batch.

    `channels` are those of `SliceSet.batch`; `label` is the text of the progress bar; `dtype` the type of the returned
    array; `rows` are the slices to predict, in that order (default: all).
    """
    rows = np.arange(len(slices.images)) if rows is None else rows
    outputs = np.empty((len(rows), *model.output_shape[1:]), dtype)
    for start in progress(range(0, len(rows), 64), desc=label, unit="batch"):
        batch = slices.batch(rows[start:start + 64], channels)
        outputs[start:start + 64] = np.asarray(model.predict_on_batch(batch)).astype("float32")
    return outputs
