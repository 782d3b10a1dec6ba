"""The small study as a person runs it, killed three times on its way, and all that can go wrong with it."""

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

from mslib.publish import PUBLISHED
from mslib.study import load_config

PATIENCE = 1800
SMOKE = load_config(ROOT / "config" / "smoke.yaml")
#: What `cohort` makes beside tables of ``cohort/``.
COHORT_FILES = ("cohort.json", "subjects.csv", "faults.json")
pytestmark = pytest.mark.study


def environment():
    """Without what pytest and a run that drives these tests have set."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith(("PYTEST", "MSLIB_PROGRESS", "MSLIB_DRIVEN", "MSLIB_FAULTS"))}


def called(words, root=ROOT, **options):
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=root, env=environment(), capture_output=True,
                          text=True, check=False, **options)


def command(folder, more=(), run="run", study="study=smoke", results="results"):
    return ["snakemake", *more, "--config", study, f"run_dir={folder / run}", f"results={folder / results}"]


def start(folder, **options):
    """Snakemake in the background, its words in ``log.txt``; in its own session, so that all of it can be killed."""
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, "-m", *command(folder, **options)], cwd=ROOT, env=environment(),
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(folder, **options):
    status = start(folder, **options).wait(timeout=PATIENCE)
    return status, (folder / "log.txt").read_text(encoding="utf-8")


def planned(folder, more=(), root=ROOT, study="study=smoke"):
    """Rules that a dry run names, with the number of their jobs."""
    done = called(command(folder, ["-n", *more], study=study), root)
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


def step(name, *arguments, limit=None, config="config/smoke.yaml"):
    """One step of the command line; with a limit no file may grow beyond so many bytes, as on a full disk."""
    def narrow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return called(["mslib", name, "--config", config, *arguments], preexec_fn=narrow if limit else None)


def settings_of(folder, **sections):
    """Path of a copy of the small study's file with other sections, and what it holds."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8")) | sections
    path = folder / f"{config['study']}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The small study, killed while simulating, preprocessing and training; then finished.

    The folder holds ``run`` and ``results``; ``kept.json`` the times of what was finished when a kill came, and
    ``resumed.txt`` the network that was in training at one.
    """
    folder = tmp_path_factory.mktemp("whole")
    run, kept = folder / "run", {}

    def training():
        found = [*run.glob("nets/vgg*/*/seed*/training-*/history.csv")]
        if found:
            (folder / "resumed.txt").write_text(found[0].parents[1].relative_to(run / "nets").as_posix())
        return bool(found)

    def found(pattern, more_than=0):
        return lambda: len([*run.glob(pattern)]) > more_than

    moments = [  # when, whom, what is finished by then
        (found("bids/derivatives/truth/*/anat/*_truth.json"), "all", None),
        (found("derivatives/mslib/*/anat/*_desc-qc.json", 3), "head", "bids/sub-*/anat/*.nii.gz"),
        (training, "all", "derivatives/mslib/*/anat/*_desc-slices.npz")]
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


def test_what_readers_need_is_published(whole):
    """Notebooks without errors and machine paths, the chosen figures, tables and viewers of them, minutes by rule."""
    results, names = whole / "results", SMOKE.run_notebooks
    for end in ("ipynb", "html"):
        assert {path.stem for path in (results / "notebooks").glob(f"*.{end}")} == set(names)
    made, published = ({path.relative_to(place).as_posix() for name in ("figures", "tables", "viewers")
                        for path in place.glob(f"{name}/*")} for place in (whole / "run", results))
    chosen = {f"figures/{name}.png" for one in names for name in PUBLISHED[one][0]} | {
        f"tables/{name}.csv" for one in names for name in PUBLISHED[one][1]}
    assert chosen - made <= {"figures/figure4_layers.png"}  # of VGG19
    vectors = {name.replace(".png", ".svg") for name in chosen} & published
    assert published == chosen & made | vectors | {name for name in made if name.startswith("viewers/")} | {
        "tables/minutes.csv"}
    for path in (results / "notebooks").glob("*.ipynb"):
        assert str(ROOT) not in path.read_text(encoding="utf-8")
        for cell in nbformat.read(path, as_version=4).cells:
            assert all(output.output_type != "error" for output in cell.get("outputs", []))
    minutes = pd.read_csv(results / "tables" / "minutes.csv").set_index("rule")
    assert (minutes["jobs"]["simulate"], minutes["jobs"]["notebook"]) == (12, len(names))
    assert (minutes["minutes"] > 0).all()


def test_maps_of_chosen_subjects_are_volumes_in_t1w_space(whole):
    volumes = sorted((whole / "run").glob("maps/*/honest/seed1/volumes/*gradcam*.nii.gz"))
    assert len(volumes) == SMOKE.explain.nifti_subjects * len(SMOKE.model.backbones)
    for path in volumes:
        image, told = nib.load(path), json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        anat = whole / "run" / "derivatives" / "mslib" / path.name.split("_")[0] / "anat"
        t1w = nib.load(next(anat.glob("*desc-preproc_T1w.nii.gz")))
        assert image.shape == (*t1w.shape, len(told["Layers"])) and len(told["Layers"]) > 1
        assert np.allclose(image.affine, t1w.affine) and np.isfinite(image.get_fdata()).all()


def test_a_killed_run_keeps_what_was_finished(whole):
    """A kill costs at most the jobs that it interrupts before Snakemake has noted them as whole: one per core."""
    kept = json.loads((whole / "kept.json").read_text())
    assert {"T1w.nii.gz", "desc-slices.npz"} <= {name.rpartition("_")[2] for name in kept}
    again = {name for name, time_kept in kept.items() if os.stat(name).st_mtime_ns != time_kept}
    assert len(kept) > 30 and len({os.path.dirname(name) for name in again}) <= 2 * os.cpu_count(), again


def test_a_resumed_training_gives_what_an_unbroken_one_gives(whole, tmp_path):
    """The network that was in training at a kill, trained once more from its start, in a folder of its own."""
    network = (whole / "resumed.txt").read_text()
    backbone, kind, _ = network.split("/")
    (tmp_path / "nets").mkdir()
    for name in ("subjects.csv", "bids", "derivatives", "nets/cause"):
        (tmp_path / name).symlink_to(whole / "run" / name)
    done = step("train", "--run-dir", tmp_path, "--backbone", backbone, "--kind", kind)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("history.csv", "predictions.csv"):
        unbroken, resumed = (pd.read_csv(folder / "nets" / network / name) for folder in (tmp_path, whole / "run"))
        pd.testing.assert_frame_equal(resumed, unbroken, rtol=1e-4, atol=1e-5)


# What is stale


def test_nothing_changed_nothing_done(whole):
    before = times(path for name in ("run", "results") for path in (whole / name).rglob("*")
                   if path.is_file() and path.name != ".lock")
    status, output = finish(whole)
    assert status == 0 and "Nothing to be done" in output and times(before) == before


def test_results_without_a_run_do_not_pass_for_one_and_on_a_cluster_the_same_is_planned(whole, tmp_path):
    """A fresh clone holds results/ but no run: the whole chain is planned.

    Also with the cluster's profile, whose executor is no part of this installation; without a number of cores.
    """
    shutil.copytree(whole / "results", tmp_path / "results")
    here = planned(tmp_path)
    assert {"start", "simulate", "check", "train", "notebook", "publish"} <= set(here)
    assert {"train", "folds", "truth"} <= set(planned(tmp_path, ["nets"])), "the baseline model needs true volumes"
    assert planned(tmp_path, ["--workflow-profile", "profiles/slurm", "--executor", "local"]) == here


@pytest.fixture(scope="module")
def project(whole, tmp_path_factory):
    """A copy of the project after the run, without shipped weights."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("mslib", "notebooks", "config", "profiles", "Snakefile", ".snakemake"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, copy / name)
    return copy


