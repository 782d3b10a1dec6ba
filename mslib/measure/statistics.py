"""Intervals and tests for data in which a subject gives many values: whole subjects are what is resampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

#: Below this number of subjects a bootstrap over subjects is no guide, and no interval is given.
MIN_SUBJECTS = 5


class Interval(NamedTuple):
    """An estimate between the limits of its confidence interval; limits are NaN where none can be given."""

    estimate: float
    low: float
    high: float


class GroupComparison(NamedTuple):
    """One-sided comparison of two groups: P(a > b), ties counting half, with interval and p value."""

    auc: Interval
    p_value: float
    u: float
    n_a: int
    n_b: int


def bootstrap_subjects(values, subjects, statistic: Callable[[np.ndarray], float] = np.mean, n: int = 2000,
                       confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a statistic of clustered values, whole subjects drawn with replacement.

    Parameters
    ----------
    values : array-like of float, (N,)
        NaN (blank map, slice without lesion) is left out; count it beforehand.
    subjects : array-like, (N,)
        Whose value it is.
    statistic : callable
        Array to float. For `numpy.mean` (over values: a subject weighs by its number of values) all
        resamples are computed at once from sums per subject.
    n : int
        Resamples.
    confidence : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    Interval
        estimate, low, high; all NaN when there is no value, limits NaN below `MIN_SUBJECTS` subjects and where all
        resamples agree.

    Raises
    ------
    ValueError
        Lengths differ; confidence outside (0, 1).

    References
    ----------
    Davison and Hinkley 1997, Bootstrap methods and their application, section 3.8 (clustered data).
    """
    values, subject_ids = np.asarray(values, float), pd.factorize(np.asarray(subjects))[0]
    if len(subject_ids) != len(values):
        raise ValueError(f"subjects: must have one entry a value (got {len(subject_ids)} for {len(values)})")
    kept = ~np.isnan(values)
    values, subject_ids = values[kept], np.unique(subject_ids[kept], return_inverse=True)[1]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    if subject_ids.max() + 1 < MIN_SUBJECTS:
        _check_confidence(confidence)
        return Interval(float(statistic(values)), np.nan, np.nan)
    counts = resample_counts(np.zeros(subject_ids.max() + 1), n, seed)
    if statistic is np.mean:
        sums, sizes = np.bincount(subject_ids, values), np.bincount(subject_ids)
        resampled = (counts @ sums) / (counts @ sizes)
    else:
        resampled = [statistic(np.repeat(values, of_subject[subject_ids])) for of_subject in counts]
    return percentile_interval(statistic(values), np.asarray(resampled), confidence)


def mean_interval(values, subjects, n: int = 2000, confidence: float = 0.95, seed: int = 0) -> dict[str, float]:
    """Mean with its interval over subjects (see `bootstrap_subjects`) as entries of a table row: value, low, high."""
    return dict(zip(("value", "low", "high"), bootstrap_subjects(values, subjects, np.mean, n, confidence, seed)))


def bootstrap_means(values, subjects, trainings=None, n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means of many columns and their resamples, subjects and trainings drawn independently of each other.

    Every training explains the same subjects: both factors are crossed, and a value counts as often as its subject was
    drawn times as often as its training was. `percentile_interval` makes limits of the resamples, also of those of a
    difference or ratio of columns.

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

    References
    ----------
    Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1:386.
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


def percentile_interval(estimate: float, resampled: np.ndarray, confidence: float) -> Interval:
    """Percentile bootstrap interval; resamples in which the statistic is not defined (NaN) are left out.

    Where all resamples agree the limits are NaN: a width of zero would feign certainty.
    """
    _check_confidence(confidence)
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not len(resampled) or np.ptp(resampled) <= 1e-12 * max(1.0, abs(resampled[0])):
        return Interval(float(estimate), np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high))


def proportion_interval(correct: float, total: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a proportion of independent subjects: has a width even where all or none are correct.

    All NaN without any subject. Wilson 1927, J Am Stat Assoc 22:209; `statsmodels.stats.proportion.proportion_confint`.
    """
    _check_confidence(confidence)
    if not total:
        return Interval(np.nan, np.nan, np.nan)
    low, high = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
    return Interval(float(correct / total), float(low), float(high))


def _check_confidence(confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must lie between 0 and 1 (got {confidence})")


def compare_groups(a, b, n: int = 2000, confidence: float = 0.95, seed: int = 0) -> GroupComparison:
    """Are values of a greater than those of b? One-sided Mann-Whitney U test with its effect size.

    Parameters
    ----------
    a, b : array-like of float, (A,) and (B,)
        One value a subject (average a subject's slices first); NaN is left out.
    n, confidence, seed
        Of the bootstrap interval of the effect size, subjects resampled within their group.

    Returns
    -------
    GroupComparison
        ``auc = U / (A B)`` is the probability that a subject of a exceeds one of b, 0.5 by chance; without limits
        where a group has fewer than `MIN_SUBJECTS` subjects or all resamples agree (groups wholly apart).

    Raises
    ------
    ValueError
        A group without value.
    """
    a, b = (np.asarray(group, float) for group in (a, b))
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    if not len(a) or not len(b):
        raise ValueError(f"compare_groups: each group needs a value (got {len(a)} and {len(b)})")
    test = mannwhitneyu(a, b, alternative="greater")
    wins = np.heaviside(a[:, None] - b, 0.5)
    counts = resample_counts(np.repeat([0, 1], [len(a), len(b)]), n, seed)
    resampled = np.sum(counts[:, :len(a)] @ wins * counts[:, len(a):], axis=1) / wins.size
    if min(len(a), len(b)) < MIN_SUBJECTS:
        resampled = np.array([])
    interval = percentile_interval(wins.mean(), resampled, confidence)
    return GroupComparison(interval, float(test.pvalue), float(test.statistic), len(a), len(b))


def adjust_p_values(p_values, method: str = "holm") -> np.ndarray:
    """Adjust p values for their number.

    Parameters
    ----------
    p_values : array-like of float
        NaN (not tested) stays NaN and does not count.
    method : {"holm", "fdr_bh"} or another of `statsmodels.stats.multitest.multipletests`
        Family-wise error (Holm 1979) or false discovery rate (Benjamini and Hochberg 1995).
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], method=method)[1]
    return adjusted
