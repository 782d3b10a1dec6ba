"""Training of VGG16 and VGG19: seconds of a step, of tracing it, and of the rest of an epoch.

    python benchmarks/training.py [--precision float32] [--size 48 42] [--batch 64]

Slices at random, two epochs of 12 steps. Good: an epoch takes little longer than its steps.
"""

import argparse
import tempfile
import time

import numpy as np
import pandas as pd

STEPS, SUBJECTS = 12, 6


def main():
    import mslib.nets.train
    from mslib.nets import Recipe, SliceSet, build_trainable, choose_precision, fit
    from mslib.nets.train import History
    from mslib.nets.vgg import CONVOLUTIONS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", type=int, nargs=2, default=(48, 42))
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    precision, rng = choose_precision(options.precision), np.random.default_rng(0)
    each = STEPS * options.batch // SUBJECTS
    table = pd.DataFrame({"subject": np.repeat(list("abcdef"), each), "target": rng.integers(0, 3, SUBJECTS * each)})
    slices = SliceSet(rng.random((len(table), *options.size, 3)).astype(np.float16), table)
    rows, ends = np.arange(len(table)), []

    class Timed(History):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            ends.append(time.perf_counter())

    mslib.nets.train.History = Timed
    recipe = Recipe(2, each, 1e-4, options.batch, 1e-4, 2, 0)
    print(f"{precision}, {options.batch} slices of {options.size[0]} x {options.size[1]}, {STEPS} steps an epoch")
    print("backbone   step (median)   until the first step   between epochs   whole training")
    for backbone in CONVOLUTIONS:
        ends.clear()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            fit(build_trainable(backbone, 3, (*options.size, 3), precision), slices, rows, rows[:64], recipe, folder)
        steps = np.diff(ends)
        print(f"{backbone:8s} {np.median(np.delete(steps, STEPS - 1)):12.3f} s {ends[0] - start:20.1f} s "
              f"{steps[STEPS - 1]:14.1f} s {time.perf_counter() - start:14.1f} s", flush=True)


if __name__ == "__main__":
    main()
