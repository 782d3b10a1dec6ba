"""Intervals and tests for data in which a subject gives many values: whole subjects are what is resampled.

An interval is a dict of ``value, low, high``, as entries of a table row; limits are NaN where none can be given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

#: Below this number of subjects a bootstrap over subjects is no guide, and no interval is given.
MIN_SUBJECTS = 5


def interval_text(row, digits: int = 2) -> str:
    """Text of a table row's ``value, low, high``: ``0.93 (0.88 to 0.97)``, or that there is no value or no interval."""
    value, low, high = (float("nan") if row[name] is None else float(row[name]) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "not measured"
    if np.isnan(low) or np.isnan(high):
        return f"{value:z.{digits}f} (no interval)"
    return f"{value:z.{digits}f} ({low:z.{digits}f} to {high:z.{digits}f})"


def mean_interval(values, subjects, n: int = 2000, confidence: float = 0.95, seed: int = 0) -> dict[str, float]:
    """Mean of clustered values with its percentile interval, whole subjects drawn with replacement.

    Davison and Hinkley 1997, Bootstrap methods and their application, section 3.8 (clustered data).

    Parameters
    ----------
    values : array-like of float, (N,)
        NaN (blank map, slice without lesion) is left out; count it beforehand. A subject weighs by its number of
        values.
    subjects : array-like, (N,)
        Whose value it is.
    n : int
        Resamples.
    confidence : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    dict
        ``value, low, high``; all NaN when there is no value, limits NaN below `MIN_SUBJECTS` subjects and where all
        resamples agree.

    Raises
    ------
    ValueError
        Lengths differ; confidence outside (0, 1).
    """
    values, subject_ids = np.asarray(values, float), pd.factorize(np.asarray(subjects))[0]
    if len(subject_ids) != len(values):
        raise ValueError(f"subjects: must have one entry a value (got {len(subject_ids)} for {len(values)})")
    known = ~np.isnan(values)
    values, subject_ids = values[known], np.unique(subject_ids[known], return_inverse=True)[1]
    sums, sizes = np.bincount(subject_ids, values), np.bincount(subject_ids)
    resampled = np.array([])
    if len(sizes) >= MIN_SUBJECTS:
        counts = resample_counts(np.zeros(len(sizes)), n, seed)
        resampled = (counts @ sums) / (counts @ sizes)
    return percentile_interval(np.mean(values) if len(values) else np.nan, resampled, confidence)


def mean_by(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str], trainings: str | None = None,
            beside: Sequence[str] = (), n: int = 2000, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Means of columns in every group of rows, with intervals over the column ``subject``.

    One row per group and column: `by`, ``measure`` (name of the column), ``value, low, high``, ``slices`` (rows with a
    value), ``subjects`` (who have one), and the columns `beside`, their plain means. As `mean_interval`; where a column
    `trainings` says which training a value is of, these are resampled too (`bootstrap_means`).
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False, observed=True):
        for name in columns:
            if trainings is None:
                found = mean_interval(part[name], part["subject"], n, confidence, seed)
            else:
                means, resampled = bootstrap_means(part[[name]], part["subject"], part[trainings], n, seed)
                found = percentile_interval(means[0], resampled[:, 0], confidence)
            known = part.loc[part[name].notna(), "subject"]
            rows.append({**dict(zip(by, key)), "measure": name, **found, "slices": len(known),
                         "subjects": known.nunique()})
    found = pd.DataFrame(rows, columns=[*by, "measure", "value", "low", "high", "slices", "subjects"])
    return found.join(table.groupby(list(by))[list(beside)].mean(), on=list(by)) if beside else found


