"""How well is a site told by what is no anatomy? What a network could learn where groups come from different sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from mslib.measure import classification_report
from mslib.nets.heads import fold_logits
from mslib.study.config import MIN_PER_GROUP


class SiteOnly(NamedTuple):
    """Accuracy with Wilson's interval, that of naming the commonest label, and the number of people."""

    value: float
    low: float
    high: float
    chance: float
    people: int


def acquisition(images: Mapping[str, nib.Nifti1Image]) -> dict[str, float]:
    """What scanner, sequence and earlier processing leave in one person's images.

    Parameters
    ----------
    images : mapping
        Sequence to NIfTI image.

    Returns
    -------
    dict
        Of every sequence: size of the voxels along each axis, their number and their 99th percentile (log10), share of
        voxels that are exactly 0 (background masked, skull-stripped, defaced), noise (median absolute second difference
        among the others, over the 99th percentile), sharpness (mean absolute difference of neighbours over that of
        voxels two apart).
    """
    found = {}
    for sequence, image in images.items():
        data = np.asarray(image.dataobj, np.float32)
        data = data.reshape(data.shape[:3])
        bright = max(float(np.percentile(data, 99)), 1e-6)
        inside = (data[:-2] != 0) & (data[1:-1] != 0) & (data[2:] != 0)
        second = np.abs(2 * data[1:-1] - data[:-2] - data[2:])[inside]
        wide = float(np.abs(data[2:] - data[:-2]).mean())
        found |= {f"{sequence} mm {axis}": float(mm) for axis, mm in zip("xyz", image.header.get_zooms())}
        found |= {f"{sequence} voxels": np.log10(data.size), f"{sequence} scale": np.log10(bright),
                  f"{sequence} zeros": float((data == 0).mean()),
                  f"{sequence} noise": float(np.median(second)) / bright if second.size else 0.0,
                  f"{sequence} sharpness": float(np.abs(np.diff(data, axis=0)).mean()) / wide if wide else 0.0}
    return found


def site_only(features: Sequence[Mapping[str, float]], labels: Sequence[str], seed: int = 0, folds: int = 5
              ) -> SiteOnly | None:
    """Logistic regression that tells labels by `acquisition` alone, cross-validated over people.

    Parameters
    ----------
    features : sequence of mapping
        One a person.
    labels : sequence of str
        Site, or group.
    seed, folds : int
        Of the folds; at most as many as the smallest class has people.

    Returns
    -------
    SiteOnly or None
        None where fewer than two labels have three people; people of smaller classes are left out.
    """
    people = pd.DataFrame({"subject": [f"{number}" for number in range(len(labels))], "group": list(labels)})
    large = people["group"].map(people["group"].value_counts()) >= MIN_PER_GROUP
    people, known = people[large].reset_index(drop=True), pd.DataFrame(features)[large.to_numpy()]
    classes = sorted(people["group"].unique())
    if len(classes) < 2:
        return None
    known = known.loc[:, known.std() > 1e-9]
    scaled = ((known - known.mean()) / known.std()).to_numpy()
    people["target"] = people["group"].map(classes.index)
    logits = fold_logits(scaled, people, folds, seed) if scaled.shape[1] else np.zeros((len(people), len(classes)))
    report = classification_report(logits, people["target"], people["subject"], classes, n=1).measures
    row = report[(report["level"] == "subject") & (report["measure"] == "accuracy")].iloc[0]
    chance = people["group"].value_counts(normalize=True).iloc[0]
    return SiteOnly(*map(float, (row["value"], row["low"], row["high"], chance)), len(people))
