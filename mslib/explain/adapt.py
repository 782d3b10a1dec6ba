"""Any Keras network as the methods here want it: flat, in float32, one input, logits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import keras
import numpy as np

from .model import output_layer, set_weights

PROBABILITY_HEADS = ("softmax", "sigmoid", "log_softmax", "logsoftmax", "hard_sigmoid", "hardsigmoid")
_MADE: WeakKeyDictionary = WeakKeyDictionary()


@keras.saving.register_keras_serializable("mslib")
class Channels(keras.layers.Layer):
    """Some channels of an image: one of several inputs that are given as one."""

    def __init__(self, first: int, last: int, **kwargs):
        super().__init__(**kwargs)
        self.first, self.last = first, last

    def call(self, inputs):
        """Channels from `first` to before `last`."""
        return inputs[..., self.first:self.last]

    def get_config(self):
        """As of every layer."""
        return super().get_config() | {"first": self.first, "last": self.last}


def explainable(model: keras.Model, output: str | int | None = None) -> keras.Model:
    """The network that computes the same, as every method here wants it; one that fits is returned as it is.

    Nested models are laid flat; layers compute in float32; several inputs become one with the channels of all
    (`stacked`); a last softmax or sigmoid is taken away, with a warning, so that the logit before it is explained.
    Layers are copies of the same names (the nested model's before it where two would share one) with the weights of
    this moment. Calls for one network share the copies. Every method calls this by itself.

    An output of one unit has one logit, that of the positive class: it is explained whatever the network predicts, and
    targets must be 0.

    Parameters
    ----------
    model : keras.Model
        Functional or built Sequential, as all models nested in it.
    output : str or int, optional
        Name or number of the output that is explained; needed where there are several. Number where a name repeats.

    Raises
    ------
    ValueError
        A subclassed model; several outputs and none chosen, or one that it does not have; inputs that differ in more
        than their channels; anything but signals (N, T, M), images (N, H, W, M) or volumes (N, D, H, W, M) to logits
        (N, n_classes).
    """
    _check_kind(model)
    names = [one.name for one in model.layers[-1:]] if isinstance(model, keras.Sequential) else list(model.output_names)
    known = {name: number for number, name in enumerate(names) if names.count(name) == 1}
    known |= {number: number for number in range(len(names))} | ({None: 0} if len(names) == 1 else {})
    if output not in known:
        raise ValueError(f"model: has the outputs {', '.join(names)}; choose one: explainable(model, output=...), by "
                         f"number where a name repeats (got {output!r})")
    flat = model if _fits(model) else _adapted(model, known[output])
    if len(flat.inputs[0].shape) not in (3, 4, 5) or len(flat.outputs[0].shape) != 2:
        raise ValueError("model: must map signals (N, T, M), images (N, H, W, M) or volumes (N, D, H, W, M) to logits "
                         f"(N, n_classes) (got {flat.inputs[0].shape} to {flat.outputs[0].shape})")
    return flat


def stacked(images, model: keras.Model):
    """Images of a network with several inputs, a list or mapping of arrays, as one array with the channels of all.

    A mapping goes by the names of the inputs of `model` (by its keys, if the inputs are a mapping), else ValueError.
    """
    if isinstance(images, Mapping):
        keys = _input_keys(model)
        if set(images) != set(keys):
            raise ValueError(f"images: must be one array for each of the model's inputs {', '.join(keys)} (got "
                             f"{', '.join(map(str, images)) or 'none'})")
        images = [images[key] for key in keys]
    if not isinstance(images, list | tuple) or min(map(np.ndim, images), default=0) < 3:
        return images
    if len({np.shape(one)[:-1] for one in images}) > 1:
        raise ValueError("images: must differ in nothing but their channels from input to input (got "
                         f"{', '.join(str(np.shape(one)) for one in images)})")
    return np.concatenate([np.asarray(one, np.float32) for one in images], -1)


def _input_keys(model):
    """What the inputs of a network, or of that which it was adapted from, are called, in their order."""
    if isinstance(getattr(model, "input", None), Mapping):
        return [path[-1] for path, _ in keras.tree.flatten_with_path(model.input)]
    return getattr(model, "input_keys", [one.name for one in model.inputs])


def _check_kind(model, within=""):
    if not (isinstance(model, keras.Sequential) and model.built) and not hasattr(model, "operations"):
        raise ValueError(f"model: {within}must be a functional keras.Model or a built keras.Sequential (got "
                         f"{type(model).__name__})")
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _check_kind(layer, f"its layer '{layer.name}' ")


def _activation(operation):
    """Name of what an operation ends with."""
    return getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__).lower()


def _fits(model):
    """Whether nothing has to be changed."""
    return (len(model.inputs) == len(model.outputs) == 1 and _activation(output_layer(model)) not in PROBABILITY_HEADS
            and not any(isinstance(layer, keras.Model) or layer.compute_dtype != "float32" for layer in model.layers))


def _adapted(model, number):
    made = _MADE.setdefault(model, {})
    if number not in made:
        image, parts = _inputs(model)
        copies: dict = {}
        outputs = _laid_flat(model, parts, copies, set())
        made[number] = keras.Model(image, _logits(outputs[number], copies), name=model.name), copies
        made[number][0].input_keys = _input_keys(model)
    flat, copies = made[number]
    for layer, copy in copies.values():
        if layer.weights:
            set_weights(copy, layer.get_weights())
    return flat


def _inputs(model):
    """One symbolic input, and what each input of the model gets of it."""
    shapes = [one.shape[1:] for one in model.inputs]
    if len(shapes) == 1:
        image = keras.Input(shapes[0], name=model.inputs[0].name)
        return image, [image]
    if len({shape[:-1] for shape in shapes}) > 1 or None in [shape[-1] for shape in shapes]:
        raise ValueError("model: its inputs must differ in nothing but their channels (got "
                         f"{', '.join(map(str, shapes))})")
    ends = np.cumsum([shape[-1] for shape in shapes]).tolist()
    image = keras.Input((*shapes[0][:-1], ends[-1]), name="inputs")
    return image, [Channels(end - shape[-1], end, dtype="float32", name=f"{one.name}_channels")(image)
                   for one, shape, end in zip(model.inputs, shapes, ends)]


def _laid_flat(model, tensors, copies, names, prefix=""):
    """Outputs of a model for symbolic inputs, through copies of its layers (by the id of the original)."""

    def copied(layer):
        if isinstance(layer, keras.Model) or not isinstance(layer, keras.layers.Layer):
            return layer
        if id(layer) not in copies:
            name = layer.name if layer.name not in names else f"{prefix}{layer.name}"
            names.add(name)
            copies[id(layer)] = layer, type(layer).from_config(layer.get_config() | {"name": name, "dtype": "float32"})
        return copies[id(layer)][1]

    def call(layer, *args, **kwargs):
        kwargs.pop("training", None)
        if not isinstance(layer, keras.Model):
            return layer(*args, **kwargs)
        outputs = _laid_flat(layer, keras.tree.flatten(args), copies, names, f"{prefix}{layer.name}_")
        return keras.tree.pack_sequence_as(layer.output, outputs)

    if isinstance(model, keras.Sequential):
        x = tensors[0]
        for layer in model.layers:
            x = call(copied(layer), x)
        return [x]
    return keras.tree.flatten(model._run_through_graph(keras.tree.pack_sequence_as(model.input, tensors), copied, call))


def _logits(tensor, copies):
    """The tensor before a last softmax, sigmoid or the like, which is said."""
    layer, place, _ = tensor._keras_history
    if _activation(layer) not in PROBABILITY_HEADS:
        return tensor
    warnings.warn(f"model: output '{layer.name}' is a {_activation(layer)}: the logits before it are explained",
                  stacklevel=5)
    before = layer._inbound_nodes[place].input_tensors[0]
    if getattr(layer, "kernel", None) is None:
        return before
    linear = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    original = next(one for one, copy in copies.values() if copy is layer)
    copies[id(linear)] = original, linear
    return linear(before)
