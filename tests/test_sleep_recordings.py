"""EDF and hypnogram to epochs: real files, every refusal in one line, a cohort that goes on without the faulty."""

import inspect
import shutil
import warnings
from pathlib import Path

import edfio
import mne
import numpy as np
import pandas as pd
import pytest
import shared_cases

from mslib import sleep
from mslib.sleep import CHANNELS

STAGES = np.array([0, 0, 1, 2, 2, 3, 4, 4, 0, 0])


def noise(n_epochs, seed=0):
    return np.random.default_rng(seed).normal(3, 20, (n_epochs * 3000, 3)).astype(np.float32)


def write(folder, name="a", stages=STAGES, signals=None):
    """One small night; paths of its two files."""
    edf, hypnogram = folder / f"{name}-PSG.edf", folder / f"{name}-Hypnogram.edf"
    sleep.write_recording(edf, noise(len(stages)) if signals is None else signals)
    sleep.write_hypnogram(hypnogram, np.asarray(stages))
    return edf, hypnogram


def write_labels(path, runs, start=None):
    """A hypnogram of (onset, duration, label) as any scorer may leave it."""
    header = {"starttime": start or pd.Timestamp("2000-01-01 23:00").time(),
              "recording": edfio.Recording(startdate=pd.Timestamp("2000-01-01").date())}
    edfio.Edf([], annotations=[edfio.EdfAnnotation(*run) for run in runs], **header).write(path)
    return path


def refused(call, message, *arguments, **options):
    with shared_cases.refused(match=message):
        call(*arguments, **options)


def test_epochs_are_the_signal_cut_and_standardised(tmp_path):
    edf, hypnogram = write(tmp_path)
    recording = sleep.read_recording(edf, hypnogram, CHANNELS)
    assert recording.epochs.shape == (10, 3000, 3) and recording.epochs.dtype == np.float32
    np.testing.assert_array_equal(recording.stages, STAGES)
    np.testing.assert_array_equal(recording.onsets, 30 * np.arange(10))
    signals = sleep.read_signals(edf, CHANNELS).reshape(10, 3000, 3).astype(np.float64)
    expected = (signals - signals.mean((0, 1))) / signals.std((0, 1))
    np.testing.assert_allclose(recording.epochs, expected, atol=1e-4)
    assert recording.quality["kept"] == 10 and recording.quality["seconds"] == 300
    swapped = {"EMG": CHANNELS["EMG"], "EEG": CHANNELS["EEG"]}
    np.testing.assert_array_equal(sleep.read_signals(edf, swapped), sleep.read_signals(edf, CHANNELS)[:, [2, 0]],
                                  "in the order of the map")


def test_wake_long_before_and_after_sleep_is_trimmed(tmp_path):
    edf, hypnogram = write(tmp_path, stages=[0] * 6 + [2, 0, 2] + [0] * 5)
    recording = sleep.read_recording(edf, hypnogram, CHANNELS, trim_minutes=1)
    np.testing.assert_array_equal(recording.stages, [0, 0, 2, 0, 2, 0, 0])
    assert recording.onsets[0] == 120 and recording.quality["trimmed"] == 7
    assert sleep.read_recording(edf, hypnogram, CHANNELS, trim_minutes=None).quality["trimmed"] == 0


def test_old_labels_merged_and_unscored_epochs_dropped(tmp_path):
    edf, _ = write(tmp_path)
    hypnogram = write_labels(tmp_path / "h.edf", [(0, 60, "Sleep stage W"), (60, 60, "Sleep stage 3"),
                                                  (120, 60, "Sleep stage 4"), (180, 30, "Movement time"),
                                                  (210, 30, "Sleep stage R"), (240, 600, "Sleep stage ?")])
    recording = sleep.read_recording(edf, hypnogram, CHANNELS)
    np.testing.assert_array_equal(recording.stages, [0, 0, 3, 3, 3, 3, 4])
    np.testing.assert_array_equal(recording.onsets, [0, 30, 60, 90, 120, 150, 210])
    assert recording.quality["dropped"] == {"Movement time": 1, "Sleep stage ?": 2}, "inside the signal"


@pytest.mark.parametrize(("runs", "start", "message", "first", "quality"), [
    ([(0, 240, "Sleep stage 2")], "23:01", "leaves 60 s before and 0 s after", 60,
     {"kept": 8, "offset_seconds": 60, "uncovered_seconds": 60}),
    ([(0, 90, "Sleep stage W"), (150, 180, "Sleep stage 2")], "22:59:30", "begins 30 s before the signal", 0,
     {"kept": 8, "uncovered_seconds": 60}),  # the hole
    ([(0, 330, "Sleep stage 2")], "23:00", "scores 330 s, longer than the signal's 300 s", 0,
     {"kept": 10, "beyond_signal": 1}),
    ([(0, 240, "Sleep stage 2")], "23:00", "0 s before and 60 s after it .* shorter than the signal", 0,
     {"kept": 8, "uncovered_seconds": 60})])
