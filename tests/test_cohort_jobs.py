"""Jobs up to the slice stacks: made anew when something that decides them changed, honest about what is left out."""

import json
import os

import nibabel as nib
import pytest
import test_bids as bids

from mslib import prep
from mslib.cohort import Cohort, Fault, Subject, phantom
from mslib.jobs import cohort
from mslib.study import StudyConfig, StudyError, WriteError, write_text

COUNTS = {"control": 3, "RRMS": 3, "SPMS": 3}


def simulated(voxel_mm=8.0, **changes):
    laws = {"study": COUNTS, "independent": {}, "voxel_mm": voxel_mm}
    return StudyConfig(study="test", **{"cohort": {"simulated": laws}} | changes)


def subject(name, group="RRMS"):
    return Subject(name, group, {})


@pytest.fixture
def made(monkeypatch):
    """Ids of the subjects that were simulated; nothing is really computed."""
    ids = []

    def simulate_subject(person, root, voxel_mm, cache):
        ids.append(person.id)
        write_text(phantom.subject_files(root, person.id)["truth"], "{}")

    def from_bids(root, *_, **__):
        folders = sorted(path.parent.parent.name.removeprefix("sub-")
                         for path in root.glob("derivatives/truth/sub-*/anat/*_truth.json"))
        return Cohort(tuple(subject(name) for name in folders))

    monkeypatch.setattr(cohort.phantom, "simulate_subject", simulate_subject)
    monkeypatch.setattr(cohort.phantom, "template", lambda *_, **__: None)
    monkeypatch.setattr(cohort.Cohort, "from_bids", from_bids)
    return ids


# Notebooks run alone


def test_a_cohort_is_made_once(made, tmp_path):
    people = cohort.ensure_cohort(simulated(), tmp_path)
    assert len(people) == 9 and made == [one.id for one in people]
    assert cohort.ensure_cohort(simulated(), tmp_path) == people and len(made) == 9


def test_an_unfinished_cohort_is_finished(made, tmp_path):
    cohort.ensure_cohort(simulated(), tmp_path)
    for name in ("cohort.json", "checked.json", "bids/derivatives/truth/sub-004/anat/sub-004_truth.json"):
        (tmp_path / name).unlink()
    assert len(cohort.ensure_cohort(simulated(), tmp_path)) == 9
    assert made[9:] == ["004"]


@pytest.mark.parametrize("what", ["settings", "seed", "code", "fewer"])
def test_a_cohort_of_other_settings_is_made_anew(made, tmp_path, monkeypatch, what):
    cohort.ensure_cohort(simulated(), tmp_path)
    config = {"settings": simulated(4.0), "seed": simulated(seed=1), "code": simulated()}.get(what)
    if what == "fewer":
        laws = {"study": COUNTS | {"control": 4}, "independent": {}, "voxel_mm": 8.0}
        config = simulated(cohort={"simulated": laws})
    if what == "code":
        monkeypatch.setattr(cohort, "made_by", lambda *_, **__: "other code")
    people = cohort.ensure_cohort(config, tmp_path)
    assert made[9:] == [one.id for one in people] == [one.id for one in cohort.participants(config)]


def test_other_classes_are_checked_but_not_simulated_anew(made, tmp_path):
    cohort.ensure_cohort(simulated(), tmp_path)
    listing = (tmp_path / "cohort.json").stat().st_mtime_ns
    cohort.ensure_cohort(simulated(groups=["SPMS", "RRMS", "control"]), tmp_path)
    assert len(made) == 9 and (tmp_path / "cohort.json").stat().st_mtime_ns > listing


def test_every_subject_is_looked_at_again(made, tmp_path, monkeypatch):
    """Whether a subject is up to date is decided where it is preprocessed, by content, not by a file being there."""
    seen = []
    monkeypatch.setattr(prep, "preprocess_subject", lambda person, *_: seen.append(person.id))
    for _ in range(2):
        cohort.ensure_preprocessed(simulated(), tmp_path)
    assert len(seen) == 18


def test_own_data_that_changed_is_checked_again(tmp_path, monkeypatch):
    root = tmp_path / "bids"
    write_text(root / "participants.tsv", "participant_id\tgroup\nsub-1\tRRMS\n")
    write_text(root / "sub-1" / "anat" / "sub-1_T1w.nii.gz", "a")
    config = StudyConfig(study="own", cohort={"source": "bids", "root": str(root)})
    first = cohort.checked_facts(config)
    assert cohort.checked_facts(config) == first and len(first["files"]) == 2
    write_text(root / "derivatives" / "truth" / "sub-1" / "anat" / "sub-1_space-T1w_label-lesion_mask.nii.gz", "m")
    second = cohort.checked_facts(config)
    assert second != first and len(second["files"]) == 3
    os.utime(root / "participants.tsv", ns=(1, 1))
    assert cohort.checked_facts(config) != second


def test_own_data_is_never_removed(tmp_path):
    root = tmp_path / "run" / "bids"
    write_text(root / "sub-1" / "anat" / "sub-1_T1w.nii.gz", "patient")
    config = StudyConfig(study="own", cohort={"source": "bids", "root": str(root)})
    cohort.start_cohort(config, tmp_path / "run")
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["sub-1_T1w.nii.gz"]


# One subject


