"""Nets compiled once for many trainings, and the convolution whose filter gradient is matrix products."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mslib.nets import build_trainable, workers
from mslib.nets.convolution import SMALL_MAP, DeepConv2D
from mslib.nets.frozen import split_net
from mslib.nets.workers import Worker, learning_rates, worker_for
from mslib.study.config import Schedule
from mslib.study.provenance import ROOT


def net(seed, filters=4):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 5, 2), name="image")
    x = keras.layers.Conv2D(filters, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled), name="small")


def batches(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.random((8, 6, 5, 2), dtype="float32"), rng.integers(0, 3, 8)) for _ in range(n)]


def trained(worker, rates):
    for (images, truth), rate in zip(batches(len(rates)), rates):
        worker.step(images, truth, rate)
    return worker.model.get_weights()


def equal(found, expected):
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(found, expected, strict=True))


# Workers


def test_steps_are_those_of_a_compiled_keras_model_with_a_schedule():
    schedule = Schedule(epochs=1, slices_per_subject=1, learning_rate=0.01)
    found = trained(worker_for(net(1), 1e-2), learning_rates(schedule, 20))
    decay = keras.optimizers.schedules.CosineDecay(0.01 / 20, 18, alpha=0.01, warmup_target=0.01, warmup_steps=2)
    optimizer = keras.optimizers.AdamW(decay, weight_decay=1e-2, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    peer = net(1)
    peer.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for images, truth in batches(20):
        peer.train_on_batch(images, truth)
    assert equal(found, peer.get_weights())
    assert not equal(found, net(1).get_weights())


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    rates = learning_rates(Schedule(epochs=1, slices_per_subject=1, learning_rate=0.2), 50)
    assert rates[0] == pytest.approx(0.01) and rates[5] == rates.max() == pytest.approx(0.2)
    assert (np.diff(rates[:6]) > 0).all() and (np.diff(rates[5:]) < 0).all()
    assert rates[5 + 45 // 2] == pytest.approx(0.2 * (0.01 + 0.99 * (1 + np.cos(np.pi * 22 / 45)) / 2), rel=1e-5)


def test_a_second_net_of_the_structure_is_trained_as_if_it_were_the_first(monkeypatch):
    monkeypatch.setattr(workers, "_KEPT", {})
    rates = [0.01] * 6
    first, second = net(1), net(2)
    alone = trained(Worker(net(2), 1e-4), rates)
    one = worker_for(first, 1e-4)
    trained(one, rates)
    two = worker_for(second, 1e-4)
    assert two is one and two.trainer.train_function is not None
    assert equal(trained(two, rates), alone)
    assert equal(first.get_weights(), net(1).get_weights()), "the caller's net is left alone"
    assert not equal(alone, trained(Worker(net(1), 1e-4), rates))


def test_other_structures_and_settings_get_their_own(monkeypatch):
    monkeypatch.setattr(workers, "_KEPT", {})
    one = worker_for(net(1), 1e-4)
    assert worker_for(net(1), 1e-3) is not one
    assert worker_for(net(1, filters=5), 1e-4) is not one
    assert len(workers._KEPT) == 1, "one structure is held in memory"
    head = keras.layers.Dense(2)
    model = net(3)
    assert worker_for(model, 1e-4, head).model is model and len(workers._KEPT) == 1


# Convolution


def gradients(layer, images, upstream):
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(layer(images) * upstream)
    return tape.gradient(score, [images, layer.kernel.value, layer.bias.value])


def pair(shape, filters, dtype="float32"):
    """Layer of Keras and ours with the same weights, and random images and upstream gradients."""
    keras.utils.set_random_seed(3)
    layers = [cls(filters, 3, padding="same", dtype=dtype) for cls in (keras.layers.Conv2D, DeepConv2D)]
    for layer in layers:
        layer.build(shape)
    layers[1].set_weights(layers[0].get_weights())
    rng = np.random.default_rng(0)
    draw = [tf.constant(rng.standard_normal(size), layers[0].compute_dtype) for size in (shape, (*shape[:3], filters))]
    return layers, draw


@pytest.mark.parametrize("shape", [(4, 3, 2, 16), (2, 6, 5, 8), (3, 1, 1, 4), (2, 1, 7, 3), (1, 8, 8, 5)])
def test_values_and_gradients_are_those_of_keras(shape):
    assert shape[1] * shape[2] <= SMALL_MAP
    (peer, ours), (images, upstream) = pair(shape, 12)
    np.testing.assert_allclose(ours(images), peer(images), rtol=1e-6, atol=1e-6)
    for found, expected in zip(gradients(ours, images, upstream), gradients(peer, images, upstream)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_gradients_agree_in_bfloat16_up_to_rounding():
    (peer, ours), (images, upstream) = pair((8, 6, 5, 32), 32, "mixed_bfloat16")
    for found, expected in zip(gradients(ours, images, upstream), gradients(peer, images, upstream)):
        found, expected = np.asarray(found, "float32"), np.asarray(expected, "float32")
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def operations(height, width):
    layer = DeepConv2D(2, 3, padding="same")
    layer.build((None, height, width, 3))

    @tf.function
    def run(images):
        with tf.GradientTape() as tape:
            score = tf.reduce_sum(layer(images) ** 2)
        return tape.gradient(score, layer.kernel.value)

    graph = run.get_concrete_function(tf.TensorSpec((None, height, width, 3), tf.float32)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("height,width", [(9, 8), (None, 4), (4, None)])
def test_large_maps_and_maps_of_unknown_size_keep_the_gradient_of_tensorflow(height, width):
    assert "Conv2DBackpropFilter" in operations(height, width)
    assert "Conv2DBackpropFilter" not in operations(8, 8)


def test_a_net_in_training_computes_what_plain_convolutions_would():
    model = build_trainable("vgg16", 3, (32, 32, 3), "float32")
    assert sum(isinstance(layer, DeepConv2D) for layer in model.layers) == 13

    def plain(layer):
        return (keras.layers.Conv2D if isinstance(layer, DeepConv2D) else type(layer)).from_config(layer.get_config())

    peer = keras.models.clone_model(model, clone_function=plain)
    peer.set_weights(model.get_weights())
    images = np.random.default_rng(0).random((2, 32, 32, 3), dtype="float32")
    np.testing.assert_allclose(model(images, training=True), peer(images, training=True), rtol=1e-5, atol=1e-5)


def test_nets_above_frozen_blocks_share_a_worker(monkeypatch):
    """Keras numbers the input of a part of a net; the number must not keep it from its copy."""
    monkeypatch.setattr(workers, "_KEPT", {})
    upper = [split_net(build_trainable("vgg16", 3, (32, 32, 3), "float32"), 4)[1] for _ in range(2)]
    assert upper[0].layers[0].name != upper[1].layers[0].name
    assert worker_for(upper[0], 1e-4) is worker_for(upper[1], 1e-4)


SUM_OF_THREE = """
import tensorflow as tf
from mslib.nets.workers import add_in_order
{first}
whole = tf.ones((64, 128, 128, 16))
tf.function(lambda x: tf.add_n([2 * x, tf.sin(x), tf.cos(x)]))(whole)
"""


@pytest.mark.parametrize("first, reordered", [("", True), ("add_in_order()", False)])
def test_sums_of_three_are_not_made_in_the_order_of_arrival(tmp_path, first, reordered):
    """What TensorFlow makes of a sum is read from the graph that it runs (a net shows it once in hundreds of steps)."""
    dumped = os.environ | {"TF_DUMP_GRAPH_PREFIX": str(tmp_path), "TF_CPP_VMODULE": "meta_optimizer=1"}
    done = subprocess.run([sys.executable, "-c", SUM_OF_THREE.format(first=first)], env=dumped, cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    graphs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("after_MetaOptimizer*")]
    assert any("TemporaryVariable" in graph for graph in graphs) is reordered


def test_a_worker_keeps_sums_in_order():
    Worker(net(0), 1e-4)
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
