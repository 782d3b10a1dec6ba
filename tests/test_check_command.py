"""Every fault that a cohort can have, told by the command that a run calls: message, exit status, going on without."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import test_bids as bids
import yaml
from repository import ROOT

from mslib.__main__ import main

#: Three per group are needed, and one may fail.
PEOPLE = {f"sub-{number:03d}": ["control", "RRMS"][number % 2] for number in range(8)}
FLAIR = "sub-000/anat/sub-000_FLAIR.nii.gz"


def without_flair(root):
    (root / FLAIR).unlink()


def twice(root):
    shutil.copy(root / FLAIR, root / "sub-000/anat/sub-000_run-2_FLAIR.nii.gz")


def other_class(root):
    bids.write_table(root, (PEOPLE | {"sub-000": "CIS"}).items())


def two_sessions(root):
    shutil.copytree(root / "sub-000/anat", root / "sub-000/ses-2/anat")


def escaping_id(root):
    bids.write_table(root, [*PEOPLE.items(), ("../../etc", "RRMS")])


def no_folder(root):
    shutil.rmtree(root / "sub-000")


def image(change):
    return lambda root: change(root / FLAIR)


FAULTS = {  # what is done to the cohort, how the line begins
    "missing sequence": (without_flair, "sub-000: sub-000/anat: has no FLAIR image"),
    "duplicate": (twice, "sub-000: sub-000/anat: has 2 FLAIR images"),
    "unknown group": (other_class, "sub-000: participants.tsv: has group 'CIS'; allowed: control, RRMS"),
    "mixed sessions": (two_sessions, "sub-000: sub-000: has images in 2 sessions (none, ses-2)"),
    "path in an id": (escaping_id, "../../etc: participants.tsv: is no valid participant_id"),
    "row without folder": (no_folder, "sub-000: participants.tsv: has a row but no folder"),
    "unreadable": (image(lambda path: path.write_bytes(gzip.compress(b"no image" * 99))),
                   f"sub-000: {FLAIR}: is not NIfTI"),
    "truncated": (image(bids.truncated_gzip), f"sub-000: {FLAIR}: is truncated"),
    "truncated voxels": (image(bids.short_voxels), f"sub-000: {FLAIR}: is truncated (1948 of 2048 bytes of voxels)"),
    "4-D": (image(bids.save(shape=(8, 8, 8, 2))), f"sub-000: {FLAIR}: is 4-D with shape (8, 8, 8, 2)"),
    "NaN": (image(bids.voxel(np.nan)), f"sub-000: {FLAIR}: has 1 NaN or infinite voxels"),
    "zero variance": (image(bids.save(data=np.full((8, 8, 8), 7, np.int16))), f"sub-000: {FLAIR}: has zero variance"),
    "no form": (image(bids.save(qcode=0, scode=0)), f"sub-000: {FLAIR}: has neither qform nor sform"),
    "broken form": (image(bids.header(srow_y=np.nan)), f"sub-000: {FLAIR}: has a broken sform"),
    "conflicting forms": (image(bids.header(qoffset_x=9)), f"sub-000: {FLAIR}: has a qform and an sform"),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("healthy") / "bids"
    for label in PEOPLE:
        (root / label / "anat").mkdir(parents=True)
        for sequence in bids.SEQUENCES:
            nib.save(bids.image(), root / label / "anat" / f"{label}_{sequence}.nii.gz")
    bids.write_table(root, PEOPLE.items())
    return root


@pytest.fixture
def check(healthy, tmp_path, capsys):
    """The command on a cohort that was changed: exit status, lines told, listing of the run."""
    root = shutil.copytree(healthy, tmp_path / "bids")

    def run(change, on_fault):
        change(root)
        config = {"study": "own", "groups": ["control", "RRMS"],
                  "cohort": {"source": "bids", "root": str(root), "on_fault": on_fault}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        capsys.readouterr()
        status = main(["check", "--config", str(tmp_path / "own.yaml"), "--run-dir", str(tmp_path / "run")])
        told = [line for line in capsys.readouterr().err.splitlines() if "check images" not in line and line.strip()]
        listing = tmp_path / "run" / "cohort.json"
        return status, told, json.loads(listing.read_text(encoding="utf-8")) if listing.exists() else None

    return run


def test_a_healthy_cohort_passes(check):
    status, told, listing = check(lambda root: None, "stop")
    assert (status, told, listing["faults"]) == (0, [], [])
    assert [person["id"] for person in listing["subjects"]] == [label.removeprefix("sub-") for label in PEOPLE]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_the_run_with_one_line(check, fault):
    change, line = FAULTS[fault]
    status, told, listing = check(change, "stop")
    assert status == 1 and listing is None
    assert len(told) == 1 and told[0].startswith(line) and "; allowed: " in told[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_goes_on_without_the_faulty_subject_if_asked_to(check, fault):
    change, line = FAULTS[fault]
    status, told, listing = check(change, "skip")
    assert (status, told) == (0, [])
    assert len(listing["faults"]) == 1 and listing["faults"][0].startswith(line)
    left = [person["id"] for person in listing["subjects"]]
    assert left == [f"{number:03d}" for number in range(0 if fault == "path in an id" else 1, 8)]


@pytest.mark.parametrize("on_fault", ["stop", "skip"])
def test_too_few_subjects_stop_the_run_in_any_case(check, on_fault):
    def six_left(root):
        for label in ("sub-000", "sub-002"):
            shutil.rmtree(root / label)
        bids.write_table(root, [row for row in PEOPLE.items() if row[0] not in ("sub-000", "sub-002")])

    status, told, listing = check(six_left, on_fault)
    assert status == 1 and listing is None
    assert told == ["group: participants.tsv: group 'control' has 2 usable subjects; "
                    "allowed: at least 3, for the split"]


def test_all_faults_are_told_together(check):
    changes = [FAULTS[name] for name in ("unknown group", "NaN")]

    def both(root):
        for change, _ in changes:
            change(root)
        (root / "sub-001/anat/sub-001_T2w.nii.gz").unlink()

    status, told, _ = check(both, "stop")
    assert status == 1 and len(told) == 3
    for line in [*(line for _, line in changes), "sub-001: sub-001/anat: has no T2w image"]:
        assert sum(one.startswith(line) for one in told) == 1


def test_a_root_that_is_not_there(check):
    status, told, listing = check(shutil.rmtree, "stop")
    assert status == 1 and listing is None
    assert len(told) == 1 and told[0].endswith("bids: No such file or directory; allowed: a readable BIDS folder")


def test_adapters_are_told_how_to_go_on():
    text = (ROOT / "docs" / "your-cohort.md").read_text(encoding="utf-8")
    assert "on_fault: skip" in text
