"""One night from EDF and its hypnogram to epochs: nothing is resampled, every epoch left out is counted."""

from __future__ import annotations

import datetime
import itertools
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import edfio
import numpy as np

from .stages import EPOCH_SECONDS, LABELS, STAGES

#: Microvolt of a physical dimension; signals without one are taken as microvolt.
MICROVOLT = {"V": 1e6, "mV": 1e3}
#: Wake that is kept before the first and after the last epoch of sleep.
TRIM_MINUTES = 30


class Recording(NamedTuple):
    """What `read_recording` returns."""

    epochs: np.ndarray  #: float32 (N, EPOCH_SECONDS * rate, M), every channel with mean 0 and SD 1 over them
    stages: np.ndarray  #: int8 (N,), indices into `STAGES`
    onsets: np.ndarray  #: (N,), seconds from the start of the signal
    quality: dict  #: seconds of signal, epochs kept, dropped by label, trimmed, beyond the signal; mean, SD by channel


def _open(path: Path) -> tuple[edfio.Edf, datetime.datetime]:
    """An EDF file, whose signals are read when they are asked for, and its start; ValueError where it is no whole one.

    The start is that of the plain header: the one of EDF+ may be made anonymous.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Incomplete data record|EDF header indicates")
            edf = edfio.read_edf(path)
        with path.open("rb") as file:
            start = datetime.datetime.strptime(file.read(184)[168:].decode("ascii"), "%d.%m.%y%H.%M.%S")
    except Exception as error:  # a damaged header raises whatever its parser stumbles over
        raise ValueError(f"{path.name}: is no whole EDF file ({type(error).__name__}: {error}); allowed: EDF or EDF+"
                         ) from error
    if edf.reserved == "EDF+D":
        raise ValueError(f"{path.name}: is EDF+D, a recording with gaps; allowed: EDF or EDF+C (continuous)")
    return edf, start


def read_signals(path: str | Path, channels: Mapping[str, str], rate: float = 100) -> np.ndarray:
    """Read channels of one EDF file in microvolt, float32 (T, len(channels)), each at the rate it was recorded at.

    `channels`: modality to label in the file, in the order wanted; `rate`: samples per second that each must have.
    ValueError, one line: empty, truncated or damaged file, a channel that is absent or has another rate.
    """
    path = Path(path)
    edf, _ = _open(path)
    absent = [f"{modality} {label!r}" for modality, label in channels.items() if edf.labels.count(label) != 1]
    if absent:
        raise ValueError(f"{path.name}: has no channel {', '.join(absent)}; allowed: {', '.join(edf.labels)}")
    columns = []
    for modality, label in channels.items():
        signal = edf.get_signal(label)
        found = signal.sampling_frequency
        if found != rate:
            reason = " (an envelope of the EMG, not the EMG)" if modality == "EMG" and found < 10 else ""
            raise ValueError(f"{path.name}: {modality} {label!r} has {found:g} samples per second{reason}; allowed: "
                             f"{rate:g}, nothing is resampled")
        columns.append((signal.data * MICROVOLT.get(signal.physical_dimension, 1)).astype(np.float32))
    return np.stack(columns, axis=1)


def read_hypnogram(path: str | Path) -> list[edfio.EdfAnnotation]:
    """Read an EDF+ hypnogram with the labels of Sleep-EDF (`LABELS`): ``onset, duration, text`` in the order of time.

    ValueError, one line: empty or damaged file, no annotation, a label that is not in `LABELS`, overlap.
    """
    path = Path(path)
    edf, _ = _open(path)
    try:
        scored = [one._replace(duration=one.duration or 0.0) for one in edf.annotations]
    except ValueError as error:
        raise ValueError(f"{path.name}: is a damaged hypnogram ({error})") from error
    if not scored:
        raise ValueError(f"{path.name}: holds no annotation; allowed: an EDF+ hypnogram")
    unknown = sorted({one.text for one in scored} - set(LABELS))
    if unknown:
        raise ValueError(f"{path.name}: unknown label {', '.join(map(repr, unknown))}; allowed: {', '.join(LABELS)}")
    for before, after in itertools.pairwise(scored):
        if after.onset < before.onset + before.duration - 1e-6:
            raise ValueError(f"{path.name}: {after.text!r} at {after.onset:g} s begins before {before.text!r} ends "
                             f"({before.onset + before.duration:g} s)")
    return scored


def _check_cover(name, scored, offset, seconds, mismatch):
    """Refuse a hypnogram that says too much or too little; seconds of the signal that it leaves out."""
    end = max((one.onset + one.duration for one in scored if LABELS[one.text] is not None), default=0.0) + offset
    if mismatch == "refuse" and end > seconds + 1e-6:
        raise ValueError(f"{name}: scores {end:g} s, longer than the signal's {seconds:g} s; allowed: the signal's "
                         "length, or mismatch 'cut'")
    before = max(0.0, scored[0].onset + offset)
    after = max(0.0, seconds - scored[-1].onset - scored[-1].duration - offset)
    if mismatch == "refuse" and max(before, after) >= EPOCH_SECONDS:
        raise ValueError(f"{name}: leaves {before:g} s before and {after:g} s after it of the signal's {seconds:g} s "
                         "without a label, shorter than the signal; allowed: the signal's length, or mismatch 'cut'")
    return before + after


def _cut(scored, offset, seconds):
    """Stage and onset of every whole epoch inside the signal; what was left out, counted."""
    stages, onsets, dropped, beyond, left_over = [], [], Counter(), 0, 0.0
    for one in scored:
        count = int((one.duration + 1e-6) // EPOCH_SECONDS)
        if LABELS[one.text] is None:
            dropped[one.text] += count
            continue
        left_over += one.duration - count * EPOCH_SECONDS
        starts = one.onset + offset + EPOCH_SECONDS * np.arange(count)
        inside = starts[(starts >= 0) & (starts + EPOCH_SECONDS <= seconds + 1e-6)]
        beyond += count - len(inside)
        stages += [LABELS[one.text]] * len(inside)
        onsets += inside.tolist()
    quality = {"dropped": dict(dropped), "beyond_signal": beyond, "left_over_seconds": left_over}
    return np.array(stages, np.int8), np.array(onsets), quality


def read_recording(edf: str | Path, hypnogram: str | Path, channels: Mapping[str, str], rate: float = 100,
                   mismatch: str = "refuse") -> Recording:
    """Read one night: epochs of 30 s with their stages, without wake long before and after sleep (`TRIM_MINUTES`).

    Parameters
    ----------
    channels, rate
        As in `read_signals`.
    mismatch : {'refuse', 'cut'}
        A hypnogram longer or shorter than the signal (by an epoch or more) is refused, or both are cut to the
        time they share.

    Raises
    ------
    ValueError
        One line; besides those of `read_signals` and `read_hypnogram`: lengths that differ, no epoch, no sleep,
        a flat channel.
    """
    edf, hypnogram = Path(edf), Path(hypnogram)
    scored = read_hypnogram(hypnogram)
    signals = read_signals(edf, channels, rate)
    seconds, offset = len(signals) / rate, (_open(hypnogram)[1] - _open(edf)[1]).total_seconds()
    uncovered = _check_cover(hypnogram.name, scored, offset, seconds, mismatch)
    stages, onsets, quality = _cut(scored, offset, seconds)
    if not len(stages):
        raise ValueError(f"{hypnogram.name}: scores no whole epoch inside the signal of {edf.name}")
    asleep = onsets[stages != STAGES.index("W")]
    if not len(asleep):
        raise ValueError(f"{hypnogram.name}: scores no epoch of sleep inside the signal; allowed: a night")
    kept = (onsets >= asleep[0] - 60 * TRIM_MINUTES) & (onsets <= asleep[-1] + 60 * TRIM_MINUTES)
    quality |= {"seconds": seconds, "uncovered_seconds": uncovered, "trimmed": int((~kept).sum()),
                "kept": int(kept.sum())}
    stages, onsets = stages[kept], onsets[kept]
    size = round(EPOCH_SECONDS * rate)
    epochs = np.stack([signals[start:start + size] for start in np.round(onsets * rate).astype(int)])
    mean, spread = (call(epochs, axis=(0, 1), dtype=np.float64) for call in (np.mean, np.std))
    flat = [f"{modality} {label!r}" for (modality, label), value in zip(channels.items(), spread) if not value > 0]
    if flat:
        raise ValueError(f"{edf.name}: {', '.join(flat)} is flat in all {len(epochs)} epochs; allowed: a signal")
    quality |= {"mean_uv": dict(zip(channels, mean.tolist())), "sd_uv": dict(zip(channels, spread.tolist()))}
    epochs -= mean.astype(np.float32)
    epochs /= spread.astype(np.float32)
    return Recording(epochs, stages, onsets, quality)
