"""Simulated people at 1 mm, through the study's preprocessing: CPU seconds and where they go, errors, looks.

    [MSLIB_DATA=...] python benchmarks/preprocessing.py [--subjects 12]

Good: simulating at most 6 CPU seconds a subject, preprocessing 9; registration errors (mm, mean over the brain) with a
median of .07; bias fields that correlate at least .9 with the true ones in nine of ten images; every range of two real
patients covered by the simulated ones, measured alike. With MSLIB_DATA the two patients are measured again, too.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import SimpleITK as sitk

from mslib.analysis.truth import (
    REAL_APPEARANCE,
    appearance,
    bias_correlation,
    brain_points,
    coverage,
    registration_error,
)
from mslib.cohort import Cohort, draw_participants, openms, openms_bids, simulate_subject, write_dataset, write_template
from mslib.cohort.phantom import subject_files
from mslib.prep import pipeline, preprocess_subject

PARTS = {"reading": ("as_image", "checked_mask"), "mask": ("brain_mask",), "bias": ("estimate_bias",),
         "registration": ("register_rigid",), "resampling": ("_on_grid", "scale_intensity", "slice_stack"),
         "writing": ("save_nifti", "save_stack", "registration_figure", "edge_agreement")}
SECONDS = {}


def timed(part, function):
    """The function, whose CPU seconds count for `part` (of nested ones: the outer)."""
    def run(*args, **kwargs):
        start, SECONDS["inside"] = time.process_time(), SECONDS.get("inside", 0) + 1
        try:
            return function(*args, **kwargs)
        finally:
            SECONDS["inside"] -= 1
            if not SECONDS["inside"]:
                SECONDS[part] = SECONDS.get(part, 0) + time.process_time() - start
    return run


def prepared(cohort, out):
    """Every subject preprocessed: CPU seconds by part."""
    rows = {}
    for subject in cohort:
        SECONDS.clear()
        start = time.process_time()
        preprocess_subject(subject, out)
        rows[subject.id] = {"total": time.process_time() - start, **{part: SECONDS.get(part, 0) for part in PARTS}}
        print(subject.id, {name: round(value, 2) for name, value in rows[subject.id].items()}, flush=True)
    return pd.DataFrame(rows).T


def looks(cohort, out):
    return pd.DataFrame([{"subject": one.id, "group": "brains", **appearance(*pipeline.unscaled_images(one, out))}
                         for one in cohort if one.lesion_mask])


def errors(root, out, subject):
    """Registration errors (mm) and correlations of the bias fields of one simulated subject, by sequence."""
    truth, made = subject_files(root, subject.id), pipeline.output_paths(out, subject.id, subject.images)
    points = brain_points(nib.load(made["brain"]))
    for name in subject.images:
        row, true = {"subject": subject.id, "group": subject.group, "sequence": name}, sitk.Transform()
        if f"{name}_xfm" in truth:
            true, found = (sitk.ReadTransform(str(path)) for path in (truth[f"{name}_xfm"], made[f"xfm_{name}"]))
            row["error_mm"] = registration_error(points, true, found)["after"]
        field, found = (nib.load(path) for path in (truth[f"{name}_bias"], made[f"bias_{name}"]))
        yield row | {"correlation": bias_correlation(points, true, field, found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--keep", help="folder for the data instead of a temporary one")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for part, names in PARTS.items():
        for name in names:
            setattr(pipeline, name, timed(part, getattr(pipeline, name)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary)
        start = time.process_time()
        template = write_template(folder / "template.npz")
        print(f"template, once: {time.process_time() - start:.1f} CPU s")
        people = draw_participants({group: args.subjects // 3 for group in ("control", "RRMS", "SPMS")}, 1)
        seconds = []
        for person in people:
            start = time.process_time()
            simulate_subject(person, folder / "bids", cache=template)
            seconds.append(time.process_time() - start)
        print(f"simulation, CPU s a subject: {pd.Series(seconds).describe().round(2).to_dict()}", flush=True)
        write_dataset(people, folder / "bids")
        cohort = Cohort.from_bids(folder / "bids")
        print(prepared(cohort, folder / "out").describe().loc[["50%", "max"]].round(2).to_string())
        table = pd.DataFrame([row for subject in cohort for row in errors(folder / "bids", folder / "out", subject)])
        print(table.groupby("sequence")[["error_mm", "correlation"]].agg(["median", "min", "max"]).round(3).to_string())
        print(f"errors: median {table['error_mm'].median():.3f} mm; fields of at least .9: "
              f"{(table['correlation'] >= 0.9).mean():.2f} of {len(table)}")
        print(table[table["correlation"] < 0.9].to_string())
        ours = looks(cohort, folder / "out")
        print(coverage(ours, REAL_APPEARANCE).round(3).to_string())
        if os.environ.get("MSLIB_DATA"):
            openms.fetch(folder / "source")
            openms_bids.to_bids(folder / "source", folder / "real")
            real = [one for one in Cohort.from_bids(folder / "real") if one.id.startswith("MNI")]
            print(prepared(real, folder / "real_out").round(2).to_string())
            print(looks(real, folder / "real_out").drop(columns="group").T.to_string())
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
