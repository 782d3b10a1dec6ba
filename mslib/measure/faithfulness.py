"""Does a net need what a map marks? Values are removed, the hottest first, and the net is asked again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Quantiles of a map above which values are removed, one after the other.
LEVELS = tuple(np.round(np.linspace(1, 0, 11), 10))


def removed_at(heat, level: float, inside=None) -> np.ndarray:
    """Which values are removed at a level: those that reach the quantile of the map and are positive.

    Parameters
    ----------
    heat : array-like, (H, W, M) or (T, M)
        One map; its negative part is nothing.
    level : float
        1: nothing is removed; 0: all that is positive.
    inside : array-like of bool, shape of `heat`, optional
        What may be removed (the brain). Default: everywhere.

    Returns
    -------
    ndarray of bool, shape of `heat`
    """
    heat = np.maximum(np.asarray(heat, np.float64), 0)
    inside = np.ones(heat.shape, bool) if inside is None else np.asarray(inside, bool)
    if level >= 1:
        return np.zeros(heat.shape, bool)
    return inside & (heat > 0) & (heat >= np.quantile(heat[inside], level))


def removal_curve(performance: Callable[[np.ndarray], float], images, maps, base, inside=None,
                  levels=LEVELS) -> np.ndarray:
    """Performance of a net while what the maps mark is replaced by a baseline, the hottest first.

    Parameters
    ----------
    performance : callable
        Takes images, gives one number (accuracy).
    images, maps, base : array-like, (N, H, W, M) or (N, T, M)
        Of one shape (not checked), maps finite.
    inside : array-like of bool, same shape, optional
        What may be removed.
    levels : sequence of float
        Falling quantiles, from 1 (nothing removed).

    Returns
    -------
    ndarray of float, (len(levels),)
    """
    images, base = np.asarray(images), np.asarray(base)
    within = [None] * len(images) if inside is None else inside
    found = []
    for level in levels:
        gone = np.stack([removed_at(heat, level, one) for heat, one in zip(maps, within)])
        found.append(performance(np.where(gone, base, images)))
    return np.array(found, float)


def area_under_removal(curve, levels=LEVELS) -> float:
    """AUPC: area under a removal curve over one minus the quantile, by trapezoids; small where the map is needed.

    Of a map with few positive values little is ever removed: compare methods by `delta_aupc`, not by this.
    """
    return float(np.trapezoid(np.asarray(curve, float), 1 - np.asarray(levels, float)))


def shuffled_maps(maps, inside=None, seed: int = 0) -> np.ndarray:
    """Maps whose values have changed places inside the brain: what a map that knows nothing looks like.

    Parameters
    ----------
    maps : array-like, (N, H, W, M) or (N, T, M)
    inside : array-like of bool, same shape, optional
        Values outside stay.
    seed : int

    Returns
    -------
    ndarray, shape of `maps`
    """
    maps, rng = np.array(maps), np.random.default_rng(seed)
    for i, heat in enumerate(maps):
        within = np.ones(heat.shape, bool) if inside is None else np.asarray(inside[i], bool)
        heat[within] = rng.permutation(heat[within])
    return maps


def delta_aupc(performance: Callable[[np.ndarray], float], images, maps, base, inside=None, draws: int = 5,
               seed: int = 0, levels=LEVELS) -> tuple[float, float]:
    """How much smaller the area under the removal curve is than that of shuffled maps (Jin et al. 2022).

    Parameters
    ----------
    performance, images, maps, base, inside, levels
        As in `removal_curve`.
    draws : int
        Shuffled maps over which their area is averaged.
    seed : int

    Returns
    -------
    delta : float
        Above 0: the net needs what the maps mark more than other places.
    area : float
        AUPC of the maps themselves.
    """
    area = area_under_removal(removal_curve(performance, images, maps, base, inside, levels), levels)
    random = [area_under_removal(removal_curve(performance, images, shuffled_maps(maps, inside, seed + draw), base,
                                               inside, levels), levels) for draw in range(draws)]
    return float(np.mean(random)) - area, area
