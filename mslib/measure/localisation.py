"""How well does a map point at the lesions? Each measure with its value by chance, slice by slice."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: A map without a value above this inside the brain is blank.
BLANK = 1e-12
COLUMNS = ("auprc", "auprc_chance", "pointing", "pointing_chance", "mass_share", "mass_share_chance", "iou",
           "iou_chance", "half_heat_share", "half_heat_share_chance", "q95")


def average_precision(heat, lesion, brain=None) -> np.ndarray:
    """Area under the precision-recall curve, heat being a voxel's score for lesion, as in scikit-learn.

    ``sum_n (R_n - R_(n-1)) P_n`` over the distinct heat values, tied voxels entering together. Recall
    changes at lesion values alone, so only these are looked up among all sorted values. Chance: the
    lesions' share of the brain.

    Parameters
    ----------
    heat : array-like, (N, H, W) or (H, W), not negative
    lesion, brain : array-like of bool, same shape
        Voxels outside the brain do not count. Default brain: everywhere.

    Returns
    -------
    ndarray, (N,)
        NaN for a blank map and for a slice without lesion.

    Raises
    ------
    ValueError
        Shapes differ; a slice without brain; negative or non-finite heat.
    """
    return _column(heat, lesion, brain, "auprc")


def pointing_game(heat, lesion, brain=None) -> tuple[np.ndarray, np.ndarray]:
    """Does the hottest voxel lie in a lesion (Zhang et al. 2018)?

    Parameters
    ----------
    heat, lesion, brain
        As in `average_precision`.

    Returns
    -------
    hit : ndarray, (N,)
        1 or 0; among tied maxima the share that lies in a lesion, which is what a random pick would give.
    chance : ndarray, (N,)
        Share of the brain that is lesion.
    """
    return _column(heat, lesion, brain, "pointing"), _column(heat, lesion, brain, "pointing_chance")


def mass_share(heat, lesion, brain=None) -> tuple[np.ndarray, np.ndarray]:
    """Feature portion: heat in lesions over heat in the brain (Jin et al. 2022); chance is the lesion share.

    Parameters and NaN as in `average_precision`.
    """
    return _column(heat, lesion, brain, "mass_share"), _column(heat, lesion, brain, "mass_share_chance")


def iou_at_median(heat, lesion, brain=None) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of lesion and map, binarised (>=) at the median of its non-zero values.

    Chance: k hot voxels laid at random over the n brain voxels, L of them lesion, meet k L / n of these on
    average, which gives an IoU of ``m / (k + L - m)`` with ``m = k L / n``. Parameters and NaN as in
    `average_precision`.
    """
    return _column(heat, lesion, brain, "iou"), _column(heat, lesion, brain, "iou_chance")


def half_heat_share(heat, brain=None) -> np.ndarray:
    """Spread: the smallest share of the brain that holds half of the heat; 0.5 if flat, near 0 for a point.

    Parameters and NaN as in `average_precision`.
    """
    return _column(heat, None, brain, "half_heat_share")


def heat_quantile(heat, brain=None) -> np.ndarray:
    """95th percentile of the heat in the brain, linear between voxels; NaN for a blank map.

    Parameters as in `average_precision`.
    """
    return _column(heat, None, brain, "q95")


def measure_maps(heat, lesion=None, brain=None) -> pd.DataFrame:
    """All measures of a stack of maps, from one sorting of each map.

    Parameters
    ----------
    heat : array-like, (N, H, W) or (H, W), not negative
    lesion, brain : array-like of bool, same shape
        Default: no lesion (only spread and percentile are then defined); brain everywhere.

    Returns
    -------
    DataFrame
        One row per map: ``auprc, pointing, mass_share, iou, half_heat_share`` each with ``<name>_chance``,
        ``q95``, ``blank`` (no heat in the brain: every measure NaN), ``lesion_voxels``, ``brain_voxels``.
        Measures against lesions are NaN in a slice without. ``attrs["n_blank"]`` counts the blank maps.

    Raises
    ------
    ValueError
        As `average_precision`.
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


def _column(heat, lesion, brain, name):
    return measure_maps(heat, lesion, brain)[name].to_numpy()


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
    row["auprc_chance"] = row["pointing_chance"] = row["mass_share_chance"] = share
    row["auprc"] = np.mean(_at_least(hot, hot) / _at_least(values, hot))
    row["pointing"] = _at_least(hot, values[-1]) / _at_least(values, values[-1])
    row["mass_share"] = hot.sum(dtype=np.float64) / total
    threshold = _sorted_quantile(values[np.searchsorted(values, 0, side="right"):], 0.5)
    above, met = _at_least(values, threshold), _at_least(hot, threshold)
    row["iou"] = met / (above + lesions - met)
    row["iou_chance"] = above * share / (above + lesions - above * share)
    return row


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
