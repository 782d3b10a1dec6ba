"""Training of the deep blocks alone, on what the shallow ones made of the slices once and for all.

A slice that is not moved gives the same activations in every epoch, so that frozen blocks are computed once. That
makes many epochs of the deep blocks cheap, at the price of no augmentation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mslib.study import atomic_path, progress, stamped_folder
from mslib.study.provenance import code_digest

from .data import SliceSet
from .further import CODE


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
                       label: str = "frozen blocks", batch_size: int = 64) -> SliceSet:
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

    Returns
    -------
    SliceSet
        Activations, shape (n, h, w, filters), in the place of images.
    """
    pixels = SliceSet(slices.images, slices.table[["subject", "slice"]]).digest()
    facts = {"slices": pixels, "weights": _weights_digest(lower), "border": lower.layers[-1].name, "channels": channels,
             "code": code_digest("mslib.nets.frozen", **CODE)}
    path = stamped_folder(folder, facts) / "activations.npy"
    if not path.exists():
        forward = tf.function(lambda images: tf.cast(lower(images, training=False), tf.float32), reduce_retracing=True)
        index = np.arange(len(slices.table))
        parts = [forward(tf.constant(slices.batch(index[start:start + batch_size], channels))).numpy().astype("float16")
                 for start in progress(range(0, len(index), batch_size), desc=label, unit="batch")]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
    return SliceSet(np.load(path, allow_pickle=False), slices.table)