def bootstrap_means(values, subjects, trainings=None, n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means of many columns and their resamples, subjects and trainings drawn independently of each other.

    Every training explains the same subjects: both factors are crossed, and a value counts as often as its subject was
    drawn times as often as its training was (Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1:386).
    `percentile_interval` makes limits of the resamples, also of those of a difference or ratio of columns.

    Parameters
    ----------
    values : array-like of float, (N, m)
        NaN is left out of its column.
    subjects, trainings : array-like, (N,)
        Whose value it is; by default there is one training.
    n, seed : int

    Returns
    -------
    means : ndarray, (m,)
        NaN without a value.
    resampled : ndarray, (n, m)
        NaN where fewer than `MIN_SUBJECTS` subjects have a value.
    """
    values = np.asarray(values, float)
    known, subject = ~np.isnan(values), np.unique(np.asarray(subjects), return_inverse=True)[1]
    training = np.zeros_like(subject) if trainings is None else np.unique(trainings, return_inverse=True)[1]
    shape = (training.max() + 1, subject.max() + 1)
    sums, sizes = np.zeros((2, *shape, values.shape[1]))
    np.add.at(sums, (training, subject), np.where(known, values, 0))
    np.add.at(sizes, (training, subject), known)
    subject_counts, training_counts = (resample_counts(np.zeros(size), n, seed + i) for i, size in ((0, shape[1]),
                                                                                                   (1, shape[0])))
    weights = (training_counts[:, :, None] * subject_counts[:, None]).reshape(n, -1).astype(float)
    with np.errstate(invalid="ignore"):
        means = sums.sum((0, 1)) / sizes.sum((0, 1))
        resampled = (weights @ sums.reshape(-1, len(means))) / (weights @ sizes.reshape(-1, len(means)))
    resampled[:, (sizes.sum(0) > 0).sum(0) < MIN_SUBJECTS] = np.nan
    return means, resampled


def resample_counts(strata: np.ndarray, n: int, seed: int) -> np.ndarray:
    """How often each subject is drawn in each of `n` resamples, (n, S) of int; every stratum, (S,), keeps its size."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n, len(strata)), np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), n)
    return counts


def percentile_interval(value: float, resampled: np.ndarray, confidence: float) -> dict[str, float]:
    """Percentile bootstrap interval; resamples in which the statistic is not defined (NaN) are left out.

    Where all resamples agree the limits are NaN: a width of zero would feign certainty.
    """
    _check_confidence(confidence)
    resampled = resampled[~np.isnan(resampled)]
    low = high = np.nan
    if not np.isnan(value) and len(resampled) and np.ptp(resampled) > 1e-12 * max(1.0, abs(resampled[0])):
        low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def proportion_interval(correct: float, total: float, confidence: float = 0.95) -> dict[str, float]:
    """Wilson's interval of a proportion of independent subjects: has a width even where all or none are correct.

    All NaN without any subject. Wilson 1927, J Am Stat Assoc 22:209; `statsmodels.stats.proportion.proportion_confint`.
    """
    _check_confidence(confidence)
    if not total:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    low, high = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
    return {"value": float(correct / total), "low": float(low), "high": float(high)}


def _check_confidence(confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must lie between 0 and 1 (got {confidence})")


def compare_groups(a, b, n: int = 2000, confidence: float = 0.95, seed: int = 0) -> dict[str, float]:
    """Are values of a greater than those of b? One-sided Mann-Whitney U test with its effect size.

    `a`, `b`: one value a subject (average a subject's slices first); NaN is left out; ValueError without a value. As a
    dict: ``value``, ``U / (A B)``, the probability that a subject of a exceeds one of b, 0.5 by chance, with ``low,
    high`` (subjects resampled within their group; NaN where a group has fewer than `MIN_SUBJECTS` subjects or all
    resamples agree, as of groups wholly apart); ``p``; ``n_a, n_b``: numbers of subjects.
    """
    a, b = (np.asarray(group, float) for group in (a, b))
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    if not len(a) or not len(b):
        raise ValueError(f"compare_groups: each group needs a value (got {len(a)} and {len(b)})")
    wins, resampled = np.heaviside(a[:, None] - b, 0.5), np.array([])
    if min(len(a), len(b)) >= MIN_SUBJECTS:
        counts = resample_counts(np.repeat([0, 1], [len(a), len(b)]), n, seed)
        resampled = np.sum(counts[:, :len(a)] @ wins * counts[:, len(a):], axis=1) / wins.size
    return percentile_interval(wins.mean(), resampled, confidence) | {
        "p": float(mannwhitneyu(a, b, alternative="greater").pvalue), "n_a": len(a), "n_b": len(b)}


def adjust_p_values(p_values, method: str = "holm") -> np.ndarray:
    """Adjust p values for their number; NaN (not tested) stays NaN and does not count.

    `method`: of `statsmodels.stats.multitest.multipletests`: family-wise error (``holm``, Holm 1979), false discovery
    rate (``fdr_bh``, Benjamini and Hochberg 1995; ``fdr_by``, Benjamini and Yekutieli 2001).
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], method=method)[1]
    return adjusted
