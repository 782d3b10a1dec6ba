"""Fine-tuning: from which weights a network starts, what frozen blocks compute once, and what is trained above them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from .data import SliceSet, predict
from .heads import Head, fit_head
from .train import Recipe, fit
from .vgg import build_classifier, build_trainable, fold_batch_norm, load_half, plain_twin


def start_network(backbone: str, classes: Sequence[str], shape: tuple[int, int, int], weights: str | Path,
                  precision: str = "float32", shipped: Path | None = None, narrow: int = 1) -> keras.Model:
    """The network before fine-tuning; other parameters, and what is raised, as of `build_classifier`.

    Parameters
    ----------
    weights : {"scratch", "simulated", "imagenet"} or path
        ``scratch`` has batch norm, to be folded by `fold_batch_norm`, and is made `narrow`.
    shipped : path
        With ``simulated``: file of `save_half`. Its last layer is taken where it knows the same classes.
    """
    if weights == "scratch":
        return build_trainable(backbone, len(classes), shape, precision, narrow)
    model = build_classifier(backbone, len(classes), shape, None if weights == "simulated" else weights, precision)
    if weights == "simulated":
        load_half(model, shipped, classes)
    return model


def plain_network(model: keras.Model) -> keras.Model:
    """The float32 network without batch norm that computes the same, one for all calls with this `model`."""
    return fold_batch_norm(model, _plain(model))


_plain = lru_cache(maxsize=1)(plain_twin)  # traced once for all trainings of a network


@lru_cache(maxsize=2)
def split_network(model: keras.Model, blocks: int) -> tuple[keras.Model, keras.Model]:
    """The network below and above the pool of a block (1 to 5), sharing layers: ``upper(lower(x))`` is ``model(x)``.

    A slice that is not augmented gives the same activations in every epoch: those of frozen blocks are computed once
    (`predict` with the lower part), and the upper part is trained on them. Without frozen blocks (0) the lower part is
    None and the upper one the network.
    """
    if not blocks:
        return None, model
    border = model.get_layer(f"block{blocks}_pool").output
    return keras.Model(model.input, border), keras.Model(border, model.output, name=f"{model.name}_upper")


def cached(model: keras.Model, depths: Sequence[int], slices: SliceSet, channels: list[int] | None,
           label: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """What frozen blocks make of slices, for each number of them (1 to 5), and the pooled features of all blocks.

    One pass through the network: float16 activations by number of frozen blocks, and float32 features (n, 512).
    """
    found, below, known = {}, model.input, slices
    for blocks in sorted(depths):
        border = model.get_layer(f"block{blocks}_pool").output
        found[blocks] = predict(keras.Model(below, border), known, channels, f"{label}, block {blocks}", "float16")
        below, known, channels = border, SliceSet(found[blocks], slices.table), None
    top = keras.Model(below, model.get_layer("gap").output)
    return found, predict(top, known, channels, f"{label}, features")


def fine_tune(model: keras.Model, blocks: int, slices: SliceSet, parts: pd.Series, recipe: Recipe, folder: str | Path,
              label: str, features: np.ndarray | None = None,
              callbacks: Iterable[keras.callbacks.Callback] = ()) -> tuple[keras.Model, pd.DataFrame]:
    """Train a network above its frozen blocks.

    Kumar et al. 2022 (linear probing, then fine-tuning). Other parameters are those of `fit`.

    Parameters
    ----------
    blocks : int
        Frozen ones; with them `slices` holds their activations.
    parts : pandas.Series
        Part of every slice; ``train`` and ``validation`` take part.
    features : ndarray, (n, 512), optional
        Pooled features of the slices. With them the last layer starts as the best logistic regression on them
        (`fit_head`), or as it is where that is better on the validation part.

    Returns
    -------
    plain : keras.Model
        All of the network, float32, batch norm folded; the next training of `model` has the same one.
    history : pandas.DataFrame
    """
    train, validation = (np.flatnonzero(np.asarray(parts) == part) for part in ("train", "validation"))
    upper = split_network(model, blocks)[1]
    if features is not None:
        given = Head(*(weight.astype("float64") for weight in model.get_layer("logits").get_weights()))
        drawn = recipe.drawn(slices.table, train)
        head = fit_head(features, slices.table["target"].to_numpy(), drawn, validation, [given])
        model.get_layer("logits").set_weights(list(head))
    history = fit(upper, slices, train, validation, recipe, folder, label, callbacks)
    return plain_network(model), history