def test_a_hypnogram_that_does_not_fit_its_signal_is_refused_or_cut(tmp_path, runs, start, message, first, quality):
    edf, _ = write(tmp_path)
    hypnogram = write_labels(tmp_path / "h.edf", runs, pd.Timestamp(f"2000-01-01 {start}").time())
    refused(sleep.read_recording, message, edf, hypnogram, CHANNELS)
    found = sleep.read_recording(edf, hypnogram, CHANNELS, mismatch="cut")
    assert found.onsets[0] == first and {name: found.quality[name] for name in quality} == quality


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"), (b"hello" * 300, "is no EDF file"), (b"0       " + b" " * 100, r"is cut in its header \(108 "),
    (b"0       " + b" " * 400, "its header has no start time")])
def test_files_that_are_no_edf(tmp_path, content, message):
    edf, hypnogram = write(tmp_path)
    bad = tmp_path / "bad.edf"
    bad.write_bytes(content)
    refused(sleep.read_signals, f"bad.edf: {message}", bad, CHANNELS)
    refused(sleep.read_hypnogram, f"bad.edf: {message}", bad)
    refused(sleep.read_recording, f"bad.edf: {message}", bad, hypnogram, CHANNELS)
    refused(sleep.read_recording, f"bad.edf: {message}", edf, bad, CHANNELS)


def test_absent_and_truncated_files_and_gaps(tmp_path):
    refused(sleep.read_signals, "nowhere.edf: cannot be read", tmp_path / "nowhere.edf", CHANNELS)
    edf, _ = write(tmp_path)
    content = edf.read_bytes()
    for keep, message in ((0.6, "is truncated"), (0.95, "is truncated"), (0.003, "is a damaged EDF file")):
        edf.write_bytes(content[:int(keep * len(content))])
        refused(sleep.read_signals, f"a-PSG.edf: {message}", edf, CHANNELS)
    edf.write_bytes(content[:192] + b"EDF+D" + content[197:])
    refused(sleep.read_signals, "is EDF\\+D, a recording with gaps", edf, CHANNELS)


def test_missing_and_flat_channels_and_a_wrong_rate(tmp_path):
    edf, hypnogram = write(tmp_path)
    refused(sleep.read_recording, "has no channel EOG 'EOG left'; allowed: EEG Fpz-Cz, EOG horizontal, EMG submental",
            edf, hypnogram, CHANNELS | {"EOG": "EOG left"})
    refused(sleep.read_recording, "EEG 'EEG Fpz-Cz' has 100 samples per second; allowed: 128, nothing is resampled",
            edf, hypnogram, CHANNELS, rate=128)
    signals = noise(10)
    signals[:, 1] = 5
    edf, hypnogram = write(tmp_path, signals=signals)
    refused(sleep.read_recording, "EOG 'EOG horizontal' is flat in all 10 epochs", edf, hypnogram, CHANNELS)


def test_unknown_label_overlap_and_nothing_scored(tmp_path):
    edf, _ = write(tmp_path)
    labels = tmp_path / "h.edf"
    write_labels(labels, [(0, 300, "Sleep stage 7")])
    refused(sleep.read_recording, "h.edf: unknown label 'Sleep stage 7'; allowed: Sleep stage W", edf, labels, CHANNELS)
    write_labels(labels, [(0, 300, "Sleep stage 2"), (270, 30, "Sleep stage W")])
    refused(sleep.read_recording, "'Sleep stage W' at 270 s begins before 'Sleep stage 2' ends", edf, labels, CHANNELS)
    write_labels(labels, [(0, 300, "Sleep stage ?")])
    refused(sleep.read_recording, "scores no whole epoch", edf, labels, CHANNELS)
    write_labels(labels, [(0, 300, "Sleep stage W")])
    refused(sleep.read_recording, "scores no epoch of sleep", edf, labels, CHANNELS)
    refused(sleep.read_hypnogram, "a-PSG.edf: holds no annotation", edf)
    refused(sleep.read_recording, "mismatch: must be 'refuse' or 'cut'", edf, labels, CHANNELS, mismatch="pad")


@pytest.fixture
def psg():
    return shared_cases.real_data("psg/short_psg.edf").parent


@pytest.mark.real
def test_real_excerpt(psg):
    """Read alone at its own rate, each channel equals what another reader finds in the file."""
    path, channels = psg / "short_psg.edf", {"EEG": "EEG Fpz-Cz", "EEG2": "EEG Pz-Oz", "EOG": "EOG horizontal"}
    found = sleep.read_signals(path, channels)
    other = edfio.read_edf(path)
    expected = np.stack([other.get_signal(label).data for label in channels.values()], axis=1)
    assert found.shape == (30_000, 3) and 10 < found[:, 0].std() < 100
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(sleep.read_signals, r"EMG 'EMG submental' has 1 samples per second \(an envelope of the EMG, not the",
                path, CHANNELS)


