"""Cross-validation by subject: one net per fold; a finished fold is taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

from .cohort import EpochSet
from .files import read_json, write_json, write_table
from .scores import confusion, score_folds, summarise
from .splits import Fold, make_folds, refuse_leak
from .stages import STAGES
from .staging import POOL, build_stager, fit_stager, load_weights, predict_logits, save_weights

#: Raised when the same settings give other nets.
VERSION = 1
FILES = ("weights.npz", "history.tsv", "predictions.tsv")


@dataclass(frozen=True)
class Protocol:
    """How nets are trained.

    Attributes
    ----------
    n_folds : int
    per_recording : int or None
        Epochs of every recording drawn for training and validation; None takes all. Testing takes all.
    passes, batch_size, learning_rate, patience
        As in `fit_stager`.
    pool : int
        As in `build_stager`.
    seed : int
    """

    n_folds: int = 5
    per_recording: int | None = 100
    passes: int = 12
    batch_size: int = 32
    learning_rate: float = 1e-3
    patience: int = 5
    pool: int = 4
    seed: int = 0

    @classmethod
    def published(cls, **changes) -> Protocol:
        """Ten folds, every epoch of every night, the pools of the public code."""
        return cls(**{"n_folds": 10, "per_recording": None, "passes": 30, "pool": POOL} | changes)


class CrossValidation(NamedTuple):
    """What `cross_validate` returns.

    Attributes
    ----------
    predictions : pandas.DataFrame
        Every epoch of every test subject: ``fold, epoch`` (row of the set), ``recording, subject, onset, stage,
        predicted, logit_W ... logit_REM``.
    scores, summary, confusion : pandas.DataFrame
        Of `score_folds`, `summarise`, `confusion`.
    history : pandas.DataFrame
        ``fold`` and the columns of `fit_stager`.
    folds : tuple of Fold
    folders : tuple of Path
        Of every fold, for `load_stager`.
    """

    predictions: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    confusion: pd.DataFrame
    history: pd.DataFrame
    folds: tuple[Fold, ...]
    folders: tuple[Path, ...]


def load_stager(folder: str | Path) -> keras.Model:
    """The net of a finished fold."""
    made = read_json(Path(folder) / "fold.json")
    if not made:
        raise ValueError(f"{folder}: holds no finished fold")
    return load_weights(Path(folder) / "weights.npz", build_stager(*made["shape"], pool=made["protocol"]["pool"]))


def cross_validate(epochs: EpochSet, folder: str | Path, protocol: Protocol | None = None,
                   folds: tuple[Fold, ...] | None = None,
                   tell: Callable[[str], None] | None = None) -> CrossValidation:
    """Train one net per fold and stage the nights of subjects that it has never seen.

    Parameters
    ----------
    epochs : EpochSet
    folder : str or Path
        Receives ``fold-00`` ...: ``weights.npz`` (lowest validation loss), ``history.tsv``, ``predictions.tsv``,
        ``fold.json`` (what decided them, written last). A fold made under the same protocol, subjects and recordings
        is taken up.
    protocol : Protocol, optional
    folds : tuple of Fold, optional
        Default: of `make_folds`.
    tell : callable, optional
        Receives a line after every fold.

    Returns
    -------
    CrossValidation

    Raises
    ------
    ValueError
        A subject in two parts of a fold, an unknown one, too few subjects.
    """
    protocol, folder = protocol or Protocol(), Path(folder)
    known = set(epochs.table["subject"])
    folds = folds or make_folds(known, protocol.n_folds, protocol.seed)
    for fold in folds:
        refuse_leak(fold)
        strangers = sorted({subject for part in fold for subject in part} - known)
        if strangers:
            raise ValueError(f"fold: no recording of subject {strangers[0]!r}; allowed: {', '.join(sorted(known))}")
    folders = tuple(folder / f"fold-{number:02d}" for number in range(len(folds)))
    predictions, histories = [], []
    for number, (fold, place) in enumerate(zip(folds, folders)):
        taken_up = _run_fold(epochs, place, protocol, fold, number)
        predictions.append(pd.read_csv(place / "predictions.tsv", sep="\t", dtype={"subject": str, "recording": str}))
        histories.append(pd.read_csv(place / "history.tsv", sep="\t").assign(fold=number))
        if tell:
            right = (predictions[-1]["stage"] == predictions[-1]["predicted"]).mean()
            tell(f"fold {number + 1} of {len(folds)}: {right:.2f} of {len(predictions[-1])} epochs right"
                 f"{' (taken up)' if taken_up else ''}")
    predictions = pd.concat([part.assign(fold=number) for number, part in enumerate(predictions)], ignore_index=True)
    scores = score_folds(predictions)
    return CrossValidation(predictions, scores, summarise(scores), confusion(predictions),
                           pd.concat(histories, ignore_index=True), folds, folders)


def train_fold(epochs: EpochSet, folder: str | Path, protocol: Protocol, number: int) -> Path:
    """Train and test one fold of `cross_validate` on its own (one job per fold); a finished one is taken up.

    Parameters
    ----------
    epochs, folder, protocol
        As in `cross_validate`, which later takes the fold up.
    number : int
        0 to ``protocol.n_folds - 1``.

    Returns
    -------
    Path
        The fold's folder, for `load_stager`.

    Raises
    ------
    ValueError
        Too few subjects, or no such fold.
    """
    folds = make_folds(set(epochs.table["subject"]), protocol.n_folds, protocol.seed)
    if not 0 <= number < len(folds):
        raise ValueError(f"fold: must lie in 0..{len(folds) - 1} (got {number})")
    place = Path(folder) / f"fold-{number:02d}"
    _run_fold(epochs, place, protocol, folds[number], number)
    return place


def _run_fold(epochs, place, protocol, fold, number) -> bool:
    """Train and test one fold unless it is there already; whether it was."""
    stamp = {"version": VERSION, "protocol": asdict(protocol), "fold": [list(part) for part in fold],
             "shape": list(epochs.shape), "epochs": len(epochs),
             "recordings": {name: facts.get("digest") for name, facts in epochs.facts.items()}}
    if read_json(place / "fold.json") == stamp and all((place / name).is_file() for name in FILES):
        return True
    (place / "fold.json").unlink(missing_ok=True)
    subjects, drawn = epochs.table["subject"], epochs.draw(protocol.per_recording, protocol.seed)
    train, validation = (drawn[subjects.iloc[drawn].isin(part)] for part in (fold.train, fold.validation))
    test = np.flatnonzero(subjects.isin(fold.test))
    keras.backend.clear_session()
    keras.utils.set_random_seed(1000 * protocol.seed + number)
    model = build_stager(*epochs.shape, pool=protocol.pool)
    history = fit_stager(model, epochs, train, validation, protocol.passes, protocol.batch_size,
                         protocol.learning_rate, protocol.patience, 1000 * protocol.seed + number)
    logits = predict_logits(model, epochs, test)
    table = epochs.table.iloc[test][["recording", "subject", "onset", "stage"]]
    table = table.assign(epoch=test, predicted=logits.argmax(axis=1),
                         **{f"logit_{stage}": logits[:, column] for column, stage in enumerate(STAGES)})
    save_weights(place / "weights.npz", model)
    write_table(place / "history.tsv", history)
    write_table(place / "predictions.tsv", table)
    write_json(place / "fold.json", stamp)
    return False
