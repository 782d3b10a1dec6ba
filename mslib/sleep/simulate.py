"""A simulated study of sleep on disk: EDF+ recordings with hypnograms, who slept when, and what was simulated."""

from __future__ import annotations

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import edfio
import numpy as np
import pandas as pd

from .night import RATE, simulate_night
from .signatures import CHANNELS, MODALITIES, Effects
from .stages import EPOCH_SECONDS, simulate_hypnogram

DRUGS = ("placebo", "temazepam")
START = datetime.datetime(2000, 1, 1, 23, 0)
#: Women among 22 subjects of Sleep-EDF telemetry; bounds of the simulated ages (years).
WOMEN, AGES = 15 / 22, (20, 75)


class Sleeper(NamedTuple):
    """One simulated subject: ``id`` (``SIM01``), number, age in years, sex, drug of the first and second night."""

    id: str
    number: int
    age: int
    sex: str
    drugs: tuple[str, str]


def simulate_sleepers(n: int, seed: int) -> list[Sleeper]:
    """Who takes part: two thirds women, ages spread evenly within each sex, order of the nights drawn."""
    rng = np.random.default_rng([seed, 0, 0])
    women = round(n * WOMEN)
    ages = np.concatenate([np.linspace(*AGES, count) if count > 1 else [np.mean(AGES)] * count
                           for count in (women, n - women)])
    people = list(zip(np.round(ages).astype(int).tolist(), ["F"] * women + ["M"] * (n - women)))
    return [Sleeper(f"SIM{number:02d}", number, *people[who], tuple(rng.permutation(DRUGS).tolist()))
            for number, who in enumerate(rng.permutation(n), start=1)]


def write_recording(path: str | Path, signals: np.ndarray, code: str = "X", sex: str = "X") -> None:
    """Write signals (T, 3) in microvolt (EEG, EOG, EMG at `RATE`, a whole number of 30-s epochs) as EDF+."""
    channels = [edfio.EdfSignal(column.astype(np.float64), RATE, label=CHANNELS[modality], physical_dimension="uV",
                                physical_range=(-limit, limit))
                for modality, column in zip(MODALITIES, signals.T) for limit in [np.ceil(np.abs(column).max()) or 1]]
    edfio.Edf(channels, **_header(code, sex), data_record_duration=EPOCH_SECONDS).write(path)


def write_hypnogram(path: str | Path, stages: np.ndarray, code: str = "X", sex: str = "X") -> None:
    """Write stages (indices into `STAGES`, one per 30-s epoch) as EDF+ annotations, one per run, as Sleep-EDF does."""
    starts = np.flatnonzero(np.diff(stages, prepend=-1))
    lengths = np.diff(np.append(starts, len(stages)))
    runs = [edfio.EdfAnnotation(float(start * EPOCH_SECONDS), float(length * EPOCH_SECONDS),
                                f"Sleep stage {'W123R'[stages[start]]}") for start, length in zip(starts, lengths)]
    edfio.Edf([], **_header(code, sex), annotations=runs).write(path)


def _header(code, sex):
    return {"patient": edfio.Patient(code=code, sex=sex), "recording": edfio.Recording(startdate=START.date()),
            "starttime": START.time()}


def _simulate_recording(folder, sleeper, night, n_epochs, seed) -> tuple[dict, dict]:
    """Simulate one night and write it; its row of ``nights.tsv``, and gains and leaks."""
    name, drug = f"{sleeper.id}N{night}", sleeper.drugs[night - 1]
    stages = simulate_hypnogram(n_epochs, np.random.default_rng([seed, sleeper.number, night, 1]))
    made = simulate_night(stages, sleeper.age, sleeper.sex, drug, (seed, sleeper.number, night))
    row = {"recording": name, "subject": sleeper.id, "night": night, "drug": drug, "age": sleeper.age,
           "sex": sleeper.sex, "psg": f"{name}-PSG.edf", "hypnogram": f"{name}-Hypnogram.edf"}
    write_recording(folder / row["psg"], made.signals, sleeper.id, sleeper.sex)
    write_hypnogram(folder / row["hypnogram"], stages, sleeper.id, sleeper.sex)
    return row, made.truth


def simulate_cohort(folder: str | Path, n_subjects: int = 22, n_epochs: int = 960, seed: int = 0,
                    n_jobs: int = 1) -> pd.DataFrame:
    """Simulate two nights of every subject, one under each drug; the table of nights is returned.

    The folder receives ``<recording>-PSG.edf``, ``<recording>-Hypnogram.edf``, ``nights.tsv`` and ``simulation.json``
    (settings, sizes of the effects, truth of every night). 960 epochs are 8 hours; `n_jobs` are threads.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sleepers = simulate_sleepers(n_subjects, seed)
    with ThreadPoolExecutor(n_jobs) as pool:  # waits for its threads after a fault too; joblib leaves them running
        made = list(pool.map(lambda one: _simulate_recording(folder, *one, n_epochs, seed),
                             [(sleeper, night) for sleeper in sleepers for night in (1, 2)]))
    nights = pd.DataFrame([row for row, _ in made])
    nights.to_csv(folder / "nights.tsv", sep="\t", index=False)
    settings = {"n_subjects": n_subjects, "n_epochs": n_epochs, "seed": seed, "rate": RATE}
    described = {"settings": settings, "effects": asdict(Effects()),
                 "nights": {row["recording"]: truth for row, truth in made}}
    (folder / "simulation.json").write_text(json.dumps(described, indent=2) + "\n")
    return nights
