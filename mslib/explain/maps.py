"""What is done to finished maps: resampling, blank ones, smoothing and scaling before they are measured."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def upsample_maps(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Half-pixel linear resampling of maps (..., h, w) to `size`, which may have any number of axes.

    Every cell is drawn where the network has it.

    Pools that halve an odd side leave its last row out, so that 10 cells of 16 pixels stand for 168: they keep that
    width, and the rest repeats the outermost. Otherwise as `tf.image.resize`, which would stretch them.
    """
    maps = np.asarray(maps, np.float32)
    return _along_axes([_linear_weights(n, m) for n, m in zip(maps.shape[-len(size):], size)], maps)


def average_cells(images: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Means of images (..., H, W) over the cells of a layer, (..., h, w), float32; `upsample_maps` puts them back."""
    images = np.asarray(images, np.float32)
    held = [np.arange(m) // _cell(n, m) == np.arange(n)[:, None] for n, m in zip(cells, images.shape[-len(cells):])]
    return _along_axes([each.astype(np.float32) / each.sum(1, keepdims=True) for each in held], images)


def blank_maps(maps: np.ndarray) -> np.ndarray:
    """Flag the raw maps, (N, ...), that show nothing (maximum at most 1e-12), whatever a colour scale would show."""
    return ~(np.reshape(maps, (len(maps), -1)).max(1) > 1e-12)


def postprocess(maps, sigma: float, quantile_share: float = 0.99) -> np.ndarray:
    """Smooth maps and scale them to [0, 1], all modalities of an image together (Jin et al. 2022); float32.

    Smoothed along every axis of space; divided by the magnitude at which the ascending magnitudes, added up, reach a
    share of their total; clipped; negatives become 0. One divisor serves all modalities of an image, so that they keep
    their relation. A blank map stays blank.

    Parameters
    ----------
    maps : array-like, (N, T, M), (N, H, W, M) or (N, D, H, W, M)
        Raw attributions.
    sigma : float
        SD of the Gaussian along every axis of space, in pixels (samples); 0: none.
    quantile_share : float
        Share of the total magnitude below the value that becomes 1; above 0, at most 1 (the maximum becomes 1).

    Raises
    ------
    ValueError
        Maps of another shape or not finite, a parameter outside its range.
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim not in (3, 4, 5) or not maps.size or not np.isfinite(maps).all():
        raise ValueError("maps: must be finite, (N, H, W, M), (N, T, M) or (N, D, H, W, M), not empty (got "
                         f"{maps.shape}, {np.count_nonzero(~np.isfinite(maps))} values not finite)")
    if not (0 <= sigma < np.inf and 0 < quantile_share <= 1):
        raise ValueError(f"postprocess: sigma must be from 0 on and quantile_share above 0, at most 1 (got {sigma} and "
                         f"{quantile_share})")
    smooth = ndimage.gaussian_filter(maps, [0, *[sigma] * (maps.ndim - 2), 0])
    ascending = np.sort(np.abs(smooth).reshape(len(maps), -1), 1)
    reached = ascending.cumsum(1)
    place = (reached >= quantile_share * reached[:, -1:]).argmax(1)
    divisor = ascending[np.arange(len(maps)), place].reshape(-1, *[1] * (maps.ndim - 1))
    scaled = np.divide(smooth, divisor, out=np.zeros_like(smooth), where=divisor > 0)
    return np.clip(scaled, 0, 1).astype(np.float32)


def _along_axes(weights, arrays):
    """Arrays (..., n, ...) to (..., m, ...) by a matrix (m, n) for each of their last axes."""
    *before, last = weights
    for axis, matrix in zip(range(-len(weights), -1), before):
        arrays = np.moveaxis(matrix @ np.moveaxis(arrays, axis, -2), -2, axis)
    return arrays @ last.T


def _cell(n, m):
    """Pixels of one of n cells on a side of m: a power of two where m was halved, pixels left over being cut."""
    halved = 2 ** int(np.log2(max(1, m / n)))
    return halved if m // halved == n else m / n


def _linear_weights(n, m):
    """(m, n) matrix of linear interpolation from n cells to m pixels."""
    centre = np.clip((np.arange(m) + 0.5) / _cell(n, m) - 0.5, 0, n - 1)
    left = np.minimum(centre.astype(int), max(n - 2, 0))
    weights = np.zeros((m, n))
    weights[np.arange(m), left] = 1.0 - (centre - left)
    weights[np.arange(m), np.minimum(left + 1, n - 1)] += centre - left
    return weights.astype(np.float32)
