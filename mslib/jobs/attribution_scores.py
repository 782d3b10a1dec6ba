"""What maps are worth: measures per image and method, held against features, modality importance and the net."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import kendalltau, mannwhitneyu, spearmanr

from mslib.explain import (
    METHODS,
    baseline_images,
    completeness_gap,
    fill_removed,
    postprocess,
)
from mslib.explain.model import batches_of, logits_of
from mslib.measure import (
    MIN_SUBJECTS,
    Interval,
    area_under_removal,
    bootstrap_subjects,
    feature_importance_score,
    feature_portions,
    importance_correlation,
    iou_at_median,
    modality_totals,
    removal_curve,
    shapley_values,
    shuffled_maps,
)
from mslib.measure.statistics import percentile_interval, resample_counts
from mslib.study import StudyConfig, progress

from .attributions import groups_of

#: SD of the smoothing before maps are measured, pixels.
SIGMA = 1.0
#: What takes the place of a whole modality: in-painting would have nothing to start from.
MODALITY_FILLS = ("zero", "mean", "noise")
#: Methods whose maps add up, pixel by pixel, to the score's difference from a baseline of zeros.
COMPLETE = ("integrated_gradients", "deeplift", "gradient_shap")
#: Methods whose superpixels add up to its difference from the image with black superpixels.
COMPLETE_IN_GROUPS = ("shapley_sampling", "kernel_shap")


def tells_sequences(method: str) -> bool:
    """Whether maps of this study tell sequences apart: Feature Permutation is given each sequence's own superpixels."""
    return METHODS[method].tells_modalities or method == "feature_permutation"


def _scores(model, images):
    return logits_of(model, batches_of(images, 64))


def subset_outcomes(model: keras.Model, images, targets, brain, fill: str, seed: int) -> dict[str, np.ndarray]:
    """What the net says with every subset of the modalities; the absent ones are replaced inside the brain.

    Returns
    -------
    dict
        ``accuracy`` and ``cross-entropy`` (negative, so that more is better), each (2 ** M, N).
    """
    base = np.where(brain[..., None], baseline_images(images, fill, seed), images)
    found = {"accuracy": [], "cross-entropy": []}
    for subset in range(2 ** images.shape[-1]):
        present = np.array([bool(subset >> m & 1) for m in range(images.shape[-1])])
        logits = _scores(model, np.where(present, images, base))
        chance = softmax(logits, axis=1)[np.arange(len(targets)), targets]
        found["accuracy"].append(logits.argmax(1) == targets)
        found["cross-entropy"].append(np.log(np.maximum(chance, 1e-12)))
    return {name: np.array(values, float) for name, values in found.items()}


def importance_table(model: keras.Model, images, targets, brain, subjects, config: StudyConfig,
                     label: str) -> pd.DataFrame:
    """Exact Shapley value of every modality, by fill and value function, with subject-bootstrap intervals.

    Returns
    -------
    pandas.DataFrame
        ``net, fill, worth, modality, value, low, high, nothing, all`` (worth without and with all modalities).
    """
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    draws = resample_counts(np.zeros(len(names), int), config.statistics.bootstrap, config.seed)[:, owner]
    rows = []
    for fill in progress(MODALITY_FILLS, desc=f"{label}: modality importance", unit="fill"):
        for worth, outcome in subset_outcomes(model, images, targets, brain, fill, config.seed).items():
            values = shapley_values(outcome.mean(1))
            resampled = shapley_values(outcome @ (draws / draws.sum(1, keepdims=True)).T)
            for modality, value, others in zip(config.sequences, values, resampled):
                found = percentile_interval(value, others, config.statistics.confidence)
                if len(names) < MIN_SUBJECTS:
                    found = Interval(found.estimate, np.nan, np.nan)
                rows.append({"net": label, "fill": fill, "worth": worth, "modality": modality, "value": value,
                             "low": found.low, "high": found.high, "nothing": outcome[0].mean(),
                             "all": outcome[-1].mean()})
    return pd.DataFrame(rows)


def importance_of(table: pd.DataFrame, config: StudyConfig, fill: str = "zero",
                  worth: str = "cross-entropy") -> np.ndarray:
    """Importance of every modality, in the order of the sequences (cross-entropy is less coarse than accuracy)."""
    rows = table[(table["fill"] == fill) & (table["worth"] == worth)].set_index("modality")
    return rows["value"].reindex(list(config.sequences)).to_numpy()


def once_a_group(values, groups) -> np.ndarray:
    """A map that has the value of every group in one of its pixels alone, so that its sum is that of the groups."""
    kept = np.zeros_like(values)
    names, places = np.unique(groups, return_index=True)
    places = places[names >= 0]
    kept.flat[places] = values.flat[places]
    return kept


