"""Which wrong images quality control flags, and how many right ones: hits and false alarms over many pairs.

    MSLIB_DATA=/path/to/data python benchmarks/wrong_inputs.py runs/simulated/bids 36

The dataset is of simulated subjects (the first so many are taken); real patients are those of MSLIB_DATA. A pair is
T1w with one other sequence. Wrong are T2w and FLAIR of the next subject, the sequences of one head in every other order
or one of them twice, noise, and labels. Then strokes, drawn into the slices of every fourth
person of ``runs/simulated/derivatives``: which of them lie outside what the shipped networks know.
"""

import os
import sys
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import SimpleITK as sitk
from joblib import Parallel, delayed
from scipy import ndimage

from mslib.cohort import openms_bids
from mslib.nets.scope import image_features, out_of_scope
from mslib.prep import brain_mask
from mslib.prep.images import as_image
from mslib.prep.pipeline import align, comparable
from mslib.prep.qc import EDGE_AGREEMENT, contrast_doubts, edge_agreement, label_doubts, solid_doubts
from mslib.prep.slices import load_stack
from mslib.study import StudyError, read_json
from mslib.study.provenance import ROOT

NAMES = ("T1w", "T2w", "FLAIR")
#: Intensity over the brain's median: fresh ones swell and are bright, old ones are holes full of fluid.
STROKES = {"fresh": {"T1w": 0.8, "T2w": 1.9, "FLAIR": 1.5}, "old": {"T1w": 0.3, "T2w": 3.0, "FLAIR": 0.5}}


def looked_at(images: dict, mask, wrong: str, origin: str, named: tuple = NAMES[1:]) -> list[dict]:
    """A row per pair: its kind, where it is from, agreement of its edges, and whether it is flagged."""
    images = {name: as_image(image) for name, image in images.items()}
    doubts = label_doubts(images)
    try:
        mask = brain_mask(images["T1w"]) if mask is None else as_image(mask)
        found, fields = align(images, mask)
        volumes, inside, edge = comparable(images, mask, found, fields, (0.5, 99.8))
    except StudyError as error:
        return [{"kind": wrong, "origin": origin, "edges": np.nan, "flagged": True, "why": str(error)} for _ in named]
    doubts += contrast_doubts(volumes, inside) + solid_doubts(volumes, inside, edge)
    rows = []
    for name in named:
        edges = edge_agreement(volumes["T1w"], volumes[name], inside)
        why = [*found[name].flags, *(one for one in doubts if one.startswith((name, "T1w"))),
               *(["edges"] if edges < EDGE_AGREEMENT else [])]
        # A T1w that is none puts one of the others out of order: the subject is flagged, and with it both pairs.
        rows.append({"kind": wrong, "origin": origin, "edges": edges, "why": "; ".join(why),
                     "flagged": bool(why) or (wrong not in ("right", "another head") and bool(doubts))})
    return rows


def of_subject(number: int, people: list[tuple[str, dict, Path | None]]) -> list[dict]:
    """Rows of one subject: right, beside the next one, and one of the other kinds of wrong images in turn."""
    name, images, mask = people[number]
    _, following, _ = people[(number + 1) % len(people)]
    rows = looked_at(images, mask, "right", name)
    rows += looked_at(images | {one: following[one] for one in NAMES[1:]}, mask, "another head", name)
    kinds = [*list(permutations(NAMES))[1:], ("T1w", "FLAIR", "FLAIR"), ("T1w", "T2w", "T2w"), "noise", "labels"]
    kind = kinds[number % len(kinds)]
    if isinstance(kind, str):
        t1w = sitk.ReadImage(str(images["T1w"]), sitk.sitkFloat32)
        other = sitk.AdditiveGaussianNoise(t1w * 0, 200.0, 500.0, 1) if kind == "noise" else sitk.Cast(
            sitk.OtsuMultipleThresholds(t1w, 3), sitk.sitkFloat32)
        return rows + looked_at(images | {"T1w": other}, mask, f"T1w is {kind}", name)
    changed = [own for own, given in zip(NAMES, kind) if own != given and own != "T1w"]
    order = dict(zip(NAMES, (images[one] for one in kind)))
    return rows + looked_at(order, mask if kind[0] == "T1w" else None, "another sequence", name, tuple(changed))


