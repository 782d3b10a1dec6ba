"""Steps up to the slice stacks: who is left out and why, who is explained, what is known of everybody."""

import contextlib
import dataclasses
import errno
import gzip
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import yaml
from shared_cases import refused

from mslib import prep
from mslib.cohort import Cohort, Fault, Subject, openms, openms_bids, write_listing
from mslib.nets.scope import image_features, scope_of
from mslib.steps import cohort as steps
from mslib.study import Network, StudyError, WriteError, read_json, read_table, write_json, write_text


@pytest.fixture
def study(tmp_path):
    """A study of its own BIDS folder whose cohort has been checked."""
    def make(people, on_fault="skip", **config):
        own = {"study": "own", "cohort": {"source": "bids", "root": str(tmp_path / "bids"), "on_fault": on_fault}}
        write_text(tmp_path / "own.yaml", yaml.safe_dump(own | config))
        made = steps.Study(tmp_path / "own.yaml", tmp_path / "run")
        write_listing(made.folder / "cohort.json", Cohort(tuple(people)), made.bids_root)
        return made

    return make


def real_study(folder):
    """A study of real patients."""
    write_text(folder / "real.yaml", yaml.safe_dump({
        "study": "real", "cohort": {"source": "open_ms", "on_fault": "skip"}, "model": {"weights": "simulated"}}))
    return steps.Study(folder / "real.yaml", folder / "run")


def cohort(root, with_mask=(), independent=0):
    """Twelve people, four of each group, and some patients of an independent cohort."""
    groups = ["control", "RRMS", "SPMS"] * 4 + ["SPMS"] * independent
    return [Subject(f"{number:02d}", group, {}, cohort="study" if number < 12 else "independent",
                    lesion_mask=root / f"{number:02d}.nii.gz" if f"{number:02d}" in with_mask else None)
            for number, group in enumerate(groups)]


def qc_file(study, subject):
    return study.anat(subject) / f"sub-{subject}_desc-qc.json"


@pytest.fixture
def failing(monkeypatch):
    """Preprocessing that fails with a given error."""
    def fail(error):
        def preprocess_subject(person, *_):
            raise StudyError(f"sub-{person.id}: {error}") from error

        monkeypatch.setattr(prep, "preprocess_subject", preprocess_subject)

    return fail


def test_a_faulty_subject_is_excluded_with_its_reason_but_not_by_a_full_disk(study, failing, tmp_path):
    failing(WriteError("a.nii.gz: cannot be written (No space left on device)"))
    run = study(cohort(tmp_path / "bids"))
    with pytest.raises(StudyError, match=r"sub-01: a\.nii\.gz: cannot be written"):
        steps.preprocess(run, "01")
    assert not qc_file(run, "01").exists()
    failing(StudyError("images do not overlap"))
    steps.preprocess(run, "01")
    assert read_json(qc_file(run, "01")) == {"subject": "01", "excluded": "sub-01: images do not overlap"}
    for error, excludes in ((OSError(errno.EIO, "Input/output error"), False), (gzip.BadGzipFile("CRC"), True),
                            (FileNotFoundError(errno.ENOENT, "No such file"), False), (EOFError("cut"), True)):
        qc_file(run, "01").unlink(missing_ok=True)
        unreadable = StudyError("a.nii.gz: is not a readable image")
        unreadable.__cause__ = error
        failing(unreadable)
        with contextlib.nullcontext() if excludes else pytest.raises(StudyError, match="is not a readable image"):
            steps.preprocess(run, "01")
        assert qc_file(run, "01").exists() == excludes
    failing(StudyError("images do not overlap"))
    with pytest.raises(StudyError, match="sub-99: is not in the checked cohort"):
        steps.preprocess(run, "99")
    with pytest.raises(StudyError, match="sub-01: images do not overlap"):
        steps.preprocess(study(cohort(tmp_path / "bids"), "stop"), "01")


def prepared(run, people, excluded=()):
    for one in people:
        row = {"subject": one.id, "excluded": "no contrast"} if one.id in excluded else {"subject": one.id, "flags": []}
        write_json(qc_file(run, one.id), row)


