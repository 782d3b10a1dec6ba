"""The smoke study as a person runs it: whole, killed at several moments, again, and with what can go wrong."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from repository import ROOT

from mslib.jobs.cohort import participants, qc_path, stack_path
from mslib.jobs.publish import executed_notebooks, study_digests
from mslib.study import load_config

PATIENCE = 1800
SMOKE = load_config(ROOT / "config" / "smoke.yaml")
pytestmark = pytest.mark.study


def environment():
    """Without what pytest and a run that drives these tests have set."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MSLIB_PROGRESS"))}


def start(folder, study="smoke", run="run", more=()):
    """Snakemake in the background, its words in ``log.txt``; in its own session, so that all of it can be killed."""
    command = [sys.executable, "-m", "snakemake", "--config", f"study={study}", f"run_dir={folder / run}",
               f"results={folder / 'results'}", *more]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT,
                                start_new_session=True)


def finish(folder, study="smoke", run="run", more=()):
    status = start(folder, study, run, more).wait(timeout=PATIENCE)
    return status, (folder / "log.txt").read_text(encoding="utf-8")


def kill_when(process, ready, whom, folder):
    """Kill -9 the run (all of it, or only its head) as soon as `ready` holds."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def job(*arguments, limit=None, config="config/smoke.yaml"):
    """One job of the command line; with a limit no file may grow beyond so many bytes, as on a full disk."""
    def narrow():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    name, *others = arguments
    command = [sys.executable, "-m", "mslib", name, "--config", str(config), *map(str, others)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
                          preexec_fn=narrow)


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def run_undisturbed(folder):
    """Holds ``run`` and ``results`` in the end."""
    status, output = finish(folder)
    assert status == 0, output[-4000:]
    return folder


def run_killed(folder):
    """The study killed while simulating, preprocessing, training, mapping and explaining, then finished.

    Gives the folder, and the times of what was finished when a kill came.
    """
    run, kept = folder / "run", {}
    moments = [  # when, whom, what is finished by then
        (lambda: any(run.glob("bids/derivatives/truth/*/anat/*_truth.json")), "all", None),
        (lambda: len([*run.glob("derivatives/mslib/*/anat/*_desc-qc.json")]) > 3, "head", "bids/sub-*/anat/*.nii.gz"),
        (lambda: any(run.glob("nets/*/*/state.npz")), "all", "derivatives/mslib/*/anat/*_desc-slices.npz"),
        (lambda: any(run.glob("maps/*/sub-*.csv")), "all", "nets/*/*/weights.weights.h5"),
        (lambda: any(run.glob("attributions/*/sub-*/*.npz")), "all", "maps/*/sub-*.csv")]
    for ready, whom, finished in moments:
        kill_when(start(folder), ready, whom, folder)
        if finished:
            kept |= times(run.glob(finished))
    status, output = finish(folder)
    assert status == 0, output[-4000:]
    return folder, kept


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs side by side: a run leaves a core idle for much of its time."""
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(run_undisturbed, tmp_path_factory.mktemp("whole")),
                   pool.submit(run_killed, tmp_path_factory.mktemp("killed"))]
    return [run.result() for run in started]


@pytest.fixture(scope="module")
def whole(runs):
    """A run that nobody disturbed: holds ``run`` and ``results``."""
    return runs[0]


@pytest.fixture(scope="module")
def killed(runs):
    """The same study in another folder, killed five times: the folder, and when its files were finished."""
    return runs[1]


def test_everything_is_published(whole):
    results = whole / "results"
    for name in ("README.md", "report.html", "metrics.json", "provenance.json"):
        assert (results / name).is_file()
    assert sorted(path.stem for path in (results / "notebooks").glob("*.ipynb")) == executed_notebooks(SMOKE)
    for name in ("figure1_examples", "figure2_confusion", "layer_grid", "depth_curves"):
        assert (results / "figures" / f"{name}.png").is_file()
    for name, backbone in (("figure3_layers", "vgg16"), ("figure4_layers", "vgg19")):
        assert (results / "figures" / f"{name}.png").is_file() == (backbone in SMOKE.model.backbones)
    blank = (results / "notebooks" / "07_summary.ipynb").read_text(encoding="utf-8").count("is blank; no viewer")
    assert len(list((results / "viewers").glob("*.html"))) + blank == SMOKE.explain.viewer_subjects
    made = {path.relative_to(whole / "run").as_posix() for name in ("figures", "tables", "viewers")
            for path in (whole / "run").glob(f"{name}/*")}
    published = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert made <= published, "what notebooks made in a fresh run folder is published, all of it"


def test_the_job_of_the_repeat_leaves_none_to_the_notebook(whole):
    for backbone in SMOKE.model.backbones:
        folder = whole / "run" / "relevance" / backbone
        made = [*folder.glob("repeat1/weights.weights.h5"), *folder.glob("repeated/shares.csv")]
        assert len(made) == 2
        done = (folder / "repeat.done").stat().st_mtime
        assert max(path.stat().st_mtime for path in made) <= done
        assert done <= (whole / "run" / "attributions" / backbone / "checks.json").stat().st_mtime