@pytest.fixture
def failing(monkeypatch):
    """Preprocessing that fails with a given error, and a study that goes on without faulty subjects."""
    def fail(error):
        def preprocess_subject(person, *_):
            try:
                raise error
            except StudyError as cause:
                raise StudyError(f"sub-{person.id}: {cause}") from cause

        monkeypatch.setattr(prep, "preprocess_subject", preprocess_subject)
        monkeypatch.setattr(cohort, "subjects", lambda *_: [subject("1")])

    return fail


def skipping(on_fault="skip"):
    return StudyConfig(study="own", cohort={"source": "bids", "root": "x", "on_fault": on_fault})


def test_a_faulty_subject_is_excluded_with_its_reason(failing, tmp_path):
    failing(StudyError("images do not overlap"))
    cohort.preprocess(skipping(), tmp_path, "1")
    assert cohort.exclusions(skipping(), tmp_path) == {"1": "sub-1: images do not overlap"}
    assert cohort.usable_subjects(skipping(), tmp_path) == []
    with pytest.raises(StudyError, match="sub-1: images do not overlap"):
        cohort.preprocess(skipping("stop"), tmp_path, "1")


def test_a_full_disk_excludes_nobody(failing, tmp_path):
    failing(WriteError("a.nii.gz: cannot be written (No space left on device)"))
    with pytest.raises(StudyError, match=r"sub-1: a\.nii\.gz: cannot be written"):
        cohort.preprocess(skipping(), tmp_path, "1")
    assert not cohort.qc_path(tmp_path, "1").exists()


def test_derivatives_of_other_code_are_removed(made, tmp_path, monkeypatch):
    config = simulated()
    cohort.ensure_cohort(config, tmp_path)
    monkeypatch.setattr(prep, "preprocess_subject", lambda *_: None)
    cohort.preprocess(config, tmp_path, "001")
    old = write_text(cohort.stack_path(tmp_path, "001"), "made by the code as it was")
    cohort.preprocess(config, tmp_path, "001")
    assert old.exists()
    monkeypatch.setattr(cohort, "made_by", lambda *_, **__: "changed")
    cohort.preprocess(config, tmp_path, "001")
    assert not old.exists()


@pytest.mark.parametrize("content", [b"", b'{"subject": ', b"\xff\xfe"])
def test_a_damaged_record_is_told_with_the_remedy(made, tmp_path, content):
    config = simulated()
    person = cohort.ensure_cohort(config, tmp_path)[0]
    for one in cohort.subjects(config, tmp_path):
        write_text(cohort.qc_path(tmp_path, one.id), "{}")
    path = cohort.qc_path(tmp_path, person.id)
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"absent or damaged .*; delete it and run the same command again") as caught:
        cohort.quality_table(config, tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1


# Real patients


def test_files_that_could_not_be_had_reach_the_report(tmp_path, monkeypatch):
    config = StudyConfig(study="real", cohort={"source": "open_ms", "on_fault": "skip"})
    missing = {"MNI/patient07/FLAIR.nii.gz": "the server answers 404 Not Found",
               "MNI/patient09/T1W.nii.gz": "no answer"}
    left_out = ("sub-MNI07: MNI/patient07/FLAIR.nii.gz: is absent",)
    monkeypatch.setattr(cohort.openms, "fetch", lambda source: missing)
    monkeypatch.setattr(cohort.openms, "to_bids", lambda *_: cohort.openms.Conversion(("MNI26",), left_out))
    of_image = Fault("sub-L01s1", "x.nii.gz", "is 4-D", "3-D")
    monkeypatch.setattr(cohort.Cohort, "from_bids", lambda *_, **__: Cohort((subject("MNI26"),), [of_image]))
    assert [one.id for one in cohort.ensure_cohort(config, tmp_path)] == ["MNI26"]
    assert cohort.faults(tmp_path) == [
        "sub-MNI07: MNI/patient07/FLAIR.nii.gz: is absent (the server answers 404 Not Found); left out",
        "MNI/patient09/T1W.nii.gz: could not be had: no answer", str(of_image)]


# A cohort of nobody's making


def test_a_cohort_is_read_from_its_folder(tmp_path):
    """Without stand-ins: listing, records of the check, and subjects are those of the folder."""
    root = tmp_path / "bids"
    for number in range(6):
        label = f"sub-{number}"
        (root / label / "anat").mkdir(parents=True)
        for sequence in bids.SEQUENCES:
            nib.save(bids.image(), root / label / "anat" / f"{label}_{sequence}.nii.gz")
    bids.write_table(root, [(f"sub-{number}", ["control", "RRMS"][number % 2]) for number in range(6)])
    config = StudyConfig(study="own", groups=["control", "RRMS"], cohort={"source": "bids", "root": str(root)})
    people = cohort.ensure_cohort(config, tmp_path / "run")
    assert people == cohort.subjects(config, tmp_path / "run") and len(people) == 6
    assert json.loads((tmp_path / "run" / "checked.json").read_text()) == cohort.checked_facts(config)
    (root / "sub-5" / "anat" / "sub-5_T1w.nii.gz").write_bytes(b"")
    with pytest.raises(StudyError, match=r"sub-5_T1w.nii.gz: is empty"):
        cohort.ensure_cohort(config, tmp_path / "run")