def test_only_patients_that_nothing_was_trained_on_are_explained(study, tmp_path):
    people = cohort(tmp_path / "bids", independent=3)
    run = study(people)
    prepared(run, people, excluded=["03"])
    steps.subjects(run)
    table = run.subjects
    assert "03" not in table.index and read_json(run.folder / "faults.json") == ["sub-03: excluded: no contrast"]
    assert set(table.loc[table["cohort"] == "study", "part"]) == {"train", "validation", "test"}
    assert (table.loc[table["cohort"] == "independent", "part"] == "independent").all()
    unseen = table["part"].isin(["test", "independent"])
    assert (table["explained"] == (unseen & (table["group"] != "control"))).all()
    assert sorted(run.unseen()) == sorted(table.index[unseen])
    assert run.example() in run.explained() and run.subjects.loc[run.example(), "group"] == "SPMS"


def test_a_site_that_tells_the_groups_apart_is_a_suspicion_and_no_fault(study, tmp_path, monkeypatch):
    people = [dataclasses.replace(one, site="Leipzig" if one.group == "control" else "MSLesSeg")
              for one in cohort(tmp_path / "bids")]
    run = study(people)
    prepared(run, people, excluded=["03"])
    monkeypatch.setattr(Cohort, "of_study", lambda *_: Cohort(tuple(people)))
    steps.check_cohort(run)
    steps.subjects(run)
    suspicion, = read_json(run.folder / "cohort.json")["suspicions"]
    assert suspicion == ("cohort: site tells controls from patients (Leipzig: control, MSLesSeg: RRMS and SPMS); a "
                         "network can learn it instead of disease")
    assert read_json(run.folder / "faults.json") == ["sub-03: excluded: no contrast"]


def test_nobody_to_explain_or_nobody_left_is_told_with_the_reasons(study, tmp_path):
    people = [one for one in cohort(tmp_path / "bids") if one.group == "control"]
    run = study(people)
    prepared(run, people)
    with pytest.raises(StudyError, match="no patient outside training and validation"):
        steps.subjects(run)
    run = study(people[:1])
    write_json(qc_file(run, "00"), {"excluded": "its images do not overlap"})
    with pytest.raises(StudyError, match=r"nobody usable is left\nsub-00: excluded: its images do not overlap"):
        steps.subjects(run)


def test_lesions_outside_the_brain_are_not_explained(study, monkeypatch):
    run = study([])
    write_text(run.folder / "subjects.csv", "subject,group,cohort,lesion_mask,explained,volume\n"
                                            "01,RRMS,study,True,True,1\n02,SPMS,study,False,True,0\n")
    inside = np.zeros((3, 4, 4), bool)
    inside[:, 1:3, 1:3] = True
    lesions = np.zeros_like(inside)
    lesions[[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 2]] = True
    monkeypatch.setattr(steps.Study, "stack", lambda *_: SimpleNamespace(
        images=np.zeros((3, 4, 4, 3), np.float16), brain=inside, lesions=lesions))
    one, two = run.cases(Network("vgg16"))
    assert one.slices.tolist() == [1] and one.lesions.sum() == 2 and two.slices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("groups", [["control", "SPMS", "RRMS"], ["RRMS", "SPMS"]])
def test_shipped_networks_of_other_classes_explain_nobody(study, tmp_path, groups):
    """Else the last layer would stay at random."""
    people = [one for one in cohort(tmp_path / "bids") if one.group in groups]
    run = study(people, groups=groups, model={"shipped": True, "weights": "simulated"})
    prepared(run, people)
    for explains in (steps.subjects, lambda one: one.net("vgg16")):
        with pytest.raises(StudyError, match=r"groups: must be \['control', 'RRMS', 'SPMS'\], in this order"):
            explains(run)


def test_images_that_are_links_keep_their_names(study, tmp_path):
    """As DataLad and git-annex lay them."""
    image = tmp_path / "bids" / "sub-00" / "anat" / "sub-00_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.symlink_to(tmp_path / "annex-object.nii.gz")
    run = study([Subject("00", "SPMS", {"T1w": image})])
    assert read_json(run.folder / "cohort.json")["subjects"][0]["images"] == {"T1w": "sub-00/anat/sub-00_T1w.nii.gz"}


