"""Cost of attribution on VGG16 (random weights, three modalities) beside its peers and the bare passes, in one run.

    python benchmarks/attribution.py [--captum-python captum/bin/python]

Tables: gradient methods in units of forward and backward passes, beside tf-keras-vis and captum; occlusion by
incremental inference, full passes and captum; its saving over window and depth, counted and measured; LIME, Kernel SHAP
and Shapley sampling beside captum. captum runs in an environment of its own (``python3.11 -m venv captum &&
captum/bin/pip install captum scikit-learn``), with as many threads; without it only our side is measured. All sides
take turns on the same net and image; the fastest of several repeats counts, wall seconds first, CPU seconds beside them
for a machine that is not quiet. The slow ones are asked for a part of the work (so many windows, samples) and reckoned
up: every table says of how many.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import argparse
import json
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import spearmanr
from tf_keras_vis.saliency import Saliency
from tf_keras_vis.utils.scores import CategoricalScore

from mslib.explain import METHODS, incremental, predict_copy
from mslib.explain.incremental import occlusion_losses
from mslib.explain.occlusion import full_losses, occlusion, windows
from mslib.nets import build_classifier

#: captum covers whole images only, with a stride up to the window: a third of the size makes 27 windows of them.
WINDOW, STRIDE, THIRD = 11, 5, 3
EVALS = (1, 8)
HALF = "ours, bfloat16"
TABLES = ("occlusion", "curves", "removal", "gradient")
#: Passes forward and backward of one image, with the samples asked for; DeepLift's second one is the baseline.
PASSES = {"gradient": 1, "input_x_gradient": 1, "guided_backprop": 1, "deconvolution": 1, "smoothgrad": 3,
          "integrated_gradients": 3, "gradient_shap": 3, "deeplift": 2, "gradcam": 1, "guided_gradcam": 2}
MORE = {"smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3}, "gradient_shap": {"samples": 3}}


def build(size):
    """VGG16 whose random weights keep the scale of the activations (He et al. 2015)."""
    model, rng = build_classifier("vgg16", 3, (size, size, 3)), np.random.default_rng(0)
    model.set_weights([rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])) if weight.ndim > 1 else 0.1, weight.shape)
                       for weight in model.get_weights()])
    return model


def cut(model, block):
    """The net up to the pool of a block, with a head."""
    x = keras.layers.GlobalAveragePooling2D()(model.get_layer(f"block{block}_pool").output)
    return keras.Model(model.inputs, keras.layers.Dense(3)(x))


class Captum:
    """A running helper (`captum_attributions.py`) that measures itself."""

    def __init__(self, python, folder, model, arrays, threads):
        weights = {f"{kind}{i // 2}": weight for i, weight in enumerate(model.get_weights())
                   for kind in [("kernel", "bias")[i % 2]]}
        np.savez(Path(folder) / "net.npz", **weights, **arrays)
        helper = Path(__file__).with_name("captum_attributions.py")
        self.process = subprocess.Popen([python, helper, Path(folder) / "net.npz", str(threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, method, **ask):
        self.process.stdin.write(json.dumps({"method": method} | ask) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"captum: the helper ended in {method}; its own message is above")
        return json.loads(answer)


def in_turn(tasks, repeats):
    """Fastest wall seconds of every task, and its CPU seconds; a task may measure itself. The first round warms up."""
    best = {}
    for _ in range(repeats):
        for name, task in tasks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            answer = task()
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            spent = answer if isinstance(answer, dict) else spent
            best[name] = min(best.get(name, spent), spent, key=lambda one: one["wall"])
    return best


def show(title, rows):
    print(f"{title}\n{pd.DataFrame(rows).to_string(index=False, float_format='%.3g')}\n", flush=True)


def gradients(model, captum, repeats, n=1):
    """Every gradient method over one forward and backward pass an image and sample; captum with as many samples."""
    images = np.random.default_rng(1).random((n, *model.input_shape[1:]), dtype=np.float32)
    targets = np.zeros(n, np.int32)

    @tf.function
    def bare(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            score = model(x, training=False)[:, 0]
        return tape.gradient(score, x)

    saliency, score = Saliency(model, clone=False), CategoricalScore([0] * n)
    tasks = {name: lambda name=name: METHODS[name].function(model, images, targets, **MORE.get(name, {}))
             for name in PASSES}
    peers = {"tf-keras-vis, gradient": 0, "tf-keras-vis, smoothgrad": MORE["smoothgrad"]["samples"]}
    tasks |= {name: lambda samples=samples: saliency(score, images, smooth_samples=samples, keepdims=True)
              for name, samples in peers.items()}
    passes = PASSES | {name: max(1, samples) for name, samples in peers.items()}
    if captum:
        tasks |= {f"captum, {name}": lambda name=name: captum(name, samples=max(MORE.get(name, {}).values(), default=1))
                  for name in PASSES}
    best = in_turn({"bare": lambda: bare(images).numpy()} | tasks, repeats)
    unit = {clock: best["bare"][clock] / n for clock in ("wall", "cpu")}
    show(f"Gradient methods, {n} images: over passes x (forward + backward, {unit['wall']:.2f} s)",
         [{"method": name, "passes": each}
          | {f"x {clock}": best[name][clock] / n / each / unit[clock] for clock in unit}
          | {f"captum over ours, {clock}": best[f"captum, {name}"][clock] / best[name][clock]
             for clock in unit if f"captum, {name}" in best} for name, each in passes.items()])


def places_of(shape, window, stride):
    return [(*place, modality) for place in windows(shape[:2], window, stride) for modality in range(shape[2])]


def occlusions(model, image, captum, repeats, folder, few):
    """Seconds for all windows of an image, from a random part of them; maps of a coarse grid compared."""
    base, every, rng = np.zeros_like(image), places_of(image.shape, WINDOW, STRIDE), np.random.default_rng(2)
    third, n = -(-image.shape[0] // THIRD), 10 * few
    some = [every[i] for i in np.sort(rng.choice(len(every), n, replace=False))]
    grid = len(places_of(image.shape, third, third))
    counts = {"incremental": n} | {f"full, batches of {batch}": few + 1 for batch in (8, 64)}
    tasks = {"incremental": lambda: occlusion_losses(model, image, base, some, 0)} | {
        f"full, batches of {batch}": lambda batch=batch: full_losses(model, image, base, some[::n // few], 0, batch)
        for batch in (8, 64)}
    if captum:
        for evals in EVALS:
            counts[f"captum, {evals} an eval"] = grid
            tasks[f"captum, {evals} an eval"] = lambda evals=evals: captum(
                "occlusion", evals=evals, window=third, out=f"{folder}/captum.npy")
    best = in_turn(tasks, repeats)
    whole = {name: len(every) / counts[name] * spent["wall"] for name, spent in best.items()}
    show(f"Occlusion, window {WINDOW}, stride {STRIDE}: {len(every)} windows, reckoned up from those measured",
         [{"engine": name, "windows": counts[name], "ms a window": 1e3 * best[name]["wall"] / counts[name],
           "CPU ms": 1e3 * best[name]["cpu"] / counts[name], "s an image": whole[name],
           "x incremental": whole[name] / whole["incremental"],
           "x in CPU s": best[name]["cpu"] / counts[name] / (best["incremental"]["cpu"] / n)} for name in best])
    if captum:
        ours = occlusion(model, image[None], [0], window=third, stride=third, engine="incremental")[0]
        theirs = np.moveaxis(np.load(f"{folder}/captum.npy")[0], 0, -1)
        print(f"Maps of the {grid} windows of captum: incremental differs by {difference(ours, theirs):.1e} of the "
              "largest value")
        few_places = some[::n // few]
        corners = [[y.start, y.stop, x.start, x.stop, modality] for y, x, modality in few_places]
        captum("covered", evals=4, places=corners, out=f"{folder}/exact.npy")
        exact = np.load(f"{folder}/exact.npy")
        off = {name: difference(losses(model, image, base, few_places, 0), exact)
               for name, losses in (("incremental", occlusion_losses), ("full", full_losses))}
        print(f"Losses of {len(exact)} windows of {WINDOW} beside full passes in float64 (torch): incremental is "
              f"{off['incremental']:.1e} of the largest off, full in float32 {off['full']:.1e}\n", flush=True)


def difference(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


def multiplications(model, image, places):
    """How often the convolutions multiply two numbers: in a full pass, and for a window (mean) in incremental ones."""
    boxes, counts = incremental._boxes(image, places), np.zeros(2)
    for step in incremental._prepare(model, image):
        if isinstance(step, incremental._Convolution):
            a_cell = np.prod(step.weights.shape)
            counts += float(a_cell * step.slide.out.prod()), float(a_cell * incremental.areas(boxes).mean())
        boxes = step.slide.reach(boxes) if hasattr(step, "slide") else boxes
    return counts


def curves(model, image, repeats, few):
    """Full over incremental: counted multiplications and seconds."""
    base, rng, rows = np.zeros_like(image), np.random.default_rng(3), []
    cases = [(5, window) for window in (5, 21, 41, 81)] + [(block, WINDOW) for block in (1, 2, 3, 4, 5)]
    for block, window in cases:
        net, every = cut(model, block), places_of(image.shape, window, STRIDE)
        some = [every[i] for i in np.sort(rng.choice(len(every), 12 * few, replace=False))]
        full, part = multiplications(net, image, every)
        best = in_turn({"full": lambda net=net, some=some: full_losses(net, image, base, some[:few], 0, few),
                        "once": lambda net=net, some=some: occlusion_losses(net, image, base, some[:1], 0),
                        "part": lambda net=net, some=some: occlusion_losses(net, image, base, some, 0)}, repeats)
        a_full = best["full"]["wall"] / (few + 1)
        a_part = (best["part"]["wall"] - best["once"]["wall"]) / (len(some) - 1)
        rows.append({"to block": block, "window": window, "GMAC full": full / 1e9, "GMAC a window": part / 1e9,
                     "counted": full / part, "measured": a_full / a_part,
                     "in CPU s": best["full"]["cpu"] / (few + 1) * (len(some) - 1)
                     / (best["part"]["cpu"] - best["once"]["cpu"]), "ms full": 1e3 * a_full,
                     "ms a window": 1e3 * a_part})
    show(f"Saving of incremental inference a window ({few} full, {12 * few} incremental; the cost once an image left "
         "out)", rows)


def keep_map(maps, side, net, image, method, **asked):
    maps[side] = METHODS[method].function(net, image[None], [0], batch_size=16, **asked)


def removals(model, image, groups, captum, repeats, n):
    """LIME, Kernel SHAP and Shapley sampling with as many samples and the same groups on both sides.

    Ours in bfloat16 as well, with the rank correlation of its map with that in float32.
    """
    half = predict_copy(model)
    asked, kind, rows = {"lime": n, "kernel_shap": n, "shapley_sampling": max(1, n // 12)}, "coarse", []
    for method, samples in asked.items():
        name, maps = "permutations" if method == "shapley_sampling" else "samples", {}
        tasks = {side: partial(keep_map, maps, side, net, image, method, groups=groups[kind], **{name: samples})
                 for side, net in (("ours", model), (HALF, half))}
        if captum:
            tasks |= {f"captum, {evals} an eval": lambda method=method, samples=samples, evals=evals: captum(
                method, evals=evals, samples=samples, groups=kind) for evals in EVALS}
        best = in_turn(tasks, repeats)
        rows += [{"method": method, name.replace("permutations", "samples"): samples,
                  "groups": int(groups[kind].max()) + 1, "side": side, "s": spent["wall"], "CPU s": spent["cpu"],
                  "x ours": spent["wall"] / best["ours"]["wall"],
                  "x in CPU s": spent["cpu"] / best["ours"]["cpu"],
                  "rank correlation": spearmanr(maps["ours"].ravel(), maps[side].ravel()).statistic
                  if side in maps else np.nan} for side, spent in best.items()]
    show("Removal of feature groups (a sample of Shapley sampling is an order of all groups)", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="some of the tables")
    parser.add_argument("--windows", type=int, default=12, help="windows by full passes; ten times as many incremental")
    parser.add_argument("--samples", type=int, default=48, help="of LIME and Kernel SHAP, for 12 groups")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--captum-python", help="a Python that has captum and scikit-learn")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    model = build(args.size)
    image = np.random.default_rng(1).random((args.size, args.size, 3), dtype=np.float32)
    half = np.arange(args.size) * 2 // args.size
    coarse = (half[:, None] * 2 + half)[..., None] * 3 + np.arange(3)  # quarters of each modality
    groups = {"coarse": coarse}
    print(f"VGG16, {args.size} px, {args.threads} threads, load average {os.getloadavg()[0]:.1f} at the start\n")
    with tempfile.TemporaryDirectory() as folder:
        captum = args.captum_python and Captum(args.captum_python, folder, model, {"image": image} | groups,
                                               args.threads)
        tables = {"occlusion": lambda: occlusions(model, image, captum, args.repeats, folder, args.windows),
                  "curves": lambda: curves(model, image, args.repeats, args.windows),
                  "removal": lambda: removals(model, image, groups, captum, args.repeats, args.samples),
                  "gradient": lambda: gradients(model, captum, args.repeats)}
        for name in args.only:
            tables[name]()
        if captum:
            captum.process.stdin.close()
            captum.process.wait()
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
