"""Simulated nights: what is simulated comes back from the signals, and from the files."""

import csv
import json
from dataclasses import asdict, replace

import mne
import numpy as np
import pytest
from scipy.signal import csd, welch
from shared_cases import real_data
from sklearn.metrics import confusion_matrix

from mslib import sleep
from mslib.sleep import BANDS, CHANNELS, Effects
from mslib.sleep.stages import TRANSITIONS

NONE = Effects(*[0.0] * 12)
MATRIX = TRANSITIONS / TRANSITIONS.sum(axis=1, keepdims=True)
ALL_STAGES = np.repeat(np.arange(5), 60)
W, N1, N2, N3, REM = range(5)
EEG, EOG, EMG = range(3)


def epochs_of(stages, effects=NONE, age=40, sex="M", drug="placebo", seed=(0, 1, 1)):
    """Epochs (N, 3000, 3) of one simulated night with the channels' gains taken out."""
    night = sleep.simulate_night(np.asarray(stages), age, sex, drug, seed, effects)
    return night.signals.reshape(-1, 3000, 3) / np.float32([*night.truth["channel_gains"].values()])


def band_rms(epochs, channel, band):
    """Root mean square inside a band (Welch, 4-s windows), one value an epoch."""
    frequency, density = welch(epochs[..., channel], 100, nperseg=400)
    low, high = BANDS.get(band, band)
    return np.sqrt(density[:, (frequency >= low) & (frequency <= high)].sum(axis=1) * frequency[1])


@pytest.fixture(scope="module")
def night():
    return epochs_of(ALL_STAGES)


def typical(values):
    return np.array([np.median(values[ALL_STAGES == stage]) for stage in range(5)])


def count_transitions(sequences):
    """How often each stage (row) is followed by each (column); pairs with an unscored epoch (negative) left out."""
    return sum(confusion_matrix(one[:-1], one[1:], labels=range(5)) for one in sequences)


def test_transitions_are_those_of_the_published_matrix():
    published = [[.840, .141, .014, 0, .005], [.091, .551, .321, 0, .036], [.023, .022, .925, .020, .010],
                 [.013, .002, .050, .935, 0], [.019, .013, .011, 0, .956]]
    np.testing.assert_allclose(MATRIX, published, atol=1e-3)


@pytest.mark.real
def test_transitions_are_those_of_the_real_nights():
    with real_data("psg/dod_h_hypnograms.csv").open(encoding="utf-8", newline="") as file:
        nights = [np.array(row["stages_30s"].split(), int) for row in csv.DictReader(file)]
    assert len(nights) == 125
    np.testing.assert_array_equal(count_transitions(nights), TRANSITIONS)


def test_hypnogram_follows_the_matrix():
    stages = sleep.simulate_hypnogram(40_000, np.random.default_rng(0))
    assert stages[0] == W
    counts = count_transitions([stages])
    rows = counts.sum(axis=1, keepdims=True)
    error = np.sqrt(MATRIX * (1 - MATRIX) / rows)
    assert (np.abs(counts / rows - MATRIX) <= 4 * error + 1e-12).all()
    with pytest.raises(ValueError, match="n_epochs: must be at least 1"):
        sleep.simulate_hypnogram(0, np.random.default_rng(0))


def test_eeg_rhythms_by_stage(night):
    delta, alpha = typical(band_rms(night, EEG, "delta")), typical(band_rms(night, EEG, "alpha"))
    assert delta[N3] > 1.5 * delta[N2] and delta[N2] > 1.2 * delta[[W, N1, REM]].max()
    assert delta[N3] > 75 / np.sqrt(8)  # 75 microvolt peak to peak of a sine, the limit for slow waves
    closed = np.sort(band_rms(night, EEG, "alpha")[ALL_STAGES == W])[-24:]
    assert np.median(closed) > 2 * alpha[[N1, N2, N3, REM]].max()
    theta = typical(band_rms(night, EEG, "theta"))
    assert theta[N1] > 1.2 * theta[W]


def test_spindles_are_what_makes_the_sigma_of_n2():
    """The spectrum of N2 with spindles less that without has its peak where spindles are."""
    without = replace(NONE, spindle_rate_drug=-20.0)
    spectra = [welch(epochs_of(np.full(60, N2), without, drug=drug)[..., EEG], 100, nperseg=400)[1].mean(axis=0)
               for drug in ("placebo", "temazepam")]
    gained = spectra[0] - spectra[1]
    frequency = np.arange(len(gained)) / 4
    fast = frequency > 9
    assert 12 <= frequency[fast][gained[fast].argmax()] <= 15
    band = (frequency >= 11) & (frequency <= 16)
    assert spectra[0][band].sum() > 1.3 * spectra[1][band].sum()


