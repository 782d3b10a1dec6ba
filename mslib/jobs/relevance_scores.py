"""What LRP says of slices: shares of the sequences, share inside lesions, what went to biases."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

from mslib.explain import lrp, relevance_shares
from mslib.explain.model import batches_of, logits_of

#: Kinds of shares: of all relevance without its sign, and of the relevance that speaks for the class.
KINDS = ("absolute", "positive")


def spread_slices(stack: dict, count: int) -> np.ndarray:
    """Indices of `count` slices spread evenly from the lowest to the highest, the ends left out."""
    total = len(stack["images"])
    return np.unique(np.linspace(0, total - 1, min(count, total) + 2).round().astype(int)[1:-1])


def lesion_shares(relevance, lesion) -> dict[str, np.ndarray]:
    """Share of the positive relevance that lies inside lesions, of each sequence and of all together.

    Parameters
    ----------
    relevance : ndarray, (N, H, W, M)
    lesion : ndarray of bool, (N, H, W)

    Returns
    -------
    dict
        ``each``: (N, M); ``all``: (N,). NaN where there is no positive relevance, or no lesion.
    """
    positive = np.maximum(relevance, 0).astype(np.float64)
    inside, total = (positive * lesion[..., None]).sum((1, 2)), positive.sum((1, 2))
    known = lesion.any((1, 2))

    def share(part, whole):
        return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)

    return {"each": np.where(known[:, None], share(inside, total), np.nan),
            "all": np.where(known, share(inside.sum(1), total.sum(1)), np.nan)}


def scored_relevance(model: keras.Model, images, targets, sequences, rule: str, lesion=None,
                     brain=None) -> tuple[pd.DataFrame, np.ndarray]:
    """What LRP says of every image about the class that the net predicts.

    Parameters
    ----------
    model : keras.Model
    images : ndarray of float32, (N, H, W, M)
    targets : ndarray of int, (N,)
        True classes.
    sequences : sequence of M str
    rule : str
    lesion, brain : ndarray of bool, (N, H, W), optional
        Of images with known lesions.

    Returns
    -------
    table : pandas.DataFrame
        ``target, predicted, right, logit``; ``bright_<sequence>``: share of all intensity in percent; ``kept``: sum of
        the relevance over the logit (1: nothing went to biases); ``blank``; ``absolute_<sequence>`` and
        ``positive_<sequence>``: shares in percent; ``lesion_<sequence>, lesion_all, lesion_area``: share of positive
        relevance inside lesions, and of the brain; ``lesion_bright_<sequence>, lesion_bright_all``: of the intensity.
    relevance : ndarray, (N, H, W, M)
    """
    logits = logits_of(model, batches_of(images, 16))
    predicted = logits.argmax(1)
    relevance = lrp(model, images, predicted, rule)
    logit = logits[np.arange(len(images)), predicted]
    table = pd.DataFrame({"target": targets, "predicted": predicted, "right": predicted == targets, "logit": logit,
                          "kept": relevance.sum((1, 2, 3), dtype=np.float64) / logit,
                          "blank": ~relevance.any((1, 2, 3))})
    light = np.abs(images).sum((1, 2), dtype=np.float64)
    table[[f"bright_{sequence}" for sequence in sequences]] = 100 * light / light.sum(1, keepdims=True)
    for kind, shares in relevance_shares(relevance, rule).items():
        table[[f"{kind}_{sequence}" for sequence in sequences]] = shares
    if lesion is not None:
        lesion = lesion & brain
        shares = lesion_shares(relevance, lesion)
        table[[f"lesion_{sequence}" for sequence in sequences]] = shares["each"]
        table["lesion_all"] = shares["all"]
        area = lesion.sum((1, 2)) / np.maximum(brain.sum((1, 2)), 1)
        table["lesion_area"] = np.where(lesion.any((1, 2)), area, np.nan)
        inside = np.where(lesion.any((1, 2))[:, None], (np.abs(images) * lesion[..., None]).sum((1, 2)), np.nan)
        table[[f"lesion_bright_{sequence}" for sequence in sequences]] = inside / light
        table["lesion_bright_all"] = inside.sum(1) / light.sum(1)
    return table, relevance
