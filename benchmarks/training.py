"""A training step of VGG16 and VGG19 with the filter gradient of `mslib.nets.convolution`, beside Keras's own.

    python benchmarks/training.py [--precision float32]

Slices of 48 x 42 pixels, 64 in a step, as in most steps of the default study. Both nets have the same weights and take
the same steps in turn, so that what else the machine does meets both. Good: a ratio below 1.
"""

import argparse
import time

import numpy as np

SHAPE, BATCH, STEPS = (48, 42, 3), 64, 12


def with_plain_convolutions(model):
    import keras

    from mslib.nets.convolution import DeepConv2D

    def plain(layer):
        kind = keras.layers.Conv2D if isinstance(layer, DeepConv2D) else type(layer)
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=plain)
    copy.set_weights(model.get_weights())
    return copy


def main():
    import mslib  # noqa: F401, I001 - before TensorFlow
    import keras
    from mslib.nets import build_trainable, choose_precision
    from mslib.nets.vgg import CONVOLUTIONS
    from mslib.nets.workers import Worker

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="auto")
    precision = choose_precision(parser.parse_args().precision)
    rng = np.random.default_rng(0)
    images, classes = rng.random((BATCH, *SHAPE), dtype="float32"), rng.integers(0, 3, BATCH)
    print(f"{precision}, {BATCH} slices of {SHAPE[0]} x {SHAPE[1]}: median seconds a step, of {STEPS}")
    print("backbone     ours    Keras    ratio   first step (tracing): ours, Keras")
    for backbone in CONVOLUTIONS:
        keras.utils.set_random_seed(1)
        ours = build_trainable(backbone, 3, SHAPE, precision)
        nets = [Worker(ours, 1e-4), Worker(with_plain_convolutions(ours), 1e-4)]
        seconds = np.zeros((STEPS + 1, 2))
        for step in range(STEPS + 1):
            for side, net in enumerate(nets):
                start = time.perf_counter()
                net.step(images, classes, 1e-4)
                seconds[step, side] = time.perf_counter() - start
        first, (mine, peer) = seconds[0], np.median(seconds[1:], axis=0)
        print(f"{backbone:8s} {mine:8.3f} {peer:8.3f} {mine / peer:8.2f}   {first[0]:.1f}, {first[1]:.1f}", flush=True)


if __name__ == "__main__":
    main()