def test_eyes_by_stage(night):
    slow, swings = typical(band_rms(night, EOG, (0.2, 0.5))), typical(np.abs(np.diff(night[..., EOG], axis=1)).max(1))
    assert slow[N1] > 1.5 * slow[[N2, N3]].max()
    assert swings[REM] > 1.5 * swings[[N1, N2, N3]].max()


def test_muscle_falls_to_atonia(night):
    tone = typical(band_rms(night, EMG, (10, 45)))
    assert (np.diff(tone) < 0).all() and tone[REM] < 0.85 * tone[N3]


def test_eeg_leaks_into_eog():
    made = sleep.simulate_night(np.full(40, N3), 40, "F", "placebo", (0, 2, 1), NONE)
    signals = made.signals / np.float32([*made.truth["channel_gains"].values()])
    eeg, eog = signals[:, EEG], signals[:, EOG]
    window = welch(eeg, 100, nperseg=1000)[0]
    band = (window > 0.8) & (window < 2)  # above the eye movements
    slope = np.real(csd(eeg, eog, 100, nperseg=1000)[1][band].sum() / welch(eeg, 100, nperseg=1000)[1][band].sum())
    assert slope == pytest.approx(made.truth["eeg_in_eog"], abs=0.03)


def test_mains_stand_on_half_the_rate(night):
    frequency, density = welch(night[..., EEG].reshape(-1), 100, nperseg=400)
    assert density[-1] > 20 * density[(frequency > 46) & (frequency < 49)].max()


def log_change(stage, channel, band, change, n=4):
    """Mean change of ln RMS in a band between two sorts of nights of the same seed, and its standard error."""
    stages = np.full(24, stage)
    pairs = [[np.log(band_rms(epochs_of(stages, seed=(7, subject, 1), **options), channel, band)).mean()
              for options in ({}, change)] for subject in range(n)]
    differences = np.diff(pairs, axis=1)
    return differences.mean(), max(differences.std(ddof=1) / np.sqrt(n), 0.005)


@pytest.mark.parametrize(("effect", "stage", "channel", "band", "change"), [
    ("delta_drug", N3, EEG, "delta", {"drug": "temazepam"}), ("delta_women", N3, EEG, "delta", {"sex": "F"}),
    ("delta_per_decade", N3, EEG, "delta", {"age": 50}),
    ("eye_movement_per_decade", N1, EOG, (0.2, 0.5), {"age": 50})])
def test_amplitudes_come_back(effect, stage, channel, band, change):
    """Everything but the effect is the same in both nights of a pair; other sources dilute it by a few per cent."""
    size = getattr(Effects(), effect)
    found, error = log_change(stage, channel, band, change | {"effects": replace(NONE, **{effect: size})})
    assert found == pytest.approx(size, abs=0.15 * abs(size) + 3 * error)


@pytest.mark.parametrize(("effect", "band"), [("beta_drug", "beta"), ("sigma_drug", "sigma"),
                                               ("spindle_rate_drug", "sigma")])
def test_drug_raises_spindle_and_beta_activity(effect, band):
    size = getattr(Effects(), effect)
    found, error = log_change(N2, EEG, band, {"drug": "temazepam", "effects": replace(NONE, **{effect: size})}, n=6)
    assert 2 * error < found < size + 2 * error


def test_nights_differ_and_subjects_keep_their_own():
    first, other, stranger = (sleep.simulate_night(ALL_STAGES[:10], 30, "F", "placebo", seed)
                              for seed in ((1, 1, 1), (1, 1, 2), (1, 2, 1)))
    gap = [np.subtract([*first.truth["log_gains"].values()], [*one.truth["log_gains"].values()]).std()
           for one in (other, stranger)]
    assert 0 < gap[0] < gap[1]


@pytest.mark.parametrize(("change", "message"), [
    ({"stages": np.array([0, 5])}, "stages: must lie in 0..4"), ({"stages": np.array([], int)}, "non-empty"),
    ({"sex": "f"}, "sex: must be 'F' or 'M'"), ({"drug": "none"}, "drug: must be 'placebo' or 'temazepam'")])
def test_bad_night(change, message):
    with pytest.raises(ValueError, match=message):
        sleep.simulate_night(**{"stages": np.array([0, 1]), "age": 30, "sex": "F", "drug": "placebo", "seed": (0, 0, 0)}
                       | change)


