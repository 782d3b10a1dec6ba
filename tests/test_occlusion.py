"""Occlusion against windows covered one by one in a loop; incremental inference against full passes of many nets."""

import functools

import keras
import numpy as np
import pytest
from attribution_cases import randomise, relative, vgg
from shared_cases import refused

from mslib.explain import attribute
from mslib.explain.incremental import obstacle
from mslib.explain.occlusion import occlusion

layers = keras.layers


def net(shape, *stack):
    """A chain of layers with random weights."""
    return randomise(keras.Sequential([keras.Input(shape), *stack]), 5)


def mean_head(n=3):
    return layers.GlobalAveragePooling2D(), layers.Dense(n)


def images_of(shape, n=2):
    return np.random.default_rng(2).uniform(0, 1, (n, *shape)).astype("float32")


SMALL = (13, 11, 3)
NETS = {
    "same": lambda: net(SMALL, layers.Conv2D(5, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
                        layers.Conv2D(6, 3, padding="same", activation="relu"),
                        layers.Conv2D(4, 3, padding="same", activation="relu"), *mean_head()),
    "valid": lambda: net(SMALL, layers.Conv2D(5, 3, activation="relu"), layers.Conv2D(4, 3), layers.ReLU(),
                         layers.MaxPooling2D(), *mean_head()),
    "separate ReLUs, dropout": lambda: net(
        SMALL, layers.Conv2D(4, 3, padding="same", use_bias=False), layers.Activation("relu"),
        layers.SpatialDropout2D(0.5), layers.AveragePooling2D(2), layers.Conv2D(5, 3), layers.ReLU(),
        layers.Dropout(0.5), *mean_head()),
    "flat, dense ReLU": lambda: net(SMALL, layers.Conv2D(5, 3, padding="same", activation="relu"),
                                    layers.MaxPooling2D(), layers.Flatten(), layers.Dense(7, activation="relu"),
                                    layers.Dropout(0.5), layers.Dense(3)),
    "pools that overlap, padded": lambda: net(
        SMALL, layers.MaxPooling2D(3, 2, padding="same"), layers.Conv2D(5, 2, padding="same"),
        layers.AveragePooling2D((3, 2), (2, 1), padding="same"), layers.Conv2D(4, (1, 3)), *mean_head()),
    "strides, even kernels": lambda: net(
        SMALL, layers.Conv2D(5, 4, strides=2, padding="same", activation="relu"),
        layers.Conv2D(4, 2, strides=(1, 2), activation="relu"), *mean_head()),
    "pools with gaps": lambda: net(SMALL, layers.MaxPooling2D(1, 3), layers.Conv2D(4, 3, padding="same"),
                                   layers.ReLU(), *mean_head()),
    "no convolution": lambda: net(SMALL, layers.MaxPooling2D(4), layers.Flatten(), layers.Dense(3))}


@functools.cache
def net_of(name):
    """One of `NETS`, built and traced once."""
    return NETS[name]()


@pytest.mark.parametrize("window,stride", [(3, 2), (4, 4), (11, 5), (1, 3)])
def test_written_out(window, stride):
    model, images = net_of("same"), images_of(SMALL)
    full, fast = (occlusion(model, images, [1, 2], window=window, stride=stride, baseline=0.5, batch_size=7,
                            engine=engine) for engine in ("full", "incremental"))
    for image, target, *maps in zip(images, [1, 2], full, fast):
        total, times, places = np.zeros(SMALL), np.zeros(SMALL), []
        for row in range(0, 13, stride):
            for column in range(0, 11, stride):
                if (row and row - stride + window >= 13) or (column and column - stride + window >= 11):
                    continue  # the window before has reached the edge
                places += [np.s_[row:row + window, column:column + window, modality] for modality in range(3)]
        covered = np.repeat(image[None], len(places) + 1, 0)
        for picture, place in zip(covered[1:], places):
            picture[place] = 0.5
        whole, *scores = np.asarray(model(covered))[:, target]
        for place, score in zip(places, scores):
            total[place] += whole - score
            times[place] += 1
        for values in maps:
            assert relative(values, total / np.maximum(times, 1)) < 1e-4


@pytest.mark.parametrize("window,stride", [(3, 2), (5, 1), (40, 7)])
@pytest.mark.parametrize("name", NETS)
def test_incremental_equals_full_passes(name, window, stride):
    """Stride 1 puts windows at every border and every alignment of the pools."""
    model, images = net_of(name), images_of(SMALL, 1)
    more = {"window": window, "stride": stride, "baseline": "blurred"}
    assert obstacle(model) is None
    fast, full = (occlusion(model, images, [1], engine=engine, **more) for engine in ("incremental", "full"))
    assert relative(fast, full) < 1e-4


def test_vgg16_against_full_passes_in_float64():
    """In float32 a full pass's score is itself off by about 1e-4 of these losses, the difference of large numbers."""
    model, image = vgg(bias=0.1), images_of((32, 32, 3), 1)
    more = {"window": 11, "stride": 21, "baseline": "mean"}
    double = keras.models.clone_model(model, clone_function=lambda layer: type(layer).from_config(
        layer.get_config() | {"dtype": "float64"}))
    double.set_weights(model.get_weights())
    exact = occlusion(double, image, [2], engine="full", **more)
    assert relative(occlusion(model, image, [2], engine="incremental", **more), exact) < 1e-4
    assert relative(occlusion(model, image, [2], engine="full", **more), exact) < 1e-3


def hidden_branch():
    """Every layer has one input, but not that of the layer before it."""
    inputs = keras.Input(SMALL)
    layers.Conv2D(3, 3, name="before")(inputs)
    x = layers.Conv2D(4, 3, name="first")(inputs)
    y = layers.MaxPooling2D(1, name="aside")(inputs)
    both = layers.Concatenate(name="joined")([layers.GlobalAveragePooling2D()(x), layers.GlobalAveragePooling2D()(y)])
    return keras.Model(inputs, layers.Dense(3)(both))


def shared_end():
    inputs, dense = keras.Input(SMALL), layers.Dense(3, name="twice")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(inputs))
    return keras.Model(inputs, dense(dense(x)))