@pytest.mark.real
def test_real_hypnogram(psg):
    scored = sleep.read_hypnogram(psg / "SC4001EC-Hypnogram.edf")
    assert len(scored) == 154 and scored[0] == (0, 30630, "Sleep stage W") and scored[-1].label == "Sleep stage ?"
    channels = {"EEG": "EEG Fpz-Cz", "EOG": "EOG horizontal"}
    night = [psg / "short_psg.edf", psg / "SC4001EC-Hypnogram.edf", channels]
    refused(sleep.read_recording, "scores 79500 s, longer than the signal's 300 s", *night)
    refused(sleep.read_recording, "no epoch of sleep", *night, mismatch="cut")
    recording = sleep.read_recording(*night, mismatch="cut", trim_minutes=None)
    assert recording.stages.tolist() == [0] * 10 and recording.quality["beyond_signal"] == 2640


@pytest.mark.real
def test_real_night_is_trimmed_and_merged(psg, tmp_path):
    """The real stages over a flat-rate signal of the real length: 22 hours, of which a night is kept."""
    scored = sleep.read_hypnogram(psg / "SC4001EC-Hypnogram.edf")
    seconds = int(scored[-1].onset)
    header = {"recording": edfio.Recording(startdate=pd.Timestamp("1989-04-24").date()),
              "starttime": pd.Timestamp("1989-04-24 16:13").time()}
    signal = edfio.EdfSignal(np.sin(np.arange(seconds)), 1, label="slow", physical_range=(-1, 1))
    edfio.Edf([signal], **header).write(tmp_path / "long.edf")
    recording = sleep.read_recording(tmp_path / "long.edf", psg / "SC4001EC-Hypnogram.edf", {"EEG": "slow"}, rate=1)
    counts = np.bincount(recording.stages, minlength=5)
    assert len(recording.stages) == 841 and counts.tolist() == [188, 58, 250, 220, 125]
    assert counts[3] == sum(one.duration for one in scored if one.label in ("Sleep stage 3", "Sleep stage 4")) / 30
    asleep = np.flatnonzero(recording.stages)
    assert asleep[0] == 60 and asleep[-1] == len(recording.stages) - 61


def table_of(folder, rows):
    pd.DataFrame(rows).to_csv(folder / "nights.tsv", sep="\t", index=False)


def rows_of(*names):
    return [{"recording": name, "subject": name[:2], "night": 1, "drug": "placebo", "age": 30, "sex": "F",
             "psg": f"{name}-PSG.edf", "hypnogram": f"{name}-Hypnogram.edf"} for name in names]


