"""Our bias fields and rigid registration beside ANTs's, on the same scans in one run.

    MSLIB_DATA=... python benchmarks/registration.py                                 real: distance to the authors' own
    python benchmarks/registration.py --bids runs/simulated/bids [--subjects 4]      simulated: error against the truth

ANTs runs where `ants` can be imported, in this Python or in the one that `--ants-python` names (its own environment:
``python3.11 -m venv ants && ants/bin/pip install antspyx``) and may use `--threads` threads; ours uses one. Seconds are
those of bias fields and registration, with our own brain mask where none is given; reading and writing files is left
out. CPU seconds are listed beside wall seconds, for a machine that is not quiet. Where the true fields are known, N4
(Tustison et al. 2010, in SimpleITK) inside the same brain mask stands beside. Good: errors not above ANTs's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.prep import align, brain_mask, edge_agreement
from mslib.prep.images import apply_points, array_of

SESSIONS = (("patient01", 1), ("patient01", 2), ("patient03", 2))
NAMES = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}
IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def real_sessions(root):
    """Images, mask (from the template) and the authors' T1 -> T2 and T1 -> FLAIR transforms."""
    folder = Path(root) / "open_ms_data" / "longitudinal" / "raw"
    for patient, study in SESSIONS:
        files = {name: folder / patient / f"study{study}_{raw}.nii.gz" for name, raw in NAMES.items()}
        t1w, t2w = (sitk.ReadTransform(str(folder / patient / f"study{study}_{raw}_intrastudy_to_FLAIR.txt"))
                    for raw in ("T1W", "T2W"))
        to_t2w = sitk.CompositeTransform([t2w, t1w.GetInverse()])
        yield f"{patient} s{study}", files, None, {"T2w": to_t2w, "FLAIR": t1w.GetInverse()}, {}


def simulated_subjects(bids, count):
    """Images, mask, true transforms and true bias fields of a simulated cohort's first subjects."""
    bids = Path(bids)
    for folder in sorted(bids.glob("sub-*"))[:count]:
        sub, truth = folder.name, bids / "derivatives" / "truth" / folder.name / "anat"
        files = {name: folder / "anat" / f"{sub}_{name}.nii.gz" for name in NAMES}
        mask = bids / "derivatives" / "brainmask" / sub / "anat" / f"{sub}_space-T1w_desc-brain_mask.nii.gz"
        transforms = {name: sitk.ReadTransform(str(truth / f"{sub}_from-T1w_to-{name}_mode-points_xfm.tfm"))
                      for name in ("T2w", "FLAIR")}
        fields = {name: sitk.ReadImage(str(truth / f"{sub}_{name}_biasfield.nii.gz"), sitk.sitkFloat32)
                  for name in NAMES}
        yield sub, files, mask, transforms, fields


def brain_points(mask, count=4000):
    """Points (mm) spread over the mask."""
    indices = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[:, ::-1]
    chosen = indices[np.random.default_rng(0).choice(len(indices), min(count, len(indices)), replace=False)]
    return np.array([mask.TransformIndexToPhysicalPoint(index.tolist()) for index in chosen])


def nearest_rigid(transform, points):
    """The rigid motion closest to `transform` over `points`: no rigid registration can come closer to an affine one."""
    moved = apply_points(transform, points)
    a, b = points - points.mean(axis=0), moved - moved.mean(axis=0)
    u, _, vt = np.linalg.svd(a.T @ b)
    rotation = vt.T @ np.diag([1, 1, np.linalg.det(vt.T @ u.T)]) @ u.T
    return a @ rotation.T + moved.mean(axis=0)


def distance(found, reference, points):
    return float(np.linalg.norm(apply_points(found, points) - apply_points(reference, points), axis=1).mean())


def on_one_grid(images, mask, name, transform):
    """T1w, another scan placed by `transform`, and the brain, on a 1 mm grid."""
    t1w = images["T1w"]
    grid = sitk.Resample(t1w, [round(n * s) for n, s in zip(t1w.GetSize(), t1w.GetSpacing())], sitk.Transform(),
                         sitk.sitkLinear, t1w.GetOrigin(), (1.0, 1.0, 1.0), t1w.GetDirection())
    brain = array_of(sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor)) > 0
    moved = sitk.Resample(images[name], grid, transform, sitk.sitkLinear)
    return [array_of(image) / np.percentile(array_of(image)[brain], 99.8) for image in (grid, moved)], brain


def agreement(images, mask, name, transform):
    """Two measures of a transform that need no truth: edges, which no registration here optimises, and MI (nats)."""
    (first, second), brain = on_one_grid(images, mask, name, transform)
    table = np.histogram2d(first[brain], second[brain], bins=64, range=((0, 1.2), (0, 1.2)))[0]
    joint = table / table.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    full = joint > 0
    return edge_agreement(first, second, brain), float((joint[full] * np.log(joint[full] / apart[full])).sum())


