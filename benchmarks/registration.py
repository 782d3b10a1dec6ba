"""Our bias correction and rigid registration beside ANTs's, on the same scans in one run.

    python benchmarks/registration.py --bids runs/simulated/bids [--subjects 4]      simulated: error against the truth
    MSLIB_DATA=... python benchmarks/registration.py                                 real: distance to the authors' own

ANTs is measured where `ants` can be imported (``pip install -e ".[bench]"``); otherwise its columns stay empty.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.prep import brain_mask, edge_agreement
from mslib.prep.images import apply_points, array_of
from mslib.prep.pipeline import _align_all
from mslib.study.config import Prep

SESSIONS = (("patient01", 1), ("patient01", 2), ("patient03", 2))
NAMES = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}


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


def edges(images, mask, name, transform):
    """Independent measure: agreement of edges, which neither registration optimises."""
    t1w = images["T1w"]
    grid = sitk.Resample(t1w, [round(n * s) for n, s in zip(t1w.GetSize(), t1w.GetSpacing())], sitk.Transform(),
                         sitk.sitkLinear, t1w.GetOrigin(), (1.0, 1.0, 1.0), t1w.GetDirection())
    brain = array_of(sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor)) > 0
    moved = sitk.Resample(images[name], grid, transform, sitk.sitkLinear)
    values = [array_of(image) / np.percentile(array_of(image)[brain], 99.8) for image in (grid, moved)]
    return edge_agreement(*values, brain)


def ours(files, mask):
    """Transforms, log bias fields and seconds; a missing mask is made (and counted) as in the study."""
    began = time.perf_counter()
    images = {name: sitk.ReadImage(str(file), sitk.sitkFloat32) for name, file in files.items()}
    brain = brain_mask(images["T1w"]) if mask is None else sitk.ReadImage(str(mask), sitk.sitkUInt8)
    aligned = _align_all(images, brain, Prep(), seed=0, threads=2)
    seconds = time.perf_counter() - began
    fields = {name: sitk.Log(images[name] / (aligned[name].image + 1e-6) + 1e-6) for name in files}
    transforms = {name: aligned[name].registration.transform for name in ("T2w", "FLAIR")}
    return transforms, fields, seconds, brain, images


def ants_rigid(files):
    """ANTs: N4 of all three (its defaults), then rigid registration of the corrected images."""
    import ants
    began = time.perf_counter()
    images, fields, transforms = {}, {}, {}
    for name, file in files.items():
        raw = ants.image_read(str(file))
        images[name] = ants.n4_bias_field_correction(raw)
    bias_seconds, began = time.perf_counter() - began, time.perf_counter()
    for name in ("T2w", "FLAIR"):
        found = ants.registration(images["T1w"], images[name], type_of_transform="Rigid", random_seed=1)
        transforms[name] = sitk.ReadTransform(found["fwdtransforms"][0])
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            ants.image_write(images[name], f"{folder}/{name}.nii.gz")
            corrected = sitk.ReadImage(f"{folder}/{name}.nii.gz", sitk.sitkFloat32)
            raw = sitk.ReadImage(str(file), sitk.sitkFloat32)
            fields[name] = sitk.Log(sitk.Maximum(raw, 1e-3) / sitk.Maximum(corrected, 1e-3))
    return transforms, fields, bias_seconds, seconds


def bias_correlation(found, truth, brain, transform):
    inside = array_of(sitk.Resample(brain, truth, transform.GetInverse(), sitk.sitkNearestNeighbor)) > 0
    return float(np.corrcoef(array_of(found)[inside], np.log(array_of(truth)[inside]))[0, 1])


def compare(label, files, mask, truth, fields, with_ants):
    """One row per sequence."""
    found, our_fields, seconds, brain, images = ours(files, mask)
    points = brain_points(brain)
    peer, peer_fields, peer_bias, peer_rigid = ants_rigid(files) if with_ants else ({}, {}, np.nan, np.nan)
    for name in files:
        row = {"scan": label, "sequence": name, "ours_s": seconds, "ants_n4_s": peer_bias, "ants_rigid_s": peer_rigid,
               "time_ratio": seconds / (peer_bias + peer_rigid)}
        if name in truth:
            rigid = nearest_rigid(truth[name], points)
            floor = np.linalg.norm(apply_points(truth[name], points) - rigid, axis=1).mean()
            row |= {"ours_mm": distance(found[name], truth[name], points), "floor_mm": floor,
                    "ours_edges": edges(images, brain, name, found[name])}
            if not fields:
                row["authors_edges"] = edges(images, brain, name, truth[name])
            if peer:
                row |= {"ants_mm": distance(peer[name], truth[name], points),
                        "ants_edges": edges(images, brain, name, peer[name])}
        if fields:
            to_scan = truth.get(name, sitk.Transform(3, sitk.sitkIdentity))
            row["ours_bias_r"] = bias_correlation(our_fields[name], fields[name], brain, to_scan)
            if peer_fields:
                row["ants_bias_r"] = bias_correlation(peer_fields[name], fields[name], brain, to_scan)
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bids", help="a simulated cohort; default: the real sessions under MSLIB_DATA")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--without-ants", action="store_true")
    parser.add_argument("--csv", help="also write the table here")
    args = parser.parse_args()
    if not args.bids and not os.environ.get("MSLIB_DATA"):
        parser.error("give --bids, or set MSLIB_DATA to the folder of the real patients")
    with_ants = not args.without_ants
    if with_ants:
        try:
            import ants  # noqa: F401
        except ImportError:
            print('ants is not installed (pip install -e ".[bench]"): only our side is measured')
            with_ants = False
    cases = simulated_subjects(args.bids, args.subjects) if args.bids else real_sessions(os.environ["MSLIB_DATA"])
    table = pd.DataFrame([row for case in cases for row in compare(*case, with_ants)])
    print(table.round(3).to_string(index=False))
    if args.csv:
        table.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
