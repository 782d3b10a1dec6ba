"""Many nights: a folder with a table becomes one set of epochs on disk; which subjects train, validate, are tested."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd

from .recordings import read_recording
from .stages import STAGES

TABLE = "nights.tsv"
REQUIRED, OPTIONAL = ("recording", "subject", "psg", "hypnogram"), ("night", "drug", "age", "sex")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MISSING = {"na", "nan", "null", "none"}  # to tables that are read again
NAME_RULE = "1 to 64 letters, digits, - and _"


@dataclass(frozen=True)
class EpochSet:
    """Epochs of many recordings; the signals stay on disk until they are asked for.

    ``folder`` holds ``<recording>.npy``, (N, T, M), for every recording. ``table`` has one row per epoch, index
    0..N-1: ``recording, subject, night, drug, age, sex, onset, stage, row``. ``faults``: one line for every recording
    that could not be used; ``quality``: what the reader counted and measured, by recording (`Recording`).
    """

    folder: Path
    table: pd.DataFrame
    faults: tuple[str, ...] = ()
    quality: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _signals(self) -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in self.table["recording"].unique()}

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and channels of an epoch."""
        return next(iter(self._signals.values())).shape[1:]

    def batch(self, index) -> np.ndarray:
        """Epochs at these rows of `table`, float32 (len(index), T, M)."""
        index = np.asarray(index)
        chosen = self.table.iloc[index]
        epochs = np.empty((len(index), *self.shape), np.float32)
        for name, places in chosen.groupby("recording", sort=False).indices.items():
            epochs[places] = self._signals[name][chosen["row"].to_numpy()[places]]
        return epochs

    def draw(self, per_recording: int | None, seed: int) -> np.ndarray:
        """Rows of at most so many epochs of every recording, drawn without return, in order; all with None."""
        if per_recording is None:
            return np.arange(len(self))
        if per_recording < 1:
            raise ValueError(f"per_recording: must be at least 1 or none (got {per_recording})")
        rng = np.random.default_rng([seed, 11])
        drawn = [rng.permutation(rows)[:per_recording] for rows in self.table.groupby("recording").indices.values()]
        return np.sort(np.concatenate(drawn))


def _row_fault(folder: Path, row: dict) -> str | None:
    """What is wrong with a row of the table, before any recording is opened."""
    for column in ("recording", "subject"):
        if not isinstance(row[column], str) or not NAME.fullmatch(row[column]):
            return f"{column} {row[column]!r} is no valid name; allowed: {NAME_RULE}"
        if row[column].casefold() in MISSING:
            return f"{column} {row[column]!r} would be read as missing; allowed: another name"
    for column in ("psg", "hypnogram"):
        path = folder / str(row[column])
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{column} {row[column]!r} lies outside the folder; allowed: files inside it"
        if not path.is_file():
            return f"{column} {row[column]!r} is absent; allowed: an EDF file in the folder"
    for column in ("night", "age"):
        if isinstance(row[column], str) and not re.fullmatch(r"\d+(\.\d+)?", row[column]):
            return f"{column} {row[column]!r} is no number; allowed: a number or n/a"
    if isinstance(row["sex"], str) and row["sex"] not in ("F", "M"):
        return f"sex {row['sex']!r} is unknown; allowed: F, M or n/a"
    return None


def _repeated(folder: Path, row: dict, seen: dict) -> str | None:
    """What a row repeats of rows before, which `seen` holds; a row that repeats nothing is added."""
    spelling = seen.get(("subject", row["subject"].lower()), row["subject"])
    if spelling != row["subject"]:
        return f"subject {row['subject']!r} is also written {spelling!r}; allowed: one spelling"
    own = {("recording", row["recording"].lower()), ("psg", (folder / row["psg"]).resolve())}
    if again := own & seen.keys():
        return f"is listed twice; allowed: one row per {max(again)[0]}"
    seen |= dict.fromkeys(own) | {("subject", row["subject"].lower()): row["subject"]}
    return None


