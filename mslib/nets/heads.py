"""The last layer fitted to subjects: what is reported of a subject is what the fit looks at.

The logits are linear in the pooled features, so that a subject's mean slice logit is the logit of its mean pooled
features. Training on slices weighs each slice by itself; here every subject counts once.
"""

from __future__ import annotations

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mslib.study import StudyError

from .data import SliceSet
from .spread import evenly_of_subjects
from .training import stream

#: Inverse strengths of the ridge penalty that the cross-validation over subjects chooses from, and its folds.
PENALTIES, FOLDS = (0.001, 0.003, 0.01, 0.03, 0.1), 5
#: What a training subject of the study counts for beside a subject outside it.
OWN_WEIGHT = 5.0
#: Slices of every subject that its mean is taken over, evenly spaced from bottom to top: of the study, outside it.
SLICES, SLICES_OUTSIDE = 16, 8


def subject_features(model: keras.Model, slices: SliceSet, index: np.ndarray, channels: list[int] | None = None,
                     label: str = "pooled features", count: int = SLICES) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features averaged over slices of every subject, in evaluation mode.

    Parameters
    ----------
    model : keras.Model
        Plain net of `build_classifier`, or one of `build_trainable`.
    slices : SliceSet
    index : ndarray of int
        Rows of `slices`.
    channels : list of int, optional
        As in `SliceSet.batch`.
    label : str
        Text of the bar.
    count : int
        Slices of every subject, evenly spaced.

    Returns
    -------
    features : ndarray, shape (subjects, filters)
        Subjects in alphabetical order.
    targets : ndarray of int, shape (subjects,)
    """
    index = evenly_of_subjects(slices.table, index, count)
    pooled = stream(keras.Model(model.input, model.get_layer("gap").output), slices, index, channels, label)
    table = slices.table.iloc[index]
    owners, first, number = np.unique(table["subject"].to_numpy(), return_index=True, return_inverse=True)
    sums = np.zeros((len(owners), pooled.shape[1]))
    np.add.at(sums, number, pooled)
    return sums / np.bincount(number)[:, None], table["target"].to_numpy()[first]


def _fitted(penalty, features, targets, weights):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=3000))
    return model.fit(features, targets, logisticregression__sample_weight=weights)


def _penalty(own, others, seed):
    """The penalty under which left-out subjects of `own` are named best (log loss over folds)."""
    features, targets = own
    folds = StratifiedKFold(min(FOLDS, np.bincount(targets).min()), shuffle=True, random_state=seed)
    losses = np.zeros(len(PENALTIES))
    for train, held in folds.split(features, targets):
        part = _joined((features[train], targets[train]), others)
        for number, penalty in enumerate(PENALTIES):
            found = _fitted(penalty, *part).predict_proba(features[held])
            losses[number] += log_loss(targets[held], found, labels=np.unique(targets), normalize=False)
    return PENALTIES[int(np.argmin(losses))]


def _middle(features, targets):
    """Mean of the classes' means, so that both kinds of subjects are compared at the same shares of classes."""
    return np.mean([features[targets == target].mean(0) for target in np.unique(targets)], axis=0)


def _joined(own, others):
    """Features, targets and weights of both kinds of subjects, the others moved to where the own ones lie."""
    if others is None:
        return *own, np.ones(len(own[1]))
    moved = others[0] - _middle(*others) + _middle(*own)
    weights = np.repeat([OWN_WEIGHT, 1.0], [len(own[1]), len(others[1])])
    return np.concatenate([own[0], moved]), np.concatenate([own[1], others[1]]), weights


def fit_subject_head(model: keras.Model, own: tuple[np.ndarray, np.ndarray],
                     others: tuple[np.ndarray, np.ndarray] | None, seed: int) -> float:
    """Set the last layer of a net to a logistic regression of subjects on their mean pooled features.

    Parameters
    ----------
    model : keras.Model
        Its layer ``logits`` is overwritten.
    own : (features, targets)
        From `subject_features`, of the study's training subjects. The penalty is chosen by folds over them, because
        images of `others` may differ a little.
    others : (features, targets), optional
        Of subjects outside the study; each weighs 1, those of `own` `OWN_WEIGHT`. What their images differ by as a
        whole is taken out: the mean of their classes' means is moved to that of `own`.
    seed : int
        Of the folds.

    Returns
    -------
    float
        The chosen inverse penalty.

    Raises
    ------
    StudyError
        A class with fewer than two subjects in `own`: nothing to choose the penalty by.
    """
    counts = np.bincount(own[1], minlength=model.output_shape[-1])
    if counts.min() < 2:
        raise StudyError(f"training.subject_head: needs at least two training subjects of every class (got {counts})")
    penalty = _penalty(own, others, seed)
    scaler, logistic = _fitted(penalty, *_joined(own, others))
    weights = logistic.coef_ / scaler.scale_
    bias = logistic.intercept_ - weights @ scaler.mean_
    if len(weights) == 1:  # two classes: one row of weights tells them apart
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    model.get_layer("logits").set_weights([weights.T.astype("float32"), bias.astype("float32")])
    return penalty
