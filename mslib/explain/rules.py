"""The same net with another way back through its ReLUs and max-pools, from which gradient methods are made."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from .adapt import Channels
from .model import CONVOLUTIONS, kinds, named

MAX_POOLS = kinds("MaxPooling{}D", "GlobalMaxPooling{}D")
#: Layers for which the rules are right: linear at inference but for their activation, ReLUs and max-pools.
ALLOWED = (*CONVOLUTIONS, *MAX_POOLS, Channels, *kinds(
    "InputLayer", "Dense", "BatchNormalization", "Dropout", "SpatialDropout{}D", "Flatten", "Reshape", "Permute", "Add",
    "Concatenate", "Activation", "ReLU", "AveragePooling{}D", "GlobalAveragePooling{}D", "ZeroPadding{}D",
    "Cropping{}D", "Rescaling", "Identity"))
#: Differences below which a ratio of differences is replaced by the derivative.
TINY = 1e-6


@tf.custom_gradient
def guided_relu(z):
    """ReLU whose gradient passes where both it and the input are positive (Springenberg et al. 2015)."""
    return tf.nn.relu(z), lambda g: tf.where(z > 0, tf.nn.relu(g), 0.0)


@tf.custom_gradient
def deconvolution_relu(z):
    """ReLU whose gradient passes where it is positive, whatever the input (Zeiler and Fergus 2014)."""
    return tf.nn.relu(z), tf.nn.relu


@tf.custom_gradient
def rescale_relu(z):
    """ReLU of a batch of images followed by their baselines; its gradient is DeepLift's multiplier.

    Shrikumar et al. 2017, section 3.5.1 (rescale rule): difference of the outputs over difference of the inputs.
    """
    y = tf.nn.relu(z)

    def back(g):
        (z1, z0), (y1, y0) = tf.split(z, 2), tf.split(y, 2)
        small = tf.abs(z1 - z0) < TINY
        ratio = tf.where(small, tf.cast(z1 > 0, z.dtype), (y1 - y0) / tf.where(small, 1.0, z1 - z0))
        return g * tf.concat([ratio, ratio], 0)

    return y, back


def rescale_max_pool(pool: Callable) -> Callable:
    """Max-pool of a batch of images followed by their baselines, with DeepLift's multiplier as its gradient.

    Image and baseline may take their maximum from different cells. The difference of the outputs is split at the
    larger of both: what the image has beyond the baseline's output is owed to the image's winner, what it lacks to
    the baseline's. So the contributions of a window add up to the difference of its outputs.
    """
    @tf.custom_gradient
    def rescaled(z):
        y = pool(z)

        def back(g):
            with tf.GradientTape() as tape:
                tape.watch(z)
                again = pool(z)
            (z1, z0), (y1, y0) = tf.split(z, 2), tf.split(y, 2)
            top = tf.maximum(y1, y0)
            owed = tape.gradient(again, z, g * tf.concat([top - y0, y1 - top], 0))
            small = tf.abs(z1 - z0) < TINY
            ratio = tf.where(small, 0.0, tf.add(*tf.split(owed, 2)) / tf.where(small, 1.0, z1 - z0))
            return tf.concat([ratio, ratio], 0)

        return y, back

    return rescaled


class _Function(keras.layers.Layer):
    """A function in the place of a layer without weights; float32 as the net, whatever Keras' default is."""

    def __init__(self, function, name):
        super().__init__(name=name, dtype="float32")
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def is_plain_relu(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a ReLU layer without slope, threshold or ceiling."""
    return (isinstance(layer, keras.layers.ReLU) and layer.max_value is None and not layer.negative_slope
            and not layer.threshold)


def _fault(operation):
    """What a layer or operation does that the rules do not know; None where they do."""
    if not isinstance(operation, keras.layers.Layer):
        return f"the bare operation {type(operation).__name__}"
    if type(operation) not in ALLOWED:
        return type(operation).__name__
    if isinstance(operation, keras.layers.ReLU) and not is_plain_relu(operation):
        return (f"ReLU with max_value={operation.max_value}, negative_slope={operation.negative_slope}, "
                f"threshold={operation.threshold}")
    activation = getattr(operation, "activation", None)
    if activation in (None, keras.activations.linear, keras.activations.relu):
        return None
    name = getattr(activation, "__name__", type(activation).__name__)
    return f"the activation {name}" + (", but not keras.activations.relu" if name == "relu" else "")


def check_relu_net(model: keras.Model, method: str) -> None:
    """Raise a ValueError that names the first layer that is none of `ALLOWED`, linear or with a plain ReLU."""
    for operation in getattr(model, "operations", model.layers):
        if fault := _fault(operation):
            raise ValueError(f"{method}: is defined for nets of ReLUs; layer '{operation.name}' uses {fault}; "
                             f"supported are relu (or linear) in {named(ALLOWED)}")


def with_rules(model: keras.Model, relu: Callable, max_pool: Callable | None = None) -> keras.Model:
    """A copy of a net of ReLUs with the same outputs and another gradient, with weights of its own.

    `relu` takes the place of every ReLU, fused ones too; `max_pool` takes a max-pool layer and gives the function in
    its place.
    """
    def rebuilt(layer):
        if max_pool is not None and isinstance(layer, MAX_POOLS):
            return _Function(max_pool(layer.__class__.from_config(layer.get_config())), layer.name)
        if is_plain_relu(layer):
            return _Function(relu, layer.name)
        copy = layer.__class__.from_config(layer.get_config())
        if getattr(getattr(copy, "activation", None), "__name__", "") == "relu":
            copy.activation = relu
        return copy

    clone = keras.models.clone_model(model, clone_function=rebuilt)
    clone.set_weights(model.get_weights())
    return clone
