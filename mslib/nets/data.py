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
    """Slices of many subjects.

    Attributes
    ----------
    images : ndarray of float16, shape (n, H, W, M)
        Intensities in [0, 1], or activations of frozen blocks.
    table : pandas.DataFrame
        One row per slice: ``subject``, ``slice`` (0 is the lowest), ``group``, ``target``.
    areas : ndarray of float32, shape (n, k), optional
        Auxiliary targets of pre-training.
    """

    images: np.ndarray
    table: pd.DataFrame
    areas: np.ndarray | None = None

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
    table = pd.DataFrame({"subject": np.repeat(list(counts), list(counts.values())),
                          "slice": np.concatenate([np.arange(n) for n in counts.values()])})
    table["group"] = table["subject"].map(groups)
    table["target"] = table["group"].map({name: i for i, name in enumerate(classes)}).astype(int)
    return table


def gather(stacks: dict[str, np.ndarray], groups: pd.Series, classes: list[str]) -> SliceSet:
    """Join the stacks of several subjects, (n, H, W, M) each, in alphabetical order; `groups` per subject."""
    subjects = sorted(stacks)
    table = slice_table({subject: len(stacks[subject]) for subject in subjects}, groups, classes)
    return SliceSet(np.concatenate([stacks[subject] for subject in subjects]), table)


def channels_of(model_input: str, sequences: list[str] | tuple[str, ...]) -> list[int] | None:
    """Channels of a stack that a network sees: all (None) for ``fused``, or one sequence three times."""
    return None if model_input == "fused" else [list(sequences).index(model_input)] * len(sequences)


def evenly(index: np.ndarray, count: int) -> np.ndarray:
    """The middles of `count` equal parts; at most all elements. At the ends of a brain lesions are smallest."""
    count = min(count, len(index))
    return index[((np.arange(count) + 0.5) * len(index) / max(count, 1)).astype(int)]


def staggered(index: np.ndarray, count: int) -> np.ndarray:
    """One element of each of `count` equal parts, one place further in every part; at most all elements.

    Of slices in the order of subjects and heights: not everybody's at one height, as `evenly` would choose.
    """
    count = min(count, len(index))
    number = np.arange(count)
    return index[number * len(index) // max(count, 1) + number % max(len(index) // max(count, 1), 1)]


def balanced_draw(targets: np.ndarray, index: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw about `n` of the slices at `index`, equally many of each class, in random order."""
    classes = np.unique(targets[index])
    chosen = []
    for value in classes:
        pool = index[targets[index] == value]
        wanted = max(1, round(n / len(classes)))
        chosen.append(rng.choice(pool, wanted, replace=wanted > len(pool)))
    return rng.permutation(np.concatenate(chosen))


def predict(model: keras.Model, slices: SliceSet, channels: list[int] | None = None, label: str = "predict",
            dtype: str = "float32", rows: np.ndarray | None = None) -> np.ndarray:
    """Output of a network in evaluation mode, batch by batch, with a progress bar.

    Parameters
    ----------
    model : keras.Model
        With one output, whose shape is known.
    slices : SliceSet
    channels : list of int, optional
        As in `SliceSet.batch`.
    label : str
        Text of the bar.
    dtype : str
        Type of the returned array.
    rows : ndarray of int, optional
        Slices to predict, in that order. Default: all.
    """
    rows = np.arange(len(slices.images)) if rows is None else rows
    outputs = np.empty((len(rows), *model.output_shape[1:]), dtype)
    for start in progress(range(0, len(rows), 64), desc=label, unit="batch"):
        batch = slices.batch(rows[start:start + 64], channels)
        outputs[start:start + 64] = np.asarray(model.predict_on_batch(batch)).astype("float32")
    return outputs