def test_the_jobs_of_the_maps_leave_none_to_the_notebook(whole):
    folders = [(whole / "run" / "attributions" / backbone, "checks.json", {"random3", "repeat", "together"})
               for backbone in SMOKE.model.backbones]
    folders.append((whole / "run" / "planted", "nets.json", {"random1", "random3"}))
    for folder, last, known in folders:
        made = sorted(folder.rglob("*.npz"))
        assert known <= {path.parent.name for path in made}
        assert max(path.stat().st_mtime for path in made) <= (folder / last).stat().st_mtime, folder


def test_executed_notebooks_hold_no_errors_and_no_machine_paths(whole):
    for path in (whole / "results" / "notebooks").glob("*.ipynb"):
        assert str(ROOT) not in path.read_text(encoding="utf-8")
        for cell in nbformat.read(path, as_version=4).cells:
            assert all(output.output_type != "error" for output in cell.get("outputs", []))


def test_maps_of_chosen_subjects_are_volumes_in_t1w_space(whole):
    volumes = sorted((whole / "run").glob("derivatives/mslib/sub-*/anat/*gradcam*.nii.gz"))
    assert len(volumes) == SMOKE.explain.nifti_subjects * len(SMOKE.model.backbones)
    for path in volumes:
        image, told = nib.load(path), json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        t1w = nib.load(next(path.parent.glob("*desc-preproc_T1w.nii.gz")))
        assert image.shape == (*t1w.shape, len(told["Layers"])) and len(told["Layers"]) > 1
        assert np.allclose(image.affine, t1w.affine) and np.isfinite(image.get_fdata()).all()


def test_a_killed_run_completes_and_keeps_what_was_finished(killed):
    _, kept = killed
    kinds = {path.name.rpartition("_")[2] for path in kept}
    assert {"T1w.nii.gz", "desc-slices.npz", "weights.weights.h5"} <= kinds
    assert any(path.parts[-3] == "maps" for path in kept)
    assert times(kept) == kept


def test_two_runs_agree(whole, killed):
    """One of them killed five times: the same files, tables and recorded numbers to 1e-4, provenance exactly."""
    first, second = whole / "results", killed[0] / "results"
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    timed = {Path("tables/attribution_seconds.csv")}  # what a clock says is not compared
    for name in (path for path in names if path.suffix == ".csv" and path not in timed):
        pd.testing.assert_frame_equal(pd.read_csv(first / name), pd.read_csv(second / name), rtol=1e-4, atol=1e-5)
    recorded = [pd.json_normalize(json.loads((one / "metrics.json").read_text())) for one in (first, second)]
    pd.testing.assert_frame_equal(*recorded, rtol=1e-4, atol=1e-5)
    numbers = [json.loads((one / "provenance.json").read_text()) for one in (first, second)]
    assert numbers[0] == numbers[1]


def test_nothing_changed_nothing_done(whole):
    before = times(path for name in ("run", "results") for path in (whole / name).rglob("*") if path.is_file()
                   and path.name != ".lock")
    status, output = finish(whole)
    assert status == 0
    assert "Nothing to be done" in output
    assert times(before) == before


def test_results_without_a_run_do_not_pass_for_one(whole, tmp_path):
    """A fresh clone holds results/ but no run: the whole chain is planned."""
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "study=smoke", f"run_dir={tmp_path / 'run'}",
               f"results={whole / 'results'}"]
    planned = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    told = planned.stdout + planned.stderr
    assert planned.returncode == 0 and "Nothing to be done" not in told
    for rule in ("start", "simulate", "check", "notebook_cohort", "notebook_finetuning", "notebook_gradcam", "publish"):
        assert f"\n{rule} " in told, rule


# What an earlier run left, damaged


def test_a_damaged_derivative_is_made_again(whole):
    run, subject = whole / "run", participants(SMOKE)[0].id
    path = stack_path(run, subject)
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:1000])
    done = job("preprocess", "--run-dir", run, "--subject", subject)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line]
    assert len(told) == 1 and f"{path.name} from an earlier run is damaged; preprocessed again" in told[0]
    assert path.read_bytes() == whole_file


def test_a_damaged_stack_is_made_again_for_a_notebook_run_alone(whole):
    run, subject, backbone = whole / "run", participants(SMOKE)[0].id, SMOKE.model.backbones[0]
    path = stack_path(run, subject)
    whole_file, times_before = path.read_bytes(), times((run / "nets").rglob("*.h5"))
    path.write_bytes(b"")
    done = job("notebook", "--run-dir", run, "--name", "02_finetuning", "--backbone", backbone)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    executed = (run / "notebooks" / f"02_finetuning_{backbone}.ipynb").read_text(encoding="utf-8")
    assert f"{path.name} from an earlier run is damaged; preprocessed again" in executed
    assert path.read_bytes() == whole_file
    assert times((run / "nets").rglob("*.h5")) == times_before, "no net is trained again"


