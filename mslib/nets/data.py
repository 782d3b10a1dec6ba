"""Slices in memory: a float16 array with one row of facts per slice, batches on demand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

from mslib.study.config import Augmentation, StudyConfig


@dataclass(frozen=True)
class SliceSet:
    """Slices of many subjects.

    Attributes
    ----------
    images : ndarray of float16, shape (n, H, W, M)
        Intensities in [0, 1].
    table : pandas.DataFrame
        One row per slice: ``subject``, ``slice`` (0 is the lowest), ``group``, ``target``.
    facts : ndarray of float32, shape (n, k), optional
        Known numbers of every slice that pre-training learns beside the class.
    """

    images: np.ndarray
    table: pd.DataFrame
    facts: np.ndarray | None = None

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
        return SliceSet(images, self.table, self.facts)

    def digest(self) -> str:
        """Digest of all slices, their table and facts: tells whether a net was trained on these."""
        found = hashlib.sha256(self.table.to_csv(index=False).encode())
        for array in (self.images, self.facts):
            if array is not None:
                found.update(np.ascontiguousarray(array))
        return found.hexdigest()[:16]

    def truth(self, index: np.ndarray):
        """What a training step is given for the slices at `index`: classes, with facts where there are any."""
        targets = self.table["target"].to_numpy()[index]
        return targets if self.facts is None else [targets, self.facts[index]]

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
    """Join the stacks of several subjects, in alphabetical order.

    Parameters
    ----------
    stacks : dict of str to ndarray, shape (n, H, W, M)
        Slices per subject.
    groups : pandas.Series
        Group per subject.
    classes : list of str
        Order of the classes.
    """
    subjects = sorted(stacks)
    table = slice_table({subject: len(stacks[subject]) for subject in subjects}, groups, classes)
    return SliceSet(np.concatenate([stacks[subject] for subject in subjects]), table)


def channels_of(config: StudyConfig) -> list[int] | None:
    """Which channels of a stack go into the net: all (None) or one sequence three times."""
    if config.model.input == "fused":
        return None
    return [config.sequences.index(config.model.input)] * len(config.sequences)


def balanced_draw(targets: np.ndarray, index: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw about `n` of the slices at `index`, equally many of each class, in random order."""
    classes = np.unique(targets[index])
    chosen = []
    for value in classes:
        pool = index[targets[index] == value]
        wanted = max(1, round(n / len(classes)))
        chosen.append(rng.choice(pool, wanted, replace=wanted > len(pool)))
    return rng.permutation(np.concatenate(chosen))


def make_augmenter(settings: Augmentation):
    """A traced function that moves, scales and re-tones a batch: (images, seed pair) to images.

    Rotation, translation and scaling as in Hong and Zhang 2021 (ranges from the configuration), plus a gain and
    a gamma per sequence, which stand for scanner differences. Bilinear; what comes in from outside is 0.
    """

    @tf.function(reduce_retracing=True)
    def augment(images, seed):
        shape = tf.shape(images)
        n, height, width = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)

        def uniform(size, limit, salt):
            return tf.random.stateless_uniform(size, seed + salt, -limit, limit)

        angle = uniform((n,), np.deg2rad(settings.rotation_deg), 1)
        zoom = tf.exp(uniform((n,), np.log1p(settings.scale), 2))
        shift_x = uniform((n,), settings.translation, 3) * width
        shift_y = uniform((n,), settings.translation, 4) * height
        cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        transform = tf.stack([cos, -sin, centre_x - cos * centre_x + sin * centre_y + shift_x,
                              sin, cos, centre_y - sin * centre_x - cos * centre_y + shift_y,
                              tf.zeros(n), tf.zeros(n)], axis=1)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=images, transforms=transform, output_shape=shape[1:3], interpolation="BILINEAR",
            fill_mode="CONSTANT", fill_value=0.0)
        per_sequence = (n, 1, 1, images.shape[-1])
        gain = 1 + uniform(per_sequence, settings.gain, 5)
        gamma = tf.exp(uniform(per_sequence, np.log1p(settings.gamma), 6))
        return tf.clip_by_value(gain * tf.pow(tf.maximum(moved, 1e-6), gamma), 0.0, 1.0)

    return augment
