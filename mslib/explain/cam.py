"""Class activation maps of many layers and methods from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from .adapt import explainable, stacked
from .maps import upsample_maps
from .model import check_inputs, layer_outputs, resolve_layers

SPACE = (1, 2)  # signals and volumes are taken as images: see _as_image
#: Largest size of a score in Grad-CAM++'s exp(score), a factor of the whole map, so that it stays within float32.
SCORE_LIMIT = 60.0


def _gradcam(a, g, score):
    """Selvaraju et al. 2017, eq. 1 and 2: channels weighted by their mean gradient."""
    return tf.einsum("nhwk,nk->nhw", a, tf.reduce_mean(g, SPACE))


def _gradcam_plus_plus(a, g, score):
    """Chattopadhyay et al. 2018, eq. 19 (Y = exp(score)), with alpha normalised to sum 1 per channel.

    Eq. 19, ``g^2 / (2 g^2 + sum(A) g^3)``, is cancelled by g^2, so that it neither under- nor overflows. The
    paper does not normalise; its authors' code does over cells with g > 0, tf-keras-vis over all, as here. A score
    beyond `SCORE_LIMIT` counts as that: it scales the map as a whole and nothing in it.
    """
    factor = tf.exp(tf.clip_by_value(score, -SCORE_LIMIT, SCORE_LIMIT))
    total = tf.reduce_sum(a, SPACE, keepdims=True)
    alpha = tf.where(g == 0.0, 0.0, tf.math.reciprocal_no_nan(2.0 + total * g))
    normaliser = tf.reduce_sum(alpha, SPACE)
    weights = tf.reduce_sum(tf.nn.relu(g) * alpha, SPACE) / tf.where(normaliser == 0.0, 1.0, normaliser)
    return tf.einsum("nhwk,nk->nhw", a, factor[:, None] * weights)


def _hirescam(a, g, score):
    """Draelos and Carin 2020: gradient times activation, cell by cell."""
    return tf.reduce_sum(a * g, -1)


def _layercam(a, g, score):
    """Jiang et al. 2021: positive gradient times activation, cell by cell."""
    return tf.reduce_sum(a * tf.nn.relu(g), -1)


def _xgradcam(a, g, score):
    """Fu et al. 2020: channels weighted by the activation-weighted mean gradient."""
    weights = tf.math.divide_no_nan(tf.reduce_sum(a * g, SPACE), tf.reduce_sum(a, SPACE))
    return tf.einsum("nhwk,nk->nhw", a, weights)


def _absolute(a, g, score):
    return tf.einsum("nhwk,nk->nhw", a, tf.abs(tf.reduce_mean(g, SPACE)))


def _positive(a, g, score):
    return tf.einsum("nhwk,nk->nhw", a, tf.reduce_mean(tf.nn.relu(g), SPACE))


def _activation(a, g, score):
    return tf.reduce_sum(a, -1)


CAM_METHODS = {"gradcam": _gradcam, "gradcam++": _gradcam_plus_plus, "hirescam": _hirescam,
               "layercam": _layercam, "xgradcam": _xgradcam}
#: Between Grad-CAM and LayerCAM: the size of the mean gradient, the mean of the positive gradient, no gradient at all.
CAM_VARIANTS = {"gradcam_absolute": _absolute, "gradcam_positive": _positive, "activation": _activation}


class LayerPass(NamedTuple):
    """What one forward and one backward pass say of many layers (shallow to deep).

    ``cams``: by method and layer, raw maps of float32 at the layers' own resolution, (N, t), (N, h, w) or (N, d, h, w);
    ``logits``: (N, n_classes); ``peaks``: by layer, (N, channels), the largest activation of every channel, which is
    silent in an image where it is at most 0; ``kept``: by layer, (N,), the share of the gradients' size that is left
    when each channel's are averaged over its cells, as Grad-CAM does, ``sum_k |mean g_k| / sum_k mean |g_k|``.
    """

    cams: dict[str, dict[str, np.ndarray]]
    logits: np.ndarray
    peaks: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]


def layer_cams(model: keras.Model, images, targets, layers: Sequence[str] | None = None,
               methods: Sequence[str] = ("gradcam",), batch_size: int = 16,
               upsample: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Class activation maps of every wanted layer, from one forward and one backward pass.

    Raw values, ``ReLU(sum over channels)`` as each method defines it: maps of one layer can be compared over images,
    and blank ones are seen (`blank_maps`). One map stands for all input channels.

    Parameters
    ----------
    model : keras.Model
        Any that `explainable` can adapt.
    images : array-like, (N, T, M), (N, H, W, M) or (N, D, H, W, M)
        Of a network with several inputs: a list of them, or a mapping by the inputs' names.
    targets : array-like of int, (N,)
        The class whose logit is explained; 0, the positive class, of an output of one unit.
    layers : sequence of str, optional
        Default: every convolution and pool of block 4 and block 5.
    methods : sequence of {"gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"}
    batch_size : int
        Images in one pass; about 0.1 GB an image at 224 px.
    upsample : bool
        False returns the maps at their layer's own resolution.

    Returns
    -------
    dict of method to dict of layer (shallow to deep) to ndarray of float32
        Of the images' axes (N, H, W), or of the layer's (N, h, w); of signals and volumes likewise.

    Raises
    ------
    ValueError
        See `explainable`, `resolve_layers`, `check_inputs`; unknown method; a map that is not finite.
    """
    images = stacked(images, model)
    cams = explain_layers(model, images, targets, layers, methods, batch_size).cams
    if upsample:
        size = np.shape(images)[1:-1]
        cams = {method: {layer: upsample_maps(cam, size) for layer, cam in of_layer.items()}
                for method, of_layer in cams.items()}
    return cams


