"""Relevance propagation beside one forward and backward pass, and (VGG16) beside zennit on the same weights.

    python benchmarks/lrp.py [--zennit-python zennit/bin/python]
    python benchmarks/lrp.py --backbone MobileNetV2 --size 64

zennit needs torch, which is in no lock of the study: ``python3.11 -m venv zennit && zennit/bin/pip install torch
torchvision zennit``. Its process is started once, holds the same weights and images, and takes turns with ours: one
run of each, `--repeats` times, both with `--threads` threads; torch's wait without spinning, which costs it a multiple
of its time where other work runs. Ratios are of the medians; the fastest runs and the load of the machine are listed
for one that is not quiet. Good: at most 3 passes, and not slower than zennit.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # both sides with the kernels that the study runs with

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mslib.explain import lrp

PASS = "one forward and backward pass"
RULES = ("epsilon_plus", "epsilon", "epsilon_alpha2_beta1", "gamma")


def build(name, size):
    """A network of `keras.applications` with global average pooling, random weights, small biases."""
    base = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(size, size, 3))
    model = keras.Model(base.input, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(base.output)))
    rng = np.random.default_rng(0)

    def drawn(layer, weight):
        if weight.path.endswith(("gamma", "moving_variance")):
            return np.ones(weight.shape)
        read = np.prod(weight.shape[:2 if isinstance(layer, keras.layers.DepthwiseConv2D) else -1])
        return rng.normal(0, np.sqrt(2 / read) if len(weight.shape) > 1 else 0.01, weight.shape)

    model.set_weights([drawn(layer, weight) for layer in model.layers for weight in layer.weights])
    return model


def bare_passes(model):
    """One forward pass, and one backward pass to the input, and nothing else."""
    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape), tf.TensorSpec((None,), tf.int32)])
    def run(images, targets):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            score = tf.gather(model(images, training=False), targets, axis=1, batch_dims=1)
        return tape.gradient(score, images)

    return run


class Zennit:
    """The other process: one line asks for a rule, one line answers with the seconds it took."""

    def __init__(self, python, folder, model, images, threads):
        arrays = {f"{layer.name} {key}": weight for layer in model.layers
                  for key, weight in zip(("kernel", "bias"), layer.get_weights())}
        np.savez(folder / "request.npz", images=images, **arrays)
        script = Path(__file__).with_name("lrp_zennit.py")
        self.folder = folder
        self.process = subprocess.Popen([python, script, folder, str(threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"})
        self.version = self.process.stdout.readline().strip()

    def __call__(self, rule):
        self.process.stdin.write(f"{rule}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("zennit's process ended")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def in_turn(tasks, repeats):
    """Seconds of every task after one warm-up, taking turns, so that they share whatever else the machine does."""
    seconds = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            own = task()
            if repeat:
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return seconds


def table(seconds, n_images):
    """Median and fastest time, in passes of the same library, and ours in zennit's times."""
    rows = []
    for name, values in seconds.items():
        side, _, rule = name.partition(", ")
        own, beside = np.median(seconds[f"{side}, {PASS}"]), seconds.get(f"zennit, {rule}", [np.nan])
        rows.append({"what": name, "s per image": np.median(values) / n_images, "fastest": min(values) / n_images,
                     "x own pass": np.median(values) / own, "x zennit": np.median(values) / np.median(beside)})
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zennit-python")
    parser.add_argument("--backbone", default="VGG16", choices=["VGG16", "ResNet50", "MobileNetV2", "DenseNet121"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    if arguments.zennit_python and arguments.backbone != "VGG16":
        parser.error("zennit's side builds VGG16 alone")
    model = build(arguments.backbone, arguments.size)
    images = np.random.default_rng(1).random((arguments.images, arguments.size, arguments.size, 3), dtype=np.float32)
    targets, bare, before = np.zeros(arguments.images, np.int32), bare_passes(model), os.getloadavg()[1]
    tasks = {f"ours, {PASS}": lambda: bare(images, targets).numpy()}
    tasks |= {f"ours, {rule}": lambda rule=rule: lrp(model, images, targets, rule) for rule in arguments.rules}
    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if arguments.zennit_python:
            peer = Zennit(arguments.zennit_python, Path(folder), model, images, arguments.threads)
            tasks |= {f"zennit, {rule}": lambda rule=rule: peer(rule) for rule in (PASS, *arguments.rules)}
        seconds = in_turn(tasks, arguments.repeats)
        if peer:
            peer.close()
            print(peer.version)
            for rule in arguments.rules:
                ours, theirs = lrp(model, images, targets, rule), np.load(Path(folder) / f"{rule}.npy")
                apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
                print(f"{rule}: max|difference| / max|zennit's| {apart:.1e}")
    print(table(seconds, arguments.images).to_string(index=False, float_format="%.3g"))
    print(f"load (5 min): {before:.1f} before, {os.getloadavg()[1]:.1f} after; {arguments.threads} threads")


if __name__ == "__main__":
    main()
