"""A Keras net as relevance propagation sees it: a row of steps, each with its way forward and its way back.

Linear layers follow a rule. What only moves values (pools of the maximum, flatten, concatenate, padding) moves their
relevance likewise; what adds them up (pools of the mean, add) shares it out by the epsilon rule; what works value by
value (activations, dropout) lets it pass.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import keras
import tensorflow as tf

from .adapt import Channels
from .lrp_rules import Composite, away_from_zero, parameters_of
from .model import CONVOLUTIONS, DEPTHWISE, kinds, named

layers = keras.layers
SEPARABLE, TRANSPOSED = kinds("SeparableConv{}D"), kinds("Conv{}DTranspose")
LINEAR = (*CONVOLUTIONS, layers.Dense)
MOVING = (*kinds("MaxPooling{}D", "GlobalMaxPooling{}D", "Maximum", "Flatten", "Reshape", "Permute", "Concatenate",
                 "ZeroPadding{}D", "Cropping{}D"), Channels)
MEANS = kinds("AveragePooling{}D", "GlobalAveragePooling{}D", "UpSampling{}D", "Add", "Average")
SUMMING = (*MEANS, *kinds("Subtract", "BatchNormalization", "Rescaling", "Normalization"))
IDLE = kinds("Dropout", "SpatialDropout{}D", "AlphaDropout", "GaussianDropout", "GaussianNoise",
             "ActivityRegularization", "Identity")
BENDING = kinds("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU")
SUPPORTED = (*LINEAR, *MOVING, *SUMMING, *IDLE, *BENDING)
RECTIFIERS = ("relu", "relu6")
#: Activations that are zero at zero; relevance passes through them as it is.
ACTIVATIONS = ("linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu")


class LinearMap:
    """A convolution or dense layer without its activation, batch norm folded in.

    With batch norm ``g (x - mean) / s + beta``, ``s = sqrt(variance + epsilon)``, after the layer, the kernel is
    ``K g / s`` and the bias ``(b - mean) g / s + beta``. Both are as they are when the graph runs, so that the net may
    learn in between. A separable convolution is one map: its kernel is what its two make together. `nonnegative`: the
    input holds no negative value; `rectified`: the layer's own activation sets negative outputs to zero.
    """

    def __init__(self, layer, norm=None, nonnegative=False):
        self.layer, self.nonnegative, self.rectified = layer, nonnegative, activation_of(layer) in RECTIFIERS
        if isinstance(layer, SEPARABLE):
            outputs_of_each = tf.reshape(layer.pointwise_kernel, (*layer.depthwise_kernel.shape[-2:], -1))
            self.kernel = tf.einsum("...im,imo->...io", tf.convert_to_tensor(layer.depthwise_kernel), outputs_of_each)
        else:
            self.kernel = tf.convert_to_tensor(layer.kernel)
        self.bias = tf.convert_to_tensor(layer.bias) if layer.use_bias else tf.zeros(layer.output.shape[-1])
        if norm is not None:
            scale = tf.math.rsqrt(norm.moving_variance + norm.epsilon) * (norm.gamma if norm.scale else 1.0)
            if isinstance(layer, DEPTHWISE):  # several outputs of every input
                self.kernel *= tf.reshape(scale, self.kernel.shape[-2:])
            else:
                self.kernel *= scale[:, None] if isinstance(layer, TRANSPOSED) else scale
            self.bias = (self.bias - norm.moving_mean) * scale + (norm.beta if norm.center else 0.0)

    def shifted(self, baseline) -> LinearMap:
        """The same map for inputs minus a baseline, what it makes of the baseline being part of the bias."""
        other = copy(self)
        other.bias, other.nonnegative = self.bias + self(baseline, self.kernel), False
        return other

    def __call__(self, x, kernel):
        """Output without bias, through any kernel."""
        layer = self.layer
        if isinstance(layer, layers.Dense):
            return tf.matmul(x, kernel)
        given = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate,
                 "data_format": "channels_last"}
        if isinstance(layer, TRANSPOSED):
            return keras.ops.conv_transpose(x, kernel, output_padding=layer.output_padding, **given)
        if isinstance(layer, DEPTHWISE):
            return keras.ops.depthwise_conv(x, kernel, **given)
        if layer.padding == "causal":
            x = tf.pad(x, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
            given["padding"] = "valid"
        return keras.ops.conv(x, kernel, **given)


@dataclass(frozen=True)
class Step:
    """A layer in its place: what it reads and writes (ids of symbolic tensors).

    Batch norm that is folded into it is its `norm`; the step then writes what the norm does. `nonnegative`: no input
    can be negative.
    """

    layer: keras.layers.Layer
    norm: keras.layers.Layer | None
    reads: tuple[int, ...]
    writes: int
    nonnegative: bool

    @property
    def names(self) -> list[str]:
        """Layers whose output is this step's."""
        return [one.name for one in (self.layer, self.norm) if one is not None]

    @property
    def is_linear(self) -> bool:
        """Whether it is a convolution or dense layer, which follows a rule."""
        return type(self.layer) in LINEAR

    def linear(self) -> LinearMap | None:
        """Linear map of a convolution or dense layer, None of another; reads the weights, once a graph."""
        return LinearMap(self.layer, self.norm, self.nonnegative) if self.is_linear else None

    def forward(self, inputs, linear: LinearMap | None):
        """Output of the step."""
        if linear is None:
            return _call(self.layer, inputs)
        return self.layer.activation(linear(inputs[0], linear.kernel) + linear.bias)

    def backward(self, inputs, relevance, linear: LinearMap | None, composite: Composite, parameters: dict) -> list:
        """Relevance of every input of the step."""
        kind = type(self.layer)
        if kind in IDLE or kind in BENDING:
            return [relevance]
        if linear is not None:
            rule = composite.conv if kind in CONVOLUTIONS else composite.dense
            return [rule(linear, inputs[0], relevance, **{name: parameters[name] for name in parameters_of(rule)})]
        inputs = [tf.identity(x) for x in inputs]  # one tensor may come in twice
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            output = _call(self.layer, inputs)
        if kind in MOVING:
            return tape.gradient(output, inputs, relevance)
        return [x * part for x, part in zip(inputs, tape.gradient(output, inputs, relevance / away_from_zero(output)))]


