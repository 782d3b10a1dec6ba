"""How well a net stages sleep: by stage and fold, with mean and interval over folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support

from .stages import STAGES

CLASSES = range(len(STAGES))


def _score(stages, predicted) -> pd.DataFrame:
    """Measures of `score_folds` of one fold."""
    parts = precision_recall_fscore_support(stages, predicted, labels=CLASSES, zero_division=np.nan)
    rows = [(name, stage, value) for name, values in zip(("precision", "recall", "f1"), parts)
            for stage, value in zip(STAGES, values)]
    rows += [("accuracy", "all", np.mean(stages == predicted)), ("macro_f1", "all", np.nanmean(parts[2])),
             ("kappa", "all", cohen_kappa_score(stages, predicted))]
    return pd.DataFrame(rows, columns=["measure", "stage", "value"])


def score_folds(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall and F1 of every stage, accuracy, macro F1 and Cohen's kappa, of every ``fold``.

    `predictions`: ``fold, stage, predicted``, stages as indices. Columns ``fold, measure, stage`` ("all" for measures
    of all stages), ``value``: NaN where a measure is not defined (recall of a stage that is absent, precision of one
    never predicted; F1 with both); macro F1 is over the defined ones.
    """
    parts = [_score(part["stage"], part["predicted"]).assign(fold=fold) for fold, part in predictions.groupby("fold")]
    return pd.concat(parts, ignore_index=True)[["fold", "measure", "stage", "value"]]


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over folds of every measure of `score_folds`, with Student's 95 % interval.

    ``measure, stage, mean, low, high, n_folds``; no interval (NaN) with fewer than two folds. Folds share training
    subjects, so the interval is somewhat too narrow.
    """
    table = scores.groupby(["measure", "stage"], sort=False)["value"].agg(["mean", "sem", "count"]).reset_index()
    half = student.ppf(0.975, table["count"] - 1) * table["sem"]
    return table.assign(low=table["mean"] - half, high=table["mean"] + half, n_folds=table["count"])[
        ["measure", "stage", "mean", "low", "high", "n_folds"]]


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Counts of epochs, rows the stage scored, columns the stage predicted."""
    counts = confusion_matrix(predictions["stage"], predictions["predicted"], labels=CLASSES)
    return pd.DataFrame(counts, pd.Index(STAGES, name="scored"), pd.Index(STAGES, name="predicted"))
