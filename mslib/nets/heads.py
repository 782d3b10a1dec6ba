"""Last layers fitted to cached features: where fine-tuning starts, and folds over all subjects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

#: Inverse strengths of the penalty that are tried. Not 1: the weights are so large then that the first steps of
#: fine-tuning undo the head (loss of VGG16 .4 before and 5.7 in the first epoch).
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


class Head(NamedTuple):
    """Weights of a last layer: kernel (features, classes) and bias (classes,)."""

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Of features (n, features)."""
        return features @ self.kernel + self.bias


def _regression(features, targets, strength, classes):
    """Logistic regression on scaled features, as the weights of a layer on the features themselves.

    Features that hardly vary are not scaled up: their weights would be so large that the first steps of fine-tuning,
    which move such features, undo the head.
    """
    mean, scale = features.mean(0), features.std(0)
    scale = np.maximum(scale, np.median(scale)) + np.finfo("float32").tiny
    model = LogisticRegression(C=strength, max_iter=300, solver="newton-cg")  # four times as fast here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes: the validation part judges
        model.fit((features - mean) / scale, targets)
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coefficients, intercept = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-1, 1]) * intercept / 2
    kernel, bias = np.zeros((features.shape[1], classes)), np.full(classes, -20.0)  # a class without slices
    kernel[:, model.classes_] = coefficients.T / scale[:, None]
    bias[model.classes_] = intercept - (mean / scale) @ coefficients.T
    return Head(kernel, bias)


def fit_head(features: np.ndarray, targets: np.ndarray, train: np.ndarray, validation: np.ndarray,
             others: Sequence[Head] = ()) -> Head:
    """The head of lowest cross-entropy on the validation part: logistic regressions of several penalties, and `others`.

    `features`, (n, features), and `targets`, (n,), classes from 0 on; `train` and `validation` are rows of them.
    """
    classes = int(targets.max()) + 1
    heads = [*others, *(_regression(features[train], targets[train], strength, classes) for strength in STRENGTHS)]

    return min(heads, key=lambda head: log_loss(
        targets[validation], softmax(head.logits(features[validation]), axis=1), labels=range(classes)))


def fold_logits(features: np.ndarray, table: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Logits of every slice by a head that has seen no slice of its subject, (n, classes).

    `table` has ``subject, group, target`` per slice. Subjects are dealt to `folds` folds (at most as many as the
    smallest group has people), groups in equal shares; the fold after the tested one validates.
    """
    people = table.groupby("subject")["group"].first()
    folds = min(folds, people.value_counts().min())
    parts = [people.index[test] for _, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(
        people.index, people)]
    targets = table["target"].to_numpy()
    logits = np.empty((len(table), int(targets.max()) + 1))
    for number, tested in enumerate(parts):
        test, validation = (table["subject"].isin(names).to_numpy() for names in (tested, parts[(number + 1) % folds]))
        head = fit_head(features, targets, np.flatnonzero(~test & ~validation), np.flatnonzero(validation))
        logits[test] = head.logits(features[test])
    return logits