def read_net(model: keras.Model) -> tuple[list[Step], int, int]:
    """Steps of a net that `explainable` has adapted, shallow to deep, and the ids of its input and output.

    ValueError, which says what is supported: a layer, or its activation, that relevance cannot be propagated through,
    or one that stands at several places.
    """
    net = keras.Model(model.inputs, model.outputs)
    nodes = [node for depth in sorted(net._nodes_by_depth, reverse=True) for node in net._nodes_by_depth[depth]
             if not node.is_input]
    _check_layers([node.operation for node in nodes])
    readers = [id(tensor) for node in nodes for tensor in node.input_tensors] + [id(net.outputs[0])]
    makers = {id(node.outputs[0]): node for node in nodes}
    norms = {}
    for node in nodes:
        maker = makers.get(id(node.input_tensors[0]))
        if maker is not None and readers.count(id(maker.outputs[0])) == 1 and _folds(maker.operation, node.operation):
            norms[id(maker.outputs[0])] = node
    source, steps = id(net.inputs[0]), []
    nonnegative, folded = set(), {id(node) for node in norms.values()}
    for node in nodes:
        if id(node) in folded:
            continue
        layer, reads = node.operation, tuple(id(tensor) for tensor in node.input_tensors)
        norm = norms.get(id(node.outputs[0]))
        writes = id((norm or node).outputs[0])
        steps.append(Step(layer, norm and norm.operation, reads, writes, nonnegative.issuperset(reads)))
        if norm is None and _never_negative(layer, steps[-1].nonnegative):
            nonnegative.add(writes)
    return steps, source, id(net.outputs[0])


def _folds(layer, norm):
    """Whether a batch norm right after a layer can become part of it."""
    return (type(layer) in LINEAR and type(norm) is layers.BatchNormalization and activation_of(layer) == "linear"
            and norm.axis in (-1, len(layer.output.shape) - 1))


def _never_negative(layer, inputs_are_not):
    if type(layer) in (*MOVING, *MEANS, *IDLE) and inputs_are_not:
        return True
    plain = type(layer) is layers.ReLU and not layer.negative_slope and layer.threshold >= 0
    return plain or activation_of(layer) in RECTIFIERS


def activation_of(layer: keras.layers.Layer) -> str:
    """Name of a layer's fused activation; ``linear`` where it has none."""
    activation = getattr(layer, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__)


def _check_layers(found):
    instead = "; attribute() explains any network"
    for layer in found:
        if type(layer) not in SUPPORTED:
            raise ValueError(f"lrp: '{layer.name}' is a {type(layer).__name__}, which relevance cannot be propagated "
                             f"through; put layers in its place, of {named(SUPPORTED)}{instead}")
        if activation_of(layer) not in ACTIVATIONS:
            raise ValueError(f"lrp: layer '{layer.name}' has the activation {activation_of(layer)}, which relevance "
                             f"cannot be propagated through; supported: {', '.join(ACTIVATIONS)}{instead}")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise ValueError(f"lrp: layer '{layer.name}' has its channels first; supported: channels_last{instead}")
        if sum(layer is other for other in found) > 1:
            raise ValueError(f"lrp: layer '{layer.name}' stands at several places of the net; supported: layers that "
                             f"stand at one (give each place a layer of its own, with the same weights)")


def _call(layer, inputs):
    return layer(inputs if len(inputs) > 1 else inputs[0], training=False)
