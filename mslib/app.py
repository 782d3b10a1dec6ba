"""A cohort of one's own: the BIDS App and the commands of `mslib.__main__`, whose arguments are explained there.

Each returns the exit status, and raises a StudyError where its arguments or the dataset do not allow it.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import yaml

from mslib.cohort import Cohort, open_cohorts
from mslib.cohort.checks import printable
from mslib.cohort.survey import Survey, study_text, survey, suspicions
from mslib.steps import Study, look_at_weights
from mslib.study import CONTROL, StudyError, load_config, progress, write_text
from mslib.study.config import MIN_PER_GROUP
from mslib.study.provenance import ROOT
from mslib.study.run import DRIVEN

VALIDATOR = "bids-validator-deno"
#: Preprocessing of a subject on one core: at rest, and for each million voxels of T1w, as scanned (memory, MB; a brain
#: mask that is not given takes more) or of 1 mm (files, MB); seconds. Measured with voxels of 0.6 to 2 mm.
MEMORY_MB, MEMORY_MASK_MB, DISK_MB, SECONDS = (300, 35), 90, (28, 1.25), 12
#: Minutes on two cores of all the rest with the settings that `init` writes: of 12 people 42, of 68 people 55.
STUDY_MINUTES = (39, 0.24)


def _ready(bids_dir: Path, output_dir: Path | None = None, cores: int | None = None) -> None:
    """StudyError where a study cannot run: no Snakefile, no Snakemake, a path that it cannot take, no core."""
    if not (ROOT / "Snakefile").is_file() or importlib.util.find_spec("snakemake") is None:
        raise StudyError(f"{ROOT}: must hold the Snakefile, and snakemake be installed: install mslib from its own "
                         "folder, pip install -e '.[study]' (README.md)")
    for place, refused in ((bids_dir, "[{}]"), (output_dir, r"[^\w./@+,=~ -]")):
        if place is not None and (strange := sorted(set(re.findall(refused, str(Path(place).resolve()))))):
            raise StudyError(f"{place}: must be a path without {' '.join(strange)}")
    notes = ROOT / ".snakemake"
    if output_dir is not None and not os.access(notes if notes.exists() else ROOT, os.W_OK):
        raise StudyError(f"{ROOT}: cannot be written; must be a folder where Snakemake may keep its notes (.snakemake)")
    if cores is not None and cores < 1:
        raise StudyError(f"--cores: must be at least 1 (got {cores})")


def convert(recipe: str, source: Path, bids_dir: Path) -> int:
    """Convert an open cohort to BIDS, or add it to an earlier conversion (`mslib.cohort.open_cohorts.convert`)."""
    done = open_cohorts.convert(recipe, source, bids_dir)
    print(f"{bids_dir}: {len(done.subjects)} subjects of {recipe}, {len(done.incomplete)} faults",
          f"Next: mslib init {bids_dir}", sep="\n")
    return 0


def init(bids_dir: Path, name: str | None = None, group_column: str | None = None, file: Path | None = None) -> int:
    """Look at a dataset, say what was found, and write a study's file (``config/<name>.yaml``) with a comment per key.

    Where a person must decide something first no file is written, and the exit status is 1.
    """
    _ready(bids_dir)
    if name is None:
        name = re.sub("[^a-z0-9]+", "_", Path(bids_dir).resolve().name.lower()).strip("_")
        name = name if name[:1].isalpha() else f"study_{name}"
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise StudyError(f"--name: must be small letters, digits and _, a letter first (got {name!r})")
    file = file or ROOT / "config" / f"{name}.yaml"
    if file.exists():
        raise StudyError(f"{file}: is there already; delete it, or choose another --name")
    found = survey(bids_dir, group_column)
    print("\n".join(_told(found)))
    if found.left_open:
        print("Left open:", *found.left_open, sep="\n  ")
        return 1
    usual = yaml.safe_load((ROOT / "config" / "simulated.yaml").read_text(encoding="utf-8"))
    shipped = all((ROOT / "weights" / f"{one}_simulated.h5").is_file() for one in usual["model"]["backbones"])
    write_text(file, study_text(found, name, "simulated" if shipped else "imagenet",
                                {key: usual[key] for key in ("training", "attribution", "relevance")}))
    try:
        config = load_config(file)
    except StudyError:
        file.unlink()
        raise
    people, cores, (memory_mb, disk_mb) = sum(found.usable.values()), os.cpu_count() or 1, needed_mb(found)
    minutes = STUDY_MINUTES[0] + STUDY_MINUTES[1] * people
    print(f"Written: {file}")
    if file.parent == ROOT / "config":  # else the BIDS App goes on
        print(f"Next: snakemake cohort --config study={config.study}",
              f"  preprocesses {people} subjects; minutes on {cores} cores: {people * SECONDS / 60 / cores:.1f}, "
              f"GB of memory a core: {memory_mb / 1000:.2f}, GB of disk: {people * disk_mb / 1000:.2f}",
              f"Then: snakemake --config study={config.study}",
              f"  trains and explains networks; minutes on 2 cores: about {minutes:.0f}", sep="\n")
    return 0


def needed_mb(found: Survey) -> tuple[float, float]:
    """MB of memory at the peak and of files that preprocessing takes for the largest head of a survey."""
    scanned, cubes = found.megavoxels.max(0)
    guessed = MEMORY_MASK_MB * (found.masks["brain"] < len(found.megavoxels))
    return MEMORY_MB[0] + MEMORY_MB[1] * max(scanned, cubes) + guessed, DISK_MB[0] + DISK_MB[1] * cubes


def _told(found: Survey) -> list[str]:
    """What a survey has found, a line each."""
    people = 0 if found.cohort is None else len(found.cohort)
    lines = [f"{found.root}: {people} usable subjects, {len(found.faults)} faults"]
    lines += [f"  {line}" for line in found.faults]
    lines += [f"Session {name or 'without a folder'}: images of {count} subjects"
              f"{', taken' if name.removeprefix('ses-') == (found.session or '') else ''}"
              for name, count in found.sessions.items()]
    if found.entities:
        lines.append(f"Several images of one sequence: those with {found.entities} are taken"
                     + " (empty: without it)" * ("" in found.entities.values()))
    for column, values in found.columns.items():
        counts = ", ".join(f"{value!r}: {count}" for value, count in values.items())
        lines.append(f"Column {column!r}: {counts}{', taken as group' if column == found.column else ''}")
    lines += [f"Class {name}: {found.usable[name]} usable people, value {' or '.join(map(repr, values))}"
              for name, values in found.groups.items()]
    lines += [f"Left out: value {value!r}, too few usable people" for value in found.small]
    if found.groups and "control" not in found.groups:
        lines.append("No class is recognised as healthy people: name it control, if there is one (docs/your-cohort.md)")
    if len(found.voxel_mm):
        low, high = (" x ".join(f"{mm:g}" for mm in row) for row in (found.voxel_mm.min(0), found.voxel_mm.max(0)))
        lines.append(f"Voxels of T1w: {low} to {high} mm")
    lines.append(f"Masks: {found.masks['brain']} of the brain, {found.masks['lesion']} of lesions")
    return [printable(line) for line in lines]


def explain(bids_dir: Path, output_dir: Path, group_column: str | None = None, cores: int | None = None) -> int:
    """Explain a dataset's patients by the shipped networks; nothing is trained.

    Explained are people whose value in the group column is a class of patients that the networks know (where some of
    them have a lesion mask, those alone): maps of every layer, relevance of the sequences, viewers, pages. Settings are
    written to ``config.yaml`` of `output_dir`, where there are none yet.
    """
    _ready(bids_dir, output_dir, cores)
    usual = load_config(ROOT / "config" / "simulated.yaml")
    shipped = [one for one in usual.model.backbones if (ROOT / "weights" / one / "honest" / "seed1.h5").is_file()]
    if not shipped:
        raise StudyError(f"{ROOT / 'weights'}: holds no fitted network; shipped weights lie there (weights/README.md)")
    file = Path(output_dir).resolve() / "config.yaml"
    if not file.exists():
        found = survey(bids_dir, group_column)
        print("\n".join(_told(found)))
        # RR-MS beside RRMS has become the class RRMS2.
        names = {own: name for name in usual.groups for own in found.classes
                 if own == name or (name != CONTROL and re.fullmatch(rf"{name}\d+", own))}
        values = {name: [value for own, every in found.classes.items() if names.get(own) == name for value in every]
                  for name in usual.groups}
        count = sum(names.get(one.group) in usual.patient_groups for one in found.cohort or ())  # of both cohorts
        if not count:
            raise StudyError(f"{bids_dir}: has no usable patient of the networks' classes {usual.patient_groups} "
                             f"(column {found.column}: {', '.join(found.classes) or 'no class'}); --group-column "
                             "chooses another column")
        cohort = {"source": "bids", "root": str(Path(bids_dir).resolve()), "group_column": found.column,
                  "session": found.session, "entities": found.entities, "on_fault": "skip"}
        model = {"backbones": shipped, "weights": "simulated", "shipped": True, "input": usual.model.input,
                 "image_size": list(usual.model.image_size), "pixel_mm": usual.model.pixel_mm}
        write_text(file, yaml.safe_dump({
            "study": "explained", "groups": values, "cohort": cohort, "model": model,
            "prep": {"resample_mm": None if found.fine else 1.0}, "relevance": {"volumes": count},
            "explain": {"nifti_subjects": count, "viewer_subjects": count}}, sort_keys=False))
    elif load_config(file).trains:
        raise StudyError(f"{file}: is of a study that trains networks; choose another output folder for mslib explain")
    elif group_column not in (None, load_config(file).cohort.group_column):
        raise StudyError(f"{file}: holds another group column than --group-column; delete the file")
    else:
        print(f"{file}: settings of an earlier call are used; delete the file if the dataset has changed")
    return run(bids_dir, output_dir, "group", config=file, cores=cores, skip_bids_validation=True)


def check(bids_dir: Path, config: Path | None = None, group_column: str | None = None) -> int:
    """Read every image of a dataset; tell faults (exit status 1) and suspicions.

    Without a study's file group column, session and images are those that `init` would take.
    """
    left_open = []
    if config is None:
        found = survey(bids_dir, group_column)
        cohort, faults, left_open = found.cohort, found.faults, found.left_open
    else:
        cohort = Cohort.of_study(bids_dir, load_config(config), on_fault="skip")
        faults = list(map(str, cohort.faults))
    doubts = [f"suspicion: {line}" for line in (() if cohort is None else suspicions(cohort, bids_dir))]
    print(*(f"left open: {line}" for line in left_open), *(cohort.left_out if cohort else ()), *doubts,
          *_site_only(cohort or ()), sep="\n")
    print(*(f"fault: {line}" for line in faults), sep="\n", file=sys.stderr)
    print(f"{bids_dir}: {0 if cohort is None else len(cohort)} usable subjects, {len(faults)} faults, "
          f"{len(doubts)} suspicions")
    return 1 if faults else 0


def _site_only(cohort) -> list[str]:
    """How well what is no anatomy tells the sites, and controls from patients; nothing where there is one site."""
    from mslib.analysis.site import acquisition, site_only
    from mslib.measure import interval_text
    people = [one for one in cohort if one.site]
    if len({one.site for one in people}) < 2:
        return []
    looks = [acquisition({name: nib.load(path) for name, path in one.images.items()})
             for one in progress(people, desc="measure sites", unit="subject")]
    asked = {"site": [one.site for one in people],
             "control or patient": ["control" if one.group == CONTROL else "patient" for one in people]}
    lines = []
    for what, labels in asked.items():
        found = site_only(looks, labels)
        lines.append(f"site-only classifier: {what}: " + (
            f"fewer than two classes of {MIN_PER_GROUP} people, not measured" if found is None else
            f"accuracy {interval_text(found)}, chance {found['chance']:.2f}, {found['people']} people, from voxel "
            "size, zeros, noise, sharpness and scale of the images"))
    return [printable(line) for line in lines]


def run(bids_dir: Path, output_dir: Path, analysis_level: str, participant_label: list[str] | None = None,
        config: Path | None = None, cores: int | None = None, skip_bids_validation: bool = False) -> int:
    """The BIDS App: preprocess participants, or run the whole study on the group; the Snakefile does the work.

    The folder of results becomes the run's: derivatives in ``derivatives/mslib``, the report in ``results``; without
    `config` it holds the study's file too, written by `init`. The official validator runs where it is installed.
    """
    root, output = Path(bids_dir).resolve(), Path(output_dir).resolve()
    if not root.is_dir():
        raise StudyError(f"{bids_dir}: is no folder; allowed: a BIDS dataset")
    _ready(bids_dir, output_dir, cores)
    labels = [label.removeprefix("sub-") for label in participant_label or ()]
    if labels and analysis_level == "group":
        raise StudyError("--participant-label: must go with the level participant; a study of fewer people needs a "
                         "table of them")
    if absent := [label for label in labels if not (root / f"sub-{label}").is_dir() or not label.isalnum()]:
        raise StudyError(f"--participant-label: must be participants of {bids_dir} (got {', '.join(absent)})")
    if not skip_bids_validation:
        validate(root)
    file = output / "config.yaml" if config is None else Path(config).resolve()
    if config is None and not file.exists() and init(root, "own", file=file):
        return 1
    study = load_config(file)
    if config is None and not study.trains:
        raise StudyError(f"{file}: is of mslib explain, which trains nothing; choose another output folder")
    if study.cohort.source != "bids" or (ROOT / study.cohort.root).resolve() != root:
        raise StudyError(f"{file}: cohort: must be of source bids with root {root} (got {study.cohort.source}, "
                         f"{study.cohort.root})")
    if analysis_level == "group":
        look_at_weights(Study(file, output))
    anat = "derivatives/mslib/sub-{0}/anat/sub-{0}_desc-qc.json"
    targets = {"group": ["all"], "participant": [str(output / anat.format(label)) for label in labels] or ["cohort"]}
    words = [sys.executable, "-m", "snakemake", *targets[analysis_level], *(["--cores", str(cores)] if cores else []),
             "--config", f"study={study.study}", f"file={file}", f"run_dir={output}", f"results={output / 'results'}"]
    free = {key: value for key, value in os.environ.items() if key != DRIVEN}
    return subprocess.run(words, cwd=ROOT, env=free, check=False).returncode


def validate(root: Path) -> None:
    """Run the official BIDS validator where it is installed; StudyError with a line per kind of error."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(VALIDATOR, path=places)
    if program is None:
        print(f"BIDS validation is left out: {VALIDATOR} is not installed", flush=True)
        return
    done = subprocess.run([program, str(root), "--json"], capture_output=True, text=True, check=False)
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (ValueError, KeyError) as error:
        raise StudyError(f"{root}: {VALIDATOR} has failed ({' '.join(done.stderr.split())[:200]}); "
                         "--skip-bids-validation goes on without it") from error
    errors = {}
    for one in issues:
        if one.get("severity") == "error":
            code = " ".join(filter(None, (one["code"], one.get("subCode"))))
            errors.setdefault(code, []).append(one.get("location", ""))
    if errors:
        raise StudyError("\n".join(printable(f"{root}: BIDS validation: {code} ({len(files)}, first {files[0]}); "
                                             "--skip-bids-validation goes on") for code, files in errors.items()))
