"""Feature groups: which values of an input are removed together. One integer per value, of the input's shape."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import slic


def number_groups(groups, images) -> tuple[np.ndarray, np.ndarray]:
    """Groups numbered anew in every image (0, 1, 2 ... without gaps; -1 stays), and their number in each, (N,).

    `groups`: the group of every value, integers from 0 on, of the shape of `images` or of one image; values at -1 are
    never removed. ValueError: another shape, no integers, a number below -1, or no group at all.
    """
    groups = np.asarray(groups)
    if groups.shape not in (images.shape, images.shape[1:]):
        raise ValueError(f"groups: must have the shape of the images {images.shape} or of one of them "
                         f"(got {groups.shape})")
    if not np.issubdtype(groups.dtype, np.integer) or groups.min() < -1 or groups.max() < 0:
        raise ValueError("groups: must be integers from -1 (never removed) on, with one group at least")
    groups = np.broadcast_to(groups, images.shape)
    numbered, counts = np.full(groups.shape, -1, np.int64), np.zeros(len(groups), int)
    for i, own in enumerate(groups):
        present, places = np.unique(own[own >= 0], return_inverse=True)
        numbered[i][own >= 0], counts[i] = places, len(present)
    return numbered, counts


def window_groups(images, size: int) -> np.ndarray:
    """Windows of `size` samples (the last one may be shorter) of signals (N, T, M), each modality's own."""
    shape = np.shape(images)
    if len(shape) != 3 or size < 1:
        raise ValueError(f"window_groups: needs signals (N, T, M) and a size from 1 on (got {shape} and {size})")
    window = np.arange(shape[1]) // size
    own = window[:, None] + (window[-1] + 1) * np.arange(shape[2])
    return np.broadcast_to(own, shape).copy()


def superpixels(images, segments: int = 50, compactness: float = 0.1, sigma: float = 2.0, mask=None) -> np.ndarray:
    """SLIC superpixels of every image, each modality's own (Achanta et al. 2012; settings of Jin et al. 2022).

    Smoothed are the values inside the mask alone (normalised convolution, Knutsson and Westin 1993): what lies outside
    does not darken the rim, so that no superpixel follows it. ValueError: images or mask of another shape, or an image
    with nothing inside the mask.

    Parameters
    ----------
    images : array-like, (N, H, W, M), or volumes (N, D, H, W, M)
    segments : int
        About how many a modality.
    compactness, sigma : float
        As in `skimage.segmentation.slic`.
    mask : array-like of bool, of the images' axes without modalities, or of one image, optional
        Where there are superpixels (the brain); outside is -1. Default: where any modality is not 0.

    Returns
    -------
    ndarray of int64, shape of `images`
        No two modalities share a number.
    """
    images = np.asarray(images, np.float32)
    if images.ndim not in (4, 5):
        raise ValueError(f"superpixels: needs images (N, H, W, M) or volumes (N, D, H, W, M) (got {images.shape})")
    inside = (images != 0).any(-1) if mask is None else np.asarray(mask, bool)
    if inside.shape not in (images.shape[:-1], images.shape[1:-1]):
        raise ValueError(f"mask: must be {images.shape[:-1]} or {images.shape[1:-1]} (got {inside.shape})")
    inside = np.broadcast_to(inside, images.shape[:-1])
    empty = np.flatnonzero(~inside.reshape(len(images), -1).any(1))
    if len(empty):
        raise ValueError(f"mask: nothing inside it in image {empty[0]}: no superpixels")
    groups = np.full(images.shape, -1, np.int64)
    for image, within, own in zip(images, inside, groups):
        first = 0
        for m in range(images.shape[-1]):
            smooth = _smoothed_inside(image[..., m], within, sigma)
            # slic scales what it gets to a range of 1: its compactness is meant for values before they are smoothed.
            found = slic(smooth, segments, compactness / (np.ptp(smooth[within]) or 1), mask=within.copy(),
                         start_label=1, channel_axis=None)
            _, renumbered = np.unique(found[within], return_inverse=True)
            own[..., m][within] = first + renumbered
            first += renumbered.max() + 1
    return groups


def _smoothed_inside(values, within, sigma):
    """Values scaled to a range of 1 inside a mask, then the Gaussian mean of those inside it; 0 outside."""
    low, high = values[within].min(), values[within].max()
    scaled = np.where(within, values - low, 0).astype(np.float64) / (high - low or 1)
    total, weight = (ndimage.gaussian_filter(array, sigma) for array in (scaled, within.astype(np.float64)))
    return np.divide(total, weight, out=np.zeros_like(total), where=within)


def default_groups(images) -> np.ndarray:
    """Groups where none are given: superpixels of images, 50 windows of signals at most; each modality's own."""
    return superpixels(images) if images.ndim > 3 else window_groups(images, -(-images.shape[1] // 50))
