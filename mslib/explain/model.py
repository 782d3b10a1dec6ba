"""What a network, its layers and its input must be before anything is explained, and how to make them so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import keras
import numpy as np


def kinds(*names: str) -> tuple[type, ...]:
    """Layers of Keras by name; ``Conv{}D`` stands for those of one, two and three axes, as far as there are any."""
    return tuple(getattr(keras.layers, name.format(axes)) for name in names
                 for axes in ((1, 2, 3) if "{}" in name else (0,)) if hasattr(keras.layers, name.format(axes)))


def named(layers: Iterable[type]) -> str:
    """Names of layers for a message, those of one to three axes as one."""
    return ", ".join(dict.fromkeys(re.sub("[123]D", "*D", layer.__name__) for layer in layers))


DEPTHWISE = kinds("DepthwiseConv{}D")
CONVOLUTIONS = (*DEPTHWISE, *kinds("Conv{}D", "SeparableConv{}D", "Conv{}DTranspose"))
#: The layers that the study explains: convolutions and pools of the two deepest blocks of a VGG.
DEFAULT_LAYERS = re.compile(r"block[45]_(conv\d+|pool)")


def predict_copy(model: keras.Model) -> keras.Model:
    """A copy of a flat net that computes in bfloat16, its weights (its own) and its output layer in float32.

    bfloat16 has 8 significant bits, so that every layer rounds by up to 0.4 %: where removal changes a score by less
    than that, the map of a perturbation method shows rounding. It saves time only where the processor has bfloat16
    arithmetic. Calls for one model share the copy, whose weights are those of the last call.
    """
    copy = _lowered(model)
    set_weights(copy, model.get_weights())
    return copy


def set_weights(net: keras.layers.Layer, weights) -> None:
    """Set the weights of a net or layer; what `Normalization` keeps of them otherwise, too."""
    net.set_weights(weights)
    for layer in net._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


@lru_cache(maxsize=4)
def _lowered(model):
    head = output_layer(model).name

    def lowered(layer):
        dtype = "float32" if layer.name == head else "mixed_bfloat16"
        return type(layer).from_config(layer.get_config() | {"dtype": dtype})

    return keras.models.clone_model(model, clone_function=lowered)


def spatial_layers(model: keras.Model) -> list[str]:
    """Names of the layers with an output (N, ..., channels) of as many axes as the input, shallow to deep."""
    return [layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)
            and len(layer.output.shape) == len(model.inputs[0].shape)]


@lru_cache(maxsize=4)
def layer_outputs(model: keras.Model) -> dict[str, list[keras.KerasTensor]]:
    """Outputs of every layer of a flat net by name: several where it stands at several places of the net's graph."""
    found: dict[str, list] = {}
    for nodes in keras.Model(model.inputs, model.outputs)._nodes_by_depth.values():
        for node in nodes:
            found.setdefault(node.operation.name, []).append(node.outputs[0])
    return found


def last_convolution(model: keras.Model) -> str:
    """Name of the deepest convolution of a net, plain, separable, depthwise or transposed (ValueError: it has none)."""
    names = [layer.name for layer in model.layers if isinstance(layer, CONVOLUTIONS)]
    if not names:
        raise ValueError("gradcam: the model has no convolution; name a layer")
    return names[-1]


def resolve_layers(model: keras.Model, layers=None) -> tuple[str, ...]:
    """Check the wanted layers and put them in the order of the net; default: all of block 4 and block 5.

    ValueError, which lists the layers to be had: one is unknown or not spatial, or the model has no block 4 or 5; or
    which names layers that stand at several places of the net and so have no output of their own.
    """
    known = spatial_layers(model)
    if layers is None:
        layers = [name for name in known if DEFAULT_LAYERS.fullmatch(name)]
        if not layers:
            raise ValueError(f"layers: the model has no block4_* or block5_* layer; name some of "
                             f"{', '.join(known)}")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(f"layers: {', '.join(map(repr, unknown)) or 'none given'}: not among the layers "
                         f"with a spatial output: {', '.join(known)}")
    outputs = layer_outputs(model)
    if shared := [name for name in wanted if len(outputs[name]) > 1]:
        raise ValueError(f"layers: {', '.join(map(repr, shared))}: stands at several places of the net, each with an "
                         "output of its own; name other layers, or give each place a layer of its own")
    return tuple(name for name in known if name in wanted)


def check_inputs(model: keras.Model, images, targets) -> tuple[np.ndarray, np.ndarray]:
    """Check images, (N, ..., M), and target classes, (N,), against a model; as float32 and int32.

    ValueError: wrong shape or number of channels, no image at all, NaN or infinity, target not among the classes.
    """
    images, targets = np.asarray(images, np.float32), np.asarray(targets)
    expected = model.inputs[0].shape
    fits = images.ndim == len(expected) and all(want in (None, got)
                                                for want, got in zip(expected[1:], images.shape[1:]))
    if not fits or not len(images):
        shape = ", ".join("any" if size is None else str(size) for size in expected[1:])
        raise ValueError(f"images: must be a non-empty (N, {shape}) array as the model's input "
                         f"(got {images.shape})")
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        raise ValueError(f"images: {np.count_nonzero(~finite)} of {len(images)} hold NaN or infinity (first: "
                         f"index {int(np.argmin(finite))}); replace them before explaining")
    if targets.shape != (len(images),) or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets: must be {len(images)} integer class ids, one an image (got "
                         f"shape {targets.shape}, {targets.dtype})")
    n_classes = model.outputs[0].shape[-1]
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets: must lie in 0..{n_classes - 1}, the model's classes (got "
                         f"{targets.min()}..{targets.max()})")
    return images, targets.astype(np.int32)


def choose_targets(model: keras.Model, images, targets, batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Images and targets that have passed `check_inputs`; targets may be one for all, or None: the predicted class."""
    images = np.asarray(images, np.float32)
    if targets is None:
        images, _ = check_inputs(model, images, np.zeros(images.shape[:1], int))
        targets = logits_of(model, batches_of(images, batch_size)).argmax(1)
    elif np.ndim(targets) == 0:
        targets = np.full(images.shape[:1], targets)
    return check_inputs(model, images, targets)


def batches_of(images, size: int) -> Iterator[np.ndarray]:
    """Images in batches of at most `size`, in order."""
    for start in range(0, len(images), size):
        yield images[start:start + size]


def logits_of(model: keras.Model, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Logits, (N, n_classes) in float64, of images that come in batches, of which one is held at a time."""
    return np.concatenate([np.asarray(model.predict_on_batch(batch), np.float64) for batch in batches])


def output_layer(model: keras.Model) -> keras.Operation:
    """The layer (or operation) that makes the output of a flat net."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    name = model.output_names[0]
    return next(operation for operation in model.operations if operation.name == name)
