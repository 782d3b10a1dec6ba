"""One night from EDF and its hypnogram to epochs: nothing is resampled, every epoch left out is counted."""

from __future__ import annotations

import datetime
import itertools
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np

from .stages import EPOCH_SECONDS, LABELS, STAGES


class Scored(NamedTuple):
    """A stretch of a hypnogram in seconds from the file's start; `label` as written."""

    onset: float
    duration: float
    label: str


class Recording(NamedTuple):
    """What `read_recording` returns.

    ``epochs``: float32 (N, EPOCH_SECONDS * rate, M), every channel with mean 0 and standard deviation 1 over them.
    ``stages``: int8 (N,), indices into `STAGES`. ``onsets``: (N,), seconds from the start of the signal. ``quality``:
    seconds of signal, of the hypnogram's start after it, without a label; epochs kept, dropped by label, trimmed,
    beyond the signal's end; mean and SD by channel.
    """

    epochs: np.ndarray
    stages: np.ndarray
    onsets: np.ndarray
    quality: dict


def _start_of(path: Path) -> datetime.datetime:
    """Start in the header of an EDF file, which is opened for the first time here."""
    try:
        with path.open("rb") as file:
            header = file.read(256)
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({error.strerror or error}); allowed: an EDF file") from error
    if not header:
        raise ValueError(f"{path.name}: is empty; allowed: an EDF file")
    if header[:8] == b"0       " and len(header) < 256:
        raise ValueError(f"{path.name}: is cut in its header ({len(header)} bytes); allowed: a whole EDF or EDF+ file")
    if header[:8] != b"0       ":
        raise ValueError(f"{path.name}: is no EDF file (starts with {header[:8]!r}); allowed: EDF or EDF+")
    if header[192:197] == b"EDF+D":
        raise ValueError(f"{path.name}: is EDF+D, a recording with gaps; allowed: EDF or EDF+C (continuous)")
    try:
        return datetime.datetime.strptime(header[168:184].decode("ascii"), "%d.%m.%y%H.%M.%S")
    except ValueError as error:
        raise ValueError(f"{path.name}: its header has no start time ({header[168:184]!r}); allowed: "
                         "dd.mm.yyhh.mm.ss") from error


