"""The report and known truth, each on a made-up run whose answers are known beforehand."""

import io
import json
import re
import shutil
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from mslib.cohort import Cohort, phantom
from mslib.cohort.anatomy import CENTRE
from mslib.cohort.listing import write_listing
from mslib.jobs import panels, truth
from mslib.jobs.cohort import qc_path, subject_folder
from mslib.jobs.methods import methods_text
from mslib.jobs.record import record
from mslib.jobs.report import PRETRAINED, findings, lead_sentence, split_table, write_report
from mslib.show.report import SECTIONS, compressed
from mslib.study import StudyConfig, StudyError, write_json, write_table
from mslib.study.provenance import ROOT, notebook_code

EVIL = '<script>alert("sub-001")</script><img src=x onerror=alert(1)> & co'
LAST = "block5_conv4"
MM = 4.0

# The report


class Reader(HTMLParser):
    """Text of a page, its tags, and the ids of its top sections in order."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.sections, self.images = [], [], [], []
        self.feed(page)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "section" and attributes.get("id") in SECTIONS:
            self.sections.append(attributes["id"])
        if tag == "img":
            self.images.append(attributes)

    def handle_data(self, data):
        self.words.append(data)


def test_every_figure_of_notebook_04_has_its_place_in_the_report(monkeypatch):
    code = notebook_code(ROOT / "notebooks" / "04_multimodal_attribution.ipynb")
    drawn = re.findall(r'show\(figure, run_dir, f?"([^"]+)"\)', code)
    assert len(drawn) == code.count("show(figure")
    shown = []
    monkeypatch.setattr(panels, "figure_panel", lambda _, name, *__: shown.append(name) or [])
    panels.attribution_panels("run", ["vgg16", "vgg19"])
    assert sorted(shown) == sorted({name.replace("{net}", net) for name in drawn for net in ("vgg16", "vgg19")})


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), 128).save(path)
    return path


def listed(subject, group):
    images = {name: f"sub-{subject}/anat/sub-{subject}_{name}.nii.gz" for name in ("T1w", "T2w", "FLAIR")}
    return {"id": subject, "group": group, "age": 40.0, "sex": "F", "edss": 2.0, "cohort": "study", "images": images,
            "brain_mask": None, "lesion_mask": None}


def study(source="simulated", **changes):
    return StudyConfig(study="test", cohort={"source": source, "root": "data/own" if source == "bids" else None},
                       **({"model": {"backbones": ["vgg16", "vgg19"]}} | changes))


@pytest.fixture
def run(tmp_path):
    """A finished run of three subjects, one of them excluded, with two figures."""
    folder = tmp_path / "run"
    people = [listed("001", "control"), listed("002", "RRMS"), listed("003", "SPMS"),
              listed("T01", "SPMS") | {"cohort": "independent"}]
    write_json(folder / "cohort.json", {"subjects": people, "faults": [f"sub-009: T2w {EVIL}"]})
    for subject in ("001", "002", "T01"):
        write_json(qc_path(folder, subject), {"subject": subject, "flags": []})
        picture(subject_folder(folder, subject) / "figures" / f"sub-{subject}_desc-registration_qc.png")
    write_json(qc_path(folder, "003"), {"subject": "003", "excluded": f"no brain {EVIL}"})
    write_table(folder / "tables" / "cohort.csv", pd.DataFrame(
        {"subject": ["001", "002"], "group": ["control", EVIL], "edss": [np.nan, 2.0]}))
    write_table(folder / "tables" / "registration_quality.csv", pd.DataFrame(
        {"subject": ["001", "002"], "overlap": [1.0, 0.987654321], "flags": ["", "overlap"]}))
    picture(folder / "figures" / "cohort.png")
    picture(folder / "figures" / "accuracy_vgg19.png")
    record(folder, "03_gradcam_layers", {
        "patients": 16, "slices": 80, "best_layer_auprc": {"vgg16": "block5_conv3", "vgg19": "block5_conv1"},
        "auprc": {"vgg16": {"block5_conv3": [0.9, 0.8, 1.0, 0.01]},
                  "vgg19": {"block5_conv1": [0.612, 0.5, 0.7, 0.054], LAST: [0.3, 0.2, 0.4, 0.054]}},
        "blank": {"vgg16": {"block5_conv3": 0}, "vgg19": {"block5_conv1": 7, LAST: 0}}})
    return folder


CLAIMS = pd.DataFrame({"published claim": [EVIL], "net": "vgg19", "our evidence": "0.97 (0.95 to 0.99)",
                       "holds?": "holds"})
PLACE = ("he highest mean AUPRC of Grad-CAM of VGG19 against lesions is 0.61 (95 % interval 0.50 to 0.70), at "
         "block5_conv1 (1 would be perfect, chance 0.054; 16 patients, 80 slices, 7 of them left out: blank maps, the "
         "layer chosen on the same ones)")


def trained(folder, chance=None, logistic=None, **cohorts):
    accuracy = {"vgg19": {name: {"slice": [0.5, 0.4, 0.6], "subject": list(values)}
                          for name, values in cohorts.items()}}
    record(folder, "02_finetuning_vgg19", {"accuracy": accuracy | ({"logistic": logistic} if logistic else {})}
           | ({"chance": {"independent": chance}} if chance else {}))


def test_lead_sentence_says_where_and_how_well(run):
    assert lead_sentence(study(), run) == f"T{PLACE}."
    trained(run, subject=(0.8, 0.6, 1.0))
    assert lead_sentence(study(), run) == f"T{PLACE}.", "accuracy of the study's own test part is not the result"
    trained(run, subject=(0.8, 0.6, 1.0), independent=(0.9, 0.8, 0.967))
    found = ("On 1 independent simulated subjects (never trained on, but looked at while the training was being worked "
             "out) the group is named rightly by VGG19 in 0.90 (95 % interval 0.80 to 0.97) of them")
    assert lead_sentence(study(), run) == f"{found}; t{PLACE}."
    trained(run, chance=1 / 3, logistic={"independent": {"subject": [0.85, 0.7, 0.95]}}, independent=(0.9, 0.8, 0.967))
    assert lead_sentence(study(), run) == (f"{found} (chance 0.33, logistic regression on true lesion load and "
                                           f"ventricle volume 0.85); t{PLACE}.")


def test_lead_sentence_says_what_the_nets_were_told_beforehand(run):
    pretrained = study(model={"weights": "simulated"}, training={"pretraining_subjects": 9})
    assert lead_sentence(pretrained, run) == f"T{PLACE}. {PRETRAINED}"
    assert PRETRAINED not in lead_sentence(study("open_ms", model={"weights": "simulated"}), run)


def test_real_independent_subjects_are_not_called_simulated(run):
    trained(run, independent=(0.9, 0.8, 1.0))
    sentence = lead_sentence(study("bids"), run)
    assert "simulated" not in sentence and "30" not in sentence and sentence.startswith("On 1 independent subjects")


def test_lead_sentence_of_real_patients_says_transfer_and_no_interval(run):
    record(run, "03_gradcam_layers", {"patients": 2, "slices": 99, "best_layer_auprc": {"vgg19": LAST},
                                      "auprc": {"vgg19": {LAST: [0.3, None, None, 0.054]}},
                                      "blank": {"vgg19": {LAST: 0}}})
    sentence = lead_sentence(study("open_ms"), run)
    assert sentence.startswith("Real patients, transfer from simulation: the highest mean AUPRC of Grad-CAM of VGG19")
    assert "0.30 (no 95 % interval: n < 5 subjects, or all alike)" in sentence


def test_lead_sentence_without_lesion_masks(run):
    record(run, "03_gradcam_layers", {"patients": 3, "slices": 99, "best_layer_auprc": {"vgg19": None}, "auprc": {}})
    assert "no lesion outlines are known" in lead_sentence(study("bids"), run)


def test_findings_are_lines_with_numbers(run):
    trained(run, subject=(0.8, 0.6, 1.0), independent=(0.9, None, None))
    record(run, "07_summary", {"claims": [
        {"published claim": name, "holds?": verdict} for name, verdict in (
            ("a", "holds"), ("a", "not testable: few"), ("b", "holds"), ("(control) c", "holds"))]})
    lines = findings(StudyConfig(study="test", model={"backbones": ["vgg19"]}), run)
    assert lines["03_gradcam_layers"] == f"t{PLACE}"
    assert lines["02_finetuning_vgg19"] == ("accuracy: independent cohort 0.90 (no interval: n < 5 subjects, or all "
                                            "alike) of subjects")
    assert lines["07_summary"] == "published claims, once per net: holds 2, not testable 1"


def test_split_is_tabled(run):
    write_table(run / "nets" / "vgg16" / "subject" / "predictions.csv",
                pd.DataFrame({"subject": ["002", "002"], "part": ["test", "test"]}))
    table = split_table(study(), run).set_index("group")
    assert table.loc["control"].tolist() == [1, 0, 0, 0] and table.loc["RRMS"].tolist() == [0, 0, 1, 0]
    assert table["independent"].sum() == 1
    assert split_table(study("open_ms"), run).empty


def test_methods_are_those_of_the_config_and_of_the_nets(run):
    facts = {"weights": "pre-trained on 240 further simulated subjects", "epochs": 7, "slices_per_subject": 12,
             "pixel_mm": 3.0, "training_precision": "bfloat16", "frozen_blocks": 4,
             "augmented": False}
    write_json(run / "nets" / "vgg16" / "subject" / "net.json", facts)
    write_json(run / "nets" / "vgg19" / "subject" / "net.json", facts)
    config = study(prep={"n4_iterations": [11, 12], "n_slices": 99}, model={"pixel_mm": 2.5, "input": "FLAIR"})
    text = methods_text(config, run)
    for words in ("11, 12 iterations", "99 slices", "2.5 mm", "FLAIR alone", "7 epochs", "3 mm pixels", "bfloat16",
                  "pre-trained on 240 further simulated subjects", "area of lesions and of black holes",
                  "of this size alone", "blocks 1 to 4 frozen, no augmentation, bfloat16"):
        assert words in text, words
    write_json(run / "nets" / "vgg16" / "subject" / "net.json", facts | {"weights": "ImageNet"})
    write_json(run / "nets" / "vgg19" / "subject" / "net.json", facts | {"weights": "ImageNet"})
    assert "upper bound" not in methods_text(config, run)


def test_pictures_are_made_small(tmp_path):
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (300, 700), np.uint8)
    Image.fromarray(noise).resize((2100, 900)).save(path)
    data = compressed(path, 40_000)
    assert len(data) <= 40_000 and data == compressed(path, 40_000)
    with Image.open(io.BytesIO(data)) as small:
        assert small.format == "WEBP" and 400 < small.width <= 1400


def test_report_has_every_section_in_order(run):
    path = write_report(study(), run, CLAIMS)
    assert path == run / "report.html"
    page = Reader(path.read_text(encoding="utf-8"))
    assert page.sections == ["summary", "cohort", "registration", "training", "layers", "attribution", "relevance",
                             "methods", "faults"]
    assert page.text.count(PLACE) == 1, "said once, above the report"
    assert "Simulated data: every subject in this report is made by a phantom" in page.text
    for words in ("Where does the network look? Study test", "Published claims and our evidence", "0.97 (0.95 to 0.99)",
                  "sub-001 (control)", "sub-002 (RRMS)", "0.9877", "seed", "3275", "tensorflow"):
        assert words in page.text, words
    assert "sub-003 (SPMS)" not in page.text and "nan" not in page.text.lower().split()
    assert len(page.images) == 5, "of the figures those that are there, and a picture per usable subject"
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in page.images)


def test_report_escapes_what_files_say(run):
    page = Reader(write_report(study(), run, CLAIMS).read_text(encoding="utf-8"))
    assert "script" not in page.tags and not any("onerror" in image or image["src"] == "x" for image in page.images)
    for words in (EVIL, f"sub-009: T2w {EVIL}", f"sub-003: excluded: no brain {EVIL}"):
        assert words in page.text
    assert page.text.count(EVIL) == 4, "claim, group, fault, exclusion"


@pytest.mark.parametrize("source", ["simulated", "open_ms", "bids"])
def test_banner_and_training_go_with_the_source(run, monkeypatch, source):
    monkeypatch.setattr("mslib.jobs.cohort.bids_root", lambda *_: run / "bids")
    page = Reader(write_report(study(source), run, CLAIMS).read_text(encoding="utf-8"))
    assert ("Simulated data:" in page.text) == (source == "simulated")
    assert ("Not part of this run." in page.text) == (source == "open_ms")
    assert ("VGG19: accuracy under every protocol" in page.text) == (source != "open_ms")
    assert "training" in page.sections


def test_the_same_run_gives_the_same_report(run):
    first = write_report(study(), run, CLAIMS).read_bytes()
    assert write_report(study(), run, CLAIMS).read_bytes() == first
    assert str(run).encode() not in first


def test_a_missing_registration_picture_is_named(run):
    path = subject_folder(run, "002") / "figures" / "sub-002_desc-registration_qc.png"
    path.unlink()
    with pytest.raises(StudyError, match="cannot be read") as caught:
        write_report(study(), run, CLAIMS)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (run / "report.html").exists()


# Registration against the truth


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """One simulated subject of 4 mm, as good as preprocessed: run folder, participant."""
    run = tmp_path_factory.mktemp("run")
    person = phantom.draw_participants({"RRMS": 1}, 7)[0]
    phantom.write_dataset([person], run / "bids")
    files = phantom.simulate_subject(person, run / "bids", MM, cache=run / "template.npz")
    cohort = Cohort.from_bids(run / "bids", ("T1w", "T2w", "FLAIR"), min_per_group=1)
    write_listing(run / "cohort.json", cohort, run / "bids")
    write_json(qc_path(run, person.id), {"subject": person.id, "flags": []})
    mask = subject_folder(run, person.id) / "anat" / f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz"
    shutil.copyfile(files["brain"], mask)
    return run, person


def found_as(run, person, more=None):
    """Write as found transforms the known ones, each followed by `more`."""
    for sequence in ("T2w", "FLAIR"):
        name = f"sub-{person.id}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
        known = sitk.ReadTransform(str(truth.truth_folder(study(), run, person.id) / name))
        found = known if more is None else sitk.CompositeTransform([more, known])
        sitk.WriteTransform(found, str(subject_folder(run, person.id) / "anat" / name))
    return truth.registration_errors(study(), run)


def brain_mm(run, person):
    """Brain voxels in mm (RAS)."""
    name = f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz"
    image = nib.load(subject_folder(run, person.id) / "anat" / name)
    return nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() > 0))


def test_the_known_transform_has_no_error(simulated):
    table = found_as(*simulated)
    assert list(table) == ["subject", "group", "sequence", "before", "after"]
    assert set(table["subject"]) == {"001"} and set(table["group"]) == {"RRMS"}
    assert table["sequence"].tolist() == ["T2w", "FLAIR"]
    np.testing.assert_allclose(table["after"], 0, atol=1e-9)


def test_misplacement_is_the_head_movement_that_was_drawn(simulated):
    """Against the drawn rotation and shift about the template's middle, restated in RAS."""
    run, person = simulated
    table, points = found_as(run, person).set_index("sequence"), brain_mm(run, person)
    for sequence in ("T2w", "FLAIR"):
        scan = getattr(person.nuisance, sequence)
        turn = Rotation.from_rotvec(np.deg2rad(scan.rotation_deg))
        moved = turn.apply(points - CENTRE) + CENTRE + scan.translation_mm
        expected = np.linalg.norm(moved - points, axis=1).mean()
        assert expected > 0.3
        assert table.loc[sequence, "before"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("shift", [(1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.6, -0.8, 0.0)])
def test_a_shift_of_one_mm_is_an_error_of_one_mm(simulated, shift):
    table = found_as(*simulated, sitk.TranslationTransform(3, shift))
    np.testing.assert_allclose(table["after"], 1.0, atol=1e-9)
    pd.testing.assert_series_equal(table["before"], found_as(*simulated)["before"])


def test_a_turn_counts_by_its_lever(simulated):
    """2 degrees about the vertical line through the origin: chords 2 r sin(1 degree), restated from the mask."""
    run, person = simulated
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0, 0, np.deg2rad(2))
    points = brain_mm(run, person)
    for sequence, error in found_as(run, person, turn).set_index("sequence")["after"].items():
        scan = getattr(person.nuisance, sequence)
        moved = Rotation.from_rotvec(np.deg2rad(scan.rotation_deg)).apply(points - CENTRE)
        there = moved + CENTRE + scan.translation_mm
        expected = (2 * np.sin(np.deg2rad(1)) * np.linalg.norm(there[:, :2], axis=1)).mean()
        assert error == pytest.approx(expected, rel=0.01)


