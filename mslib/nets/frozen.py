"""Training of the deep blocks alone, on what the shallow ones made of the slices once and for all.

A slice that is not moved gives the same activations in every epoch, so that frozen blocks are computed once. That
makes many epochs of the deep blocks cheap, at the price of no augmentation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np

from mslib.study import atomic_path, stamped_folder
from mslib.study.provenance import made_by

from .data import SliceSet
from .training import stream


def split_net(model: keras.Model, frozen_blocks: int) -> tuple[keras.Model, keras.Model]:
    """The net below and above the pool of a block; both share their layers with `model`.

    Parameters
    ----------
    model : keras.Model
        Net of `build_trainable` or `build_classifier`.
    frozen_blocks : int
        1 to 4: the last block of the lower part.

    Returns
    -------
    lower, upper : keras.Model
        Images to activations of the pool, and those to logits. ``upper(lower(x))`` is ``model(x)``.
    """
    border = model.get_layer(f"block{frozen_blocks}_pool").output
    return keras.Model(model.input, border), keras.Model(border, model.output, name=f"{model.name}_upper")


def _weights_digest(model):
    found = hashlib.sha256()
    for weight in model.get_weights():
        found.update(np.ascontiguousarray(weight))
    return found.hexdigest()[:16]


def frozen_activations(lower: keras.Model, slices: SliceSet, folder: str | Path, channels: list[int] | None = None,
                       label: str = "frozen blocks") -> SliceSet:
    """What frozen blocks make of all slices, in evaluation mode; kept in `folder` for nets that start alike.

    Parameters
    ----------
    lower : keras.Model
        Lower part of `split_net`.
    slices : SliceSet
    folder : path
        Gets ``activations.npy`` (float16).
    channels : list of int, optional
        As in `SliceSet.batch`.
    label : str
        Text of the bar.

    Returns
    -------
    SliceSet
        Activations, shape (n, h, w, filters), in the place of images.
    """
    pixels = SliceSet(slices.images, slices.table[["subject", "slice"]]).digest()
    facts = {"slices": pixels, "weights": _weights_digest(lower), "border": lower.layers[-1].name, "channels": channels,
             "code": made_by("mslib.nets.frozen")}
    path = stamped_folder(folder, facts) / "activations.npy"
    if not path.exists():
        made = stream(lower, slices, np.arange(len(slices.table)), channels, label, "float16")
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
    return SliceSet(np.load(path, allow_pickle=False), slices.table)
