"""A cohort as a clinic would have it: looked at, checked, and given to the BIDS App."""

import json
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
import test_bids as bids

from mslib import app
from mslib.__main__ import COMMANDS, _app, _command, main
from mslib.cohort import Cohort, draw_participants, simulate_subject
from mslib.cohort.survey import class_names, survey
from mslib.study import load_config

VALUES = {"HC": "control", "RR-MS": "RRMS", "SP MS": "SPMS"}


def scan(path, seed, mm=(12.0, 12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 100, (12, 12, 12)).astype(np.int16)
    nib.save(bids.image(data=data, affine=np.diag([*mm, 1])), path)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """Two sessions, a column of its own for the group, runs, some masks, files that are no part of BIDS."""
    root = tmp_path_factory.mktemp("clinic") / "MS Study (2024)"
    rows, number = [], 0
    for value in VALUES:
        for _ in range(4):
            label, number = f"sub-P{number:02d}", number + 1
            rows.append((label, "30", value, "A" if number % 2 else "B", 'x: y # "z"'))
            for session in ("M00", "M12")[:1 + number % 2]:
                for place, sequence in enumerate(bids.SEQUENCES):
                    name = f"{label}_ses-{session}_{'run-01_' if number == 3 else ''}{sequence}"
                    scan(root / label / f"ses-{session}" / "anat" / f"{name}.nii.gz", (number, place, len(session)))
    folder = root / "sub-P02" / "ses-M00" / "anat"
    scan(folder / "sub-P02_ses-M00_run-02_T1w.nii.gz", 99)
    for label in ("sub-P05", "sub-P09"):
        folder = root / "derivatives/truth" / label / "ses-M00" / "anat"
        scan(folder / f"{label}_ses-M00_space-T1w_label-lesion_mask.nii.gz", 5)
    bids.write_table(root, [*rows, ("sub-P98", "40", "CIS", "A", "n/a")],
                     ("participant_id", "age", "dx", "hospital", "notes"))
    (root / "scanner notes.xlsx").write_text("x")
    (root / "sub-P98").mkdir()
    return root


@pytest.fixture
def root(clinic, tmp_path):
    return shutil.copytree(clinic, tmp_path / clinic.name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Where `init` writes."""
    (tmp_path / "config").mkdir()
    shutil.copy(app.ROOT / "config" / "simulated.yaml", tmp_path / "config")
    (tmp_path / "Snakefile").touch()
    monkeypatch.setattr(app, "ROOT", tmp_path)
    return tmp_path


def test_from_a_dataset_to_a_study_that_its_check_accepts(root, project, capsys):
    assert main(["init", str(root)]) == 0
    told = capsys.readouterr().out
    for line in ("12 usable subjects", "sub-P98: sub-P98: has no images; allowed: images in session 'M00'",
                 "Session ses-M00: images of 12 subjects, taken", "Session ses-M12: images of 6 subjects\n",
                 "{'run': '01'}", "Column 'dx': 'HC': 4",
                 "taken as group", "Column 'hospital': 'A': 7", "Class SPMS: 4 usable people, value 'SP MS'",
                 "Left out: value 'CIS'", "Voxels of T1w: 12 x 12 x 12", "Masks: 0 of the brain, 2 of lesions",
                 "snakemake --config study=ms_study_2024", "GB of disk", "minutes on 2 cores: about 4"):
        assert line in told, line
    config = load_config(project / "config" / "ms_study_2024.yaml")
    assert config.group_values == {name: [value] for value, name in VALUES.items()}
    assert (config.cohort.session, config.cohort.entities, config.prep.resample_mm) == ("M00", {"run": "01"}, 1.0)
    usual = load_config(app.ROOT / "config" / "simulated.yaml")
    assert (config.training, config.attribution, config.relevance) == (
        usual.training, usual.attribution, usual.relevance)
    file = str(project / "config" / "ms_study_2024.yaml")
    assert main(["check", str(root), "--config", file]) == 0
    assert "left out: 1 subject with dx 'CIS', which is of no class" in capsys.readouterr().out
    assert main(["check_cohort", "--config", file, "--run-dir", str(project / "run")]) == 0
    assert main(["init", str(root)]) == 1 and "is there already" in capsys.readouterr().err


def test_what_is_anybodys_guess_is_left_open(root, project, capsys):
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("\tdx\t", "\tcode\t"))
    assert main(["init", str(root), "--name", "own"]) == 1
    told = capsys.readouterr().out
    assert "Left open:\n  cohort.group_column: which column" in told
    assert "code ('HC': 4" in told and "hospital (" in told
    assert not (project / "config" / "own.yaml").exists()
    for label, maker in (("sub-P00", "GE"), ("sub-P01", "Siemens")):
        sidecar = root / label / "ses-M00" / "anat" / f"{label}_ses-M00_T1w.json"
        sidecar.write_text(json.dumps({"Manufacturer": maker}))
    main(["check", str(root)])
    told = capsys.readouterr().out
    assert "left open: cohort.group_column: which column" in told and "Manufacturer" not in told, "ids are no groups"
    main(["check", str(root), "--group-column", "code"])
    assert "left open" not in capsys.readouterr().out
    assert main(["init", str(root), "--name", "no", "--group-column", "code"]) == 0
    assert load_config(project / "config" / "no.yaml").study == "no", "is false in YAML, without quotes"
    assert main(["init", str(root), "--name", "other", "--group-column", "colour"]) == 1
    assert "--group-column: must be a column of " in capsys.readouterr().err
    assert main(["init", str(root), "--name", "../own"]) == 1
    assert "--name: must be small letters" in capsys.readouterr().err


def test_texts_of_a_dataset_are_escaped(root, project, capsys):
    root, hostile = root.rename(root.with_name("2024")), 'x: y # "z"\u2028- a\\n{b} \x1b[31m \U0001f9e0'
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("RR-MS", hostile).replace("SP MS", "../../etc"), encoding="utf-8")
    assert main(["init", str(root)]) == 0
    told = capsys.readouterr().out
    config = load_config(file := project / "config" / "study_2024.yaml")
    assert config.group_values == {"control": ["HC"], "xyzanb31m": [hostile], "etc": ["../../etc"]}
    assert "\x1b" not in told and "\u2028" not in told
    words = ["--config", str(file), "--run-dir", str(project / "run")]
    assert main(["check_cohort", *words]) == 0


def test_coded_groups_are_named_by_what_participants_json_says():
    levels = {"0": "Healthy volunteers", "1": "relapsing-remitting"}
    assert class_names(["1", "0", "HC", "2"], levels) == {
        "control": ["0", "HC"], "relapsingremitting": ["1"], "2": ["2"]}
    assert class_names(["RR-MS", "RRMS"], {}) == {"RRMS": ["RR-MS"], "RRMS2": ["RRMS"]}
    named = class_names(["Healthy control (HC)", "age- and sex-matched healthy subjects", "non-healthy", "MS",
                         "disease control", "Normal pressure hydrocephalus", "1", "control"], {
        "1": "RRMS, compared to healthy controls", "control": "neurological controls"})
    assert len(named["control"]) == 2 and list(named)[1:] == [
        "nonhealthy", "MS", "diseasecontrol", "Normalpressurehydrocephalus", "RRMScomparedtohealthycontrols",
        "control7"]
    assert class_names(["None", "n/a", "MS"], {}) == {"None1": ["None"], "na2": ["n/a"], "MS": ["MS"]}, "are read again"


def test_a_plain_image_is_taken_before_one_with_a_contrast_agent(project, tmp_path, capsys):
    people = {f"sub-{number}": "HC" if number < 3 else "MS" for number in range(6)}
    root = bids.write_cohort(tmp_path / "bids", people)
    for label in [*people][3:]:
        anat = root / label / "anat"
        scan(anat / f"{label}_ce-gd_T1w.nii.gz", 5)
    assert main(["init", str(root)]) == 0
    assert "those with {'ce': ''} are taken (empty: without it)" in capsys.readouterr().out
    config = load_config(project / "config" / "bids.yaml")
    assert config.cohort.entities == {"ce": ""}
    names = [one.images["T1w"].name for one in Cohort.of_study(root, config)]
    assert names == [f"{label}_T1w.nii.gz" for label in people]
    assert main(["check", str(root)]) == 0 and "contrast agent" not in capsys.readouterr().out
    for label in [*people][3:]:
        (root / label / "anat" / f"{label}_T1w.nii.gz").unlink()
    assert main(["check", str(root)]) == 0
    assert "cohort: contrast agent of T1w tells the groups apart (gd: MS, none: control)" in capsys.readouterr().out


def test_check_tells_faults_and_suspicions(root, capsys):
    shutil.rmtree(root / "sub-P98")
    table = root / "participants.tsv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "P98" not in line))
    assert main(["check", str(root)]) == 0
    assert "12 usable subjects, 0 faults, 36 suspicions" in capsys.readouterr().out  # voxels of 12 mm
    anat = root / "sub-P00" / "ses-M00" / "anat"
    shutil.copy(anat / "sub-P00_ses-M00_T1w.nii.gz", anat / "sub-P00_ses-M00_T2w.nii.gz")
    scan(anat / "sub-P00_ses-M00_FLAIR.nii.gz", 3, (5.0, 5, 3))
    (anat / "sub-P00_ses-M00_FLAIR.json").write_text('{"EchoTime": 0.003, "InversionTime": 0.9}')
    for number in range(12):
        label, maker = f"sub-P{number:02d}", "GE" if number < 4 else "Siemens"
        facts = {"Manufacturer": maker, "EchoTime": 0.003}
        for path in root.glob(f"{label}/ses-M00/anat/*_T1w.nii.gz"):
            path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(facts))
    assert main(["check", str(root)]) == 0
    told = capsys.readouterr().out
    for line in ("_T2w.nii.gz: is the same file as sub-P00/ses-M00/anat/sub-P00_ses-M00_T1w.nii.gz",
                 "sub-P00_ses-M00_FLAIR.nii.gz: covers 60 x 60 x 36 mm, less than a head",
                 "is named FLAIR, but has an EchoTime of 0.003 s", "is named FLAIR, but has an InversionTime of 0.9 s"):
        assert told.count(line) == 1, line
    assert "Manufacturer tells the groups apart" not in told  # Siemens scanned two groups
    bids.truncated_gzip(anat / "sub-P00_ses-M00_T2w.nii.gz")
    assert main(["check", str(root)]) == 1
    assert "fault: sub-P00: sub-P00/ses-M00/anat/sub-P00_ses-M00_T2w.nii.gz: is truncated" in capsys.readouterr().err


def test_a_scanner_of_one_group_alone_is_told(root, capsys):
    for path in root.glob("*/ses-M00/anat/*_T1w.nii.gz"):
        makers = "GE" if int(path.name[5:7]) < 4 else "Siemens" if int(path.name[5:7]) < 8 else "Philips"
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"Manufacturer": makers}))
    main(["check", str(root)])
    assert ("cohort: Manufacturer tells the groups apart (GE: control, Philips: SPMS, Siemens: RRMS)"
            in capsys.readouterr().out)


# The BIDS App


@pytest.fixture
def snakemake(monkeypatch):
    """What would be called."""
    called = []

    def run(words, **options):
        called.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(app.subprocess, "run", run)
    monkeypatch.setattr(app, "validate", lambda root: None)
    monkeypatch.setattr(app, "look_at_weights", lambda study: None)  # of ImageNet, which would be downloaded
    return called


def test_levels_become_targets(root, project, snakemake, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(root), str(out), "participant", "--participant-label", "P00", "sub-P01", "--cores", "2"]) == 0
    assert main([str(root), str(out), "participant"]) == main([str(root), str(out), "group"]) == 0
    qc = f"{out}/derivatives/mslib/sub-P01/anat/sub-P01_desc-qc.json"
    settings = ["--config", "study=own", f"file={out}/config.yaml", f"run_dir={out}", f"results={out}/results"]
    assert snakemake[0][3:] == [qc.replace("P01", "P00"), qc, "--cores", "2", *settings]
    assert [words[3:] for words in snakemake[1:]] == [["cohort", *settings], ["all", *settings]]
    assert "Next: " not in capsys.readouterr().out


@pytest.mark.parametrize("words,told", [
    (["--participant-label", "P77"], "--participant-label: must be participants of "),
    (["--participant-label", "../P00"], "--participant-label: must be participants of "),
    (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    (["--config", "config/smoke.yaml"], "cohort: must be of source bids with root ")])
def test_what_does_not_fit_is_refused_in_one_line(root, snakemake, tmp_path, capsys, words, told):
    words = [str(app.ROOT / word) if word.startswith("config/") else word for word in words]
    assert main([str(root), str(tmp_path / "out"), "participant", *words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "check images" not in line]
    assert len(lines) == 1 and told in lines[0] and snakemake == []


def test_places_that_cannot_be_used_are_refused(root, snakemake, tmp_path, monkeypatch, capsys):
    for words, told in (([tmp_path / "none", tmp_path / "out", "group"], "is no folder; allowed: a BIDS dataset"),
                        ([root, tmp_path / "{a}", "group"], "must be a path without { }"),
                        ([root, tmp_path / "out", "group", "--participant-label", "P00"], "with the level parti")):
        assert main(list(map(str, words))) == 1 and told in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(app.os, "access", lambda *_: False)
        for words in (["explain", root, tmp_path / "out"], [root, tmp_path / "out", "group"]):
            assert main(list(map(str, words))) == 1 and f"{app.ROOT}: cannot be written" in capsys.readouterr().err
    monkeypatch.setattr(app, "ROOT", tmp_path)  # installed outside its folder
    for words in (["init", root], ["explain", root, tmp_path / "out"], [root, tmp_path / "out", "group"]):
        assert main(list(map(str, words))) == 1
        assert f"{tmp_path}: must hold the Snakefile" in capsys.readouterr().err
    assert snakemake == []


def test_errors_of_the_official_validator_stop_the_app(root, monkeypatch, tmp_path, capsys):
    program = tmp_path / app.VALIDATOR
    issues = [{"code": "NOT_INCLUDED", "severity": "error", "location": "/scanner notes.xlsx"},
              {"code": "NO_AUTHORS", "severity": "warning"}]
    program.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps({'issues': {'issues': issues}})}\nE\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(app.sys, "executable", str(tmp_path / "python"))
    assert main([str(root), str(tmp_path / "out"), "participant"]) == 1
    assert capsys.readouterr().err.strip().endswith("BIDS validation: NOT_INCLUDED (1, first /scanner notes.xlsx); "
                                                    "--skip-bids-validation goes on")
    program.write_text("#!/bin/sh\necho no deno >&2; exit 2\n")
    assert main([str(root), str(tmp_path / "out"), "participant"]) == 1
    assert "has failed (no deno)" in capsys.readouterr().err


def test_patients_are_explained_by_shipped_networks(root, project, snakemake, tmp_path, capsys):
    """Empty files stand for the networks here: what is asked of Snakemake, and whom the cohort then holds."""
    out = tmp_path / "out"
    assert main(["explain", str(root), str(out)]) == 1 and "holds no fitted network" in capsys.readouterr().err
    (project / "weights" / "vgg19" / "honest").mkdir(parents=True)
    (project / "weights" / "vgg19" / "honest" / "seed1.h5").touch()
    table = root / "participants.tsv"
    rows = table.read_text()
    table.write_text(rows.replace("HC", "ON").replace("SP MS", "NMO").replace("\tnotes", "\tcohort").replace(
        'x: y # "z"', "independent"))  # explained all the same
    assert main(["explain", str(root), str(out), "--cores", "2"]) == 0
    assert snakemake[0][3:6] == ["all", "--cores", "2"] and f"file={out}/config.yaml" in snakemake[0]
    config = load_config(out / "config.yaml")
    assert not config.trains and config.groups == ["control", "RRMS", "SPMS"] and config.model.backbones == ["vgg19"]
    assert config.explain.viewer_subjects == 4 == config.relevance.volumes
    capsys.readouterr()
    assert main(["explain", str(root), str(out)]) == 0
    assert "settings of an earlier call are used" in capsys.readouterr().out
    assert main(["explain", str(root), str(out), "--group-column", "sex"]) == 1
    assert "holds another group column than --group-column" in capsys.readouterr().err
    assert main([str(root), str(out), "participant"]) == 1
    assert f"{out}/config.yaml: is of mslib explain" in capsys.readouterr().err
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.yaml").write_text("study: own")
    assert main(["explain", str(root), str(tmp_path / "trained")]) == 1
    assert "trained/config.yaml: is of a study that trains networks" in capsys.readouterr().err
    cohort = Cohort.of_study(root, config)
    assert [one.group for one in cohort] == ["RRMS"] * 4
    assert [line.split(" with ")[1] for line in cohort.left_out] == [
        f"dx {value!r}, which is of no class" for value in ("ON", "NMO", "CIS")]
    table.write_text(rows.replace("RR-MS", "NMO").replace("SP MS", "CIS"))
    assert main(["explain", str(root), str(tmp_path / "other")]) == 1
    assert "has no usable patient of the networks' classes ['RRMS', 'SPMS']" in capsys.readouterr().err
    table.write_text(rows.replace("RR-MS", "RRMS", 2))  # two spellings of a class
    assert main(["explain", str(root), str(tmp_path / "both"), "--group-column", "dx"]) == 0
    config = load_config(tmp_path / "both" / "config.yaml")
    assert sorted(config.group_values["RRMS"]) == ["RR-MS", "RRMS"] and config.explain.nifti_subjects == 8


def test_help_is_one_screen_and_steps_are_listed(capsys):
    for words, told in ((["--help"], "{participant,group}"), (["--version"], "mslib 0."), (["steps"], "preprocess "),
                        *(([name, "--help"], f"usage: mslib {name} ") for name in COMMANDS)):
        try:
            assert main(words) == 0
        except SystemExit as done:
            assert done.code == 0
        out = capsys.readouterr().out
        assert told in out and len(out.splitlines()) <= 40


def test_commands_of_the_page_can_be_typed():
    page = (app.ROOT / "docs" / "your-cohort.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\.venv/bin/mslib (.+?)(?:  +#.*)?$", page, re.MULTILINE)
    assert [words.split()[0] for words in commands] == [
        "init", "check", "BIDS_DIR", "BIDS_DIR", "convert", "convert", "init"]
    for first, *words in map(str.split, commands):
        (_command(first) if first in COMMANDS else _app()).parse_args(words if first in COMMANDS else [first, *words])


def test_the_app_preprocesses_a_participant(tmp_path):
    """By Snakemake, as a person calls it; here a coarse simulated head, six times."""
    root, out = tmp_path / "bids", tmp_path / "out"
    files = simulate_subject(draw_participants({"RRMS": 1}, 1)[0], tmp_path / "one", 8.0)
    for number in range(6):
        for sequence in bids.SEQUENCES:
            target = root / f"sub-{number}" / "anat" / f"sub-{number}_{sequence}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[sequence], target)
    bids.write_table(root, [(f"sub-{number}", "HC" if number < 3 else "MS") for number in range(6)])
    done = subprocess.run([app.sys.executable, "-m", "mslib", str(root), str(out), "participant",
                           "--participant-label", "4", "--skip-bids-validation"], cwd=app.ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = out / "derivatives" / "mslib"
    assert {path.parts[-3] for path in made.glob("sub-*/anat/*_desc-qc.json")} == {"sub-4"}
    memory_mb, disk_mb = app.needed_mb(survey(root))
    assert sum(path.stat().st_size for path in (made / "sub-4").rglob("*.*")) / 1e6 == pytest.approx(disk_mb, rel=0.3)
    again = "import sys; from mslib.__main__ import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    done = subprocess.run([app.sys.executable, "-c", again, "preprocess", "--config", str(out / "config.yaml"),
                           "--run-dir", str(out), "--subject", "4"], capture_output=True, text=True, check=True)
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024 == pytest.approx(memory_mb, rel=0.3)
