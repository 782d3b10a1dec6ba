"""Tables of notebook 06: scores, shares of the modalities with intervals, consistency of folds, what was planted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.measure import Interval, bootstrap_subjects
from mslib.sleep import MODALITIES, STAGES, EpochSet, band_features, modality_information
from mslib.sleep.folds import CrossValidation
from mslib.study import StudyConfig

from .sleep import draw_by_stage, settings
from .sleep_relevance import KINDS

#: All epochs together, each stage as often as it occurs, beside the five.
OVERALL = "overall"
#: Epochs of every recording and stage on which the information of the modalities is measured, and folds of it.
INFORMATION_EPOCHS, INFORMATION_FOLDS = 10, 5
#: Draws of the consistency of folds.
DRAWS = 500


def interval_of(values: pd.Series, config: StudyConfig) -> Interval:
    """Mean over subjects of one value each, with its bootstrap interval."""
    values = values.dropna()
    return bootstrap_subjects(values.to_numpy(), values.index, n=config.statistics.bootstrap,
                              confidence=config.statistics.confidence, seed=config.seed)


def subject_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Mean shares of every subject, by stage and over all its epochs (``overall``), right and wrong ones apart.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `mslib.jobs.sleep_relevance.all_relevance`.

    Returns
    -------
    pandas.DataFrame
        ``rule, kind, right, subject, fold, stage, EEG, EOG, EMG, n`` (epochs), shares in percent. Overall, epochs
        count by their weight, so that stages of which few were drawn count as often as they occur.
    """
    known = table.assign(stage=table["stage"].map(dict(enumerate(STAGES))))
    keys = ["rule", "right", "subject", "fold", "stage"]
    tables = []
    for kind in KINDS:
        columns = [f"{kind}_{modality}" for modality in MODALITIES]
        weighted = known.assign(**{name: known[name] * known["weight"] for name in columns}).groupby(keys[:-1])
        merged = weighted[columns].sum().div(weighted["weight"].sum(), axis=0).assign(stage=OVERALL, n=weighted.size())
        groups = known.groupby(keys, sort=True)
        for part in (groups[columns].mean().assign(n=groups.size()), merged):
            tables.append(part.reset_index().rename(columns=dict(zip(columns, MODALITIES))).assign(kind=kind))
    order = ["rule", "kind", "right", "subject", "fold", "stage", *MODALITIES, "n"]
    return pd.concat(tables, ignore_index=True)[order]


