"""How much does each modality matter to a net, and does a map say the same?"""

from __future__ import annotations

from itertools import permutations
from math import factorial

import numpy as np
from scipy.stats import kendalltau, spearmanr


def shapley_values(worths) -> np.ndarray:
    """Exact Shapley value of every modality (Shapley 1953; Jin et al. 2022, eq. 1).

    ``phi_m = sum over subsets c without m of |c|! (M - |c| - 1)! / M! (v(c + m) - v(c))``

    Parameters
    ----------
    worths : array-like, (2 ** M, ...)
        Value (accuracy, minus cross-entropy) with every subset of the modalities present, that of a subset at place
        ``sum(2 ** m for m in subset)``; further axes (images) are kept.

    Returns
    -------
    ndarray of float, (M, ...)
        Adds up to the worth of all minus that of nothing.

    Raises
    ------
    ValueError
        The number of worths is no power of two, or one is not finite.
    """
    worths = np.asarray(worths, float)
    count = len(worths).bit_length() - 1 if worths.ndim else -1
    if count < 1 or len(worths) != 2**count:
        raise ValueError(f"worths: must be one for each subset, 2, 4, 8 ... (got {worths.shape})")
    if not np.isfinite(worths).all():
        raise ValueError("worths: hold NaN or infinity")
    values = np.zeros((count, *worths.shape[1:]))
    for subset in range(2**count):
        size = subset.bit_count()
        for m in range(count):
            if not subset >> m & 1:
                weight = factorial(size) * factorial(count - size - 1) / factorial(count)
                values[m] += weight * (worths[subset | 1 << m] - worths[subset])
    return values


def modality_totals(maps) -> np.ndarray:
    """Positive attribution of every modality, (N, M) in float64, of maps (N, ..., M)."""
    maps = np.asarray(maps, np.float64)
    return np.maximum(maps, 0).reshape(len(maps), -1, maps.shape[-1]).sum(1)


def importance_correlation(totals, importance) -> np.ndarray:
    """Kendall's tau-b, (N,), between the modalities' totals (N, M) of maps and their importance (M,): MI correlation.

    With M modalities it takes few values (M = 3: -1, -1/3, 1/3, 1); the mean over many maps is what can be read. NaN
    where tau is not defined: all modalities of a map alike, as in a map that cannot tell them apart or in a blank one;
    a total that is NaN; or all importances alike (then every row). Report how many rows are NaN: to leave them out in
    silence would favour maps that are often blank. ValueError where shapes do not fit.
    """
    totals, importance = np.asarray(totals, float), np.asarray(importance, float)
    if totals.ndim != 2 or importance.shape != totals.shape[1:]:
        raise ValueError(f"importance: must have one value for each modality of the totals (N, M) (got "
                         f"{importance.shape} and {totals.shape})")
    return np.array([kendalltau(row, importance).statistic for row in totals])


def correlation_by_chance(modalities: int) -> np.ndarray:
    """Kendall's tau of every order of the modalities against one: what a map of a random order would give."""
    order = np.arange(modalities)
    return np.array([kendalltau(one, order).statistic for one in permutations(order)])


def share_inside(maps, mask, brain=None) -> np.ndarray:
    """Share of every modality's positive attribution that lies inside a mask (feature portion, Jin et al. 2022).

    Parameters
    ----------
    maps : array-like, (N, H, W, M)
    mask : array-like of bool, (N, H, W, M) or (N, H, W)
        What a map should mark (lesions): each modality's own, or the same for all.
    brain : array-like of bool, (N, H, W), optional
        What counts. Default: everywhere.

    Returns
    -------
    ndarray of float, (N, M)
        NaN where a modality has no positive attribution, and for an image with an empty mask: no share is right there.
        Of all modalities together: ``share_inside(np.maximum(maps, 0).sum(-1, keepdims=True), mask)``.

    Raises
    ------
    ValueError
        Shapes differ.
    """
    positive, mask = np.maximum(np.asarray(maps, np.float64), 0), np.asarray(mask, bool)
    if positive.ndim != 4 or mask.shape not in (positive.shape, positive.shape[:3]):
        raise ValueError(f"mask: must have the shape of the maps, (N, H, W, M), or (N, H, W) (got {mask.shape} and "
                         f"{positive.shape})")
    mask = mask if mask.ndim == 4 else mask[..., None]
    if brain is not None:
        positive = positive * np.asarray(brain, bool)[..., None]
    total = positive.sum((1, 2)) * mask.any((1, 2, 3))[:, None]
    return np.divide((positive * mask).sum((1, 2)), total, out=np.full(total.shape, np.nan), where=total > 0)


def feature_importance_score(portions, importance) -> np.ndarray:
    """MSFI, (N,): feature portions (N, M), each weighted by its modality's importance (Jin et al. 2022, eq. 2).

    A modality without attribution (portion NaN, see `share_inside`) and a negative importance count as 0. 1: all
    attribution of the modalities that matter lies in their features. NaN: a map without attribution, or (then every
    row) no modality with a positive importance.
    """
    portions, weights = np.asarray(portions, float), np.clip(np.asarray(importance, float), 0, None)
    if not weights.sum() > 0:
        return np.full(len(portions), np.nan)
    score = np.nan_to_num(portions) @ weights / weights.sum()
    return np.where(np.isnan(portions).all(1), np.nan, score)


def map_similarity(a, b, mask) -> np.ndarray:
    """Spearman's rank correlation, (N,), of the magnitudes of two maps inside a mask, image by image.

    Maps are (N, H, W, M) or (N, H, W), the mask (N, H, W), else ValueError; all modalities of an image are ranked
    together. NaN where one of the two maps is constant inside the mask.
    """
    a, b, mask = np.abs(a), np.abs(b), np.asarray(mask, bool)
    if a.shape != b.shape or mask.shape != a.shape[:3]:
        raise ValueError(f"mask: must be (N, H, W) with two maps of one shape (got {mask.shape}, {a.shape} and "
                         f"{b.shape})")
    pairs = ((one[inside].ravel(), other[inside].ravel()) for one, other, inside in zip(a, b, mask))
    return np.array([spearmanr(one, other).statistic if np.ptp(one) > 0 and np.ptp(other) > 0 else np.nan
                     for one, other in pairs])
