"""How far images lie from those that shipped networks were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import ndimage

#: Percentiles of the people trained on, and the share of the width between them that is allowed beyond.
INNER, BEYOND = (1, 99), 0.5
BLUR_MM = 10.0


def image_features(images: np.ndarray, sequences: Sequence[str], pixel_mm: float) -> dict[str, float]:
    """What slices of one person look like, in numbers that a change of scanner, sequence or anatomy moves.

    `images`, (n, H, W, M), as networks see them: scaled to [0, 1] in the brain, 0 outside; `sequences` names the
    channels. Area in cm2 of the largest cuts of the brain; of every sequence median, spread (interquartile range),
    noise (median absolute second difference) and asymmetry (largest difference between left and right, blurred) in the
    brain; of two sequences the correlation.
    """
    images = np.asarray(images, np.float32)
    brain = images.max(-1) > 0
    columns = np.flatnonzero(brain.any((0, 1)))
    middle = slice(columns[0], columns[-1] + 1)  # mirrored about the middle of the brain
    second = np.abs(2 * images[:, :, 1:-1] - images[:, :, :-2] - images[:, :, 2:])
    inside = brain[:, :, 1:-1] & brain[:, :, :-2] & brain[:, :, 2:]
    cut, mask = images[:, :, middle], brain[:, :, middle]
    both = mask & mask[:, :, ::-1]
    size = (0, BLUR_MM / pixel_mm, BLUR_MM / pixel_mm)
    share = np.maximum(ndimage.gaussian_filter(both.astype(np.float32), size), 0.1)
    difference = np.stack([ndimage.gaussian_filter((one - one[:, :, ::-1]) * both, size) / share
                           for one in np.moveaxis(cut, -1, 0)], -1)
    found = {"brain area, cm2": float(np.percentile(brain.sum((1, 2)), 90) * pixel_mm**2 / 100)}
    for m, name in enumerate(sequences):
        low, median, high = np.percentile(images[brain][:, m], (25, 50, 75))
        found |= {f"{name} median": float(median), f"{name} spread": float(high - low),
                  f"{name} noise": float(np.median(second[inside][:, m])),
                  f"{name} asymmetry": float(np.percentile(np.abs(difference[..., m])[both], 99.5))}
    for first, other in combinations(range(len(sequences)), 2):
        found[f"{sequences[first]} with {sequences[other]}"] = float(
            np.corrcoef(images[brain][:, first], images[brain][:, other])[0, 1])
    return found


def scope_of(features: pd.DataFrame) -> dict[str, list[float]]:
    """Range of every feature (columns; a row per person) that networks trained on these people know."""
    low, high = np.percentile(features, INNER, axis=0)
    margin = BEYOND * (high - low)
    return {name: [float(f"{a:.4g}"), float(f"{b:.4g}")]
            for name, a, b in zip(features, low - margin, high + margin)}


def out_of_scope(features: Mapping[str, float], scope: Mapping[str, Sequence[float]]) -> list[str]:
    """What lies outside `scope_of`, in words; farthest first."""
    far = {name: max(low - features[name], features[name] - high) / max(high - low, 1e-6)
           for name, (low, high) in scope.items()}
    return [f"{name} {features[name]:.2g} (networks know {scope[name][0]:.2g} to {scope[name][1]:.2g})"
            for name in sorted(far, key=far.get, reverse=True) if far[name] > 0]
