"""What is done to finished maps: resampling, blank ones, fusion over layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def upsample_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel bilinear resampling, as `tf.image.resize` does it: map and image share their outer edges.

    Parameters
    ----------
    maps : ndarray, (..., h, w)
    size : (H, W)

    Returns
    -------
    ndarray of float32, (..., H, W)
    """
    maps = np.asarray(maps, np.float32)
    rows, columns = (_bilinear_weights(n, m) for n, m in zip(maps.shape[-2:], size))
    return rows @ maps @ columns.T


def blank_maps(maps: np.ndarray, tolerance: float = 1e-12) -> np.ndarray:
    """Flag the maps that show nothing, whatever a colour scale stretched to their own range would show.

    Parameters
    ----------
    maps : ndarray, (..., H, W)
        Raw maps.
    tolerance : float
        A map whose maximum is not above it is blank.

    Returns
    -------
    ndarray of bool, (...)
    """
    return ~(np.max(maps, axis=(-2, -1)) > tolerance)


def fuse_layercam(maps: dict[str, np.ndarray], shallow: Sequence[str] | None = None,
                  gamma: float = 2.0) -> np.ndarray:
    """Fuse LayerCAM maps of several layers: shallow ones lifted by tanh, then the maximum of all.

    Parameters
    ----------
    maps : dict of layer to ndarray, (N, H, W)
        Upsampled to one size, shallow to deep, as `layer_cams` returns them.
    shallow : sequence of str, optional
        Layers rescaled to ``tanh(gamma M / max M)``; others are divided by their maximum. Default: all but
        the deepest.
    gamma : float

    Returns
    -------
    ndarray of float32, (N, H, W), in [0, 1]; a blank map stays 0.

    Raises
    ------
    ValueError
        Maps of several sizes; a shallow layer without map.

    References
    ----------
    Jiang et al. 2021 (LayerCAM), fusion of shallow and deep stages.
    """
    if len({m.shape for m in maps.values()}) != 1:
        raise ValueError(f"maps: must be upsampled to one size (got "
                         f"{sorted({m.shape for m in maps.values()})})")
    shallow = list(maps)[:-1] if shallow is None else list(shallow)
    if unknown := set(shallow) - set(maps):
        raise ValueError(f"shallow: {', '.join(sorted(unknown))}: not among the layers given: "
                         f"{', '.join(maps)}")
    fused = np.zeros(next(iter(maps.values())).shape, np.float32)
    for layer, raw in maps.items():
        top = raw.max(axis=(1, 2), keepdims=True)
        scaled = np.divide(raw, top, out=np.zeros_like(raw), where=top > 0)
        np.maximum(fused, np.tanh(gamma * scaled) if layer in shallow else scaled, out=fused)
    return fused


def _bilinear_weights(n, m):
    """(m, n) matrix of linear interpolation from n to m samples whose cells span the same length."""
    centre = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    left = np.minimum(centre.astype(int), max(n - 2, 0))
    weights = np.zeros((m, n))
    weights[np.arange(m), left] = 1.0 - (centre - left)
    weights[np.arange(m), np.minimum(left + 1, n - 1)] += centre - left
    return weights.astype(np.float32)