def test_modality_information_is_as_simulated():
    features, stages, subjects = [], [], []
    for subject in range(4):
        scored = np.random.default_rng(subject).permutation(np.repeat(np.arange(5), 3)).repeat(8)
        made = sleep.simulate_night(scored, 40, "F", "placebo", (9, subject, 1)).signals.reshape(-1, 3000, 3)
        features.append(sleep.band_features((made - made.mean((0, 1))) / made.std((0, 1))))
        stages.append(scored)
        subjects += [subject] * len(scored)
    table = sleep.modality_information(np.concatenate(features), np.concatenate(stages), subjects, n_folds=2)
    kappa = table[table["stage"] == "overall"].set_index("modality")["kappa"]
    assert kappa["all"] > kappa[["EEG", "EOG"]].max() + 0.1 and kappa[["EEG", "EOG"]].min() > kappa["EMG"] > 0.2
    auc = table.pivot_table(index="modality", columns="stage", values="auc").loc[["EEG", "EOG", "EMG"]]
    assert auc[["W", "N1", "N2", "N3", "REM"]].idxmax().tolist() == ["EEG", "EOG", "EEG", "EEG", "EOG"]


def test_modality_information_finds_nothing_in_noise():
    rng = np.random.default_rng(0)
    features, stages, subjects = rng.normal(size=(400, 3, 4)), rng.integers(0, 5, 400), np.repeat(range(4), 100)
    table = sleep.modality_information(features, stages, subjects, 2)
    assert (table["auc"].dropna() - 0.5).abs().max() < 0.1 and table["kappa"].abs().max() < 0.1
    with pytest.raises(ValueError, match=r"n_folds: must lie in 2..1"):
        sleep.modality_information(np.zeros((4, 3, 2)), [0, 1, 0, 1], ["a"] * 4, 2)
    with pytest.raises(ValueError, match="features: must be"):
        sleep.modality_information(np.zeros((4, 2, 2)), [0, 1, 0, 1], list("abcd"), 2)


def test_edf_holds_the_signals_up_to_its_quantisation(tmp_path):
    signals = sleep.simulate_night(ALL_STAGES[::30], 30, "F", "placebo", (1, 1, 1)).signals
    sleep.write_recording(tmp_path / "a-PSG.edf", signals, "SIM01", "F")
    back = sleep.read_signals(tmp_path / "a-PSG.edf", CHANNELS)
    step = 2 * np.ceil(np.abs(signals).max(axis=0)) / (2 ** 16 - 1)
    assert back.shape == signals.shape and (np.abs(back - signals).max(axis=0) <= 0.51 * step + 1e-4).all()
    subject = mne.io.read_raw_edf(tmp_path / "a-PSG.edf", verbose="error").info["subject_info"]
    assert subject["his_id"] == "SIM01" and subject["sex"] == mne.io.constants.FIFF.FIFFV_SUBJ_SEX_FEMALE


def test_cohort_on_disk(tmp_path):
    nights = sleep.simulate_cohort(tmp_path, n_subjects=3, n_epochs=8, seed=2)
    assert len(nights) == 6 and nights.groupby("subject")["drug"].apply(set).tolist() == [{"placebo", "temazepam"}] * 3
    known = json.loads((tmp_path / "simulation.json").read_text())
    assert known["effects"] == asdict(Effects()) and set(known["nights"]) == set(nights["recording"])
    first = (tmp_path / nights["psg"][0]).read_bytes()
    sleep.simulate_cohort(tmp_path, n_subjects=3, n_epochs=8, seed=3)
    assert (tmp_path / nights["psg"][0]).read_bytes() != first
    sleep.simulate_cohort(tmp_path, n_subjects=3, n_epochs=8, seed=2, n_jobs=2)
    assert (tmp_path / nights["psg"][0]).read_bytes() == first, "the same with two workers"


def test_sleepers_age_and_sex_are_not_confounded():
    sleepers = sleep.simulate_sleepers(22, seed=0)
    women = np.array([one.sex == "F" for one in sleepers])
    ages = np.array([one.age for one in sleepers])
    assert women.sum() == 15 and abs(ages[women].mean() - ages[~women].mean()) < 1
    assert len({one.id for one in sleepers}) == 22 and {one.drugs for one in sleepers} == {
        ("placebo", "temazepam"), ("temazepam", "placebo")}
    with pytest.raises(ValueError, match="n_subjects"):
        sleep.simulate_sleepers(0, 0)


def test_effects_are_what_they_say():
    effects = Effects()
    rng = [np.random.default_rng(0) for _ in range(4)]
    no_spread = replace(effects, subject_sd=0.0, night_sd=0.0)
    gains = no_spread.log_gains(60, "F", "temazepam", *rng[:2])
    assert gains["delta"] == pytest.approx(2 * -0.10 + 0.15 - 0.15)
    assert gains["eye_rate"] == effects.eye_movement_rate_drug
    assert set(no_spread.log_gains(40, "M", "placebo", *rng[2:]).values()) == {0.0}
