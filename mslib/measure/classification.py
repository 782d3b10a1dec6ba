"""How often does a classifier classify correctly, by slice and by subject, with intervals over subjects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from .statistics import MIN_SUBJECTS, percentile_interval, proportion_interval, resample_counts


class ClassificationReport(NamedTuple):
    """What `classification_report` returns."""

    measures: pd.DataFrame
    slice_confusion: pd.DataFrame
    subject_confusion: pd.DataFrame
    subjects: pd.DataFrame


def classification_report(logits, targets, subjects, groups, n: int = 2000, confidence: float = 0.95,
                          seed: int = 0) -> ClassificationReport:
    """Accuracy, balanced accuracy, precision, recall and F1 at slice and subject level.

    A subject's class is that of the mean of its slices' logits.

    Parameters
    ----------
    logits : array-like, (N, n_classes)
    targets : array-like of int, (N,)
        True class of every slice.
    subjects : array-like, (N,)
    groups : sequence of str
        Names of the classes in the order of the logits.
    n, confidence, seed
        Of the intervals, as in `bootstrap_classification`.

    Returns
    -------
    ClassificationReport
        ``measures``: one row per level (slice, subject), measure and group (empty for accuracy and balanced
        accuracy) with value, low, high and n (slices or subjects). ``slice_confusion``, ``subject_confusion``: rows
        true, columns predicted. ``subjects``: true and predicted class, number of slices, mean logits of each.

    Raises
    ------
    ValueError
        Shapes differ; targets not among the classes; NaN logits; a subject of two classes.
    """
    logits, targets, subject_ids, names = _check(logits, targets, subjects, groups)
    sizes = np.bincount(subject_ids)
    mean_logits = np.stack([np.bincount(subject_ids, column) for column in logits.T], axis=1) / sizes[:, None]
    subject_targets = np.zeros(len(sizes), int)
    subject_targets[subject_ids] = targets
    levels = {"slice": (logits.argmax(axis=1), targets, subject_ids),
              "subject": (mean_logits.argmax(axis=1), subject_targets, np.arange(len(sizes)))}
    rows, confusions = [], []
    for level, (predicted, true, ids) in levels.items():
        intervals = bootstrap_classification(predicted, true, ids, len(groups), n, confidence, seed)
        confusions.append(pd.DataFrame(_confusion(predicted, true, ids, len(groups)).sum(axis=0),
                                       pd.Index(groups, name="true"), pd.Index(groups, name="predicted")))
        rows += [{"level": level, "measure": measure, "group": "" if group is None else groups[group],
                  **interval, "n": len(true)} for (measure, group), interval in intervals.items()]
    table = pd.DataFrame({"subject": names, "true": np.take(groups, subject_targets),
                          "predicted": np.take(groups, mean_logits.argmax(axis=1)), "n_slices": sizes})
    return ClassificationReport(pd.DataFrame(rows), *confusions,
                                table.join(pd.DataFrame(mean_logits, columns=[f"logit_{g}" for g in groups])))


def bootstrap_classification(predicted, targets, subjects, n_classes: int, n: int = 2000,
                             confidence: float = 0.95, seed: int = 0) -> dict[tuple[str, int | None], dict]:
    """Intervals of every measure of a confusion matrix over subjects, by (measure, class): ``value, low, high``.

    `predicted`, `targets`: class ids, (N,); class is None for ``accuracy`` and ``balanced_accuracy``.
    Slices: whole subjects are resampled, within their class where each class has `MIN_SUBJECTS`, else over all.
    One prediction a subject: accuracy, recall and precision are proportions of subjects and get Wilson's interval,
    which has a width even where all are correct. No interval (NaN) below `MIN_SUBJECTS` subjects otherwise (for
    measures of one class: of that class; for balanced accuracy: of every class), or where all resamples agree.
    """
    subject_ids = pd.factorize(np.asarray(subjects))[0]
    per_subject = _confusion(predicted, targets, subject_ids, n_classes)
    total = per_subject.sum(axis=0)
    of_class = per_subject.sum(axis=2).argmax(axis=1)
    sizes = np.bincount(of_class, minlength=n_classes)
    strata = of_class if sizes[sizes > 0].min() >= MIN_SUBJECTS else np.zeros_like(of_class)
    resampled = confusion_measures(np.tensordot(resample_counts(strata, n, seed), per_subject, axes=1))
    single = per_subject.sum(axis=(1, 2)).max() == 1
    proportions = {"accuracy": lambda _: (np.trace(total), total.sum()),
                   "recall": lambda group: (total[group, group], total[group].sum()),
                   "precision": lambda group: (total[group, group], total[:, group].sum())}
    result = {}
    for (measure, group), value in confusion_measures(total).items():
        if single and measure in proportions:
            result[measure, group] = proportion_interval(*proportions[measure](group), confidence)
        else:
            # A resample without one of the classes would average fewer recalls.
            smallest = sizes[sizes > 0].min() if measure == "balanced_accuracy" else len(of_class)
            enough = (smallest if group is None else sizes[group]) >= MIN_SUBJECTS
            values = resampled[measure, group] if enough else np.array([])
            result[measure, group] = percentile_interval(value, values, confidence)
    return result


def confusion_measures(confusion: np.ndarray) -> dict[tuple[str, int | None], np.ndarray]:
    """Measures, (measure, class or None) to ndarray (...), of confusion matrices (..., true, predicted).

    NaN, not 0, where a measure is not defined: the precision of a class never predicted, the recall of an absent one.
    Balanced accuracy is the mean recall of the classes present.
    """
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    recall = _ratio(correct, true)
    measures = {("accuracy", None): _ratio(correct.sum(axis=-1), true.sum(axis=-1)),
                ("balanced_accuracy", None): _ratio(np.nansum(recall, axis=-1), (true > 0).sum(axis=-1))}
    for name, values in (("precision", _ratio(correct, predicted)), ("recall", recall),
                         ("f1", _ratio(2 * correct, true + predicted))):
        measures |= {(name, group): values[..., group] for group in range(values.shape[-1])}
    return measures


def _ratio(part, whole):
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _confusion(predicted, targets, subject_ids, n_classes):
    """(S, n_classes, n_classes) confusion matrix of every subject."""
    shape = (int(subject_ids.max()) + 1, n_classes, n_classes)
    cells = np.ravel_multi_index((subject_ids, np.asarray(targets), np.asarray(predicted)), shape)
    return np.bincount(cells, minlength=np.prod(shape)).reshape(shape)


def _check(logits, targets, subjects, groups):
    logits, targets = np.asarray(logits, float), np.asarray(targets)
    subject_ids, names = pd.factorize(np.asarray(subjects))
    if logits.shape != (len(targets), len(groups)) or len(subject_ids) != len(targets) or not len(targets):
        raise ValueError(f"logits: must be (N, {len(groups)}) with N targets and N subjects (got "
                         f"{logits.shape}, {targets.shape}, {subject_ids.shape})")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise ValueError(f"logits: {np.count_nonzero(~finite)} slices hold NaN or infinity")
    if not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0 or targets.max() >= len(groups):
        raise ValueError(f"targets: must be class ids in 0..{len(groups) - 1} (got {np.unique(targets)[:8]})")
    pairs = pd.DataFrame({"subject": subject_ids, "target": targets}).drop_duplicates()
    twice = pairs["subject"].duplicated()
    if twice.any():
        raise ValueError(f"targets: subject {names[pairs.loc[twice, 'subject'].iloc[0]]} has several classes")
    return logits, targets, subject_ids, names