@pytest.fixture
def changed(whole, project):
    """Plan a run after a change of a setting or of a file of the project."""
    def plan(file, old, new):
        path = project / file
        text, stat = path.read_text(encoding="utf-8"), path.stat()
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        try:
            return planned(whole, root=project)
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return plan


@pytest.mark.parametrize("old,new,made,kept", [
    ("bootstrap: 200", "bootstrap: 199", {"notebook", "publish"},
     {"simulate", "preprocess", "train", "measure_maps", "known_rule", "attribute", "relevance_shares", "fold"}),
    ("honest: {epochs: 2", "honest: {epochs: 3", {"train", "measure_maps", "attribute"},
     {"preprocess", "fold", "known_rule"}),
    ("folds: 3", "folds: 4", {"folds", "notebook"}, {"train", "preprocess", "measure_maps", "fold"}),
    ("samples: 24", "samples: 25", {"attribute", "known_rule"}, {"train", "measure_maps", "relevance_shares", "fold"}),
    ("slices_per_subject: 3, compared", "slices_per_subject: 2, compared", {"relevance_shares"},
     {"train", "attribute", "measure_maps", "known_rule"}),
    ("passes: 1", "passes: 2", {"fold"}, {"train", "preprocess", "nights", "measure_maps"})])
def test_a_setting_makes_anew_what_reads_it(changed, old, new, made, kept):
    """A number of the bootstrap, for instance, measures and no network."""
    found = set(changed("config/smoke.yaml", old, new))
    assert made <= found and not kept & found


