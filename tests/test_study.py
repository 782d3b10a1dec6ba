"""The small study as a person runs it, killed three times on its way, and all that can go wrong with it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from repository import ROOT
from small_study import SMOKE, called, command, contents, finish, planned, start, step, times, told_of_a_full_disk

from mslib.publish import PUBLISHED

pytestmark = pytest.mark.study


# What a run leaves


def test_what_readers_need_is_published(whole):
    """Notebooks without errors and machine paths, the chosen figures, tables and viewers of them, minutes by rule."""
    results, names = whole / "results", SMOKE.run_notebooks
    for end in ("ipynb", "html"):
        assert {path.stem for path in (results / "notebooks").glob(f"*.{end}")} == set(names)
    made, published = ({path.relative_to(place).as_posix() for name in ("figures", "tables", "viewers")
                        for path in place.glob(f"{name}/*")} for place in (whole / "run", results))
    figures = {name for one in names for name in PUBLISHED[one][0]}
    assert figures - {Path(name).stem for name in made} <= {"figure4_layers"}  # of VGG19
    chosen = {name for name in made if name.startswith("figures/") and Path(name).stem in figures
              and not name.endswith(".jpg")} | {
        f"tables/{name}.csv" for one in names for name in PUBLISHED[one][1]}
    assert "figures/figure1_examples.jpg" in made, "for print, in the run alone"
    assert {"figures/figure1_examples.png", "figures/depth_curves.svg", "figures/depth_curves.png"} <= published
    assert published == chosen & made | {name for name in made if name.startswith("viewers/")} | {
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


# A full disk


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


