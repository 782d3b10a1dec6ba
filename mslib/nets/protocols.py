"""The kinds of network of notebook 02: who trains and who is tested, with which labels, from which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.study.config import Split
from mslib.study.errors import StudyError

from .data import SliceSet, predict
from .splits import refuse_leakage, split_subjects
from .train import Recipe, fit
from .vgg import build_classifier, build_trainable, fold_batch_norm, has_batch_norm, load_weights

#: Kind of network to (unit of the split, labels permuted between subjects).
KINDS = {"honest": ("subject", False), "published": ("slice", False),
         "honest_permuted": ("subject", True), "published_permuted": ("slice", True)}


def _kind(kind):
    if kind not in KINDS:
        raise StudyError(f"kind: must be one of {list(KINDS)} (got {kind!r})")
    return KINDS[kind]


def _subject_groups(table):
    return table.groupby("subject")["group"].first()


def assign_parts(kind: str, table: pd.DataFrame, split: Split, seed: int) -> pd.Series:
    """Part of every slice in the table of a `SliceSet`, by `split_subjects` at the level of a kind of `KINDS`."""
    if _kind(kind)[0] == "slice":
        return split_subjects(table["group"], split, seed)
    return table["subject"].map(split_subjects(_subject_groups(table), split, seed))


def permuted(slices: SliceSet, classes: Sequence[str], seed: int) -> SliceSet:
    """The same slices with the groups of their subjects permuted at random: the leakage control."""
    groups = _subject_groups(slices.table)
    drawn = np.random.default_rng(seed).permutation(groups.to_numpy())
    groups = slices.table["subject"].map(dict(zip(groups.index, drawn)))
    target = groups.map({name: i for i, name in enumerate(classes)}).astype(int)
    return SliceSet(slices.images, slices.table.assign(group=groups, target=target), slices.areas)


def start_network(backbone: str, n_classes: int, shape: tuple[int, int, int], weights: str | Path, precision: str,
                  pretrained: Path | None = None) -> keras.Model:
    """The network before fine-tuning.

    Parameters
    ----------
    backbone, n_classes, shape
        As of `build_classifier`.
    weights : {"scratch", "simulated", "imagenet"} or path
        ``scratch`` and ``simulated`` have batch norm, to be folded by `fold_batch_norm`.
    precision : {"float32", "bfloat16"}
        Of ``scratch`` and ``simulated``; the others train in float32.
    pretrained : path
        With ``simulated``: the weights of pre-training, a file of `load_weights`.

    Raises
    ------
    StudyError
        ``simulated`` without `pretrained`, or weights that do not fit.
    """
    if weights not in ("scratch", "simulated"):
        return build_classifier(backbone, n_classes, shape, weights)
    model = build_trainable(backbone, n_classes, shape, precision)
    if weights == "simulated":
        if pretrained is None:
            raise StudyError("model.weights: 'simulated' needs the weights of pre-training (got none)")
        load_weights(model, pretrained)
    return model


def split_network(model: keras.Model, blocks: int) -> tuple[keras.Model, keras.Model]:
    """The network below and above the pool of a block (1 to 4), sharing layers: ``upper(lower(x))`` is ``model(x)``.

    A slice that is not augmented gives the same activations in every epoch: those of frozen blocks are computed once
    (`predict` with the lower part), and the upper part is trained on them.
    """
    border = model.get_layer(f"block{blocks}_pool").output
    return keras.Model(model.input, border), keras.Model(border, model.output, name=f"{model.name}_upper")


def train_network(kind: str, slices: SliceSet, parts: pd.Series, model: keras.Model, recipe: Recipe,
                  folder: str | Path, label: str, upper: keras.Model | None = None) -> tuple[keras.Model, pd.DataFrame]:
    """Train a network of a kind.

    Parameters
    ----------
    kind : str
        Of `KINDS`.
    slices : SliceSet
        With the labels to be learnt. With `upper`: activations of the lower part in the place of images.
    parts : pandas.Series
        From `assign_parts`.
    model : keras.Model
        From `start_network`; all of it.
    recipe, folder, label
        As of `fit`.
    upper : keras.Model, optional
        Upper part of `split_network`, which alone is trained (no augmentation, all channels).

    Returns
    -------
    plain : keras.Model
        All of the network, float32, batch norm folded.
    history : pandas.DataFrame
        As of `fit`.

    Raises
    ------
    StudyError
        Unknown kind, a subject in two parts of an honest split, and what `fit` raises.
    """
    if _kind(kind)[0] == "subject":
        refuse_leakage(slices.table["subject"], parts)
    rows = [np.flatnonzero(np.asarray(parts) == part) for part in ("train", "validation")]
    if upper is not None:
        recipe = replace(recipe, augmentation=None, channels=None)
    history = fit(model if upper is None else upper, slices, *rows, recipe, folder, label)
    return fold_batch_norm(model) if has_batch_norm(model) else model, history


def prediction_table(model: keras.Model, slices: SliceSet, rows: np.ndarray | None, groups: Sequence[str],
                     channels: list[int] | None = None) -> pd.DataFrame:
    """Table of slices (``subject, slice, group, target``) with ``logit_<class>``; other parameters as of `predict`.

    `groups` are the classes in the order of the logits.
    """
    table = slices.table.iloc[slice(None) if rows is None else rows].reset_index(drop=True)
    logits = predict(model, slices, channels, rows=rows).round(5)
    return table.join(pd.DataFrame(logits, columns=[f"logit_{group}" for group in groups]))


def tested(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test part; all rows of a table without ``part``."""
    return table[table["part"] == "test"] if "part" in table else table


def chance_level(table: pd.DataFrame) -> float:
    """Accuracy without knowledge: share of the largest class among the tested rows."""
    return float(tested(table)["target"].value_counts(normalize=True).max())
