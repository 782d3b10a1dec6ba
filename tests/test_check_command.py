"""Faults of a cohort (all are in test_bids) told by the command of a run: message, exit status, going on without."""

import json
import shutil

import numpy as np
import test_bids as bids
import yaml

from mslib.__main__ import main

#: Three per group are needed, and one may fail.
PEOPLE = {f"sub-{number:03d}": ["control", "RRMS"][number % 2] for number in range(8)}


def test_faults_stop_a_run_or_are_left_out_if_asked_to_and_too_few_stop_it_in_any_case(tmp_path, capsys):
    root = bids.write_cohort(tmp_path / "bids", PEOPLE)

    def check(on_fault):
        """Exit status, lines told, listing of the run."""
        config = {"study": "own", "groups": ["control", "RRMS"],
                  "cohort": {"source": "bids", "root": str(root), "on_fault": on_fault}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        run = tmp_path / "run"
        status = main(["check_cohort", "--config", str(tmp_path / "own.yaml"), "--run-dir", str(run)])
        told = [line for line in capsys.readouterr().err.splitlines() if "check images" not in line and line.strip()]
        listing = json.loads((run / "cohort.json").read_text()) if run.exists() else None
        shutil.rmtree(run, ignore_errors=True)
        return status, told, listing

    status, told, listing = check("stop")
    assert (status, told, listing["faults"]) == (0, [], [])
    assert [f"sub-{person['id']}" for person in listing["subjects"]] == list(PEOPLE)
    flair, t2w = "sub-000/anat/sub-000_FLAIR.nii.gz", "sub-001/anat/sub-001_T2w.nii.gz"
    bids.voxel(np.nan)(root / flair)
    (root / t2w).unlink()
    bids.write_table(root, [*PEOPLE.items(), ("../../etc", "RRMS")])
    status, told, listing = check("stop")
    assert status == 1 and listing is None and all("; allowed: " in line for line in told)
    expected = ["../../etc: participants.tsv: is no valid participant_id", f"sub-000: {flair}: has 1 NaN or infinite",
                "sub-001: sub-001/anat: has no T2w image"]
    assert len(told) == 3 and all(sum(line.startswith(one) for line in told) == 1 for one in expected)
    status, nothing, listing = check("skip")
    assert (status, nothing, listing["faults"]) == (0, [], told)
    assert [f"sub-{person['id']}" for person in listing["subjects"]] == list(PEOPLE)[2:]
    for label in ("sub-000", "sub-002"):
        shutil.rmtree(root / label)
    bids.write_table(root, [row for row in PEOPLE.items() if row[0] not in ("sub-000", "sub-002")])
    shutil.copy(root / t2w.replace("T2w", "T1w"), root / t2w)
    for on_fault in ("stop", "skip"):
        assert check(on_fault) == (1, ["group: participants.tsv: group 'control' has 2 usable subjects; "
                                       "allowed: at least 3, for the split"], None)
