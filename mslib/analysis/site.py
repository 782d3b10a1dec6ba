"""How well is a site told by what is no anatomy? What a network could learn where groups come from different sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
import pandas as pd

from mslib.measure import proportion_interval
from mslib.nets.heads import fold_logits
from mslib.study.config import MIN_PER_GROUP


def acquisition(images: Mapping[str, nib.Nifti1Image]) -> dict[str, float]:
    """What scanner, sequence and earlier processing leave in one person's images, by sequence.

    Size of the voxels along each axis, their number and their 99th percentile (log10), share of voxels that are exactly
    0 (background masked, skull-stripped, defaced), noise (median absolute second difference among the others, over the
    99th percentile), sharpness (mean absolute difference of neighbours over that of voxels two apart).
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
              ) -> dict[str, float] | None:
    """Logistic regression that tells labels (site, or group) by `acquisition` alone, cross-validated over people.

    ``value`` (accuracy), ``low, high`` (Wilson's interval), ``chance`` (naming the commonest label), ``people``; None
    where fewer than two labels have three people. People of smaller classes are left out; there are at most as many
    folds as the smallest class has people.
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
    correct = np.count_nonzero(logits.argmax(1) == people["target"])
    chance = float(people["group"].value_counts(normalize=True).iloc[0])
    return proportion_interval(correct, len(people)) | {"chance": chance, "people": len(people)}