def test_code_and_captions_make_anew_what_runs_them(changed):
    """A caption one notebook, and the summary that gathers all; the simulator also the step that runs the same code."""
    found = changed("notebooks/00_cohort.ipynb", "One dot each", "One point each")
    assert found == {"notebook": 2, "publish": 1}
    found = set(changed("mslib/sleep/staging.py", "import keras\n", "import keras\n\nSPARE = 1\n"))
    assert {"fold"} <= found and not found & {"train", "preprocess", "measure_maps"}
    found = changed("mslib/cohort/lesions.py", "import numpy as np\n", "import numpy as np\n\nSPARE = 1\n")
    assert found["simulate"] == 12 and {"start", "check"} <= set(found) and "template" not in found


def test_a_cut_output_is_made_again(whole):
    path = whole / "run" / "cohort" / "truth.csv"
    kept = path.read_bytes()
    path.write_bytes(kept[:200])
    assert not planned(whole, ["cohort"]) and path.read_bytes() == kept[:200], "a dry run touches nothing"
    status, output = finish(whole, more=["cohort"])
    assert status == 0 and f"{path}: was changed after it was made; made again" in output
    assert path.read_bytes() == kept


def test_another_subject_touches_no_other_and_a_corrected_group_trains_every_network(whole, tmp_path):
    """The simulated subjects as a user's own BIDS cohort, and a study of it: what was made of them is taken over."""
    for name in ("bids", "run/derivatives", "run/cohort", "run/nets"):
        shutil.copytree(whole / "run" / name.removeprefix("run/"), tmp_path / name)
    for path in [*(whole / "run").glob("template_*.npz"), *(whole / "run" / name for name in COHORT_FILES)]:
        shutil.copy2(path, tmp_path / "run")
    own = settings_of(tmp_path, study="own", cohort={"source": "bids", "root": str(tmp_path / "bids")}, sleep=None)
    study = f"file={own}"
    status, output = finish(tmp_path, study=study, more=["cohort", "nets", "--touch"])
    assert status == 0, output[-4000:]
    assert not planned(tmp_path, ["cohort", "nets"], study=study)
    stacks = times((tmp_path / "run").glob("derivatives/mslib/sub-*/anat/*"))
    # Two subjects change their groups.
    table = tmp_path / "bids" / "participants.tsv"
    frame = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    pair = [frame.index[frame["group"] == group][0] for group in ("RRMS", "SPMS")]
    frame.loc[pair, "group"] = ["SPMS", "RRMS"]
    frame.to_csv(table, sep="\t", index=False)
    status, output = finish(tmp_path, study=study, more=["cohort"])
    assert status == 0, output[-4000:]
    assert times(stacks) == stacks
    found = planned(tmp_path, ["nets", "maps"], study=study)
    assert found["train"] == 2 * len(SMOKE.model.backbones) and "measure_maps" in found
    assert not {"preprocess", "cause_cohort"} & set(found)
    # One more subject.
    for path in [*(tmp_path / "bids").glob("**/sub-001*")]:
        if path.is_dir():
            shutil.copytree(path, path.with_name("sub-099"))
    for path in (tmp_path / "bids").glob("**/sub-099/anat/sub-001*"):
        path.rename(path.with_name(path.name.replace("sub-001", "sub-099")))
    rows = table.read_text(encoding="utf-8")
    first = next(line for line in rows.splitlines() if line.startswith("sub-001"))
    table.write_text(rows + first.replace("sub-001", "sub-099") + "\n", encoding="utf-8")
    status, output = finish(tmp_path, study=study, more=["cohort"])
    assert status == 0, output[-4000:]
    assert times(stacks) == stacks and any((tmp_path / "run").glob("derivatives/mslib/sub-099/anat/*_desc-qc.json"))


