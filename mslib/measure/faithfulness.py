"""Does a network need what a map marks? Values are removed, the hottest first, and it is asked again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Quantiles of a map above which values are removed, one after the other.
LEVELS = tuple(np.round(np.linspace(1, 0, 11), 10))


def removed_at(heat: np.ndarray, level: float, inside: np.ndarray) -> np.ndarray:
    """Which values of a map are removed at a level: those inside that reach its quantile there and are positive.

    Level 1 removes nothing, 0 all that is positive.
    """
    if level == 1:
        return np.zeros(heat.shape, bool)
    return inside & (heat > 0) & (heat >= np.quantile(np.maximum(heat[inside], 0), level))


def removal_curve(performance: Callable[[np.ndarray], float], images, maps, baseline, inside=None,
                  levels=LEVELS) -> np.ndarray:
    """Performance of a network while what the maps mark is replaced, the hottest first.

    Parameters
    ----------
    performance : callable
        Takes images, gives one number (accuracy) or one an image.
    images, maps : ndarray, (N, H, W, M) or (N, T, M)
    baseline : ndarray of that shape, or callable
        What takes the place of removed values, or a function (images, removed) to images that makes it from what stays
        (`mslib.explain.replace_removed`).
    inside : ndarray of bool, same shape, optional
        What may be removed: something of every image.
    levels : sequence of float
        Falling quantiles, from 1 (nothing removed).

    Returns
    -------
    ndarray of float, (len(levels), ...)
    """
    within, curve = np.ones(images.shape, bool) if inside is None else inside, []
    for level in levels:
        removed = np.stack([removed_at(heat, level, one) for heat, one in zip(maps, within)])
        replaced = baseline(images, removed) if callable(baseline) else baseline
        curve.append(performance(np.where(removed, replaced, images)))
    return np.array(curve, float)


def area_under_removal(curve, levels=LEVELS) -> float:
    """AUPC: area under a removal curve over one minus the quantile, by trapezoids; small where the map is needed.

    Of a map with few positive values little is ever removed: compare methods by what it is smaller than the area of
    `shuffled_maps` (delta-AUPC, Jin et al. 2022), not by itself.
    """
    return float(np.trapezoid(curve, 1 - np.asarray(levels)))


def shuffled_maps(maps, inside=None, seed: int = 0) -> np.ndarray:
    """Maps (N, ..., M) whose values have changed places inside a mask of their shape: the null of `removal_curve`."""
    maps, rng = np.array(maps), np.random.default_rng(seed)
    for heat, within in zip(maps, np.ones(maps.shape, bool) if inside is None else inside):
        heat[within] = rng.permutation(heat[within])
    return maps