def ours(images, mask):
    """Transforms, log bias fields, brain and seconds; a missing mask is made (and counted) as in the study."""
    wall, cpu = time.perf_counter(), time.process_time()
    brain = brain_mask(images["T1w"]) if mask is None else sitk.ReadImage(str(mask), sitk.sitkUInt8)
    registrations, fields = align(images, brain)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    transforms = {name: found.transform for name, found in registrations.items()}
    fields = {name: on_grid(field, images[name], transforms.get(name, IDENTITY).GetInverse())
              for name, field in fields.items()}
    return transforms, fields, seconds, brain


def on_grid(field, grid, transform):
    """A log field on another grid, whose points `transform` maps to those of the field."""
    return sitk.Resample(field, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)


def n4_fields(images, brain, transforms):
    """Log bias fields by N4 in each brain, and CPU seconds: voxels 6 mm apart, three levels (its defaults do worse)."""
    start, fields = time.process_time(), {}
    for name, image in images.items():
        factors = [max(1, round(6 / spacing)) for spacing in image.GetSpacing()]
        there = transforms.get(name, IDENTITY).GetInverse()
        inside = sitk.Resample(brain, image, there, sitk.sitkNearestNeighbor)
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([20, 20, 10])
        n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(inside, factors))
        fields[name] = n4.GetLogBiasFieldAsImage(image)
    return fields, time.process_time() - start


def ants_rigid(files, images, python, threads):
    """ANTs: N4 of all three (its defaults), then rigid registration of the corrected images."""
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps({"images": {name: str(file) for name, file in files.items()}, "out": folder}))
        subprocess.run([python, Path(__file__).with_name("ants_rigid.py"), request], check=True, env=environment)
        transforms = {name: sitk.ReadTransform(f"{folder}/{name}.mat") for name in ("T2w", "FLAIR")}
        fields = {}
        for name, image in images.items():
            corrected = sitk.ReadImage(f"{folder}/{name}.nii.gz", sitk.sitkFloat32)
            corrected.CopyInformation(image)
            fields[name] = sitk.Log(sitk.Maximum(image, 1e-3) / sitk.Maximum(corrected, 1e-3))
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    return transforms, fields, {clock: seconds[f"n4_{clock}"] + seconds[f"rigid_{clock}"] for clock in ("wall", "cpu")}


def bias_correlation(found, truth, brain, transform):
    inside = array_of(sitk.Resample(brain, truth, transform.GetInverse(), sitk.sitkNearestNeighbor)) > 0
    found = array_of(on_grid(found, truth, IDENTITY))
    return float(np.corrcoef(found[inside], np.log(array_of(truth)[inside]))[0, 1])


def compare(label, files, mask, truth, fields, python, threads):
    """One row per sequence."""
    images = {name: sitk.ReadImage(str(file), sitk.sitkFloat32) for name, file in files.items()}
    found, our_fields, seconds, brain = ours(images, mask)
    points = brain_points(brain)
    sides = {"ours": (found, our_fields)}
    times = {f"ours_{clock}_s": value for clock, value in seconds.items()}
    if fields:
        n4, times["n4_cpu_s"] = n4_fields(images, brain, found)
    if python:
        *peer, peer_seconds = ants_rigid(files, images, python, threads)
        sides["ants"] = peer
        times |= {f"ants_{clock}_s": value for clock, value in peer_seconds.items()}
        times |= {f"{clock}_ratio": seconds[clock] / peer_seconds[clock] for clock in seconds}
    for name in files:
        row = {"scan": label, "sequence": name}
        if name in truth:
            nearest = nearest_rigid(truth[name], points)
            row["floor_mm"] = np.linalg.norm(apply_points(truth[name], points) - nearest, axis=1).mean()
            for side, (transforms, _) in sides.items():
                row[f"{side}_mm"] = distance(transforms[name], truth[name], points)
            for side, transforms in [("truth" if fields else "authors", truth), *((k, v[0]) for k, v in sides.items())]:
                row[f"{side}_edges"], row[f"{side}_mi"] = agreement(images, brain, name, transforms[name])
        if fields:
            to_scan = truth.get(name, IDENTITY)
            for side, estimated in [("n4", n4), *((side, own) for side, (_, own) in sides.items())]:
                row[f"{side}_bias_r"] = bias_correlation(estimated[name], fields[name], brain, to_scan)
        yield row | times


def python_with_ants(given):
    """A Python that has `ants`, or None."""
    python = given or sys.executable
    return python if subprocess.run([python, "-c", "import ants"], capture_output=True).returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bids", help="a simulated cohort; default: the real sessions under MSLIB_DATA")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--ants-python", help="a Python that has ants; default: this one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", help="also write the table here, row by row")
    args = parser.parse_args()
    if not args.bids and not os.environ.get("MSLIB_DATA"):
        parser.error("give --bids, or set MSLIB_DATA to the folder of the real patients")
    python = python_with_ants(args.ants_python)
    if not python:
        print("ants is not installed (see the head of this file): only our side is measured")
    cases = simulated_subjects(args.bids, args.subjects) if args.bids else real_sessions(os.environ["MSLIB_DATA"])
    rows = []
    for case in cases:
        rows += compare(*case, python, args.threads)
        if args.csv:
            pd.DataFrame(rows).to_csv(args.csv, index=False)
    table = pd.DataFrame(rows).set_index(["scan", "sequence"])
    print(table.round(3).T.to_string())


if __name__ == "__main__":
    main()
