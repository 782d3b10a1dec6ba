"""Intensity scaling to [0, 1]."""

from __future__ import annotations

import numpy as np

from mslib.study import StudyError

STEP = 2.0 ** -14


def scale_intensity(image: np.ndarray, mask: np.ndarray, percentiles: tuple[float, float] = (0.5, 99.8)):
    """Map two percentiles (in percent) of `image` inside `mask`, both (X, Y, Z), to 0 and 1, and clip; 0 outside.

    Outside the brain nothing depends on disease, but noise, coil and field of view depend on sites and scanners:
    a classifier must not see it. Values are rounded to multiples of 2**-14, far below the noise, so that files
    compress. StudyError: mask empty, or no contrast inside it (the percentiles coincide).
    """
    mask = np.asarray(mask, dtype=bool)
    inside = np.asarray(image, dtype=np.float32)[mask]
    if inside.size == 0:
        raise StudyError("mask: is empty (must hold at least one voxel)")
    low, high = np.percentile(inside, percentiles)
    if not high > low:
        raise StudyError(f"image: has no contrast inside the brain (percentiles {percentiles}: both {low:g})")
    scaled = np.zeros(mask.shape, np.float32)
    scaled[mask] = np.round(np.clip((inside - low) / (high - low), 0, 1) / STEP) * STEP
    return scaled
