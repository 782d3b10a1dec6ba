"""Class activation maps of all block-4 and block-5 layers beside a tf-keras-vis loop and the bare two passes.

One run, same net, images and threads; every ratio is of the fastest of several runs taken in turn.
Run it as `python benchmarks/cam.py`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # both sides with the kernels that the study runs with

import argparse
import resource
import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.utils.scores import CategoricalScore

from mslib.explain import CAM_METHODS, layer_cams, resolve_layers


def build(size):
    base = keras.applications.VGG19(weights=None, include_top=False, input_shape=(size, size, 3))
    features = keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, keras.layers.Dense(3, name="logits")(features))


def bare_passes(model, lowest):
    """One forward pass and one backward pass to the lowest explained layer, and nothing else.

    The net is cut there and only its upper part recorded, so that no gradient below can be computed.
    """
    cut = model.get_layer(lowest).output
    lower, upper = keras.Model(model.inputs, cut), keras.Model(cut, model.output)

    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape), tf.TensorSpec((None,), tf.int32)])
    def run(images, targets):
        activation = lower([images], training=False)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(activation)
            score = tf.gather(upper(activation, training=False), targets, axis=1, batch_dims=1)
        return tape.gradient(score, activation)

    return run


def peer_loop(model, images, targets, layers):
    """tf-keras-vis as its users call it: one layer a call, no clone of the model."""
    explainer, score = Gradcam(model, clone=False), CategoricalScore([int(target) for target in targets])
    return {layer: explainer(score, images, penultimate_layer=layer, seek_penultimate_conv_layer=False,
                             normalize_cam=False) for layer in layers}


def in_turn(tasks, repeats):
    """Fastest seconds of every task after one warm-up; taking turns, they share whatever else the machine does."""
    seconds = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def compare(size, n_images, repeats):
    model = build(size)
    layers = resolve_layers(model)
    rng = np.random.default_rng(0)
    images = rng.random((n_images, size, size, 3), dtype=np.float32)
    targets = rng.integers(0, 3, n_images).astype(np.int32)
    bare = bare_passes(model, layers[0])
    seconds = in_turn({
        "bare forward + backward to block 4": lambda: bare(images, targets),
        "ours, Grad-CAM": lambda: layer_cams(model, images, targets),
        "ours, five methods": lambda: layer_cams(model, images, targets, methods=tuple(CAM_METHODS)),
    }, repeats)
    name = "tf-keras-vis loop, Grad-CAM"  # slow: warmed up like the others, but taken twice
    seconds |= in_turn({name: lambda: peer_loop(model, images, targets, layers)}, min(2, repeats))
    per_image = {name: value / n_images for name, value in seconds.items()}
    ours, least = per_image["ours, Grad-CAM"], per_image["bare forward + backward to block 4"]
    return pd.DataFrame([{"VGG19, 10 layers": name, "s per image": value, "x bare": value / least,
                          "x ours": value / ours} for name, value in per_image.items()])


def cost_curve(size, counts):
    """Seconds and peak memory against the number of slices, maps kept at their own resolution."""
    model = build(size)
    rng = np.random.default_rng(0)
    layer_cams(model, rng.random((16, size, size, 3), dtype=np.float32), np.zeros(16, int), upsample=False)
    rows = []
    for n in counts:
        images = rng.random((n, size, size, 3), dtype=np.float32)
        start = time.perf_counter()
        layer_cams(model, images, np.zeros(n, int), upsample=False)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"slices": n, "s": seconds, "ms per slice": 1e3 * seconds / n, "peak memory MB": peak})
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--curve-size", type=int, default=64)
    arguments = parser.parse_args()
    print(cost_curve(arguments.curve_size, (64, 256, 1024)).to_string(index=False, float_format="%.3g"), "\n")
    table = compare(arguments.size, arguments.images, arguments.repeats)
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