def share_summary(subjects: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Mean share over subjects with interval: ``rule, kind, right, stage, modality, value, low, high, subjects, n``."""
    rows = []
    for (rule, kind, right, stage), part in subjects.groupby(["rule", "kind", "right", "stage"], sort=False):
        for modality in MODALITIES:
            found = interval_of(part.set_index("subject")[modality], config)
            rows.append({"rule": rule, "kind": kind, "right": right, "stage": stage, "modality": modality,
                         "value": found.estimate, "low": found.low, "high": found.high,
                         "subjects": part["subject"].nunique(), "n": int(part["n"].sum())})
    return pd.DataFrame(rows)


def fold_shares(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Published global shares: mean over the epochs of a stage and fold, right and wrong apart (sizes of relevance)."""
    part = table[table["rule"] == rule]
    part = part.assign(stage=part["stage"].map(dict(enumerate(STAGES))))
    groups = part.groupby(["right", "fold", "stage"], sort=True)
    columns = {f"absolute_{modality}": modality for modality in MODALITIES}
    return groups[list(columns)].mean().rename(columns=columns).assign(n=groups.size()).reset_index()


def _spread(subjects: pd.DataFrame) -> float:
    """SD over folds (percentage points) of a modality's mean share, averaged over stages and modalities."""
    means = subjects.groupby(["stage", "fold"])[list(MODALITIES)].mean()
    return float(means.groupby("stage").std(ddof=1).mean(axis=None))


def matched(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many right as wrong epochs of every subject and stage, drawn; without those that have only one kind."""
    rng, chosen = np.random.default_rng([seed, 23]), []
    for _, rows in table.groupby(["subject", "stage"], sort=True).indices.items():
        right = table["right"].to_numpy()[rows]
        sides = [rng.permutation(rows[right]), rng.permutation(rows[~right])]
        chosen += [side[:min(map(len, sides))] for side in sides]
    return table.iloc[np.sort(np.concatenate(chosen))] if chosen else table


def consistency(table: pd.DataFrame, config: StudyConfig, rule: str) -> dict:
    """How much the shares differ from fold to fold, of right epochs and of wrong ones.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `mslib.jobs.sleep_relevance.all_relevance`. Right and wrong epochs are `matched`: means of fewer epochs
        scatter more, and would make wrong ones look less consistent than they are.
    config : StudyConfig
    rule : str

    Returns
    -------
    dict
        ``right``, ``wrong``: SD over folds in percentage points, mean over stages and modalities; ``difference``
        (wrong less right), ``low``, ``high``: percentile interval over subjects drawn anew within their folds;
        ``epochs``: of each kind; ``subjects``. NaN with fewer than two folds that have both.
    """
    shares = subject_shares(matched(table[table["rule"] == rule], config.seed))
    part = shares[(shares["kind"] == "absolute") & (shares["stage"] != OVERALL)]
    sides = {right: part[part["right"] == right].reset_index(drop=True) for right in (True, False)}
    sizes = {"epochs": int(sides[True]["n"].sum()), "subjects": int(sides[True]["subject"].nunique())}
    if sides[True]["fold"].nunique() < 2:
        return dict.fromkeys(("right", "wrong", "difference", "low", "high"), np.nan) | sizes
    observed = {right: _spread(side) for right, side in sides.items()}
    rng, draws = np.random.default_rng([config.seed, 41]), []
    groups = [people["subject"].unique() for _, people in sides[True].groupby("fold")]
    rows = {right: side.groupby("subject").indices for right, side in sides.items()}
    for _ in range(min(DRAWS, config.statistics.bootstrap)):
        names = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn = {right: _spread(side.iloc[np.concatenate([rows[right][name] for name in names])])
                 for right, side in sides.items()}
        draws.append(drawn[False] - drawn[True])
    low, high = np.nanquantile(draws, [(1 - config.statistics.confidence) / 2, (1 + config.statistics.confidence) / 2])
    return {"right": observed[True], "wrong": observed[False], "difference": observed[False] - observed[True],
            "low": float(low), "high": float(high), **sizes}


def information(epochs: EpochSet, config: StudyConfig) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """What each modality alone tells about each stage, measured by classifiers on band powers.

    Returns
    -------
    information : pandas.DataFrame
        Of `mslib.sleep.modality_information`.
    drawn : pandas.DataFrame
        Rows of ``epochs.table`` that it rests on, at most `INFORMATION_EPOCHS` of every recording and stage.
    features : ndarray, (N, M, F)
        Of `mslib.sleep.band_features`, of these rows.
    """
    drawn = draw_by_stage(epochs.table.assign(epoch=np.arange(len(epochs))), INFORMATION_EPOCHS, config.seed + 1)
    rows = drawn["epoch"].to_numpy()
    features = np.concatenate([band_features(epochs.batch(rows[start:start + 256]), settings(config).rate)
                               for start in range(0, len(rows), 256)])
    people = drawn["subject"].to_numpy()
    table = modality_information(features, drawn["stage"].to_numpy(), people,
                                 min(INFORMATION_FOLDS, len(set(people))), config.seed)
    return table, drawn, features


def beside_information(summary: pd.DataFrame, known: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Share of the relevance (right epochs) beside the information of every stage and modality.

    Returns
    -------
    pandas.DataFrame
        ``stage, modality, share, low, high, auc, auc_sd``.
    """
    part = summary[(summary["rule"] == rule) & (summary["kind"] == "absolute") & summary["right"]]
    part = part.rename(columns={"value": "share"})[["stage", "modality", "share", "low", "high"]]
    told = known[["stage", "modality", "auc", "auc_sd"]]
    return part.merge(told, on=["stage", "modality"])


def information_panels(summary: pd.DataFrame, known: pd.DataFrame, rule: str) -> dict:
    """Panels of `mslib.show.plot_stage_shares`: relevance of right epochs above what each modality alone tells."""
    part = summary[(summary["rule"] == rule) & (summary["kind"] == "absolute") & summary["right"]]
    auc = known[known["modality"].isin(MODALITIES)].rename(columns={"auc": "value"})
    auc = auc.assign(low=auc["value"] - auc["auc_sd"], high=auc["value"] + auc["auc_sd"])
    return {"relevance": part, "information: how well a classifier tells the stage from one modality alone": auc}


def confusion_panel(found: CrossValidation, title: str) -> dict:
    """Arguments of `mslib.show.plot_confusions` for all folds together."""
    accuracy = found.summary[found.summary["measure"] == "accuracy"].iloc[0]
    people = found.predictions["subject"].nunique()
    return {"matrices": found.confusion.to_numpy()[None], "classes": list(STAGES), "titles": [title],
            "accuracies": [(accuracy["mean"], accuracy["low"], accuracy["high"])],
            "sizes": [f"{len(found.predictions)} epochs, {people} subjects"]}


def score_table(found: CrossValidation) -> pd.DataFrame:
    """Mean over folds with interval: one row per measure and stage."""
    return found.summary.assign(stage=found.summary["stage"].replace("", "all"))