def _open(path: Path, **options):
    """A file as MNE reads it; whatever it cannot read, or finds cut short, becomes one line."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            raw = mne.io.read_raw_edf(path, stim_channel=False, verbose="warning", **options)
        except Exception as error:  # a damaged header raises whatever its parser stumbles over
            raise ValueError(f"{path.name}: is a damaged EDF file ({type(error).__name__}: {error})") from error
    if any("file size" in str(warning.message) for warning in warned):
        raise ValueError(f"{path.name}: is truncated (its header announces more data than there is); "
                         "allowed: a whole EDF file")
    return raw


def read_signals(path: str | Path, channels: Mapping[str, str], rate: float = 100) -> np.ndarray:
    """Read channels of one EDF file in microvolt, float32 (T, len(channels)), each at the rate it was recorded at.

    MNE brings channels of several rates to the highest one when they are read together, without a word. Each is
    therefore read alone.

    Parameters
    ----------
    path : str or Path
    channels : mapping of str to str
        Modality to label in the file, in the order wanted.
    rate : float
        Samples per second that every channel must have.

    Raises
    ------
    ValueError
        One line: empty, truncated or damaged file, a channel that is absent or has another rate.
    """
    path = Path(path)
    _start_of(path)
    known = _open(path).ch_names
    absent = [f"{modality} {label!r}" for modality, label in channels.items() if label not in known]
    if absent:
        raise ValueError(f"{path.name}: has no channel {', '.join(absent)}; allowed: {', '.join(known)}")
    columns = []
    for modality, label in channels.items():
        raw = _open(path, include=[label])
        found = raw.info["sfreq"]
        if found != rate:
            reason = " (an envelope of the EMG, not the EMG)" if modality == "EMG" and found < 10 else ""
            raise ValueError(f"{path.name}: {modality} {label!r} has {found:g} samples per second{reason}; allowed: "
                             f"{rate:g}, nothing is resampled")
        columns.append((raw.get_data()[0] * 1e6).astype(np.float32))
    return np.stack(columns, axis=1)


def read_hypnogram(path: str | Path) -> list[Scored]:
    """Read an EDF+ hypnogram with the labels of Sleep-EDF (`LABELS`), in the order of time.

    ValueError, one line: empty or damaged file, no annotation, a label that is not in `LABELS`, overlap.
    """
    path = Path(path)
    _start_of(path)
    try:
        found = mne.read_annotations(path)
    except Exception as error:  # as in `_open`
        raise ValueError(f"{path.name}: is a damaged hypnogram ({type(error).__name__}: {error})") from error
    scored = sorted(Scored(float(one["onset"]), float(one["duration"]), str(one["description"])) for one in found)
    if not scored:
        raise ValueError(f"{path.name}: holds no annotation; allowed: an EDF+ hypnogram")
    unknown = sorted({one.label for one in scored} - set(LABELS))
    if unknown:
        raise ValueError(f"{path.name}: unknown label {', '.join(map(repr, unknown))}; allowed: {', '.join(LABELS)}")
    for before, after in itertools.pairwise(scored):
        if after.onset < before.onset + before.duration - 1e-6:
            raise ValueError(f"{path.name}: {after.label!r} at {after.onset:g} s begins before {before.label!r} ends "
                             f"({before.onset + before.duration:g} s)")
    return scored


def _check_cover(name, scored, offset, seconds, mismatch):
    """Refuse a hypnogram that says too much or too little; seconds of the signal that it leaves out."""
    staged = [one for one in scored if LABELS[one.label] is not None]
    end = max((one.onset + one.duration for one in staged), default=0.0) + offset
    if mismatch == "refuse" and staged and staged[0].onset + offset < -1e-6:
        raise ValueError(f"{name}: begins {-staged[0].onset - offset:g} s before the signal; allowed: the signal's "
                         "start, or mismatch 'cut'")
    if mismatch == "refuse" and end > seconds + 1e-6:
        raise ValueError(f"{name}: scores {end:g} s, longer than the signal's {seconds:g} s; allowed: the signal's "
                         "length, or mismatch 'cut'")
    before = max(0.0, scored[0].onset + offset)
    after = max(0.0, seconds - scored[-1].onset - scored[-1].duration - offset)
    if mismatch == "refuse" and max(before, after) >= EPOCH_SECONDS:
        raise ValueError(f"{name}: leaves {before:g} s before and {after:g} s after it of the signal's {seconds:g} s "
                         "without a label, shorter than the signal; allowed: the signal's length, or mismatch 'cut'")
    held = ((max(0.0, one.onset + offset), min(seconds, one.onset + one.duration + offset)) for one in scored)
    return seconds - sum(max(0.0, end - start) for start, end in held)


def _cut(scored, offset, seconds):
    """Stage and onset of every whole epoch inside the signal; what was left out, counted."""
    stages, onsets, dropped, beyond, left_over = [], [], Counter(), 0, 0.0
    for one in scored:
        count = int((one.duration + 1e-6) // EPOCH_SECONDS)
        starts = one.onset + offset + EPOCH_SECONDS * np.arange(count)
        inside = starts[(starts >= 0) & (starts + EPOCH_SECONDS <= seconds + 1e-6)]
        if LABELS[one.label] is None:
            dropped[one.label] += len(inside)
            continue
        left_over += one.duration - count * EPOCH_SECONDS
        beyond += count - len(inside)
        stages += [LABELS[one.label]] * len(inside)
        onsets += inside.tolist()
    quality = {"dropped": dict(dropped), "beyond_signal": beyond, "left_over_seconds": left_over}
    return np.array(stages, np.int8), np.array(onsets), quality


def read_recording(edf: str | Path, hypnogram: str | Path, channels: Mapping[str, str], rate: float = 100,
                   trim_minutes: float | None = 30, mismatch: str = "refuse") -> Recording:
    """Read one night: epochs of 30 s with their stages.

    Parameters
    ----------
    channels, rate
        As in `read_signals`.
    trim_minutes : float or None
        Wake that is kept before the first and after the last epoch of sleep; None keeps all.
    mismatch : {'refuse', 'cut'}
        A hypnogram longer or shorter than the signal (by an epoch or more) is refused, or both are cut to the
        time they share.

    Raises
    ------
    ValueError
        One line; besides those of `read_signals` and `read_hypnogram`: lengths that differ, no epoch, no sleep,
        a flat channel.
    """
    if mismatch not in ("refuse", "cut"):
        raise ValueError(f"mismatch: must be 'refuse' or 'cut' (got {mismatch!r})")
    edf, hypnogram = Path(edf), Path(hypnogram)
    scored = read_hypnogram(hypnogram)
    signals = read_signals(edf, channels, rate)
    seconds, offset = len(signals) / rate, (_start_of(hypnogram) - _start_of(edf)).total_seconds()
    uncovered = _check_cover(hypnogram.name, scored, offset, seconds, mismatch)
    stages, onsets, quality = _cut(scored, offset, seconds)
    if not len(stages):
        raise ValueError(f"{hypnogram.name}: scores no whole epoch inside the signal of {edf.name}")
    kept = _trim(hypnogram.name, stages, onsets, trim_minutes)
    quality |= {"seconds": seconds, "offset_seconds": offset, "uncovered_seconds": uncovered,
                "trimmed": int((~kept).sum()), "kept": int(kept.sum())}
    stages, onsets = stages[kept], onsets[kept]
    size = round(EPOCH_SECONDS * rate)
    epochs = np.stack([signals[start:start + size] for start in np.floor(onsets * rate + 1e-6).astype(int)])
    mean, spread = (call(epochs, axis=(0, 1), dtype=np.float64) for call in (np.mean, np.std))
    flat = [f"{modality} {label!r}" for (modality, label), value in zip(channels.items(), spread) if not value > 0]
    if flat:
        raise ValueError(f"{edf.name}: {', '.join(flat)} is flat in all {len(epochs)} epochs; allowed: a signal")
    quality |= {"mean_uv": dict(zip(channels, mean.tolist())), "sd_uv": dict(zip(channels, spread.tolist()))}
    epochs -= mean.astype(np.float32)
    epochs /= spread.astype(np.float32)
    return Recording(epochs, stages, onsets, quality)


def _trim(name, stages, onsets, minutes):
    """Epochs that are not wake long before or after sleep."""
    if minutes is None:
        return np.ones(len(stages), bool)
    asleep = onsets[stages != STAGES.index("W")]
    if not len(asleep):
        raise ValueError(f"{name}: scores no epoch of sleep inside the signal; allowed: a night, or trim_minutes none")
    return (onsets >= asleep[0] - 60 * minutes) & (onsets <= asleep[-1] + 60 * minutes)