UNFIT = {
    "branch": (hidden_branch, "does not take the output of the layer before it alone"),
    "shared at the end": (shared_end, "layer 'twice' (Dense) does not give the net's output"),
    "norm": (lambda: net(SMALL, layers.Conv2D(3, 3), layers.LayerNormalization(name="odd"), *mean_head()),
             "layer 'odd' (LayerNormalization) is of no kind that is allowed here"),
    "tanh": (lambda: net(SMALL, layers.Conv2D(3, 3, activation="tanh", name="bent"), *mean_head()),
             "layer 'bent' (Conv2D) uses tanh, not ReLU"),
    "ceiling": (lambda: net(SMALL, layers.Conv2D(3, 3), layers.ReLU(6, name="bent"), *mean_head()),
                "layer 'bent' (ReLU) uses a ReLU with slope, threshold or ceiling"),
    "dilation": (lambda: net(SMALL, layers.Conv2D(3, 3, dilation_rate=2, name="wide"), *mean_head()),
                 "layer 'wide' (Conv2D) has dilation or groups"),
    "signals": (lambda: net((20, 3), layers.Conv1D(4, 3), layers.GlobalAveragePooling1D(), layers.Dense(3)),
                "the input is not of images")}


@pytest.mark.parametrize("name", UNFIT)
def test_nets_that_only_full_passes_can_do(name):
    make, message = UNFIT[name]
    model = make()
    images = images_of(model.input_shape[1:], 1)
    with refused(message, match="^occlusion: engine 'incremental' cannot do this net: "):
        attribute("occlusion", model, images, 1, engine="incremental")
    if name in ("branch", "signals"):
        np.testing.assert_array_equal(attribute("occlusion", model, images, 1, engine="auto"),
                                      attribute("occlusion", model, images, 1, engine="full"))


def test_auto_takes_the_fast_engine_and_unknown_ones_are_refused(monkeypatch):
    model, images = net_of("same"), images_of(SMALL, 1)
    expected = occlusion(model, images, [1], engine="incremental")

    def forbidden(*_):
        raise AssertionError("a full pass")

    monkeypatch.setattr("mslib.explain.occlusion.full_losses", forbidden)
    np.testing.assert_array_equal(occlusion(model, images, [1]), expected)
    with pytest.raises(ValueError, match=r"engine must be one of auto, incremental, full \(got 'quick'\)"):
        occlusion(model, images, [1], engine="quick")
