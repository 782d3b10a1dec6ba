"""How well does a map point at the lesions? Each measure with its value by chance, slice by slice."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: A map without a value above this inside the brain is blank.
BLANK = 1e-12
MEASURES = ("auprc", "pointing", "precision", "mass_share", "iou", "half_heat_share")
COLUMNS = (*(f"{name}{kind}" for name in MEASURES for kind in ("", "_chance")), "q95")


def measure_maps(heat, lesion=None, brain=None) -> pd.DataFrame:
    """All measures of a stack of maps, from one sorting of each map.

    Parameters
    ----------
    heat : array-like, (N, H, W) or (H, W), not negative
    lesion, brain : array-like of bool, same shape
        Voxels outside the brain do not count. Default: no lesion (only spread and percentile are then defined); brain
        everywhere.

    Returns
    -------
    DataFrame
        One row per map; each measure but ``q95`` with its value by chance as ``<name>_chance``, which is the lesions'
        share of the brain where nothing else is said. A blank map (no heat in the brain) has NaN everywhere, a slice
        without lesion in what is measured against lesions. ``attrs["n_blank"]`` counts the blank maps.

        - ``auprc``: area under the precision-recall curve, heat being a voxel's score for lesion, tied voxels entering
          together, ``sum_n (R_n - R_(n-1)) P_n``, as in scikit-learn.
        - ``pointing``: 1 where the hottest voxel lies in a lesion (Zhang et al. 2018); among tied maxima the share
          that does, which is what a random pick would give.
        - ``precision``: share of lesion among the p hottest voxels, p the number of lesion voxels (Oliveira et al.
          2024); of the voxels that tie at the p-th place the expected share.
        - ``mass_share``: heat in lesions over heat in the brain, the feature portion (Jin et al. 2022).
        - ``iou``: intersection over union of lesion and map, binarised (>=) at the median of its non-zero values.
          Chance: k hot voxels laid at random over n brain voxels, L of them lesion, overlap ``m = k L / n`` of these
          on average, an IoU of ``m / (k + L - m)``.
        - ``half_heat_share``: spread, the smallest share of the brain that holds half of the heat; .5 if uniform.
        - ``q95``: 95th percentile of the heat in the brain, linear between voxels.
        - ``blank``, ``lesion_voxels``, ``brain_voxels``.

    Raises
    ------
    ValueError
        Shapes differ; a slice without brain; negative or non-finite heat.
    """
    heat, lesion, brain = _check(heat, lesion, brain)
    rows = []
    for index, (of_map, of_lesion, of_brain) in enumerate(zip(heat, lesion, brain)):
        inside = np.flatnonzero(of_brain)
        values = of_map.ravel().take(inside)
        hot = values[of_lesion.ravel().take(inside)]
        values.sort()
        if not (len(values) and values[0] >= 0 and np.isfinite(values[-1])):
            raise ValueError(_fault(index, values))
        rows.append(_measures(values, np.sort(hot)))
    table = pd.DataFrame(rows)
    table.attrs["n_blank"] = int(table["blank"].sum())
    return table


def _measures(values, hot):
    """All measures from the ascending heat of the brain (n) and of its lesions (L)."""
    n, lesions = len(values), len(hot)
    row = dict.fromkeys(COLUMNS, np.nan) | {"blank": bool(values[-1] <= BLANK), "lesion_voxels": lesions,
                                            "brain_voxels": n}
    if row["blank"]:
        return row
    cumulated = np.cumsum(values, dtype=np.float64)
    total = cumulated[-1]
    row["half_heat_share"] = (n - np.searchsorted(cumulated, total / 2, side="right")) / n
    row["half_heat_share_chance"] = 0.5
    row["q95"] = _sorted_quantile(values, 0.95)
    if not lesions:
        return row
    share = lesions / n
    row |= dict.fromkeys(("auprc_chance", "pointing_chance", "precision_chance", "mass_share_chance"), share)
    row["auprc"] = np.mean(_at_least(hot, hot) / _at_least(values, hot))
    row["pointing"] = _at_least(hot, values[-1]) / _at_least(values, values[-1])
    row["precision"] = _share_of_hottest(values, hot)
    row["mass_share"] = hot.sum(dtype=np.float64) / total
    threshold = _sorted_quantile(values[np.searchsorted(values, 0, side="right"):], 0.5)
    above, met = _at_least(values, threshold), _at_least(hot, threshold)
    row["iou"] = met / (above + lesions - met)
    row["iou_chance"] = above * share / (above + lesions - above * share)
    return row


def _share_of_hottest(values, hot):
    """Expected share of lesion among the L hottest of n ascending values, ties at the border drawn at random."""
    p, border = len(hot), values[-len(hot)]
    (above, tied), (hot_above, hot_tied) = (
        (len(each) - np.searchsorted(each, border, side="right"), np.sum(each == border)) for each in (values, hot))
    return (hot_above + (p - above) * hot_tied / tied) / p


def _at_least(ascending, threshold):
    """How many values reach a threshold."""
    return len(ascending) - np.searchsorted(ascending, threshold, side="left")


def _sorted_quantile(ascending, q):
    position = q * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    low, high = float(ascending[below]), float(ascending[above])
    return low + (position - below) * (high - low)


def _check(heat, lesion, brain):
    heat = np.asarray(heat)
    heat = heat[None] if heat.ndim == 2 else heat
    if heat.ndim != 3 or not len(heat):
        raise ValueError(f"heat: must be a non-empty (N, H, W) stack of maps (got {heat.shape})")
    masks = []
    for name, mask, default in (("lesion", lesion, False), ("brain", brain, True)):
        mask = np.broadcast_to(default, heat.shape) if mask is None else np.asarray(mask, bool)
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.shape != heat.shape:
            raise ValueError(f"{name}: must have the shape of heat, {heat.shape} (got {mask.shape})")
        masks.append(mask)
    return heat, *masks


def _fault(index, values):
    if not len(values):
        return f"brain: slice {index} has no brain voxel; leave such slices out"
    if not np.isfinite(values).all():
        return f"heat: map {index} holds NaN or infinity inside the brain"
    return f"heat: map {index} is negative in the brain (minimum {values[0]:.3g}); take its positive part"