def _read_table(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Usable rows of the table, and faults of the others."""
    path = folder / TABLE
    try:
        nights = pd.read_csv(path, sep="\t", dtype=str, na_values="n/a", keep_default_na=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is absent; allowed: a table with the columns {', '.join(REQUIRED)} and, where "
                         f"known, {', '.join(OPTIONAL)}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    if len(nights.columns) == 1 and (other := re.search("[;,]", nights.columns[0])):
        raise ValueError(f"{path}: has its cells separated by {other[0]!r}; allowed: tabs between the cells")
    absent = [column for column in REQUIRED if column not in nights]
    if absent or not len(nights):
        raise ValueError(f"{path}: has no {'column ' + ', '.join(absent) if absent else 'row'}; allowed: one row per "
                         f"recording with {', '.join(REQUIRED)}")
    nights = nights.assign(**{column: np.nan for column in OPTIONAL if column not in nights})
    faults, seen = {}, {}
    for index, row in enumerate(nights.to_dict("records")):
        if wrong := _row_fault(folder, row) or _repeated(folder, row, seen):
            faults[index] = f"{TABLE}: recording {row['recording']!r}: {wrong}"
    usable = nights.drop(index=list(faults))
    return usable.assign(night=pd.to_numeric(usable["night"]), age=pd.to_numeric(usable["age"])), [*faults.values()]


def read_cohort(folder: str | Path, store: str | Path, channels: Mapping[str, str], rate: float = 100,
                mismatch: str = "refuse") -> EpochSet:
    """Read every recording that a folder's ``nights.tsv`` names, one at a time.

    Parameters
    ----------
    folder : str or Path
        Holds ``nights.tsv``, one row per recording: ``recording`` (name), ``subject``, ``psg`` and ``hypnogram``
        (files in the folder), and where known ``night``, ``drug``, ``age``, ``sex``. `simulate_cohort` and
        `fetch_telemetry` write it.
    store : str or Path
        Receives the epochs, ``<recording>.npy`` in float16 (z-scores keep three digits).
    channels, rate, mismatch
        As in `read_recording`.

    Raises
    ------
    ValueError
        No table, or no recording that can be used; then all faults, one line each.
    """
    if not channels:
        raise ValueError("channels: none given; allowed: modality to label, for instance {'EEG': 'EEG Fpz-Cz'}")
    folder, store = Path(folder), Path(store)
    nights, faults = _read_table(folder)
    store.mkdir(parents=True, exist_ok=True)
    tables, quality = [], {}
    for row in nights.to_dict("records"):
        try:
            recording = read_recording(folder / row["psg"], folder / row["hypnogram"], channels, rate,
                                       mismatch=mismatch)
        except ValueError as error:
            faults.append(f"recording {row['recording']!r}: {error}")
            continue
        np.save(store / f"{row['recording']}.npy", recording.epochs.astype("float16"), allow_pickle=False)
        quality[row["recording"]] = recording.quality
        described = {column: row[column] for column in ("recording", "subject", *OPTIONAL)}
        tables.append(pd.DataFrame(described | {"onset": recording.onsets, "stage": recording.stages.astype(int),
                                                "row": np.arange(len(recording.stages))}))
    if not tables:
        raise ValueError("\n".join([f"{folder}: no recording can be used", *faults]))
    return EpochSet(store, pd.concat(tables, ignore_index=True), tuple(faults), quality)


def describe_nights(epochs: EpochSet) -> pd.DataFrame:
    """One row per recording: whose it is, epochs of every stage, epochs ``trimmed`` and ``dropped`` (unscored)."""
    table = epochs.table
    counts = pd.crosstab(table["recording"], table["stage"]).reindex(columns=range(len(STAGES)), fill_value=0)
    left_out = pd.DataFrame([{"recording": name, "trimmed": one["trimmed"], "dropped": sum(one["dropped"].values())}
                             for name, one in epochs.quality.items()])
    nights = table.drop_duplicates("recording")[["recording", "subject", *OPTIONAL]]
    return nights.join(counts.set_axis(list(STAGES), axis=1), on="recording").merge(left_out, "left", "recording")


class Fold(NamedTuple):
    """Subjects of the three parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(subjects: Iterable[str], n_folds: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal subjects (each counts once) into folds: each is tested once and validates once, in the fold before.

    ValueError: fewer subjects than folds, or fewer than three folds (one subject alone cannot be cross-validated).
    """
    known = np.array(sorted(set(subjects)))
    if not 3 <= n_folds <= len(known):
        raise ValueError(f"n_folds: must lie in 3..{len(known)}, the number of subjects, of which training, validation "
                         f"and test need one each (got {n_folds} folds and {len(known)} subjects)")
    parts = np.array_split(np.random.default_rng([seed, 3]).permutation(known), n_folds)
    folds = []
    for number, test in enumerate(parts):
        validation = parts[(number + 1) % n_folds]
        train = np.setdiff1d(known, np.concatenate([test, validation]))
        folds.append(Fold(*(tuple(np.sort(part).tolist()) for part in (train, validation, test))))
    return tuple(folds)


def refuse_leak(fold: Fold) -> None:
    """Raise a ValueError that names the first subject who is in two parts of a fold."""
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = set(getattr(fold, first)) & set(getattr(fold, second))
        if shared:
            raise ValueError(f"fold: subject {min(shared)!r} is in {first} and {second} at once; allowed: each subject "
                             "in one part")


def fetch_telemetry(folder: str | Path, subjects=range(22)) -> Path:
    """Download Sleep-EDF telemetry (Kemp et al. 2000; Goldberger et al. 2000) with MNE, and write its table.

    The folder, which is returned, receives ``physionet-sleep-data/ST*.edf`` (about 1 GB for all, checked by SHA-1;
    files already there are not fetched again) and ``nights.tsv``; then it is ready for `read_cohort` with `CHANNELS`.
    `subjects`: of 0 to 21, two nights each (placebo, temazepam). ValueError: the files cannot be had.
    """
    folder, subjects = Path(folder), list(subjects)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = mne.datasets.sleep_physionet.temazepam.fetch_data(subjects=subjects, path=str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Sleep-EDF telemetry cannot be fetched ({first[:200]}); allowed: a network, or its files in "
                         f"{folder / 'physionet-sleep-data'}") from error
    records = pd.read_csv(resources.files("mne.datasets.sleep_physionet") / "temazepam_records.csv",
                          index_col="fname_PSG")
    rows = []
    for psg, hypnogram in files:
        known = records.loc[Path(psg).name]
        rows.append({"recording": Path(psg).name[:6], "subject": Path(psg).name[:5], "night": known["night nr"],
                     "drug": known["drug"].lower(), "age": known["age"], "sex": known["sex"][0].upper(),
                     **{column: Path(path).resolve().relative_to(folder.resolve()).as_posix()
                        for column, path in (("psg", psg), ("hypnogram", hypnogram))}})
    pd.DataFrame(rows).to_csv(folder / TABLE, sep="\t", index=False, na_rep="n/a")
    return folder
