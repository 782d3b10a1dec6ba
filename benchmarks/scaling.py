"""Cost over subjects, slices and pixels.

    python benchmarks/scaling.py

Preprocessing and Grad-CAM of 10, 40 and 160 simulated subjects (small images); then activations of blocks 1 to 4 and
Grad-CAM at every layer of VGG16 for 8 to 32 slices of 192 x 168 pixels, and for 8 slices of 96 x 84 to 192 x 168. Each
size runs in a process of its own, so that its peak memory is its own. Good: seconds a subject, a slice and a million
pixels stay the same, and so does the memory over subjects. CPU seconds stand beside wall seconds, for a machine that
is not quiet.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = (10, 40, 160)
SLICES = [(8, 192, 168), (16, 192, 168), (32, 192, 168), (8, 144, 126), (8, 96, 84)]
VOXEL_MM, PIXEL_MM, IMAGE_SIZE, N_SLICES = 5.0, 5.0, (40, 36), 24


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def run(n, folder):
    from mslib.cohort import Cohort, draw_participants, simulate_subject, write_dataset, write_template
    from mslib.explain import layer_cams
    from mslib.nets import build_classifier
    from mslib.prep import load_stack, preprocess_subject
    from mslib.study.config import Prep

    people = draw_participants({"control": n // 2, "RRMS": n - n // 2}, seed=1)
    cache = folder / "template.npz"
    write_template(cache, VOXEL_MM)
    for person in people:
        simulate_subject(person, folder / "bids", VOXEL_MM, cache=cache)
    write_dataset(people, folder / "bids")
    cohort = Cohort.from_bids(folder / "bids")
    prep = Prep(n_slices=N_SLICES)
    start = clocks()
    for subject in cohort:
        preprocess_subject(subject, folder / "out", prep, image_size=IMAGE_SIZE, pixel_mm=PIXEL_MM)
    middle = clocks()
    model = build_classifier("vgg16", 3, (*IMAGE_SIZE, 3))
    for subject in cohort:
        anat = folder / "out" / f"sub-{subject.id}" / "anat"
        stack = load_stack(anat / f"sub-{subject.id}_space-T1w_desc-slices.npz")
        images = stack.images.astype("float32")
        layer_cams(model, images, np.zeros(len(images), int), upsample=False)
    end = clocks()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = np.concatenate([middle - start, end - middle]) / n
    print(f"{n:8d}" + "".join(f"{value:17.3f}" for value in seconds) + f"{peak:9.2f}", flush=True)


def run_slices(n, height, width):
    from mslib.explain import layer_cams
    from mslib.nets import build_classifier, split_network

    model = build_classifier("vgg16", 3, (height, width, 3))
    lower, images = split_network(model, 4)[0], np.random.default_rng(0).random((n, height, width, 3), "float32")
    times = []
    for _ in range(2):  # the first call traces the network
        start = clocks()
        lower.predict(images, batch_size=8, verbose=0)
        middle = clocks()
        for first in range(0, n, 8):
            layer_cams(model, images[first:first + 8], np.zeros(8, int), upsample=False)
        times = [middle - start, clocks() - middle]
    seconds, pixels = np.concatenate(times) / n, height * width / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{n:8d}{height:5d} x {width:3d}" + "".join(f"{value:17.3f}" for value in seconds)
          + "".join(f"{value / pixels:17.2f}" for value in seconds[1::2]) + f"{peak:9.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, help="run one size in this process")
    parser.add_argument("--slices", type=int, nargs=3, help="likewise: slices, rows, columns")
    asked = parser.parse_args()
    if asked.subjects:
        with tempfile.TemporaryDirectory() as folder:
            run(asked.subjects, Path(folder))
        return
    if asked.slices:
        run_slices(*asked.slices)
        return
    print("Seconds a subject.")
    print(f"{'subjects':>8}{'preprocess wall':>17}{'preprocess CPU':>17}{'CAM wall':>17}{'CAM CPU':>17}{'peak GB':>9}",
          flush=True)
    for n in SIZES:
        subprocess.run([sys.executable, __file__, "--subjects", str(n)], check=True, stderr=subprocess.DEVNULL)
    print("Seconds a slice, then CPU seconds a million pixels.")
    names = [f"{name} {clock}" for name in ("blocks 1-4", "CAM") for clock in ("wall", "CPU")]
    print(f"{'slices':>8}{'pixels':>11}" + "".join(f"{name:>17}" for name in names + names[1::2])
          + f"{'peak GB':>9}", flush=True)
    for size in SLICES:
        subprocess.run([sys.executable, __file__, "--slices", *map(str, size)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
