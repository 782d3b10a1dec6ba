"""What is tried on copies of the finished small study: it only reads it."""

import shutil

import pandas as pd
import pytest
import yaml
from repository import ROOT
from small_study import COHORT_FILES, SMOKE, called, finish, planned, settings_of, step, times, told_of_a_full_disk

pytestmark = pytest.mark.study


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