def explain_layers(model: keras.Model, images, targets, layers: Sequence[str] | None = None,
                   methods: Sequence[str] = ("gradcam",), batch_size: int = 16) -> LayerPass:
    """`layer_cams` before resampling, with logits, silent channels and what averaging leaves of the gradients.

    Parameters and errors as of `layer_cams`; `methods` may be of `CAM_VARIANTS` too.
    """
    model, images = explainable(model), stacked(images, model)
    layers, methods = resolve_layers(model, layers), (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [method for method in methods if method not in CAM_METHODS | CAM_VARIANTS]
    if unknown or not methods:
        raise ValueError(f"methods: {', '.join(map(repr, unknown)) or 'none given'}: not among "
                         f"{', '.join(CAM_METHODS | CAM_VARIANTS)}")
    images, targets = check_inputs(model, images, targets)
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1 (got {batch_size})")
    run = _traced(model, layers, methods)
    parts = [[part.numpy() for part in run(images[i:i + batch_size], targets[i:i + batch_size])]
             for i in range(0, len(images), batch_size)]
    *arrays, logits = (np.concatenate(part) for part in zip(*parts))
    *maps, peaks, kept = (dict(zip(layers, arrays[i:i + len(layers)])) for i in range(0, len(arrays), len(layers)))
    cams = dict(zip(methods, maps))
    for method, of_layer in cams.items():
        for layer, cam in of_layer.items():
            if not np.isfinite(cam).all():
                raise ValueError(f"{method} at {layer}: a map is not finite; activations or gradients exceed "
                                 "float32; rescale the weights")
    return LayerPass(cams, logits, peaks, kept)


def _pass(net, images, targets):
    """Activations, their gradients, the target logits and all logits.

    A logit depends on its own image alone (evaluation mode), so the gradient of the batch's sum is exact.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        *activations, logits = net(images, training=False)
        scores = tf.gather(logits, targets, axis=1, batch_dims=1)
    return activations, tape.gradient(scores, activations), scores, logits


def _as_image(values):
    """(N, ..., w, channels) with two axes of space, over which alone methods add up: a signal becomes one row, slices
    of a volume stand below each other."""
    shape = tf.shape(values)
    return values if len(values.shape) == 4 else tf.reshape(values, tf.concat([shape[:1], [-1], shape[-2:]], 0))


@lru_cache(maxsize=4)
def _traced(model, layers, methods):
    """One graph for all layers and methods, for any batch size; backward ends at the lowest layer."""
    outputs = layer_outputs(model)
    net = keras.Model(model.inputs, [*(outputs[layer][0] for layer in layers), model.outputs[0]])

    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape), tf.TensorSpec((None,), tf.int32)])
    def run(images, targets):
        activations, gradients, scores, logits = _pass(net, images, targets)
        shapes = [tf.shape(a)[:-1] for a in activations]
        activations, gradients = ([_as_image(one) for one in values] for values in (activations, gradients))
        maps = [tf.reshape(tf.nn.relu((CAM_METHODS | CAM_VARIANTS)[method](a, g, scores)), shape)
                for method in methods for a, g, shape in zip(activations, gradients, shapes)]
        kept = [tf.math.divide_no_nan(tf.reduce_sum(tf.abs(tf.reduce_mean(g, SPACE)), -1),
                                      tf.reduce_sum(tf.reduce_mean(tf.abs(g), SPACE), -1)) for g in gradients]
        return [*maps, *(tf.reduce_max(a, SPACE) for a in activations), *kept, logits]

    return run
