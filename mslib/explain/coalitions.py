"""The engine of the perturbation methods: what a net says while some feature groups are replaced by a baseline.

A *coalition* says for every feature group whether it stays; what does not is replaced. Images that are predicted are
made batch by batch, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from tqdm.auto import tqdm

from .baselines import baseline_images
from .groups import default_groups, number_groups
from .model import logits_of


def coalition_scores(model: keras.Model, image, base, groups, coalitions, target: int,
                     batch_size: int = 64) -> np.ndarray:
    """Score of a class with some feature groups replaced by their baseline.

    Parameters
    ----------
    model : keras.Model
    image, base : ndarray, (H, W, M) or (T, M)
    groups : ndarray of int, shape of `image`
        Values at -1 stay.
    coalitions : ndarray of bool, (n, n_groups)
        Which groups stay; a coalition that comes again is predicted once.
    target : int
    batch_size : int

    Returns
    -------
    ndarray of float64, (n,)
    """
    once, places = np.unique(coalitions, axis=0, return_inverse=True)
    stays = np.concatenate([once, np.ones((len(once), 1), bool)], 1)  # the last one answers to -1

    def batches():
        for start in range(0, len(stays), batch_size):
            yield np.where(stays[start:start + batch_size][:, groups], image, base)

    return logits_of(model, batches())[places.ravel(), target]


def spread_over_groups(values, groups):
    """Values of groups at the places of their members; 0 where there is no group."""
    return np.append(values, 0.0)[groups].astype(np.float32)


def explain_each(explain: Callable, images, targets, groups, baseline, seed, progress: bool,
                 check: Callable | None = None):
    """Attribution of every image, whatever images stand beside it.

    Parameters
    ----------
    explain : callable
        (image, base, groups, n_groups, target, rng) to values of the groups; groups are numbered per image, 0 to
        ``n_groups - 1``, and every image gets a generator of the same seed.
    images, targets, groups, baseline, seed, progress
        As in `feature_ablation`.
    check : callable, optional
        Takes the greatest number of groups of an image and raises what there is to raise, before the net is asked.

    Returns
    -------
    ndarray of float32, shape of `images`
        0 in an image without groups.
    """
    groups, counts = number_groups(default_groups(images) if groups is None else groups, images)
    if check is not None:
        check(int(counts.max()))
    base = baseline_images(images, baseline, seed)
    maps = np.zeros(images.shape, np.float32)
    for i in tqdm(np.flatnonzero(counts), desc="feature groups", unit="image", disable=not progress):
        values = explain(images[i], base[i], groups[i], int(counts[i]), int(targets[i]), np.random.default_rng(seed))
        maps[i] = spread_over_groups(values, groups[i])
    return maps
