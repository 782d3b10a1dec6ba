"""The small study as a person runs it, killed five times on its way, and all that can go wrong with it."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from repository import ROOT

from mslib.study import explained_networks, load_config

PATIENCE = 1800
SMOKE = load_config(ROOT / "config" / "smoke.yaml")
pytestmark = pytest.mark.study


def environment():
    """Without what pytest and a run that drives these tests have set."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST", "MSLIB_PROGRESS", "MSLIB_DRIVEN"))
    }


def command(folder, more=(), run="run", study="study=smoke"):
    return [
        sys.executable,
        "-m",
        "snakemake",
        *more,
        "--config",
        study,
        f"run_dir={folder / run}",
        f"results={folder / 'results'}",
    ]


def start(folder, **options):
    """Snakemake in the background, its words in ``log.txt``; in its own session, so that all of it can be killed."""
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command(folder, **options),
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder, **options):
    status = start(folder, **options).wait(timeout=PATIENCE)
    return status, (folder / "log.txt").read_text(encoding="utf-8")


def planned(folder, more=(), root=ROOT, study="study=smoke"):
    """Rules that a dry run names, with the number of their jobs."""
    done = subprocess.run(
        command(folder, ["-n", *more], study=study),
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-4000:]
    table = told.partition("Job stats:")[2].partition("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE) if name != "all"}


def kill_when(process, ready, whom, folder):
    """Kill -9 the run (all of it, or only its head) as soon as `ready` holds."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def step(*arguments, limit=None, config="config/smoke.yaml"):
    """One step of the command line; with a limit no file may grow beyond so many bytes, as on a full disk."""

    def narrow():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    name, *others = arguments
    words = [sys.executable, "-m", "mslib", name, "--config", str(config), *map(str, others)]
    return subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, preexec_fn=narrow
    )


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The small study, killed while simulating, preprocessing, training, mapping and explaining; then finished.

    The folder holds ``run`` and ``results``; ``kept.json`` the times of what was finished when a kill came, and
    ``resumed.txt`` the network that was in training at one.
    """
    folder = tmp_path_factory.mktemp("whole")
    run, kept = folder / "run", {}

    def simulated():
        return any(run.glob("bids/derivatives/truth/*/anat/*_truth.json"))

    def preprocessed():
        return len([*run.glob("derivatives/mslib/*/anat/*_desc-qc.json")]) > 3

    def training():
        found = [*run.glob("nets/vgg*/*/seed*/training-*/history.csv")]
        if found:
            (folder / "resumed.txt").write_text(found[0].parents[1].relative_to(run / "nets").as_posix())
        return bool(found)

    def mapped():
        return any(run.glob("maps/*/*/*/measures.csv"))

    def explained():
        return any(run.glob("attributions/*/*.npz"))

    moments = [  # when, whom, what is finished by then
        (simulated, "all", None),
        (preprocessed, "head", "bids/sub-*/anat/*.nii.gz"),
        (training, "all", "derivatives/mslib/*/anat/*_desc-slices.npz"),
        (mapped, "all", "nets/vgg*/*/*/weights.weights.h5"),
        (explained, "all", "maps/*/*/*/measures.csv"),
    ]
    for ready, whom, finished in moments:
        kill_when(start(folder), ready, whom, folder)
        while whom == "head" and subprocess.run(["pgrep", "-f", run], capture_output=True, check=False).returncode == 0:
            time.sleep(1)  # its jobs end by themselves
        if finished:
            # What a job wrote in its last seconds may not have been noted as whole, and is then made again.
            done = [path for path in run.glob(finished) if time.time() - path.stat().st_mtime > 12]
            kept |= {str(path): path.stat().st_mtime_ns for path in done}
    status, output = finish(folder)
    assert status == 0, output[-6000:]
    (folder / "kept.json").write_text(json.dumps(kept))
    return folder


# What a run leaves


def test_everything_is_published(whole):
    results = whole / "results"
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for end in ("ipynb", "html"):
        assert {path.stem for path in (results / "notebooks").glob(f"*.{end}")} == notebooks
    for name in ("figure1_examples", "figure2_confusion", "figure3_layers", "layer_grid", "depth_curves"):
        assert (results / "figures" / f"{name}.png").is_file(), name
    made = {
        path.relative_to(whole / "run").as_posix()
        for name in ("figures", "tables", "viewers")
        for path in (whole / "run").glob(f"{name}/*")
    }
    published = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert made and made <= published, "what notebooks made in a fresh run folder is published, all of it"


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


def test_a_killed_run_keeps_what_was_finished(whole):
    """A kill costs at most the jobs that it interrupts before Snakemake has noted them as whole: one per core."""
    kept = json.loads((whole / "kept.json").read_text())
    kinds = {name.rpartition("_")[2] for name in kept}
    assert {"T1w.nii.gz", "desc-slices.npz"} <= kinds
    again = {name for name, time_kept in kept.items() if os.stat(name).st_mtime_ns != time_kept}
    folders = {os.path.dirname(name) for name in again}
    assert len(kept) > 40 and len(folders) <= 4 * os.cpu_count(), again


def test_a_resumed_training_gives_what_an_unbroken_one_gives(whole):
    """The network that was in training at a kill, trained once more from its start."""
    network = whole / "run" / "nets" / (whole / "resumed.txt").read_text()
    before = {name: pd.read_csv(network / name) for name in ("history.csv", "predictions.csv")}
    shutil.rmtree(network)
    status, output = finish(whole, more=[str(network / "predictions.csv")])
    assert status == 0, output[-4000:]
    for name, table in before.items():
        pd.testing.assert_frame_equal(pd.read_csv(network / name), table, rtol=1e-4, atol=1e-5)
    assert finish(whole)[0] == 0


# What is stale


def test_nothing_changed_nothing_done(whole):
    before = times(
        path
        for name in ("run", "results")
        for path in (whole / name).rglob("*")
        if path.is_file() and path.name != ".lock"
    )
    status, output = finish(whole)
    assert status == 0
    assert "Nothing to be done" in output
    assert times(before) == before


def test_results_without_a_run_do_not_pass_for_one(whole, tmp_path):
    """A fresh clone holds results/ but no run: the whole chain is planned."""
    shutil.copytree(whole / "results", tmp_path / "results")
    assert {"start", "simulate", "check", "train", "notebook", "publish"} <= set(planned(tmp_path))


@pytest.fixture(scope="module")
def changed(whole, tmp_path_factory):
    """Plan a run after a change of the settings or of a file of the project, made in a copy of it."""

    def plan(settings=(), file=None, old="", new=""):
        copy = tmp_path_factory.mktemp("copy")
        for name in ("mslib", "notebooks", "config", "profiles", "Snakefile", ".snakemake"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy / name)
        config = yaml.safe_load((copy / "config" / "smoke.yaml").read_text(encoding="utf-8"))
        for key, value in settings:
            *sections, last = key.split(".")
            part = config
            for section in sections:
                part = part.setdefault(section, {})
            part[last] = value
        (copy / "config" / "smoke.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        if file:
            text = (copy / file).read_text(encoding="utf-8")
            assert old in text
            (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
            for path in copy.rglob("*.ipynb"):
                os.utime(path, (1, 1)) if path != copy / file else None
        return planned(whole, root=copy)

    return plan


def test_another_bootstrap_number_makes_measures_anew_and_no_network(changed):
    found = set(changed([("statistics.bootstrap", 199)]))
    assert {"notebook", "publish"} <= found
    assert not found & {"simulate", "preprocess", "train", "measure_maps", "attribute", "fold"}


def test_another_caption_runs_one_notebook(changed):
    found = changed(file="notebooks/00_cohort.ipynb", old="One dot each", new="One point each")
    assert found == {"notebook": 2, "publish": 1}, "that one, and the summary that gathers all"


@pytest.mark.parametrize(
    "setting,made,kept",
    [
        (
            ("training.honest.epochs", 3),
            {"train", "measure_maps", "attribute"},
            {"preprocess", "fold", "known_rule"},
        ),
        (
            ("attribution.samples", 25),
            {"attribute", "known_rule"},
            {"train", "measure_maps", "relevance_shares", "fold"},
        ),
        (
            ("relevance.slices_per_subject", 2),
            {"relevance_shares"},
            {"train", "attribute", "measure_maps", "known_rule"},
        ),
        (("sleep.passes", 2), {"fold", "fold_relevance"}, {"train", "preprocess", "nights", "measure_maps"}),
    ],
)
def test_a_setting_makes_anew_what_reads_it(changed, setting, made, kept):
    found = set(changed([setting]))
    assert made <= found and not kept & found


def test_code_of_a_wing_makes_anew_what_runs_it(changed):
    found = set(changed(file="mslib/sleep/staging.py", old="import keras\n", new="import keras\n\nSPARE = 1\n"))
    assert {"fold"} <= found and not found & {"train", "preprocess", "measure_maps"}


def test_code_of_the_simulator_makes_every_subject_anew_before_anything_reads_them(changed):
    """Together with the step that describes the dataset, which runs the same code."""
    found = changed(file="mslib/cohort/lesions.py", old="import numpy as np\n", new="import numpy as np\n\nSPARE = 1\n")
    assert found["simulate"] == 12 and {"start", "check"} <= set(found) and "template" not in found


def test_a_cut_output_is_made_again(whole):
    path = whole / "run" / "maps" / str(explained_networks(SMOKE)[0]) / "measures.csv"
    kept = path.read_bytes()
    path.write_bytes(kept[:1000])
    status, output = finish(whole, more=["maps"])
    assert status == 0 and f"{path}: was changed after it was made; made again" in output
    assert path.read_bytes() == kept


def own_cohort(whole, folder):
    """The simulated subjects as a user's own BIDS cohort, and a study of it."""
    shutil.copytree(whole / "run" / "bids", folder / "bids")
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"))
    config |= {"study": "own", "cohort": {"source": "bids", "root": str(folder / "bids")}, "sleep": None}
    (folder / "own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return f"file={folder / 'own.yaml'}"


def test_another_subject_touches_no_other_and_a_corrected_group_trains_every_network(whole, tmp_path):
    study = own_cohort(whole, tmp_path)
    assert finish(tmp_path, study=study, more=["cohort"])[0] == 0
    stacks = times((tmp_path / "run").glob("derivatives/mslib/sub-*/anat/*"))
    for path in [*(tmp_path / "bids").glob("**/sub-001*")]:
        if path.is_dir():
            shutil.copytree(path, path.with_name("sub-099"))
    for path in (tmp_path / "bids").glob("**/sub-099/anat/sub-001*"):
        path.rename(path.with_name(path.name.replace("sub-001", "sub-099")))
    table = tmp_path / "bids" / "participants.tsv"
    rows = table.read_text(encoding="utf-8")
    first = next(line for line in rows.splitlines() if line.startswith("sub-001"))
    table.write_text(rows + first.replace("sub-001", "sub-099") + "\n", encoding="utf-8")
    status, output = finish(tmp_path, study=study, more=["cohort"])
    assert status == 0, output[-4000:]
    assert times(stacks) == stacks and any((tmp_path / "run").glob("derivatives/mslib/sub-099/anat/*_desc-qc.json"))
    # The networks of this cohort are taken as made (as of the same people); then two subjects change their groups.
    shutil.copytree(whole / "run" / "nets", tmp_path / "run" / "nets")
    assert finish(tmp_path, study=study, more=["nets", "--touch"])[0] == 0
    assert "train" not in planned(tmp_path, ["nets"], study=study)
    frame = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    pair = [frame.index[frame["group"] == group][0] for group in ("RRMS", "SPMS")]
    frame.loc[pair, "group"] = ["SPMS", "RRMS"]
    frame.to_csv(table, sep="\t", index=False)
    assert finish(tmp_path, study=study, more=["cohort"])[0] == 0
    assert times(stacks) == stacks
    found = planned(tmp_path, ["nets", "maps"], study=study)
    assert found["train"] == 2 * len(SMOKE.model.backbones) and not {"preprocess", "cause_cohort"} & set(found)
    assert {"activations", "folds", "measure_maps"} <= set(found)


def test_a_notebook_alone_makes_what_it_needs(tmp_path):
    """As by *Run All* from an empty run folder: Snakemake makes the cohort, and nothing that others need."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"))
    config["cohort"]["simulated"] |= {"independent": {}, "voxel_mm": 8.0}
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = [sys.executable, "-m", "papermill", "--cwd", "notebooks", "notebooks/00_cohort.ipynb"]
    words += [str(tmp_path / "00.ipynb"), "-r", "config", str(tmp_path / "smoke.yaml"), "-r", "run_dir"]
    words += [str(tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run/metrics/00_cohort.json").is_file() and not (tmp_path / "run" / "nets").exists()


# A full disk


def test_full_disk_while_simulating(tmp_path):
    assert step("make_template", "--run-dir", tmp_path).returncode == 0
    before = contents(tmp_path)
    done = step("simulate", "--run-dir", tmp_path, "--subject", "001", limit=8000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "cannot be written (File too large)" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]
    assert {path: contents(tmp_path)[path] for path in before} == before
    assert step("simulate", "--run-dir", tmp_path, "--subject", "001").returncode == 0


def test_full_disk_while_preprocessing_excludes_nobody(whole, tmp_path):
    """Even where a study goes on without faulty subjects: the disk is no fault of a subject."""
    settings = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"))
    settings["cohort"]["on_fault"] = "skip"
    config = tmp_path / "smoke.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    shutil.copytree(whole / "run" / "bids", tmp_path / "run" / "bids")
    shutil.copyfile(whole / "run" / "cohort.json", tmp_path / "run" / "cohort.json")
    done = step("preprocess", "--run-dir", tmp_path / "run", "--subject", "002", limit=20_000, config=config)
    assert done.returncode == 1, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == 1 and told[0].startswith("sub-002: ") and "cannot be written (File too large)" in told[0]
    assert not any((tmp_path / "run").glob("derivatives/mslib/sub-002/anat/*_desc-qc.json"))


def test_full_disk_while_publishing_leaves_the_old_results(whole):
    before = contents(whole / "results")
    done = step("publish", "--run-dir", whole / "run", "--results", whole / "results", limit=2000)
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


def test_what_cannot_be_run_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cases = [
        ({"run": "file/run"}, f"{tmp_path / 'file' / 'run'}: cannot be written"),
        ({"study": "study=nowhere"}, "config/nowhere.yaml: cannot be read"),
        ({"study": "studdy=smoke"}, "--config: must be of file, results, run_dir, study (got studdy)"),
        ({"study": "study=open_ms"}, "no fitted network yet; study open_ms explains those of study simulated"),
    ]
    for options, line in cases:
        status, output = finish(tmp_path, **options)
        assert status != 0 and line in output and "Traceback" not in output, (options, output[-2000:])
    assert not (tmp_path / "run" / "source").exists()


def test_missing_weights_are_told_before_anything_is_computed(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"study": "own", "model": {"weights": "nowhere/vgg_notop.h5"}}), encoding="utf-8")
    done = step("start", "--run-dir", tmp_path / "run", config=config)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("model.weights: ")]
    assert len(told) == 1 and "nowhere/vgg_notop.h5" in told[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "bids").exists()


@pytest.mark.parametrize(
    "words,told",
    [
        (("simulate", "--subject", "999"), "sub-999: is not a subject of the simulated cohorts"),
        (("measure_maps", "--network", "vgg16"), "--network: must be BACKBONE/KIND/seedNUMBER (got 'vgg16')"),
    ],
)
def test_a_step_with_a_wrong_argument_ends_in_one_line(tmp_path, words, told):
    done = step(*words, "--run-dir", tmp_path)
    assert done.returncode != 0 and told in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


# What is checked in


def test_results_are_light():
    size = sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file())
    assert size < 25e6