def test_patients_unlike_those_that_shipped_networks_know_are_named(tmp_path, monkeypatch):
    """Of two real patients, the one with T2w and FLAIR swapped; captions count them."""
    run, rng = real_study(tmp_path), np.random.default_rng(0)
    people = [Subject("01", "RRMS", {}), Subject("02", "SPMS", {})]
    write_listing(run.folder / "cohort.json", Cohort(tuple(people), [Fault("03", "x", "is", "y")]), run.bids_root)
    prepared(run, people)
    grey = rng.uniform(0.1, 0.9, (9, 10, 24, 20, 1))
    right = np.concatenate([grey, 1 - grey, grey], -1) + rng.normal(0, 0.02, (9, 10, 24, 20, 3))
    images = {"01": right[0], "02": right[0][..., [0, 2, 1]]}
    stacks = {name: SimpleNamespace(images=own, lesions=grey[0] > 0.8) for name, own in images.items()}
    monkeypatch.setattr(steps.Study, "stack", lambda _, name: stacks[name])
    known = scope_of(pd.DataFrame([image_features(one[::5], ("T1w", "T2w", "FLAIR"), 1.0) for one in right]))
    write_json(tmp_path / "card.json", {"scope": known})
    monkeypatch.setattr("mslib.steps.cohort.shipped", lambda _: tmp_path / "card.h5")
    steps.subjects(run)
    line, _ = read_json(run.folder / "faults.json")  # first: the notebook shows so many
    assert line.startswith("sub-02: lies outside what the networks were trained on: ") and "T1w with T2w 0.99 " in line
    assert run.data.endswith("; 1 of 2 subjects look otherwise than those that the networks were trained on")


@pytest.mark.parametrize("content", [b"", b'{"subject": ', b"\xff\xfe"])
def test_a_damaged_record_is_told_with_the_remedy(study, tmp_path, content):
    people = cohort(tmp_path / "bids")
    run = study(people)
    prepared(run, people)
    qc_file(run, "02").write_bytes(content)
    with refused(match=f"^{qc_file(run, '02')}: .*absent or damaged .*; delete it and run the same command again",
                 error=StudyError):
        steps.subjects(run)


def test_known_truth_is_compared_with_what_was_found(study, tmp_path, monkeypatch):
    """One subject with a known move and field, one whose lesion mask alone is known."""
    monkeypatch.setattr(prep, "unscaled_images", lambda person, out: (person.id,))
    monkeypatch.setattr("mslib.analysis.truth.appearance", lambda subject: {"parenchyma_ml": float(subject)})
    people = [one for one in cohort(tmp_path / "bids", with_mask=["01"]) if one.id in ("01", "02")]
    run = study(people)
    mask = nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), np.diag([2.0, 2, 2, 1]))
    field = 1 + 0.1 * np.random.default_rng(0).random((6, 6, 6), np.float32)
    nib.save(mask, _parent(tmp_path / "bids" / "01.nii.gz"))
    for one in people:
        nib.save(mask, _parent(run.anat(one.id) / f"sub-{one.id}_space-T1w_desc-brain_mask.nii.gz"))
        write_json(qc_file(run, one.id), {"subject": one.id, "brain_ml": 1.728, "flags": ["T2w: odd", "FLAIR: odd"]})
    write_text(run.folder / "subjects.csv", "subject,group\n01,RRMS\n02,SPMS\n")
    there = run.bids_root / "derivatives" / "truth" / "sub-02" / "anat"
    write_json(there / "sub-02_truth.json", {"lesion_load_ml": 3.0, "recipe": {"voxel_mm": 1.0}})
    for folder, move in ((there, 3.0), (run.anat("02"), 2.5)):
        transform = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0, 0, 0, (move, 0.0, 0.0))
        sitk.WriteTransform(transform, str(_parent(folder / "sub-02_from-T1w_to-T2w_mode-points_xfm.tfm")))
    nib.save(nib.Nifti1Image(field, mask.affine), there / "sub-02_T1w_biasfield.nii.gz")
    nib.save(nib.Nifti1Image(np.log(field), mask.affine), run.anat("02") /
             "sub-02_space-T1w_desc-logbias_T1w.nii.gz")
    steps.truth(run)
    facts = run.read("truth").set_index("subject")
    assert facts.loc["01", "lesion_load_ml"] == pytest.approx(216 * 8 / 1000) and facts.loc["02", "lesion_load_ml"] == 3
    assert "recipe" not in facts and run.read("quality")["flags"].tolist() == ["T2w: odd; FLAIR: odd"] * 2
    errors = run.read("registration_errors").to_dict("records")
    assert errors == [{"subject": "02", "group": "SPMS", "sequence": "T2w", "before": 3.0, "after": 0.5}]
    assert run.read("bias_fields")["correlation"].tolist() == pytest.approx([1.0])
    assert run.read("appearance").to_dict("records") == [{"subject": "01", "group": "RRMS", "parenchyma_ml": 1}]