def test_no_truth_no_row(simulated, tmp_path):
    run, _ = simulated
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "bids" / "derivatives" / "truth").rglob("*_xfm.tfm"):
        path.unlink()
    table = truth.registration_errors(study(), tmp_path / "run")
    assert table.empty and list(table) == ["subject", "group", "sequence", "before", "after"]


def test_truth_of_simulated_subjects_is_tabled(simulated):
    run, _ = simulated
    row = truth.truth_table(study(), run).iloc[0]
    assert (row["subject"], row["group"], row["cohort"]) == ("001", "RRMS", "study")
    mask = nib.load(truth.truth_folder(study(), run, "001") / "sub-001_space-T1w_label-lesion_mask.nii.gz").get_fdata()
    assert row["lesion_load_ml"] == pytest.approx(mask.sum() * MM**3 / 1000)
    told = json.loads((truth.truth_folder(study(), run, "001") / "sub-001_truth.json").read_text())
    assert row["ventricle_volume_ml"] == told["ventricle_volume_ml"] and "volumes" not in row


def test_lesion_load_of_other_subjects_is_that_of_their_mask(simulated, tmp_path):
    """The mask of the simulated subject, without the file that tells the truth about it."""
    run, _ = simulated
    shutil.copytree(run, tmp_path / "run")
    (truth.truth_folder(study(), tmp_path / "run", "001") / "sub-001_truth.json").unlink()
    row = truth.truth_table(study(), tmp_path / "run").iloc[0]
    assert row["lesion_load_ml"] == pytest.approx(truth.truth_table(study(), run).iloc[0]["lesion_load_ml"])
    assert "ventricle_volume_ml" not in row


@pytest.mark.parametrize("power, correlation", [(1.0, 1.0), (0.4, 1.0), (-1.0, -1.0)])
def test_bias_fields_are_compared_by_their_logarithms(simulated, power, correlation):
    """The known field to a power, on coarser voxels, written as found: correlation is that of the logarithms."""
    run, person = simulated
    for sequence in ("T1w", "T2w", "FLAIR"):
        known = nib.load(truth.truth_folder(study(), run, person.id) / f"sub-{person.id}_{sequence}_biasfield.nii.gz")
        found = nib.Nifti1Image(power * np.log(known.get_fdata())[::2, ::2, ::2], known.affine @ np.diag([2, 2, 2, 1]))
        nib.save(found, subject_folder(run, person.id) / "anat" / f"sub-{person.id}_desc-logbias_{sequence}.nii.gz")
    table = truth.bias_correlations(study(), run)
    assert table["sequence"].tolist() == ["T1w", "T2w", "FLAIR"]
    np.testing.assert_allclose(table["correlation"], correlation, atol=0.02)