def test_a_notebook_alone_makes_what_it_needs(whole, tmp_path):
    """As by *Run All*, where subjects are preprocessed: Snakemake makes the cohort's tables, and nothing else."""
    for name in ("bids", "derivatives"):
        shutil.copytree(whole / "run" / name, tmp_path / "run" / name)
    for path in [*(whole / "run").glob("template_*.npz"), whole / "run" / "cohort.json"]:
        shutil.copy2(path, tmp_path / "run")
    before = times((tmp_path / "run").rglob("*.n*"))
    done = called(["papermill", "--cwd", "notebooks", "notebooks/00_cohort.ipynb", tmp_path / "00.ipynb",
                   "-r", "config", ROOT / "config" / "smoke.yaml", "-r", "run_dir", tmp_path / "run"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run" / "metrics" / "00_cohort.json").is_file() and times(before) == before
    assert not any((tmp_path / "run" / name).exists() for name in ("nets", "maps", "sleep"))


# A full disk


def told_of_a_full_disk(done, begin):
    """In one line, whatever else was said."""
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.startswith(f"{begin}") and "cannot be written (" in done.stderr


def test_full_disk_while_simulating(whole, tmp_path):
    template = whole / "run" / f"template_{SMOKE.cohort.simulated.voxel_mm:g}mm.npz"
    shutil.copy2(template, tmp_path)
    assert told_of_a_full_disk(step("simulate", "--run-dir", tmp_path, "--subject", "001", limit=4000), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]
    assert (tmp_path / template.name).read_bytes() == template.read_bytes()


def test_full_disk_while_writing_nights(tmp_path):
    assert told_of_a_full_disk(step("nights", "--run-dir", tmp_path, limit=20_000), tmp_path / "sleep" / "nights")
    assert not (tmp_path / "sleep" / "nights.json").exists()


def test_full_disk_while_preprocessing_excludes_nobody(whole, tmp_path):
    """Even where a study goes on without faulty subjects: the disk is no fault of a subject."""
    simulated = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8"))["cohort"]["simulated"]
    config = settings_of(tmp_path, cohort={"on_fault": "skip", "simulated": simulated})
    shutil.copytree(whole / "run" / "bids", tmp_path / "run" / "bids")
    shutil.copyfile(whole / "run" / "cohort.json", tmp_path / "run" / "cohort.json")
    done = step("preprocess", "--run-dir", tmp_path / "run", "--subject", "002", limit=12_000, config=config)
    assert told_of_a_full_disk(done, "sub-002: ")
    assert not any((tmp_path / "run").glob("derivatives/mslib/sub-002/anat/*_desc-qc.json"))


def test_full_disk_while_publishing_leaves_the_old_results(whole):
    before = contents(whole / "results")
    done = step("publish", "--run-dir", whole / "run", "--results", whole / "results", limit=2000)
    assert told_of_a_full_disk(done, whole)
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
        assert status != 0 and "another snakemake is running this study" in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


@pytest.mark.parametrize("options,line", [
    ({"run": "file/run"}, "file/run: cannot be written"),
    ({"results": "file"}, "file: cannot be written (Not a directory)"),
    ({"results": "."}, "holds files that no study has published"),
    ({"study": "study=nowhere"}, "config/nowhere.yaml: cannot be read"),
    ({"study": "studdy=smoke"}, "--config: must be of file, results, run_dir, study (got studdy)"),
    ({"study": "study=open_ms"}, "vgg16_simulated.h5: is absent; shipped weights lie in the folder weights")])
def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, project, options, line):
    (tmp_path / "file").write_text("not a folder")
    done = called(command(tmp_path, **options), project)
    assert done.returncode != 0 and line in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_fault_of_a_step_is_the_last_line_of_a_run(tmp_path):
    """Below what Snakemake says of the failed job; here of a file that holds no weights, and of one that is nowhere."""
    weights = tmp_path / "vgg_notop.h5"
    own = settings_of(tmp_path, study="own", model={"weights": str(weights)})
    for told in ("model.weights, comparison.weights: must be ", f"{weights}: is not an HDF5 weight file"):
        status, output = finish(tmp_path, study=f"file={own}", more=[f"{tmp_path}/run/bids/participants.tsv"])
        assert status != 0 and "Traceback" not in output
        last = output.splitlines()[-1]
        assert last.startswith(told) and str(weights) in last
        assert not (tmp_path / "run" / "bids").exists()
        weights.write_text("no weights")
