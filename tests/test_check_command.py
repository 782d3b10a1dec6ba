"""Faults of a cohort (all are in test_bids) told by the command of a run: message, exit status, going on without."""

import json
import shutil

import numpy as np
import pytest
import test_bids as bids
import yaml

from mslib.__main__ import main

#: Three per group are needed, and one may fail.
PEOPLE = {f"sub-{number:03d}": ["control", "RRMS"][number % 2] for number in range(8)}
FLAIR = "sub-000/anat/sub-000_FLAIR.nii.gz"
FAULTS = {  # what is done to the cohort, how the line begins
    "missing sequence": (lambda root: (root / FLAIR).unlink(), "sub-000: sub-000/anat: has no FLAIR image"),
    "path in an id": (lambda root: bids.write_table(root, [*PEOPLE.items(), ("../../etc", "RRMS")]),
                      "../../etc: participants.tsv: is no valid participant_id"),
    "truncated": (lambda root: bids.truncated_gzip(root / FLAIR), f"sub-000: {FLAIR}: is truncated"),
    "NaN": (lambda root: bids.voxel(np.nan)(root / FLAIR), f"sub-000: {FLAIR}: has 1 NaN or infinite voxels"),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return bids.write_cohort(tmp_path_factory.mktemp("healthy") / "bids", PEOPLE)


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
        status = main(["check_cohort", "--config", str(tmp_path / "own.yaml"), "--run-dir", str(tmp_path / "run")])
        told = [line for line in capsys.readouterr().err.splitlines() if "check images" not in line and line.strip()]
        listing = tmp_path / "run" / "cohort.json"
        return status, told, json.loads(listing.read_text(encoding="utf-8")) if listing.exists() else None

    return run


def test_a_healthy_cohort_passes(check):
    status, told, listing = check(lambda root: None, "stop")
    assert (status, told, listing["faults"]) == (0, [], [])
    assert [person["id"] for person in listing["subjects"]] == [label.removeprefix("sub-") for label in PEOPLE]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_goes_on_without_the_faulty_subject_if_asked_to(check, fault):
    change, line = FAULTS[fault]
    status, told, listing = check(change, "skip")
    assert (status, told) == (0, [])
    assert len(listing["faults"]) == 1 and listing["faults"][0].startswith(line)
    left = [person["id"] for person in listing["subjects"]]
    assert left == [f"{number:03d}" for number in range(0 if fault == "path in an id" else 1, 8)]


def test_faults_stop_the_run_with_a_line_each(check):
    changes = [FAULTS[name] for name in ("path in an id", "NaN")]

    def both(root):
        for change, _ in changes:
            change(root)
        (root / "sub-001/anat/sub-001_T2w.nii.gz").unlink()

    status, told, listing = check(both, "stop")
    assert status == 1 and listing is None and len(told) == 3 and all("; allowed: " in line for line in told)
    for line in [*(line for _, line in changes), "sub-001: sub-001/anat: has no T2w image"]:
        assert sum(one.startswith(line) for one in told) == 1


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


def test_a_root_that_is_not_there(check):
    status, told, listing = check(shutil.rmtree, "stop")
    assert status == 1 and listing is None
    assert len(told) == 1 and told[0].endswith("bids: No such file or directory; allowed: a readable BIDS folder")