def test_cohort_goes_on_without_the_faulty(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    names = ["s1n1", "s1n2", "s2n1", "s2n2", "s3n1"]
    for number, name in enumerate(names):
        write(source, name, signals=noise(10, number))
    (source / "s1n2-PSG.edf").write_bytes((source / "s1n2-PSG.edf").read_bytes()[:100_000])
    write_labels(source / "s2n2-Hypnogram.edf", [(0, 300, "Sleep stage 9")])
    outside = rows_of("s4n1")[0] | {"psg": "../elsewhere.edf"}
    files = {"psg": "s3n1-PSG.edf", "hypnogram": "s3n1-Hypnogram.edf"}
    table_of(source, [*rows_of(*names, "s9n1"), outside, *rows_of("../../s5", "s1n1"),
                      *(rows_of("s3n2")[0] | files | wrong for wrong in (
                          {"age": "old"}, {"sex": "male"}, {"subject": "S3"}, {"subject": "NA"}, {"night": 2}))])
    epochs = sleep.read_cohort(source, tmp_path / "store", CHANNELS)
    assert sorted(epochs.table["recording"].unique()) == ["s1n1", "s2n1", "s3n1"] and len(epochs) == 30
    told = "\n".join(epochs.faults)
    assert len(epochs.faults) == 11 and told.count("\n") == 10
    for part in ("'s1n2': s1n2-PSG.edf: is truncated", "'s2n2': s2n2-Hypnogram.edf: unknown label 'Sleep stage 9'",
                 "'s9n1': psg 's9n1-PSG.edf' is absent", "'s4n1': psg '../elsewhere.edf' lies outside the folder",
                 "'../../s5': recording '../../s5' is no valid name", "'s1n1': is listed twice",
                 "'s3n2': age 'old' is no number", "'s3n2': sex 'male' is unknown",
                 "'s3n2': subject 'S3' is also written 's3'", "'s3n2': subject 'NA' would be read as missing",
                 "'s3n2': is listed twice; allowed: one row per psg"):
        assert part in told
    nights = sleep.describe_nights(epochs).set_index("recording")
    assert nights.loc["s1n1", ["W", "N1", "N2", "N3", "REM", "trimmed", "dropped"]].tolist() == [4, 1, 2, 1, 2, 0, 0]
    assert nights.index.tolist() == ["s1n1", "s2n1", "s3n1"] and set(nights["subject"]) == {"s1", "s2", "s3"}
    direct = sleep.read_recording(source / "s2n1-PSG.edf", source / "s2n1-Hypnogram.edf", CHANNELS).epochs
    rows = np.flatnonzero(epochs.table["recording"] == "s2n1")[[7, 2]]
    index = [rows[0], 0, rows[1]]
    np.testing.assert_allclose(epochs.batch(index)[[0, 2]], direct[[7, 2]], atol=4e-3)
    assert epochs.batch(index).dtype == np.float32 and epochs.shape == (3000, 3)


def test_draw_is_seeded_and_by_recording(tmp_path):
    for name in ("s1n1", "s2n1"):
        write(tmp_path, name)
    table_of(tmp_path, rows_of("s1n1", "s2n1"))
    epochs = sleep.read_cohort(tmp_path, tmp_path / "store", CHANNELS)
    drawn = epochs.draw(4, 0)
    assert epochs.table.loc[drawn, "recording"].value_counts().tolist() == [4, 4] and len(set(drawn)) == 8
    np.testing.assert_array_equal(drawn, epochs.draw(4, 0))
    assert not np.array_equal(drawn, epochs.draw(4, 1)) and len(epochs.draw(None, 0)) == 20
    refused(epochs.draw, "per_recording: must be at least 1", 0, 0)


def test_cohort_that_cannot_be_used(tmp_path):
    refused(sleep.read_cohort, "nights.tsv: is absent; allowed: a table with the columns recording, subject", tmp_path,
            tmp_path / "store", CHANNELS)
    table_of(tmp_path, [{"recording": "a", "psg": "a.edf"}])
    refused(sleep.read_cohort, "has no column subject, hypnogram", tmp_path, tmp_path / "store", CHANNELS)
    (tmp_path / "nights.tsv").write_text("recording;subject;psg;hypnogram\n")
    refused(sleep.read_cohort, "has its cells separated by ';'", tmp_path, tmp_path / "store", CHANNELS)
    table_of(tmp_path, rows_of("s1n1"))
    with pytest.raises(ValueError, match=r"no recording can be used\nnights.tsv: recording 's1n1': psg .* is absent"):
        sleep.read_cohort(tmp_path, tmp_path / "store", CHANNELS)
    refused(sleep.read_cohort, "channels: none given", tmp_path, tmp_path / "store", {})


def test_telemetry_is_fetched_by_mne_and_listed(tmp_path, monkeypatch):
    """The call to MNE stands in for the network; names, ages and drugs are those of MNE's own table."""
    wanted = inspect.signature(mne.datasets.sleep_physionet.temazepam.fetch_data).parameters
    assert {"subjects", "path"} <= set(wanted)
    asked = {}

    def fetch(subjects, path):
        asked.update(subjects=subjects, path=path)
        folder = Path(path) / "physionet-sleep-data"
        folder.mkdir()
        pairs = []
        for psg, hypnogram in (("ST7011J0-PSG", "ST7011JP-Hypnogram"), ("ST7021J0-PSG", "ST7021JM-Hypnogram")):
            for made, name in zip(write(tmp_path, "x"), (psg, hypnogram)):
                shutil.move(made, folder / f"{name}.edf")
            pairs.append([str(folder / f"{name}.edf") for name in (psg, hypnogram)])
        return pairs

    monkeypatch.setattr(mne.datasets.sleep_physionet.temazepam, "fetch_data", fetch)
    folder = sleep.fetch_telemetry(tmp_path / "telemetry", subjects=(0, 1))
    assert asked == {"subjects": [0, 1], "path": str(folder)}
    table = sleep.read_cohort(folder, tmp_path / "store", CHANNELS).table.drop_duplicates("recording")
    assert table[["recording", "subject", "night", "drug", "age", "sex"]].to_numpy().tolist() == [
        ["ST7011", "ST701", 1, "placebo", 60, "M"], ["ST7021", "ST702", 1, "temazepam", 35, "F"]]


def test_telemetry_without_a_network(tmp_path, monkeypatch):
    def fetch(**_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(mne.datasets.sleep_physionet.temazepam, "fetch_data", fetch)
    refused(sleep.fetch_telemetry, r"cannot be fetched \(no route\); allowed: a network, or its", tmp_path / "t")
