"""A run finds its files, joins tables of networks and folds, and leaves whole files with rounded numbers."""

import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml
from shared_cases import refused

import mslib
from mslib.study import Network, Run, StudyError, explained_networks, load_config, read_arrays, read_json, write_arrays
from mslib.study import run as module
from mslib.study.provenance import ROOT
from mslib.study.run import DRIVEN


@pytest.fixture
def run(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"study": "own", "sleep": {"subjects": 3, "folds": 3}}), encoding="utf-8")
    return Run(config, tmp_path / "run", "00_cohort")


def write(run, name, text):
    path = run.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_names_of_networks(run):
    assert str(Network("vgg19", "published", 3)) == "vgg19/published/seed3"
    assert Network.parse("vgg19/published/seed3") == Network("vgg19", "published", 3)
    for wrong in ("vgg19", "vgg19/published", "vgg19/published/3", "vgg19/published/seedx"):
        with pytest.raises(StudyError, match="must be BACKBONE/KIND/seedNUMBER"):
            Network.parse(wrong)
    assert [str(one) for one in explained_networks(run.config)] == [
        f"vgg{depth}/{kind}/seed{seed}" for depth in (16, 19) for kind in ("published", "honest", "cause")
        for seed in (1, 2, 3)]
    real = load_config(ROOT / "config" / "open_ms.yaml")  # real patients: a shipped network of each backbone
    assert [str(one) for one in explained_networks(real)] == ["vgg16/honest/seed1", "vgg19/honest/seed1"]


def test_tables_of_networks_and_folds_are_joined(run):
    for path, _ in run.paths("maps"):
        write(run, path.relative_to(run.folder), "subject,value\n001,1\n")
    table = run.read("maps")
    assert list(table["subject"]) == ["001"] * 18 and set(table["seed"]) == {1, 2, 3}
    assert set(table["kind"]) == {"published", "honest", "cause"}
    for path, owner in run.paths("folds"):
        write(run, path.relative_to(run.folder), f"subject,value\n001,{owner['backbone'][3:]}\n")
    assert run.read("folds")[["value", "backbone"]].to_numpy().tolist() == [[16, "vgg16"], [19, "vgg19"]]
    for number in range(3):
        write(run, f"sleep/fold-{number}/predictions.csv", f"recording,stage\n007,{number}\n")
    folds = run.read("sleep_predictions")
    assert list(folds["fold"]) == [0, 1, 2] == list(folds["stage"]) and set(folds["recording"]) == {"007"}


def test_a_missing_or_cut_table_is_told_in_one_line(run):
    with pytest.raises(StudyError, match=r"cohort/truth\.csv: is absent or damaged"):
        run.read("truth")
    assert run.read("truth", optional=True).empty
    write(run, "cohort/truth.csv", "subject,value\n001,0.12")
    with refused(match=r"its last line is cut.*delete it and run the same command again", error=StudyError):
        run.read("truth")


def test_arrays_and_records_that_are_damaged_are_told(run):
    """Pickles are not loaded at all."""
    path = write_arrays(run.folder / "a.npz", x=np.arange(3), name="a")
    assert list(read_arrays(path)["x"]) == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StudyError, match=r"a\.npz: is absent or damaged"):
        read_arrays(path)
    with pytest.raises(StudyError, match=r"b\.json: is absent or damaged"):
        read_json(write(run, "b.json", "{"))
    path = run.folder / "evil.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StudyError, match=r"evil\.npz"):
        read_arrays(path)


def test_what_a_notebook_leaves(run):
    table = pd.DataFrame({"subject": ["001"], "value": [1 / 3]})
    assert run.save("shares", table, digits=3) is table
    run.record(best=None, value=np.float64(1 / 3), missing=float("nan"), deep={"x": (1, 2.0)})
    assert (run.folder / "tables/shares.csv").read_text() == "subject,value\n001,0.333\n"
    assert run.saved("shares")["subject"][0] == "001" and run.saved("others").empty
    assert json.loads((run.folder / "made/00_cohort.json").read_text()) == {"tables/shares.csv": ""}
    assert json.loads((run.folder / "metrics/00_cohort.json").read_text()) == {
        "best": None, "value": 0.33333, "missing": None, "deep": {"x": [1, 2.0]}}


def test_what_is_needed_is_asked_of_snakemake_once(run, monkeypatch, capsys):
    asked = []

    class Process(subprocess.Popen):
        def __init__(self, words, **options):
            asked.append(words)
            super().__init__(["sh", "-c", "echo Job 1; exit 3"], **options)

    monkeypatch.setattr(module.subprocess, "Popen", Process)
    monkeypatch.setenv(DRIVEN, "1")
    run.need("maps")
    assert asked == []
    monkeypatch.delenv(DRIVEN)
    with pytest.raises(StudyError, match="maps could not be made"):
        run.need("maps")
    assert asked[0][2:4] == ["snakemake", "maps"] and f"run_dir={run.folder.resolve()}" in asked[0]
    assert "Job 1" in capsys.readouterr().out


def test_only_the_chatter_of_tensorflows_import_is_dropped(capfd):
    """Errors that its C++ part writes reach the terminal, also where the import fails."""
    with pytest.raises(ImportError), mslib._QuietTensorFlow().diverted():
        os.write(2, b"WARNING: All log messages before absl:\nI0000 00:00 port.cc:153] oneDNN\nE0000 00:00 an error\n")
        raise ImportError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "E0000 00:00 an error\nafter\n"
