"""Open cohorts by their recipes, on tiny look-alike data: conversion, faults, resuming, sites that tell the groups."""

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pooch
import pytest
import test_bids as bids
from shared_cases import files_of, refused
from test_app import project  # noqa: F401
from test_bids_validator import issues

from mslib.__main__ import main
from mslib.analysis.site import acquisition, site_only
from mslib.cohort import Cohort, open_cohorts
from mslib.cohort.survey import confounded
from mslib.study import StudyError, load_config

CLINICAL = """Patient;Timepoint;Age;Sex;MS Type;EDSS;Lesion Number;Lesion Volume;
P1;T1;28,09;F;SMRR;3,5;;20674.0;18
P1;T2;28,51;F;SMRR;2;;17877.0;18
P2;T1;31,16;M;SMRR;0;;2261.0;16
P3;T1;52;F;SMSP;4;;4114.0;22
P4;T1;40;M;;;;;
P54;T1;18;M;SMRR;1;;1332.0;5
"""


def save(path, seed, mm=(10.0, 10, 10), kind="image"):
    """An image of 12 voxels a side (two sites differ in noise and in zeros), or a mask."""
    rng = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    if kind == "mask":
        data = (rng.random((12, 12, 12)) > 0.9).astype(np.uint8) * 255
    else:
        data = np.add.outer(np.add.outer(np.arange(12), np.arange(12)), np.arange(12)) * 10
        data = (data + rng.integers(1, 60 if kind == "noisy" else 5, data.shape)).astype(np.int16)
        if kind == "stripped":
            data[:3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(bids.image(data=data, affine=np.diag([*mm, 1])), path)


def msleseg(root):
    """Four people of the training part, one with two time points; one of the flat test part."""
    for place in ("train/P1/T1/P1_T1", "train/P1/T2/P1_T2", "train/P2/T1/P2_T1", "train/P3/T1/P3_T1",
                  "train/P4/T1/P4_T1", "test/P54/P54"):
        for name in ("T1", "T2", "FLAIR", "MASK"):
            save(root / f"MSLesSeg Dataset/{place}_{name}.nii.gz", (place, name),
                 kind="mask" if name == "MASK" else "stripped")
    (root / "MSLesSeg Dataset/info_dataset").mkdir()
    (root / "MSLesSeg Dataset/info_dataset/clinical_data.csv").write_text(CLINICAL)
    (root / "__MACOSX/train/P1/T1").mkdir(parents=True)
    (root / "__MACOSX/train/P1/T1/._P1_T1_T1.nii.gz").write_bytes(b"of an archive")
    return root


def ms3seg(root):
    for number in ("001", "002", "100"):
        for name in ("FLAIR", "T1WI_reg", "T2WI_reg", "FLAIR_brain"):
            save(root / f"MS_100_patient_preprocessed/{number}/{number}_{name}.nii.gz", (number, name), (9, 9, 12))
        for name in ("abWMH", "nWMH", "Vent"):
            save(root / f"MS_100_patient_masks/{name}_Masks/{number}/{number}_{name}_Mask.nii.gz", (number, name),
                 (9, 9, 12), "mask")
    return root


def leipzig(root):
    """Two kinds of FLAIR; a second session, maps and derivatives, which are not taken."""
    for number in range(1, 6):
        stem = f"sub-01000{number}/ses-01/anat/sub-01000{number}_ses-01"
        for name in ("acq-mp2rage_T1w", "acq-mp2rage_T1map", "T2w", f"acq-{'low' if number % 2 else 'high'}res_FLAIR"):
            save(root / f"{stem}_{name}.nii.gz", (stem, name), kind="noisy")
        (root / f"{stem}_T2w.json").write_text('{"EchoTime": 0.4, "Manufacturer": "Siemens"}')
        shutil.copytree(root / stem.split("/")[0], root / "derivatives" / stem.split("/")[0])
        save(root / f"{stem.replace('ses-01', 'ses-02')}_acq-mp2rage_T1w.nii.gz", (stem, "second"))
    bids.write_table(root, [("sub-010001", "M", "20-25"), ("sub-010002", "F", "65-70"), ("sub-010003", "n/a", "n/a")],
                     ("participant_id", "gender", "age (5-year bins)"))
    return root


MAKERS = {"msleseg": msleseg, "ms3seg": ms3seg, "ds000221": leipzig}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look alikes")
    return {name: make(folder / name) for name, make in MAKERS.items()}


@pytest.fixture
def source(originals, tmp_path):
    """A copy that a test may damage."""
    return lambda name: shutil.copytree(originals[name], tmp_path / name)


def table(root):
    return pd.read_csv(root / "participants.tsv", sep="\t", dtype=str, keep_default_na=False).set_index(
        "participant_id")


def times(root):
    return {name: path.stat().st_mtime_ns for name, path in files_of(root).items() if "sub-" in name}


def same(one, other):
    return one.read_bytes() == other.read_bytes()


def test_msleseg(originals, tmp_path):
    done = open_cohorts.convert("msleseg", originals["msleseg"], tmp_path / "bids")
    root, data = tmp_path / "bids", originals["msleseg"] / "MSLesSeg Dataset"
    assert sorted(done.subjects) == [f"MSLesSegP{one}" for one in ("1", "2", "3", "4", "54")] and not done.incomplete
    people = table(root)
    assert people["group"].to_dict() == {"sub-MSLesSegP1": "RRMS", "sub-MSLesSegP2": "RRMS", "sub-MSLesSegP3": "SPMS",
                                         "sub-MSLesSegP4": "MS", "sub-MSLesSegP54": "RRMS"}
    assert list(people.loc["sub-MSLesSegP1", ["age", "sex", "edss", "site"]]) == ["28.09", "F", "3.5", "MSLesSeg"]
    for session, point in (("01", "T1"), ("02", "T2")):
        for name, bids_name in (("T1", "T1w"), ("T2", "T2w"), ("FLAIR", "FLAIR")):
            made = root / f"sub-MSLesSegP1/ses-{session}/anat/sub-MSLesSegP1_ses-{session}_{bids_name}.nii.gz"
            assert same(made, data / f"train/P1/{point}/P1_{point}_{name}.nii.gz")
    mask = "derivatives/truth/sub-MSLesSegP54/ses-01/anat/sub-MSLesSegP54_ses-01_space-T1w_label-lesion_mask.nii.gz"
    assert same(root / mask, data / "test/P54/P54_MASK.nii.gz")
    cohort = Cohort.from_bids(root, session="1")
    assert len(cohort) == 5 and all(one.lesion_mask and one.site == "MSLesSeg" for one in cohort)
    store = pooch.create(path=tmp_path, base_url="", registry=None)
    store.load_registry(root / "sourcedata/registry_msleseg.txt")
    place = "train/P1/T2/P1_T2_MASK.nii.gz"
    assert len(store.registry) == 24
    assert store.registry[place] == hashlib.sha256((data / place).read_bytes()).hexdigest()


def test_ms3seg(originals, tmp_path):
    root = tmp_path / "bids"
    open_cohorts.convert("ms3seg", originals["ms3seg"], root)
    first = next(iter(Cohort.from_bids(root)))
    assert (first.id, first.group, first.age, first.site) == ("MS3SEG001", "MS", None, "MS3SEG")
    data = originals["ms3seg"] / "MS_100_patient_preprocessed/001"
    assert same(first.images["T1w"], data / "001_T1WI_reg.nii.gz")
    assert same(first.images["FLAIR"], data / "001_FLAIR.nii.gz")
    for label, name in (("lesion", "abWMH"), ("normalhyperintensity", "nWMH"), ("ventricle", "Vent")):
        made = first.lesion_mask.with_name(f"sub-MS3SEG001_ses-01_space-T1w_label-{label}_mask.nii.gz")
        assert same(made, originals["ms3seg"] / f"MS_100_patient_masks/{name}_Masks/001/001_{name}_Mask.nii.gz")


def test_ds000221(originals, tmp_path):
    root = tmp_path / "bids"
    open_cohorts.convert("ds000221", originals["ds000221"], root)
    people = table(root)
    assert set(people["group"]) == {"control"} and len(people) == 5
    assert list(people.loc["sub-Leipzig010002", ["age", "sex"]]) == ["67.5", "F"]
    assert list(people.loc["sub-Leipzig010003", ["age", "sex"]]) == ["n/a", "n/a"]
    assert list(people.loc["sub-Leipzig010005", ["age", "sex"]]) == ["n/a", "n/a"]  # no row
    cohort = Cohort.from_bids(root)
    assert len(cohort) == 5 and all(one.lesion_mask is None for one in cohort)
    facts = json.loads((root / "sub-Leipzig010001/ses-01/anat/sub-Leipzig010001_ses-01_T2w.json").read_text())
    assert facts["EchoTime"] == 0.4 and facts["License"] == "CC0"
    assert not (root / "derivatives").exists()


@pytest.fixture(scope="module")
def joined(originals, tmp_path_factory):
    root = tmp_path_factory.mktemp("joined") / "bids"
    for name, folder in originals.items():
        assert main(["convert", name, str(folder), str(root)]) == 0
    return root


def test_cohorts_become_sites_of_one_dataset(joined, originals):
    assert table(joined)["site"].value_counts().to_dict() == {"MSLesSeg": 5, "Leipzig": 5, "MS3SEG": 3}
    facts = json.loads((joined / "dataset_description.json").read_text())
    assert [one["URL"] for one in facts["SourceDatasets"]] == [one.source for one in open_cohorts.RECIPES.values()]
    assert "CC0 (Leipzig)" in facts["License"] and "not on the originals" in (joined / "README").read_text()
    before = times(joined)
    for name in reversed(originals):
        open_cohorts.convert(name, originals[name], joined)
    assert times(joined) == before and len(table(joined)) == 13
    assert [one for one in issues(joined) if one["severity"] == "error"] == []


def test_init_and_check_work_on_it(joined, project, capsys):  # noqa: F811
    assert main(["init", str(joined), "--name", "open"]) == 0
    config = load_config(project / "config" / "open.yaml")
    assert config.group_values == {"control": ["control"], "MS": ["MS"], "RRMS": ["RRMS"]}
    assert config.cohort.session == "01" and config.cohort.group_column == "group"
    capsys.readouterr()
    assert main(["check", str(joined), "--config", str(project / "config" / "open.yaml")]) == 0
    told = capsys.readouterr().out
    assert ("cohort: site tells controls from patients (Leipzig: control, MS3SEG: MS, MSLesSeg: MS and RRMS); a "
            "network can learn it instead of disease") in told
    line, = (line for line in told.splitlines() if line.startswith("site-only classifier: control or patient: "))
    assert float(line.split("accuracy ")[1].split()[0]) > 0.9 and "chance 0.58, 12 people" in line
    assert "site-only classifier: site: accuracy" in told


def test_sites_that_share_the_groups_are_no_suspicion():
    def lines(*pairs):
        return confounded(pd.DataFrame([{"group": group, "age": None, "site": site} for group, site in pairs]))

    assert lines(("control", "A"), ("RRMS", "A"), ("control", "B"), ("SPMS", "B")) == []
    assert len(lines(("control", "A"), ("RRMS", "B"), ("SPMS", "B"))) == 1
    assert lines(("control", None), ("RRMS", None)) == lines() == []


def test_the_classifier_is_at_chance_where_sites_are_alike():
    rng = np.random.default_rng(0)

    def people(kinds):
        return [acquisition({"T1w": bids.image(data=rng.normal(100, 10 if kind == "A" else 12, (12, 12, 12)).astype(
            np.float32))}) for kind in kinds]

    sites = ["A", "B"] * 20
    alike, unlike = [site_only(people("A" * 40), sites) for _ in range(6)], site_only(people(sites), sites)
    assert np.mean([one["value"] for one in alike]) == pytest.approx(0.5, abs=0.1)
    assert (alike[0]["chance"], alike[0]["people"]) == (0.5, 40) and unlike["low"] > 0.8
    assert site_only(people("AAAABB"), list("AAAABB")) is None  # two people are too few


def outside(path):
    shutil.move(path, path.parents[6] / "elsewhere.nii.gz")
    path.symlink_to(path.parents[6] / "elsewhere.nii.gz")


@pytest.mark.parametrize("name,change,line", [
    ("T2", Path.unlink, "has no T2w files (train/P1/T1/P1_T1_FLAIR.nii.gz, "),
    ("T1", bids.truncated_gzip, "train/P1/T1/P1_T1_T1.nii.gz: is truncated (the compressed data ends early); "),
    ("MASK", lambda path: save(path, 1, (5, 5, 5), "mask"),
     "train/P1/T1/P1_T1_MASK.nii.gz: has another grid than the T1w image"),
    ("FLAIR", outside, "train/P1/T1/P1_T1_FLAIR.nii.gz: links outside the source; allowed: files inside it"),
    ("FLAIR", lambda path: (path.unlink(), path.symlink_to("nowhere.nii.gz")),
     "train/P1/T1/P1_T1_FLAIR.nii.gz: is a link to nothing; allowed: a file (fetch the data first)"),
])
def test_a_faulty_scan_is_told_and_the_others_go_on(source, tmp_path, capsys, name, change, line):
    data = source("msleseg")
    change(data / f"MSLesSeg Dataset/train/P1/T1/P1_T1_{name}.nii.gz")
    done = open_cohorts.convert("msleseg", data, tmp_path / "bids")
    assert len(done.incomplete) == 1 and done.incomplete[0] in capsys.readouterr().out
    assert done.incomplete[0].startswith("sub-MSLesSegP1: ") and line in done.incomplete[0]
    assert done.incomplete[0].endswith("; ses-01 is left out")
    assert len(done.subjects) == 5 and not (tmp_path / "bids/sub-MSLesSegP1/ses-01").exists()
    assert (tmp_path / "bids/sub-MSLesSegP1/ses-02").is_dir()


def test_a_copy_of_the_images_is_no_choice(source, tmp_path):
    data = source("ms3seg")
    shutil.copytree(data / "MS_100_patient_preprocessed/001", data / "MS_100_patient_registered/001")
    done = open_cohorts.convert("ms3seg", data, tmp_path / "bids")
    assert sorted(done.subjects) == ["MS3SEG002", "MS3SEG100"] and "has 2 T1w files (MS_100" in done.incomplete[0]


@pytest.mark.parametrize("label", ["..", "1 2", "a;b", "é"])
def test_an_id_that_is_none_is_refused(source, tmp_path, label):
    data = source("ds000221")
    folder = data / f"sub-{label}"
    shutil.copytree(data / "sub-010001", folder)
    for path in folder.rglob("*_ses-01_*"):
        path.rename(path.with_name(path.name.replace("010001", label)))
    done = open_cohorts.convert("ds000221", data, tmp_path / "bids")
    assert len(done.subjects) == 5 and len(done.incomplete) == 1
    assert "is no valid name of a subject; allowed: 'sub-' and ASCII letters or digits" in done.incomplete[0]
    assert all(name.startswith(("sub-Leipzig0", "sourcedata/", "README", "dataset_", "participants"))
               for name in files_of(tmp_path / "bids"))


def test_a_stopped_conversion_goes_on(source, tmp_path, monkeypatch):
    data, root = source("msleseg"), tmp_path / "bids"
    write = open_cohorts._write

    def killed(recipe, label, *rest):
        if label == "sub-MSLesSegP3":  # the fifth of six scans
            raise KeyboardInterrupt
        write(recipe, label, *rest)

    monkeypatch.setattr(open_cohorts, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        open_cohorts.convert("msleseg", data, root)
    monkeypatch.undo()
    before = times(root)
    open_cohorts.convert("msleseg", data, root)
    after = times(root)
    assert len(before) == 32 and len(after) == 48 and before.items() <= after.items() and len(table(root)) == 5
    (root / "sub-MSLesSegP1/ses-01/anat/sub-MSLesSegP1_ses-01_T1w.nii.gz").unlink()
    open_cohorts.convert("msleseg", data, root)
    assert set(times(root)) == set(after)


def test_a_file_that_is_not_the_registered_one_is_told(source, tmp_path):
    data, root = source("msleseg"), tmp_path / "bids"
    open_cohorts.convert("msleseg", data, root)
    before = times(root)
    save(data / "MSLesSeg Dataset/test/P54/P54_T2.nii.gz", "another")
    done = open_cohorts.convert("msleseg", data, root)
    line, = done.incomplete
    assert line == ("sub-MSLesSegP54: test/P54/P54_T2.nii.gz: has another checksum than the registered one; allowed: "
                    "the same file, or no such line in sourcedata/registry_*.txt; ses-01 is left out")
    assert times(root) == before and len(table(root)) == 5
    # The registry of one person verifies the download of another.
    (tmp_path / "other/sourcedata").mkdir(parents=True)
    registry = tmp_path / "other/sourcedata/registry_msleseg.txt"
    registry.write_text(f"# of a friend\n\n{(root / 'sourcedata/registry_msleseg.txt').read_text()}")
    assert len(open_cohorts.convert("msleseg", data, tmp_path / "other").subjects) == 4
    for text in ("one", 'one"'):
        registry.write_text(text)
        with refused(f"{registry}: is no registry of pooch", error=StudyError):
            open_cohorts.convert("msleseg", data, tmp_path / "other")


@pytest.mark.parametrize("words,line", [
    (["mslesseg", "{data}", "{new}"], "RECIPE: must be one of msleseg, ms3seg, ds000221 (got 'mslesseg')"),
    (["msleseg", "{data}/none", "{new}"], "none: is no folder; allowed: the unpacked data of MSLesSeg (https://doi.org/"),
    (["ms3seg", "{data}", "{new}"], "holds no whole scan of MS3SEG; allowed: files as MS_100_patient_preprocessed/"),
    (["msleseg", "{data}", "{own}"], "holds a dataset that mslib convert has not written; allowed: a new folder"),
])
def test_what_cannot_be_converted_is_told_in_one_line(originals, tmp_path, capsys, words, line):
    own = bids.write_cohort(tmp_path / "own", bids.PEOPLE)
    before = times(own), (own / "participants.tsv").read_text()
    places = {"data": originals["msleseg"], "new": tmp_path / "new", "own": own}
    assert main(["convert", *(word.format(**places) for word in words)]) == 1
    told = [one for one in capsys.readouterr().err.splitlines() if one.strip() and "convert m" not in one]
    assert len(told) == 1 and line in told[0]
    assert (times(own), (own / "participants.tsv").read_text()) == before and not (tmp_path / "new").exists()


def test_damaged_tables(source, tmp_path):
    data = source("msleseg")
    clinical = data / "MSLesSeg Dataset/info_dataset/clinical_data.csv"
    clinical.write_text("Patient,Age\nP1,3\n")
    with pytest.raises(StudyError, match=r"clinical_data\.csv: is not the clinical table of MSLesSeg"):
        open_cohorts.convert("msleseg", data, tmp_path / "bids")
    clinical.unlink()
    open_cohorts.convert("msleseg", data, tmp_path / "bids")
    assert set(table(tmp_path / "bids")["group"]) == {"MS"}
    data = source("ds000221")
    (data / "sub-010001/ses-01/anat/sub-010001_ses-01_T2w.json").write_text("{")
    os.remove(data / "participants.tsv")
    assert len(open_cohorts.convert("ds000221", data, tmp_path / "controls").subjects) == 5
