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
    images, maps : array-like, (N, H, W, M) or (N, T, M)
        Of one shape and finite.
    baseline : array-like of that shape, or callable
        What takes the place of removed values, or a function (images, removed) to images that makes it from what stays
        (`mslib.explain.replace_removed`); only removed values are taken from it.
    inside : array-like of bool, same shape, optional
        What may be removed.
    levels : sequence of float
        Falling quantiles, from 1 (nothing removed).

    Returns
    -------
    ndarray of float, (len(levels), ...)

    Raises
    ------
    ValueError
        Shapes differ, values are not finite, an image with nothing inside, levels that do not fall from 1.
    """
    images, maps, levels = _finite("images", images), _finite("maps", maps), _falling(levels)
    within = np.ones(images.shape, bool) if inside is None else np.asarray(inside, bool)
    for name, given in (("maps", maps), ("inside", within)):
        if given.shape != images.shape:
            raise ValueError(f"{name}: must have the shape of the images {images.shape} (got {given.shape})")
    if not (held := within.any(tuple(range(1, within.ndim)))).all():
        raise ValueError(f"inside: must hold something of every image (image {held.argmin()} has nothing)")
    curve = []
    for level in levels:
        removed = np.stack([removed_at(heat, level, one) for heat, one in zip(maps, within)])
        replaced = _finite("baseline", baseline(images, removed) if callable(baseline) else baseline)
        if replaced.shape != images.shape:
            raise ValueError(f"baseline: must have the shape of the images {images.shape} (got {replaced.shape})")
        curve.append(performance(np.where(removed, replaced, images)))
    return np.array(curve, float)


def _finite(name, values):
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(values))} values are NaN or infinite")
    return values


def _falling(levels):
    levels = np.asarray(levels, float)
    if levels.ndim != 1 or len(levels) < 2 or levels[0] != 1 or not (np.diff(levels) < 0).all() or levels[-1] < 0:
        raise ValueError(f"levels: must fall from 1, to 0 at most, two at least (got {levels.tolist()})")
    return levels


def area_under_removal(curve, levels=LEVELS) -> float:
    """AUPC: area under a removal curve over one minus the quantile, by trapezoids; small where the map is needed.

    Of a map with few positive values little is ever removed: compare methods by what it is smaller than the area of
    `shuffled_maps` (delta-AUPC, Jin et al. 2022), not by itself. Raises a ValueError where a curve has not one value a
    level, and where levels do not fall from 1.
    """
    curve, levels = np.asarray(curve, float), _falling(levels)
    if curve.shape != levels.shape:
        raise ValueError(f"curve: must have one value for each of {len(levels)} levels (got {curve.shape})")
    return float(np.trapezoid(curve, 1 - levels))


def shuffled_maps(maps, inside=None, seed: int = 0) -> np.ndarray:
    """Maps (N, ..., M) whose values have changed places inside the brain: the null of `removal_curve`.

    Values that are not `inside`, of the shape of the maps (else ValueError; default: everywhere), stay.
    """
    maps, rng = np.array(maps), np.random.default_rng(seed)
    inside = np.ones(maps.shape, bool) if inside is None else np.asarray(inside, bool)
    if inside.shape != maps.shape:
        raise ValueError(f"inside: must have the shape of the maps {maps.shape} (got {inside.shape})")
    for heat, within in zip(maps, inside):
        heat[within] = rng.permutation(heat[within])
    return maps
