"""How well can each stage be recognised from one modality alone? Classifiers on its band powers, as a reference."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import cohen_kappa_score, recall_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from .signatures import MODALITIES
from .stages import STAGES

#: Hz; edges of the bands that the features cover.
EDGES = (0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 13.0, 16.0, 22.0, 30.0, 45.0)


def band_features(epochs: np.ndarray, rate: float = 100) -> np.ndarray:
    """Log power of epochs (N, T, M) in 11 bands, and how large their swings are: float64, (N, M, 13).

    Swings: log of the 90th percentile and of the largest of the ranges within 30 pieces of the epoch.
    """
    epochs = np.moveaxis(np.asarray(epochs, np.float32), -1, 1)
    power = np.abs(np.fft.rfft(epochs * np.hanning(epochs.shape[-1]).astype(np.float32))) ** 2
    frequency = np.fft.rfftfreq(epochs.shape[-1], 1 / rate)
    bands = [power[..., (frequency >= low) & (frequency < high)].mean(axis=-1)
             for low, high in itertools.pairwise(EDGES)]
    size = epochs.shape[-1] // 30
    ranges = np.ptp(epochs[..., :size * 30].reshape(*epochs.shape[:2], 30, size), axis=-1)
    swings = [np.quantile(ranges, 0.9, axis=-1), ranges.max(axis=-1)]
    return np.log(np.stack(bands + swings, axis=-1).astype(np.float64) + 1e-9)


def modality_information(features: np.ndarray, stages, subjects, n_folds: int, seed: int = 0) -> pd.DataFrame:
    """Measure how well each modality alone, and all together, separate each stage in people not seen before.

    Extremely randomised trees with balanced class weights. This is a lower bound of what a modality holds: whatever the
    features do not see (wave shape, order within the epoch) is not counted.

    From `band_features`, (N, M, F), stages as integers, (N,), and subjects, (N,), none of whom is in training and test
    at once. One row per modality (and ``all``) and stage: ``auc`` (one stage against the rest, mean over folds), its SD
    over folds, n. Rows with the stage ``overall`` hold ``balanced_accuracy`` and ``kappa`` of five stages.
    """
    chosen = {name: [column] for column, name in enumerate(MODALITIES)} | {"all": list(range(len(MODALITIES)))}
    rows = []
    for name, columns in chosen.items():
        folds = GroupKFold(n_folds).split(features, groups=subjects)
        per_fold = [_one_fold(features[:, columns].reshape(len(stages), -1), stages, *fold, seed) for fold in folds]
        for key in (*STAGES, "overall"):
            values = pd.DataFrame([fold[key] for fold in per_fold if key in fold])
            n = len(stages) if key == "overall" else int((stages == STAGES.index(key)).sum())
            rows.append({"modality": name, "stage": key, **values.mean().to_dict(), "n": n,
                         **values.std().add_suffix("_sd").to_dict()})
    return pd.DataFrame(rows)


def _one_fold(inputs, stages, train, test, seed):
    model = ExtraTreesClassifier(100, min_samples_leaf=4, class_weight="balanced", random_state=seed, n_jobs=-1)
    model.fit(inputs[train], stages[train])
    probability, truth = model.predict_proba(inputs[test]), stages[test]
    guess = model.classes_[probability.argmax(axis=1)]
    scores = {"overall": {"balanced_accuracy": recall_score(truth, guess, labels=np.unique(truth), average="macro"),
                          "kappa": cohen_kappa_score(truth, guess)}}
    for column, stage in enumerate(model.classes_):
        is_stage = truth == stage
        if 0 < is_stage.sum() < len(truth):
            scores[STAGES[stage]] = {"auc": roc_auc_score(is_stage, probability[:, column])}
    return scores
