"""The official BIDS validator finds no error in what is written: simulated dataset, truth, masks, derivatives.

Warnings are of recommended sidecar keys that mean nothing for simulated scans (scanner, institution), of authors, and
of short README files.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mslib.cohort import Cohort, draw_participants, simulate_subject, write_dataset
from mslib.prep import describe_derivatives, preprocess_subject
from mslib.study.config import Prep

PROGRAM = Path(sys.executable).parent / "bids-validator-deno"
EXPECTED = {"SIDECAR_KEY_RECOMMENDED", "JSON_KEY_RECOMMENDED", "TOO_FEW_AUTHORS", "NO_AUTHORS", "README_FILE_SMALL"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A coarse simulated person, preprocessed."""
    folder = tmp_path_factory.mktemp("valid")
    people = draw_participants({"RRMS": 1}, 1)
    simulate_subject(people[0], write_dataset(people, folder / "bids"), 8.0)
    out = folder / "derivatives" / "mslib"
    describe_derivatives(out, folder / "bids")
    preprocess_subject(*Cohort.from_bids(folder / "bids"), out, Prep(), image_size=(32, 32), pixel_mm=8.0)
    return folder


def issues(place):
    done = subprocess.run([PROGRAM, str(place), "--json"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["issues"]["issues"]


@pytest.mark.parametrize("place", ["bids", "bids/derivatives/truth", "bids/derivatives/brainmask",
                                   "derivatives/mslib"])
def test_no_error(folder, place):
    found = issues(folder / place)
    assert [(one["code"], one.get("location")) for one in found if one["severity"] == "error"] == []
    assert {one["code"] for one in found} <= EXPECTED


def test_the_validator_sees_errors(folder, tmp_path):
    """A name that BIDS does not know, and a key that is missing."""
    shutil.copytree(folder / "derivatives" / "mslib", tmp_path / "d")
    (tmp_path / "d" / "notes.xlsx").write_text("x")
    next((tmp_path / "d").glob("sub-*/anat/*_mask.json")).write_text("{}")
    codes = {one["code"] for one in issues(tmp_path / "d") if one["severity"] == "error"}
    assert codes == {"NOT_INCLUDED", "SIDECAR_KEY_REQUIRED"}


def test_derivatives_say_where_they_come_from(folder):
    out = folder / "derivatives" / "mslib"
    facts = json.loads((out / "dataset_description.json").read_text())
    assert facts["DatasetLinks"] == {"raw": "../../bids"} and facts["GeneratedBy"][0]["Version"]
    image, raw = json.loads(next(out.glob("sub-*/anat/*preproc_T2w.json")).read_text()), "bids:raw:sub-001/anat/sub-001"
    assert image["Sources"] == [f"{raw}_T2w.nii.gz", f"{raw}_T1w.nii.gz"] and image["SkullStripped"] is True