def subjects_of(dataset: Path) -> list[tuple[str, dict, Path | None]]:
    """Name, images and brain mask of everybody in a dataset who has all three sequences."""
    found = []
    for folder in sorted(dataset.glob("sub-*")):
        images = {one: folder / "anat" / f"{folder.name}_{one}.nii.gz" for one in NAMES}
        mask = dataset / "derivatives/brainmask" / folder.name / f"anat/{folder.name}_space-T1w_desc-brain_mask.nii.gz"
        if all(path.is_file() for path in images.values()):
            found.append((folder.name, images, mask if mask.is_file() else None))
    return found


def with_stroke(images: np.ndarray, brain: np.ndarray, ml: float, kind: str) -> np.ndarray:
    """Slices of 1 mm, (n, H, W, M) in [0, 1], with a stroke of so many mL in the middle of one half of the brain."""
    places, columns = np.indices(brain.shape), np.flatnonzero(brain.any((0, 1)))
    half = brain & (places[2] > (columns[0] + columns[-1]) / 2 + 8)
    ragged = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=brain.shape), 6) * 60
    centred = [(place - place[half].mean()) / width for place, width in zip(places, (1, 1.3, 0.9))]
    distance = np.sqrt(np.square(centred).sum(0)) + ragged
    inside = half & (distance < np.sort(distance[half])[round(ml * 1000)])
    share = (ndimage.gaussian_filter(inside.astype(float), 1.5) * brain)[..., None]
    median = np.median(images[brain], 0)
    return np.clip(images * (1 - share) + share * median * [STROKES[kind][name] for name in NAMES], 0, 1)


def strokes_of(path: Path, scope: dict) -> list[dict]:
    """A row per stroke in the slices of one person, and one without: are they out of the scope, or too solid?"""
    stack = load_stack(path)
    images, brain = stack.images.astype(float), stack.brain > 0
    made = {"none": images} | {f"{kind}, {ml} mL": with_stroke(images, brain, ml, kind)
                               for kind in STROKES for ml in (20, 40, 120)}
    return [{"stroke": name, "out of scope": bool(out_of_scope(image_features(one[::5], NAMES, 1.0), scope)),
             "solid": bool(solid_doubts(dict(zip(NAMES, np.moveaxis(one[::2, ::2, ::2], -1, 0))), brain[::2, ::2, ::2],
                                        2.0))} for name, one in made.items()]


def main(dataset: Path, count: int) -> None:
    people = subjects_of(dataset)[:count]
    with TemporaryDirectory() as made:
        real = []
        if source := os.environ.get("MSLIB_DATA"):
            openms_bids.to_bids(Path(source) / "open_ms_data", made)
            real = subjects_of(Path(made))
        real = real[::2] + real[1::2]  # two sessions of one person do not follow each other
        jobs = [(k, group) for group in (people, real) for k in range(len(group))]
        rows = Parallel(2)(delayed(of_subject)(*job) for job in jobs)
    table = pd.DataFrame([row for part in rows for row in part])
    table["patients"] = np.where(table["origin"].str.contains("MNI|L[0-9]"), "real", "simulated")
    print(table.groupby(["kind", "patients"], sort=False).agg(
        pairs=("flagged", "size"), flagged=("flagged", "sum"), least_edges=("edges", "min"),
        most_edges=("edges", "max")).round(1).to_string())
    print(table[(table["kind"] == "right") == table["flagged"]].to_string())
    scope = read_json(ROOT / "weights" / "vgg16_simulated.json")["scope"]
    stacks = sorted((dataset.parent / "derivatives" / "mslib").glob("sub-*/anat/*_desc-slices.npz"))[::4]
    parts = Parallel(2)(delayed(strokes_of)(path, scope) for path in stacks)
    drawn = pd.DataFrame([row for part in parts for row in part])
    print(drawn.groupby("stroke", sort=False)[["out of scope", "solid"]].agg(["size", "sum"]).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
