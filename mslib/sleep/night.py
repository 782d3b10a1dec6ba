"""Signals of one simulated night: rhythms, events and nuisances of EEG, EOG and EMG in microvolt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.signal import lfilter

from . import signatures as sign
from .stages import EPOCH_SECONDS, STAGES

RATE = 100
#: Epochs are scored by their larger part: the stage itself passes over up to so many seconds off the border.
BORDER_SECONDS = 13
#: Share of the eye movements that the frontal EEG picks up, and bounds of the EEG's share in the EOG.
EYE_IN_EEG, EEG_IN_EOG = 0.05, (0.05, 0.20)
#: Nuisances: SD of the log gain of a channel, drift (microvolt RMS) and bounds of the mains hum (microvolt).
GAIN_SD, DRIFT_RMS, HUM = 0.25, (8.0, 10.0, 1.0), (0.3, 2.0)


class Night(NamedTuple):
    """Signals (T, 3) float32 in microvolt (EEG, EOG, EMG at 100 Hz), and their simulated truth (ready for JSON)."""

    signals: np.ndarray
    truth: dict


def _noise(rng, n, low, high, slope=0.0):
    """Gaussian noise of RMS 1 between two frequencies (Hz), amplitude falling as frequency ** -slope."""
    size = fft.next_fast_len(n, real=True)
    first, last = max(1, int(low * size / RATE)), min(size // 2, int(high * size / RATE))
    spectrum = np.zeros(size // 2 + 1, np.complex64)
    draws = rng.standard_normal((2, last - first), dtype=np.float32)
    spectrum[first:last] = (draws[0] + 1j * draws[1]) * np.arange(first, last, dtype=np.float32) ** -np.float32(slope)
    noise = fft.irfft(spectrum, size)[:n]
    return noise / np.float32(np.sqrt(np.mean(noise ** 2, dtype=np.float64)) or 1)


def _stage_of_seconds(stages, rng):
    starts = np.flatnonzero(np.diff(stages, prepend=-1))
    borders = np.append(starts, len(stages)) * EPOCH_SECONDS
    borders[1:-1] += rng.integers(-BORDER_SECONDS, BORDER_SECONDS + 1, max(0, len(borders) - 2))
    return np.repeat(stages[starts], np.diff(borders))


class _Clock:
    """Stage, open eyes and tonic REM of every second of a night, and what follows from them."""

    def __init__(self, stages, rng):
        self.rng = rng
        self.stage = _stage_of_seconds(np.asarray(stages), rng)
        self.n = len(self.stage) * RATE
        epochs = rng.random((2, len(stages))).repeat(EPOCH_SECONDS, axis=1)
        self.open_eyes = (self.stage == STAGES.index("W")) & (epochs[0] < sign.OPEN_EYES)
        self.tonic = (self.stage == STAGES.index("REM")) & (epochs[1] < sign.TONIC_REM)

    def spread(self, values):
        """Values of every second (S,) at every sample (S * RATE,), linear in between."""
        at = (np.arange(self.n) + 0.5) / RATE - 0.5
        return np.interp(at, np.arange(len(values)), values).astype(np.float32)

    def strength(self, by_stage, modality, factor=1.0):
        """Strength of a rhythm at every sample: that of the stage, wandering within about a minute."""
        slow = np.exp(-1 / 60)
        drive = self.rng.normal(0, np.sqrt(1 - slow ** 2), len(self.stage))
        wander = sign.WANDERING[modality] * lfilter([1], [1, -slow], drive)
        return self.spread(np.take(by_stage, self.stage) * factor * np.exp(wander))

    def times(self, kind, factor=1.0):
        """First samples of the events of one kind."""
        rates = np.take(sign.RATES[kind], self.stage) * factor
        if kind in ("blink", "eye_movement"):
            awake = self.stage == STAGES.index("W")
            rates = np.where((awake & ~self.open_eyes) | self.tonic, 0, rates)
        seconds = np.flatnonzero(self.rng.random(len(rates)) < rates / 60)
        return seconds * RATE + self.rng.integers(0, RATE, len(seconds))

    def add(self, signal, kind, shape_of, size=1.0, rate=1.0, times=None):
        """Lay the events of one kind on a signal in microvolt: at their times, or where `times` says."""
        for start in self.times(kind, rate) if times is None else times:
            height = sign.SIZES[kind] * size * np.exp(self.rng.normal(0, 0.25))
            shape = (height * shape_of(self.rng))[:len(signal) - start]
            signal[start:start + len(shape)] += shape.astype(np.float32)


def _window(seconds):
    return np.hanning(max(3, int(seconds * RATE))).astype(np.float32)


def _spindle(rng):
    """11 to 16 Hz for .5 to 1.5 s, waxing and waning (Berry et al. 2012)."""
    window = _window(rng.uniform(0.6, 1.6))
    frequency = np.clip(rng.normal(13.3, 0.8), 11, 16)
    return window * np.sin(2 * np.pi * (frequency * np.arange(len(window)) / RATE + rng.random()))


def _k_complex(rng):
    """A sharp negative wave and at once a slow positive one, .5 to 1.2 s in all (Berry et al. 2012)."""
    sharp, slow = _window(rng.uniform(0.2, 0.4)), _window(rng.uniform(0.4, 0.8))
    return np.concatenate([-sharp, 0.7 * slow])


def _sawtooth(rng):
    """A train of 2 to 6 Hz triangles for 2 to 5 s (Berry et al. 2012)."""
    window = _window(rng.uniform(2, 5))
    phase = (rng.uniform(2, 4.5) * np.arange(len(window)) / RATE + rng.random()) % 1
    return np.sqrt(window) * np.where(phase < 0.7, phase / 0.35 - 1, 1 - (phase - 0.7) / 0.15)


def _blink(rng):
    return _window(rng.uniform(0.25, 0.45))


def _saccade(rng):
    """A jump within 60 ms that the amplifier's high-pass lets decay, to either side."""
    time = np.arange(2 * RATE) / RATE
    return rng.choice((-1, 1)) * np.clip(time / 0.06, 0, 1) * np.exp(-time / rng.uniform(0.3, 0.8))