# A full disk


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_full_disk_while_simulating(tmp_path):
    assert job("start", "--run-dir", tmp_path).returncode == 0
    before = contents(tmp_path)
    done = job("simulate", "--run-dir", tmp_path, "--subject", "001", limit=8000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "cannot be written (File too large)" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]
    assert {path: contents(tmp_path)[path] for path in before} == before
    assert job("simulate", "--run-dir", tmp_path, "--subject", "001").returncode == 0


def test_full_disk_while_preprocessing_excludes_nobody(whole, tmp_path):
    """Even where a study goes on without faulty subjects: the disk is no fault of a subject."""
    run, subject = whole / "run", participants(SMOKE)[1].id
    settings = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"))
    settings["cohort"]["on_fault"] = "skip"
    config = tmp_path / "smoke.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    before = {path: data for path, data in contents(qc_path(run, subject).parent).items() if "timing" not in path.name}
    stack_path(run, subject).unlink()
    done = job("preprocess", "--run-dir", run, "--subject", subject, limit=20_000, config=config)
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if "preprocessed again" not in line]
    assert len(told) == 1 and told[0].startswith(f"sub-{subject}: ") and "cannot be written (File too large)" in told[0]
    assert "excluded" not in qc_path(run, subject).read_text(encoding="utf-8")
    assert job("preprocess", "--run-dir", run, "--subject", subject).returncode == 0
    after = contents(qc_path(run, subject).parent)
    assert {path: after[path] for path in before} == before


def test_publishing_again_replaces_what_was_published(whole):
    again = ["--forcerun", "publish"]
    assert finish(whole, more=again)[0] == 0  # a test above has run a notebook alone, and another once more
    before = contents(whole / "results")
    status, output = finish(whole, more=again)
    assert status == 0, output[-4000:]
    assert "Publish the light part" in output
    assert contents(whole / "results") == before


def test_full_disk_while_publishing_leaves_the_old_results(whole):
    before = contents(whole / "results")
    done = job("publish", "--run-dir", whole / "run", "--results", whole / "results", limit=2000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "cannot be written (File too large)" in done.stderr
    assert contents(whole / "results") == before


# What is refused before anything runs


def test_a_second_run_of_the_same_study_is_refused(tmp_path):
    first = start(tmp_path)
    try:
        while not (tmp_path / "run" / ".lock").exists():
            assert first.poll() is None
            time.sleep(0.1)
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "run").symlink_to(tmp_path / "run")
        status, output = finish(tmp_path / "second")
        assert status != 0
        assert "another snakemake is running this study" in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    status, output = finish(tmp_path, run="file/run")
    assert status != 0
    assert f"{tmp_path / 'file' / 'run'}: cannot be written" in output
    assert "Traceback" not in output


def test_unknown_study(tmp_path):
    status, output = finish(tmp_path, study="nowhere")
    assert status != 0
    assert "config/nowhere.yaml: cannot be read" in output
    assert "Traceback" not in output


def test_real_patients_need_the_nets_of_the_study_before(tmp_path):
    status, output = finish(tmp_path, study="open_ms")
    assert status != 0
    line = (f"{tmp_path}/simulated/nets/vgg16/subject/weights.weights.h5: no fitted net yet; study open_ms explains "
            "the nets of study simulated: first run snakemake --config study=simulated")
    assert line in output.splitlines()
    assert "Traceback" not in output and not (tmp_path / "run" / "source").exists()


def test_missing_weights_are_told_before_anything_is_computed(tmp_path):
    settings = {"study": "own", "model": {"weights": "nowhere/vgg_notop.h5"}}
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = job("start", "--run-dir", tmp_path / "run", config=config)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("model.weights: ")]
    assert len(told) == 1 and "nowhere/vgg_notop.h5" in told[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "bids").exists()


# What is checked in

@pytest.mark.parametrize("study", ["simulated", "open_ms"])
def test_results_are_what_the_code_makes(study):
    """Checked-in results were made by the code and the settings that are checked in."""
    provenance = json.loads((ROOT / "results" / study / "provenance.json").read_text(encoding="utf-8"))
    config = load_config(ROOT / "config" / provenance["config"])
    assert provenance["settings"] == json.loads(config.model_dump_json())
    assert provenance["code"] == study_digests(config)


def test_co_registration_meets_its_targets():
    """Of the default cohort, against known truth: 0.3 mm for the median subject, 1 mm for the worst."""
    errors = pd.read_csv(ROOT / "results" / "simulated" / "tables" / "registration_errors.csv")
    assert set(errors["sequence"]) == {"T2w", "FLAIR"} and errors["subject"].nunique() == 68
    assert errors.groupby("sequence")["after"].median().max() <= 0.3 and errors["after"].max() <= 1.0


def test_results_are_light():
    size = sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file())
    assert size < 25e6
