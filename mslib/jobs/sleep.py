"""Jobs of notebook 06: nights made, fetched or read; one net per fold; which epochs are explained."""

from __future__ import annotations

import json
from functools import lru_cache
from logging import ERROR, getLogger
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.sleep import EpochSet, fetch_telemetry, read_cohort, simulate_cohort
from mslib.sleep.files import read_json
from mslib.sleep.folds import CrossValidation, Protocol, cross_validate, train_fold
from mslib.sleep.staging import build_stager, load_weights
from mslib.study import StudyConfig, StudyError, progress, write_json
from mslib.study.provenance import file_sha256
from mslib.study.sleep import Sleep

getLogger("tensorflow").setLevel(ERROR)  # one net per fold: TensorFlow would warn of every new graph

#: Epochs of 30 s in an hour.
PER_HOUR = 120


def settings(config: StudyConfig) -> Sleep:
    """The sleep part of a study.

    Raises
    ------
    StudyError
        The study has none.
    """
    if config.sleep is None:
        raise StudyError(f"study {config.study}: has no section 'sleep', so no nights; allowed: one in its file "
                         "(config/README.md)")
    return config.sleep


def sleep_folder(run_dir: str | Path) -> Path:
    """Where nights, epochs, nets and relevance of a run lie."""
    return Path(run_dir) / "sleep"


def source_folder(config: StudyConfig, run_dir: str | Path) -> Path:
    """Folder that holds ``nights.tsv``: the study's own, or the one that its settings name."""
    own = settings(config)
    return Path(own.root).expanduser() if own.source == "folder" else sleep_folder(run_dir) / "nights"


def _bring(config, run_dir) -> Path:
    """Nights on disk: simulated, fetched, or there already."""
    own, folder = settings(config), source_folder(config, run_dir)
    if own.source == "simulated":
        print(f"sleep: {own.subjects} simulated subjects, two nights of {own.hours:g} h each")
        simulate_cohort(folder, own.subjects, round(own.hours * PER_HOUR), config.seed, n_jobs=2)
    elif own.source == "telemetry":
        fetch_telemetry(folder, range(own.subjects))
    return folder


def read_nights(config: StudyConfig, run_dir: str | Path) -> EpochSet:
    """Epochs of all nights that can be used; nights are made or fetched where they are missing.

    Recordings that cannot be used are printed, one line each, and kept in ``sleep/nights.json``; the others go on.

    Raises
    ------
    StudyError
        No recording can be used (all faults, one line each), or there are fewer subjects than folds.
    """
    own = settings(config)
    try:
        folder = _bring(config, run_dir)
        epochs = read_cohort(folder, sleep_folder(run_dir) / "epochs", own.channels.model_dump(), own.rate,
                             mismatch=own.mismatch)
    except ValueError as error:
        raise StudyError(str(error)) from error
    for fault in epochs.faults:
        print(f"left out: {fault}")
    people = epochs.table["subject"].nunique()
    if people < own.folds:
        raise StudyError(f"{folder}: has nights of {people} subject{'s' * (people != 1)} that can be used, fewer than "
                         f"sleep.folds, {own.folds}; nobody may be in two folds")
    facts = {"recordings": int(epochs.table["recording"].nunique()), "subjects": people, "epochs": len(epochs),
             "faults": list(epochs.faults), "facts": epochs.facts}
    path = sleep_folder(run_dir) / "nights.json"
    if read_json(path) != facts:  # every fold depends on this file: it changes only when the nights do
        write_json(path, facts)
    return epochs


def protocol(config: StudyConfig) -> Protocol:
    """How the study's nets are trained."""
    own = settings(config)
    return Protocol(own.folds, own.epochs_per_recording, own.passes, own.batch_size, own.learning_rate, own.patience,
                    own.pool, config.seed)


def fit_fold(config: StudyConfig, run_dir: str | Path, number: int) -> Path:
    """Train, test and explain the net of one fold (one job per fold); what is finished is taken up.

    Returns
    -------
    Path
        The fold's folder.
    """
    from .sleep_relevance import fold_relevance
    epochs = read_nights(config, run_dir)
    try:
        place = train_fold(epochs, sleep_folder(run_dir) / "folds", protocol(config), number)
    except ValueError as error:
        raise StudyError(str(error)) from error
    fold_relevance(config, run_dir, epochs, place)
    write_json(sleep_folder(run_dir) / f"{place.name}.json", {"weights": file_sha256(place / "weights.npz")})
    return place


def validate(config: StudyConfig, run_dir: str | Path, epochs: EpochSet) -> CrossValidation:
    """Cross-validation of the study; finished folds are taken up, missing ones trained with a bar."""
    chosen = protocol(config)
    with progress(total=chosen.n_folds, desc="sleep staging: folds", unit="fold") as bar:
        try:
            return cross_validate(epochs, sleep_folder(run_dir) / "folds", chosen, tell=lambda _: bar.update())
        except ValueError as error:
            raise StudyError(str(error)) from error


@lru_cache(maxsize=1)
def _one_net(shape: tuple[int, int], pool: int) -> keras.Model:
    return build_stager(*shape, pool=pool)


def net_of(place: str | Path) -> keras.Model:
    """The net of a finished fold, until the next one is asked for.

    All folds share one model whose weights are exchanged, so that what is traced for one of them (relevance,
    gradients, predictions) serves all.

    Raises
    ------
    StudyError
        The fold is not finished, or its weights are damaged.
    """
    made = read_json(Path(place) / "fold.json")
    if not made:
        raise StudyError(f"{place}: holds no finished fold")
    try:
        return load_weights(Path(place) / "weights.npz", _one_net(tuple(made["shape"]), made["protocol"]["pool"]))
    except ValueError as error:
        raise StudyError(str(error)) from error


def nets(found: CrossValidation):
    """(fold number, net, rows of its test epochs in the predictions) one after the other; see `net_of`."""
    for number, place in enumerate(found.folders):
        yield number, net_of(place), found.predictions[found.predictions["fold"] == number]


def draw_by_stage(predictions: pd.DataFrame, per_stage: int, seed: int) -> pd.DataFrame:
    """At most so many epochs of every recording and stage (as scored), drawn without return.

    Parameters
    ----------
    predictions : pandas.DataFrame
        ``recording, stage, epoch`` at least; one row per epoch.
    per_stage : int
    seed : int

    Returns
    -------
    pandas.DataFrame
        Rows of `predictions`, in order, with ``weight``: epochs of that recording and stage over those drawn.
    """
    rng = np.random.default_rng([seed, 17])
    groups = predictions.groupby(["recording", "stage"], sort=True).indices.values()
    drawn = [np.sort(rng.permutation(rows)[:per_stage]) for rows in groups]
    weight = np.concatenate([np.full(len(rows), len(every) / len(rows)) for rows, every in zip(drawn, groups)])
    rows = np.concatenate(drawn)
    order = np.argsort(rows)
    return predictions.iloc[rows[order]].assign(weight=weight[order])


def planted(config: StudyConfig, run_dir: str | Path) -> dict:
    """What was planted: ``effects`` (name to size) and ``nights`` (recording to truth); empty for real nights."""
    if settings(config).source != "simulated":
        return {}
    known = json.loads((source_folder(config, run_dir) / "simulation.json").read_text(encoding="utf-8"))
    return {"effects": known["settings"]["effects"], "nights": known["nights"]}