def score_maps(maps: dict[str, np.ndarray], features, brain, importance, model: keras.Model, images, targets, subjects,
               config: StudyConfig) -> pd.DataFrame:
    """Measures of every map.

    Parameters
    ----------
    maps : dict of str to ndarray, (N, H, W, M)
        Raw, by method.
    features : ndarray of bool, (N, H, W, M)
        What a map should mark, each modality's own.
    brain : ndarray of bool, (N, H, W)
    importance : ndarray, (M,)
    model, images, targets
        What is explained.
    subjects : sequence of str, (N,)

    Returns
    -------
    pandas.DataFrame
        One row per method and image: ``msfi``, ``portion`` (of the most important modality), ``iou``, ``tau`` (MI
        correlation), ``share_<sequence>`` of the positive attribution, ``gap`` (completeness), ``blank``,
        ``probability`` and ``right`` of the net; ``msfi_chance``, ``portion_chance``, ``iou_chance``. MSFI and portion
        are NaN for a net that gives no sequence a positive importance, and where nothing is to be marked.
    """
    logits = _scores(model, images)
    chance = softmax(logits, axis=1)[np.arange(len(targets)), targets]
    even = feature_portions(np.repeat(brain[..., None], images.shape[-1], -1).astype(float), features, brain)
    top, stacked = int(np.argmax(importance)), (len(images), -1, images.shape[2])
    needed = 1 if importance[top] > 0 else np.nan  # a net that needs no sequence has no most important one
    common = {"subject": list(subjects), "image": np.arange(len(images)), "probability": chance,
              "right": logits.argmax(1) == targets, "msfi_chance": feature_importance_score(even, importance),
              "portion_chance": needed * even[:, top]}
    where = np.repeat(brain[..., None], images.shape[-1], -1)
    groups = groups_of(images, brain, config)[0] if set(maps) & set(COMPLETE_IN_GROUPS) else None
    tables = []
    for method, raw in maps.items():
        heat = postprocess(raw, SIGMA)
        portions = feature_portions(heat, features, brain)
        flat = [np.moveaxis(array, -1, 1).reshape(stacked) for array in (heat, features & where, where)]
        iou, iou_chance = iou_at_median(*flat)
        totals = modality_totals(heat * where)
        shares = totals / np.where(totals.sum(1) > 0, totals.sum(1), np.nan)[:, None]
        row = common | {"msfi": feature_importance_score(portions, importance), "portion": needed * portions[:, top],
                        "iou": iou, "iou_chance": iou_chance, "blank": totals.sum(1) == 0}
        if tells_sequences(method):
            row |= {f"share_{name}": shares[:, m] for m, name in enumerate(config.sequences)}
            row["tau"] = importance_correlation(totals, importance)
        if method in COMPLETE:
            row["gap"] = completeness_gap(raw, model, images, targets, np.zeros_like(images))
        if method in COMPLETE_IN_GROUPS:
            once = np.stack([once_a_group(one, own) for one, own in zip(raw, groups)])
            row["gap"] = completeness_gap(once, model, images, targets, np.where(groups >= 0, 0, images))
        tables.append(pd.DataFrame(row).assign(method=method))
    return pd.concat(tables, ignore_index=True)


def removal_table(maps: dict[str, np.ndarray], brain, model: keras.Model, images, targets, subjects,
                  config: StudyConfig, label: str) -> pd.DataFrame:
    """Delta-AUPC of every map under every fill: one row per method, fill and image.

    What is followed is the probability of the explained class, image by image; what is removed lies in the brain.
    """
    levels = np.linspace(1, 0, config.attribution.levels)
    inside = np.repeat(brain[..., None], images.shape[-1], -1)
    rows = np.arange(len(images))

    def probability(changed):
        return softmax(_scores(model, changed), axis=1)[rows, targets]

    def areas(heat, fill):
        curve = removal_curve(probability, images, heat, fill, inside, levels)
        return np.array([area_under_removal(one, levels) for one in curve.T])

    tables = []
    for method, raw in progress(list(maps.items()), desc=f"{label}: removal", unit="method"):
        heat = postprocess(raw, SIGMA)
        for name in config.attribution.fills:
            fill = partial(fill_removed, fill=name, seed=config.seed)
            area, random = areas(heat, fill), areas(shuffled_maps(heat, inside, config.seed), fill)
            tables.append(pd.DataFrame({"method": method, "fill": name, "image": rows, "subject": list(subjects),
                                        "aupc": area, "delta": random - area}))
    return pd.concat(tables, ignore_index=True)


def likeness(before, after, brain) -> np.ndarray:
    """Rank correlation of two maps' magnitudes inside the brain, image by image; NaN where one is flat."""
    found = []
    for one, other, where in zip(np.abs(before), np.abs(after), brain):
        a, b = one[where].ravel(), other[where].ravel()
        found.append(spearmanr(a, b).statistic if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan)
    return np.array(found)


def rank_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau between the orders of the methods under two fills each."""
    means = table.pivot_table("delta", "method", "fill")
    names = list(means)
    return pd.DataFrame([{"fill": a, "other fill": b, "tau": kendalltau(means[a], means[b]).statistic}
                         for i, a in enumerate(names) for b in names[i + 1:]])


def informativeness(scores: pd.DataFrame) -> pd.DataFrame:
    """Does a map tell a right prediction from a wrong one? By method: Spearman's rho of MSFI with the probability of
    the explained class, and the one-sided p of MSFI being larger where the net is right (NaN: all right or all wrong).
    No rho of fewer than `MIN_SUBJECTS` maps.
    """
    rows = []
    for method, part in scores.groupby("method", sort=False):
        known = part[part["msfi"].notna()]
        right, wrong = known.loc[known["right"], "msfi"], known.loc[~known["right"], "msfi"]
        varies = len(known) >= MIN_SUBJECTS and np.ptp(known["msfi"]) > 0
        rho = spearmanr(known["msfi"], known["probability"]).statistic if varies else np.nan
        p = mannwhitneyu(right, wrong, alternative="greater").pvalue if len(right) and len(wrong) else np.nan
        rows.append({"method": method, "rho": rho, "p_right": p})
    return pd.DataFrame(rows).set_index("method")


def mean_table(scores: pd.DataFrame, measures, config: StudyConfig) -> pd.DataFrame:
    """Mean and subject-bootstrap interval of measures, by method: ``<measure>``, ``<measure>_low`` and ``_high``."""
    rows = {}
    for method, part in scores.groupby("method", sort=False):
        row = {}
        for name in measures:
            if name not in part:
                continue
            found = bootstrap_subjects(part[name], part["subject"], n=config.statistics.bootstrap,
                                       confidence=config.statistics.confidence, seed=config.seed)
            row |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
