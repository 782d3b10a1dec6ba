"""The small nets of tests/fixtures/attribution, a narrow VGG, and what tests of attributions share."""

import functools

import keras
import numpy as np
from repository import ROOT

from mslib.explain import METHODS
from mslib.nets import build_classifier

FIXTURE = ROOT / "tests" / "fixtures" / "attribution" / "nets.npz"
#: Small numbers of draws, for what holds whatever is drawn.
FEW = {"lime": {"samples": 100}, "kernel_shap": {"samples": 100}, "shapley_sampling": {"permutations": 3},
       "feature_permutation": {"permutations": 2}, "occlusion": {"window": 4, "stride": 2},
       "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 4}, "gradient_shap": {"samples": 2}}


def convolutional(name, fused=True):
    """The net of the fixture; ReLUs in the convolutions or as layers."""
    layers = keras.layers
    stored = np.load(FIXTURE)
    conv, pool, mean = ((layers.Conv2D, layers.MaxPooling2D, layers.GlobalAveragePooling2D) if name == "2d" else
                        (layers.Conv1D, layers.MaxPooling1D, layers.GlobalAveragePooling1D))
    inputs = x = keras.Input((*[None] * (1 if name == "1d" else 2), 3))
    for layer in ("conv1", "conv2", "conv3"):
        kernel = stored[f"{name} {layer} kernel"]
        x = conv(kernel.shape[-1], kernel.shape[0], padding="same", name=layer, activation="relu" if fused else None)(x)
        x = x if fused else layers.ReLU()(x)
        x = pool(2)(x) if layer == "conv2" else x
    model = keras.Model(inputs, layers.Dense(4, name="head")(mean()(x)))
    for layer in ("conv1", "conv2", "conv3", "head"):
        model.get_layer(layer).set_weights([stored[f"{name} {layer} {key}"] for key in ("kernel", "bias")])
    return model


@functools.cache
def case(name):
    """Net, images, targets and baseline of the fixture; one net for all tests, so that it is traced once."""
    stored = np.load(FIXTURE)
    return convolutional(name), stored[f"{name} images"], stored[f"{name} targets"], stored[f"{name} baseline"]


def randomise(model, seed, bias=0.2):
    """Weights with which values keep their size; biases of a given spread."""
    rng = np.random.default_rng(seed)
    weights = []
    for weight in model.weights:
        kind, shape = weight.path.split("/")[-1], weight.shape
        weights.append(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape) if kind.endswith("kernel") else
                       rng.uniform(0.5, 2, shape) if kind in ("gamma", "moving_variance") else
                       rng.normal(0, bias, shape) if bias else np.zeros(shape))
    model.set_weights(weights)
    return model


def vgg(backbone="vgg16", size=32, bias=0.05):
    """VGG of an eighth of the channels and three classes."""
    return randomise(build_classifier(backbone, 3, (size, size, 3), narrow=8), 0, bias)


def relative(ours, reference):
    return np.abs(ours - reference).max() / np.abs(reference).max()


def blocks(images):
    """Quarters (of signals halves) of every modality as groups, of one image."""
    shape = images.shape[1:-1]
    inside = sum(2**axis * (place >= size // 2) for axis, (place, size) in enumerate(zip(np.indices(shape), shape)))
    return inside[..., None] + 2 ** len(shape) * np.arange(images.shape[-1])


def quick(method, images):
    """Parameters with which a method is quick."""
    return FEW.get(method, {}) | ({"groups": blocks(images)} if "groups" in METHODS[method].parameters else {})