def _burst(rng):
    window = _window(rng.uniform(0.1, 0.6))
    return window * rng.standard_normal(len(window))


def _swing(rng):
    """A movement: slow swings of an electrode for 1 to 5 s."""
    window = _window(rng.uniform(1, 5))
    return window * np.sin(2 * np.pi * (rng.uniform(0.3, 2) * np.arange(len(window)) / RATE + rng.random()))


def _eeg(clock, gains):
    rng, eeg = clock.rng, np.zeros(clock.n, np.float32)
    for rhythm, by_stage in sign.EEG_RMS.items():
        low, high = sign.BANDS.get(rhythm, (0.4, 45.0))
        factor = np.exp(gains.get(rhythm, 0.0))
        if rhythm == "alpha":
            factor = factor * np.where(clock.open_eyes, sign.OPEN_EYES_ALPHA, 1.0)
        slope = 1.0 if rhythm == "broadband" else 0.0
        eeg += clock.strength(by_stage, "EEG", factor) * _noise(rng, clock.n, low, high, slope)
    clock.add(eeg, "spindle", _spindle, np.exp(gains["spindle"]), np.exp(gains["spindle_rate"]))
    clock.add(eeg, "k_complex", _k_complex, np.exp(gains["delta"]))
    clock.add(eeg, "sawtooth", _sawtooth)
    return eeg


def _eyes(clock, gains):
    rng, size = clock.rng, np.exp(gains["eye"])
    eyes = clock.strength(sign.SLOW_EYE_RMS, "EOG", size) * _noise(rng, clock.n, 0.2, 0.5)
    clock.add(eyes, "blink", _blink, size)
    rate = np.where(clock.stage == STAGES.index("REM"), np.exp(gains["eye_rate"]), 1.0)
    clock.add(eyes, "eye_movement", _saccade, size, rate)
    return eyes


def _nuisances(signals, clock):
    """Movements, drift, mains hum and the gain of every channel, in place; the gains."""
    rng = clock.rng
    for start in clock.times("artefact"):
        moved = np.zeros((5 * RATE, 3), np.float32)
        for channel, (shape, size) in enumerate(((_swing, 1.0), (_swing, 1.0), (_burst, 0.3))):
            clock.add(moved[:, channel], "artefact", shape, size, times=[0])
        signals[start:start + len(moved)] += moved[:len(signals) - start]
    gains = np.exp(rng.normal(0, GAIN_SD, 3))
    # The mains stand on half the sampling rate: their phase, hence what is left of them, wanders.
    sign_of_sample = np.where(np.arange(clock.n) % 2, -1, 1).astype(np.float32)
    for channel, (drift, gain) in enumerate(zip(DRIFT_RMS, gains)):
        phase = clock.spread(np.cumsum(rng.normal(0, 0.05, len(clock.stage))))
        signals[:, channel] += rng.uniform(*HUM) * np.cos(phase) * sign_of_sample
        slow = np.interp(np.arange(clock.n), np.arange(0, clock.n + 1500, 1500),
                         rng.normal(0, drift, clock.n // 1500 + 1))
        signals[:, channel] += slow.astype(np.float32)
        signals[:, channel] *= np.float32(gain)
    return gains


def simulate_night(stages: np.ndarray, age: float, sex: str, drug: str, seed: tuple[int, int, int],
                   effects: sign.Effects | None = None) -> Night:
    """Simulate EEG, EOG and chin EMG of one night.

    Rhythms are band-limited Gaussian noise whose strength follows the stage and wanders; spindles, K-complexes,
    saw-tooth waves, blinks, saccades, twitches and movements are laid on top at random times. Not simulated:
    breathing, heart beat, arousals, vertex waves, sweat, and any dependence of a stage's look on the time of night.

    `stages`: of every 30-s epoch, (N,), indices into `STAGES`; `age` in years; `sex`: F or M; `drug`: placebo or
    temazepam; `seed`: of the study, subject and night, draws of the subject being shared by its nights.
    """
    study, subject, night = seed
    rng = np.random.default_rng([study, subject, night])
    gains = (effects or sign.Effects()).log_gains(age, sex, drug, np.random.default_rng([study, subject]), rng)
    clock = _Clock(stages, rng)
    eeg, eyes = _eeg(clock, gains), _eyes(clock, gains)
    leak = rng.uniform(*EEG_IN_EOG)
    signals = np.empty((clock.n, 3), np.float32)
    signals[:, 0] = eeg + np.float32(EYE_IN_EEG) * eyes
    signals[:, 1] = eyes + np.float32(leak) * eeg + sign.EYE_NOISE_RMS * _noise(rng, clock.n, 0.3, 30.0, 0.5)
    signals[:, 2] = clock.strength(sign.EMG_RMS, "EMG") * _noise(rng, clock.n, 10.0, 49.0)
    clock.add(signals[:, 2], "twitch", _burst)
    channel_gains = _nuisances(signals, clock)
    truth = {"log_gains": gains, "eeg_in_eog": float(leak), "eye_in_eeg": EYE_IN_EEG,
             "channel_gains": dict(zip(sign.MODALITIES, map(float, channel_gains)))}
    return Night(signals, truth)
