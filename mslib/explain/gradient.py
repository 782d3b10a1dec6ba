"""Attributions from gradients in the input, and Grad-CAM as one map for all modalities or with Guided BackProp.

Every function takes a net with logit output that has passed the checks of `mslib.explain.attribute`, images, float32
(N, T, M), (N, H, W, M) or (N, D, H, W, M), and target classes, int32 (N,). It returns raw values, float32 of the
images' shape, one channel per modality. `batch_size`: images in one pass. `baseline`: as in
`mslib.explain.baseline_images`. `seed`: of what is drawn, the same for every image, so that a map does not depend on
the other images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from .baselines import baseline_images
from .cam import layer_cams
from .model import last_convolution
from .rules import check_relu_net, deconvolution_relu, guided_relu, rescale_max_pool, rescale_relu, with_rules


@lru_cache(maxsize=8)
def _traced(model, rule):
    """One graph for any batch size: gradient of the target logits in the images, under a rule of `_RULES`."""
    net = _RULES[rule](model) if rule else model

    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape), tf.TensorSpec((None,), tf.int32)])
    def run(images, targets):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            scores = tf.gather(net(images, training=False), targets, axis=1, batch_dims=1)
        return tape.gradient(scores, images)

    return run, net


_RULES: dict[str, Callable] = {
    "guided": lambda model: with_rules(model, guided_relu),
    "deconvolution": lambda model: with_rules(model, deconvolution_relu),
    "rescale": lambda model: with_rules(model, rescale_relu, rescale_max_pool)}


def _gradients(model, images, targets, batch_size, rule=None):
    """Gradient of each target logit in its image, in batches."""
    run, net = _traced(model, rule)
    if rule:
        net.set_weights(model.get_weights())  # the model may have learnt since its copy was made
    parts = [run(images[i:i + batch_size], targets[i:i + batch_size]).numpy()
             for i in range(0, len(images), batch_size)]
    return np.concatenate(parts)


def gradient(model: keras.Model, images, targets, *, batch_size: int = 16) -> np.ndarray:
    """Gradient of the class score, signed (Simonyan et al. 2014)."""
    return _gradients(model, images, targets, batch_size)


def input_x_gradient(model: keras.Model, images, targets, *, batch_size: int = 16) -> np.ndarray:
    """Gradient times image (Shrikumar et al. 2016)."""
    return images * _gradients(model, images, targets, batch_size)


def guided_backprop(model: keras.Model, images, targets, *, batch_size: int = 16) -> np.ndarray:
    """Gradient through ReLUs that pass what is positive on both ways (Springenberg et al. 2015); of nets of ReLUs.

    Known to change little when the net's weights are randomised (Adebayo et al. 2018).
    """
    check_relu_net(model, "guided_backprop")
    return _gradients(model, images, targets, batch_size, "guided")


def deconvolution(model: keras.Model, images, targets, *, batch_size: int = 16) -> np.ndarray:
    """Gradient through ReLUs that pass what is positive on the way back (Zeiler and Fergus 2014); of nets of ReLUs."""
    check_relu_net(model, "deconvolution")
    return _gradients(model, images, targets, batch_size, "deconvolution")


def _mean_over(model, make, n, images, targets, batch_size):
    """Mean over n draws of ``weight * gradient at point``; `make` gives (point, weight) of a draw."""
    total = np.zeros(images.shape, np.float64)
    for number in range(n):
        point, weight = make(number)
        total += weight * _gradients(model, point, targets, batch_size)
    return total


def smoothgrad(model: keras.Model, images, targets, *, samples: int = 10, noise: float = 0.15, seed: int = 0,
               batch_size: int = 16) -> np.ndarray:
    """Mean gradient over noisy copies of the image (Smilkov et al. 2017).

    `noise`: standard deviation, as a share of the image's range (maximum minus minimum over all modalities); `samples`:
    copies of every image.
    """
    rng = np.random.default_rng(seed)
    axes = tuple(range(1, images.ndim))
    spread = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))

    def noisy(_):
        return images + spread * rng.standard_normal(images.shape[1:], np.float32), 1 / samples

    return _mean_over(model, noisy, samples, images, targets, batch_size).astype(np.float32)


def integrated_gradients(model: keras.Model, images, targets, *, steps: int = 50, baseline="zero", seed: int = 0,
                         batch_size: int = 16) -> np.ndarray:
    """Gradient integrated on the straight line from a baseline, times the difference (Sundararajan et al. 2017).

    A map adds up to the score minus the baseline's, but for the Gauss-Legendre quadrature with `steps` points (see
    `completeness_gap`).
    """
    base = baseline_images(images, baseline, seed)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = _mean_over(model, lambda i: (base + np.float32((nodes[i] + 1) / 2) * (images - base), weights[i] / 2),
                       steps, images, targets, batch_size)
    return ((images - base) * total).astype(np.float32)


def gradient_shap(model: keras.Model, images, targets, *, samples: int = 5, baseline="zero", seed: int = 0,
                  batch_size: int = 16) -> np.ndarray:
    """Expected gradient at random points between baseline and image, times the difference (Lundberg and Lee 2017).

    `samples`: points, at the same shares of the way for every image. A map adds up as in `integrated_gradients`, in
    expectation.
    """
    base = baseline_images(images, baseline, seed)
    rng = np.random.default_rng(seed)

    def between(_):
        return base + rng.random(dtype=np.float32) * (images - base), 1 / samples

    total = _mean_over(model, between, samples, images, targets, batch_size)
    return ((images - base) * total).astype(np.float32)


def deeplift(model: keras.Model, images, targets, *, baseline="zero", seed: int = 0,
             batch_size: int = 16) -> np.ndarray:
    """DeepLift with the rescale rule (Shrikumar et al. 2017), max-pools with cross terms; of nets of ReLUs.

    A map adds up to the score minus the baseline's.
    """
    check_relu_net(model, "deeplift")
    base = baseline_images(images, baseline, seed)
    parts = []
    for start in range(0, len(images), batch_size):
        here = slice(start, start + batch_size)
        both = np.concatenate([images[here], base[here]])
        found = _gradients(model, both, np.tile(targets[here], 2), len(both), "rescale")
        parts.append((images[here] - base[here]) * found[:len(found) // 2])
    return np.concatenate(parts)


def gradcam(model: keras.Model, images, targets, *, layer: str | None = None, batch_size: int = 16) -> np.ndarray:
    """Grad-CAM of one layer, the same map for every modality (Selvaraju et al. 2017).

    `layer`: default: the last convolution (`last_convolution`).
    """
    layer = layer or last_convolution(model)
    maps = layer_cams(model, images, targets, [layer], ("gradcam",), batch_size)["gradcam"][layer]
    return np.repeat(maps[..., None], images.shape[-1], -1)


def guided_gradcam(model: keras.Model, images, targets, *, layer: str | None = None,
                   batch_size: int = 16) -> np.ndarray:
    """Guided back-propagation times Grad-CAM (Selvaraju et al. 2017); parameters as in `gradcam`."""
    return (guided_backprop(model, images, targets, batch_size=batch_size)
            * gradcam(model, images, targets, layer=layer, batch_size=batch_size))
