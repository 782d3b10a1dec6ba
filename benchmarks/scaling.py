"""Cost over the number of subjects: preprocessing and Grad-CAM of 10, 40 and 160 simulated subjects (small images).

    python benchmarks/scaling.py

Each size runs in a process of its own, so that its peak memory is its own. Good: seconds a subject stay the same,
and so does the memory. CPU seconds stand beside wall seconds, for a machine that is not quiet.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, help="run one size in this process")
    size = parser.parse_args().subjects
    if size:
        with tempfile.TemporaryDirectory() as folder:
            run(size, Path(folder))
        return
    print("Seconds a subject.")
    print(f"{'subjects':>8}{'preprocess wall':>17}{'preprocess CPU':>17}{'CAM wall':>17}{'CAM CPU':>17}{'peak GB':>9}",
          flush=True)
    for n in SIZES:
        subprocess.run([sys.executable, __file__, "--subjects", str(n)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