def _parent(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_faults_of_the_source_are_kept(tmp_path, monkeypatch):
    run = real_study(tmp_path)
    # Shipped weights have tests of their own.
    monkeypatch.setattr("mslib.steps.cohort.verified", lambda path: path)
    monkeypatch.setattr(openms, "fetch", lambda source: {"a.nii.gz": "no answer"})
    monkeypatch.setattr(openms_bids, "to_bids", lambda *_: openms_bids.Conversion(("MNI26",), ()))
    of_image = Fault("sub-L01s1", "x.nii.gz", "is 4-D", "3-D")
    monkeypatch.setattr(Cohort, "from_bids", lambda *_, **__: Cohort((Subject("MNI26", "RRMS", {}),), [of_image]))
    steps.start(run)
    steps.check_cohort(run)
    listing = read_json(run.folder / "cohort.json")
    assert [one["id"] for one in listing["subjects"]] == ["MNI26"]
    assert listing["faults"] == ["a.nii.gz: could not be had: no answer", str(of_image)]


def test_a_subject_is_simulated_into_the_dataset(tmp_path):
    laws = {"study": {"control": 3, "RRMS": 3, "SPMS": 3}, "independent": {"RRMS": 1}, "voxel_mm": 8.0}
    write_text(tmp_path / "small.yaml", yaml.safe_dump({"study": "small", "cohort": {"simulated": laws}}))
    run = steps.Study(tmp_path / "small.yaml", tmp_path / "run")
    (run.bids_root / "sub-011" / "anat").mkdir(parents=True)  # of a run with more subjects
    steps.start(run)
    steps.make_template(run, 8.0)
    assert not (run.bids_root / "sub-011").exists()
    table = read_table(run.bids_root / "participants.tsv")
    assert len(table) == 10 and table["participant_id"].iloc[-1] == "sub-T01"
    steps.simulate(run, "T01")
    facts = read_json(run.bids_root / "derivatives" / "truth" / "sub-T01" / "anat" / "sub-T01_truth.json")
    assert facts["recipe"]["voxel_mm"] == 8 and facts["recipe"]["participant"]["group"] == "RRMS"
    with pytest.raises(StudyError, match="sub-X: is not a subject of the simulated cohorts of study small"):
        steps.simulate(run, "X")


@pytest.mark.parametrize("independent", [(), ("control",), ("RRMS",), ("control", "RRMS", "SPMS")], ids=str)
@pytest.mark.parametrize("groups", [["control", "RRMS", "SPMS"], ["RRMS", "SPMS"], ["control", "SPMS"]], ids=str)
def test_three_of_a_class_have_somebody_to_explain(study, tmp_path, monkeypatch, groups, independent):
    """Whatever masks and independent cohorts there are: unseen patients, all of them or those with lesions."""
    people = [Subject(f"{number:02d}", group, {}) for number, group in enumerate(groups * 3)]
    people += [Subject(f"T{number}", group, {}, cohort="independent") for number, group in enumerate(independent)
               if group in groups]
    prepared(study(people, groups=groups), people)

    def explained(having, empty=()):
        """Subjects of a run in which some people have a lesion mask, which is `empty` in the slices of some."""
        monkeypatch.setattr(steps.Study, "stack", lambda _, name: SimpleNamespace(
            brain=np.array([True, False]), lesions=np.array([name not in empty, True])))
        run = study([dataclasses.replace(one, lesion_mask=tmp_path / "bids" / "m.nii.gz" if one.id in having else None)
                     for one in people], groups=groups)
        steps.subjects(run)
        assert run.example() in run.explained()
        assert {*zip(run.subjects["group"], run.subjects["part"])} >= {
            (group, part) for group in groups for part in ("train", "validation", "test")}
        return run.explained(), run.subjects["part"]

    found, parts = explained([])
    patients = [one.id for one in people if one.group != "control"]
    unseen = [name for name in patients if parts[name] not in ("train", "validation")]
    assert found == unseen
    everybody = {one.id for one in people}
    for having in (unseen[:1], {*patients} - {*unseen}, everybody - {*patients}, everybody):
        assert explained(having)[0] == ([name for name in unseen if name in having] or unseen)
    assert explained(everybody, everybody)[0] == unseen and explained(everybody, unseen[1:])[0] == unseen[:1]
