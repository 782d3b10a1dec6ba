"""The smoke study as a person runs it: whole, killed at several moments, twice, and with what can go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from mslib.jobs.publish import study_digests
from mslib.study import load_config

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900

RUNS = pytest.mark.skipif("MSLIB_STUDY_TESTS" not in os.environ,
                          reason="runs the smoke study twice, about ten minutes: set MSLIB_STUDY_TESTS=1")
pytestmark = pytest.mark.study


def command(run_dir, results, study="smoke"):
    return [sys.executable, "-m", "snakemake", "--config", f"study={study}", f"run_dir={run_dir}", f"results={results}"]


def start(run_dir, results, study="smoke"):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return subprocess.Popen(command(run_dir, results, study), cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(run_dir, results, study="smoke"):
    process = start(run_dir, results, study)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def kill_when(process, ready):
    """Kill -9 the run and all its children as soon as `ready` holds."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, f"ended before the moment to kill it: {process.communicate()[0][-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbs: run folder, results folder."""
    folder = tmp_path_factory.mktemp("whole")
    status, output = finish(folder / "run", folder / "results")
    assert status == 0, output[-4000:]
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The same study in another folder, killed while simulating, preprocessing and training, then finished."""
    folder = tmp_path_factory.mktemp("killed")
    run, results = folder / "run", folder / "results"
    moments = [lambda: any(run.glob("bids/derivatives/truth/*/anat/*_truth.json")),
               lambda: len(list(run.glob("derivatives/mslib/*/anat/*_desc-qc.json"))) > 3,
               lambda: any(run.glob("nets/*/subject/state.npz"))]
    kept = {}
    for number, moment in enumerate(moments):
        kill_when(start(run, results), moment)
        if number == 1:
            kept = {path: path.stat().st_mtime_ns for path in run.glob("bids/sub-*/anat/*.nii.gz")}
    status, output = finish(run, results)
    assert status == 0, output[-4000:]
    return folder, kept


@RUNS
def test_everything_is_published(whole):
    results = whole / "results"
    for name in ("README.md", "report.html", "metrics.json", "provenance.json"):
        assert (results / name).is_file()
    assert {path.stem for path in (results / "notebooks").glob("*.ipynb")} == {
        "00_cohort", "01_coregistration", "02_finetuning_vgg16", "02_finetuning_vgg19", "03_gradcam_layers",
        "07_summary"}
    for name in ("figure1_examples", "figure2_confusion", "figure3_layers", "figure4_layers", "layer_grid",
                 "depth_curves"):
        assert (results / "figures" / f"{name}.png").is_file()
    assert len(list((results / "viewers").glob("*.html"))) == 1


@RUNS
def test_executed_notebooks_hold_no_errors_and_no_machine_paths(whole):
    for path in (whole / "results" / "notebooks").glob("*.ipynb"):
        assert str(ROOT) not in path.read_text(encoding="utf-8")
        for cell in nbformat.read(path, as_version=4).cells:
            assert all(output.output_type != "error" for output in cell.get("outputs", []))


@RUNS
def test_killed_run_completes_and_keeps_what_was_finished(killed):
    _, kept = killed
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@RUNS
def test_two_runs_agree(whole, killed):
    """One of them killed three times: the same files, tables and recorded numbers to 1e-4, provenance exactly."""
    first, second = whole / "results", killed[0] / "results"
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in (path for path in names if path.suffix == ".csv"):
        pd.testing.assert_frame_equal(pd.read_csv(first / name), pd.read_csv(second / name), rtol=1e-4, atol=1e-5)
    recorded = [pd.json_normalize(json.loads((one / "metrics.json").read_text())) for one in (first, second)]
    pd.testing.assert_frame_equal(*recorded, rtol=1e-4, atol=1e-5)
    numbers = [json.loads((one / "provenance.json").read_text()) for one in (first, second)]
    assert numbers[0] == numbers[1]


@RUNS
def test_nothing_changed_nothing_done(whole):
    status, output = finish(whole / "run", whole / "results")
    assert status == 0
    assert "Nothing to be done" in output


def test_a_second_run_of_the_same_study_is_refused(tmp_path):
    first = start(tmp_path / "run", tmp_path / "results")
    try:
        while not (tmp_path / "run" / ".lock").exists():
            time.sleep(0.1)
        status, output = finish(tmp_path / "run", tmp_path / "results")
        assert status != 0
        assert "another snakemake is running this study" in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    status, output = finish(tmp_path / "file" / "run", tmp_path / "results")
    assert status != 0
    assert f"{tmp_path / 'file' / 'run'}: cannot be written" in output
    assert "Traceback" not in output


def test_unknown_study(tmp_path):
    status, output = finish(tmp_path / "run", tmp_path / "results", study="nowhere")
    assert status != 0
    assert "config/nowhere.yaml: cannot be read" in output
    assert "Traceback" not in output


PUBLISHED = [path.parent.name for path in sorted((ROOT / "results").glob("*/provenance.json"))]


@pytest.mark.parametrize("study", [name for name in PUBLISHED if name != "smoke"])
def test_results_are_what_the_code_makes(study):
    """Checked-in results were made by the code and the settings that are checked in."""
    provenance = json.loads((ROOT / "results" / study / "provenance.json").read_text(encoding="utf-8"))
    config = load_config(ROOT / "config" / provenance["config"])
    assert provenance["settings"] == json.loads(config.model_dump_json())
    assert provenance["code"] == study_digests(config)


def test_results_are_light():
    size = sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file())
    assert size < 25e6
