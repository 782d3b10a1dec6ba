"""Jobs up to the slice stacks: make or fetch the cohort, check it, bring every subject through preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from mslib.cohort import Cohort, Subject, openms, phantom
from mslib.cohort.listing import read_listing, write_listing
from mslib.prep import preprocess_subject
from mslib.study import StudyConfig, StudyError, progress, write_json
from mslib.study.provenance import ROOT


def bids_root(config: StudyConfig, run_dir: str | Path) -> Path:
    """Where the study's raw data lies: the user's own folder (relative to the project), or ``bids/`` of the run."""
    return ROOT / config.cohort.root if config.cohort.source == "bids" else Path(run_dir) / "bids"


def participants(config: StudyConfig) -> list:
    """The simulated participants of both cohorts: the study's, and the independent test cohort (ids T..)."""
    simulated = config.cohort.simulated
    laws = {"misplacement_mm": simulated.misplacement_mm, "misplacement_deg": simulated.misplacement_deg,
            "thick_slice_share": simulated.thick_slice_share}
    return [*phantom.draw_participants(simulated.study, config.seed, **laws),
            *phantom.draw_participants(simulated.independent, config.seed + 1, prefix="T", **laws)]


def template_cache(run_dir: str | Path) -> Path:
    """The template's distance maps, made once per run."""
    return Path(run_dir) / "template.npz"


def start_cohort(config: StudyConfig, run_dir: str | Path) -> None:
    """Make the dataset's descriptions (simulated), or fetch and convert the real patients."""
    root = bids_root(config, run_dir)
    if config.cohort.source == "simulated":
        phantom.template(config.cohort.simulated.voxel_mm, cache=template_cache(run_dir))
        phantom.write_dataset(participants(config), root)
    elif config.cohort.source == "open_ms":
        source = Path(run_dir) / "source"
        openms.fetch(source)
        openms.to_bids(source, root)


def simulate(config: StudyConfig, run_dir: str | Path, subject: str) -> None:
    """Simulate one subject into the run's BIDS dataset."""
    chosen = [person for person in participants(config) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not a subject of the simulated cohorts of study {config.study}")
    phantom.simulate_subject(chosen[0], bids_root(config, run_dir), config.cohort.simulated.voxel_mm,
                             cache=template_cache(run_dir))


def check_cohort(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Check the whole cohort, write ``cohort.json`` and return its healthy subjects."""
    root = bids_root(config, run_dir)
    need = 1 if config.cohort.source == "open_ms" else 3
    groups = None if config.cohort.source == "open_ms" else config.groups
    cohort = Cohort.from_bids(root, config.sequences, groups=groups, group_column=config.cohort.group_column,
                              min_per_group=need, on_fault=config.cohort.on_fault)
    write_listing(Path(run_dir) / "cohort.json", cohort, root)
    return list(cohort)


def subjects(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Subjects of the checked cohort (checks it first where that has not been done)."""
    listing = Path(run_dir) / "cohort.json"
    return read_listing(listing, bids_root(config, run_dir)) if listing.exists() else check_cohort(config, run_dir)


def subject_folder(run_dir: str | Path, subject: str) -> Path:
    """Folder of a subject's derivatives."""
    return Path(run_dir) / "derivatives" / "mslib" / f"sub-{subject}"


def preprocess(config: StudyConfig, run_dir: str | Path, subject: str) -> None:
    """Preprocess one subject; with ``on_fault: skip`` a faulty one is marked excluded instead of failing."""
    chosen = [person for person in subjects(config, run_dir) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not in the checked cohort of study {config.study}")
    out = Path(run_dir) / "derivatives" / "mslib"
    try:
        preprocess_subject(chosen[0], out, config.prep, config.sequences, config.model.image_size,
                           config.model.pixel_mm)
    except StudyError as error:
        if config.cohort.on_fault == "stop":
            raise
        write_json(qc_path(run_dir, subject), {"subject": subject, "excluded": str(error)})


def ensure_cohort(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Subjects of the checked cohort, making or fetching first what is missing (for notebooks run alone)."""
    if not (Path(run_dir) / "cohort.json").exists():
        start_cohort(config, run_dir)
        if config.cohort.source == "simulated":
            for person in progress(participants(config), desc="simulate", unit="subject"):
                simulate(config, run_dir, person.id)
    return subjects(config, run_dir)


def qc_path(run_dir: str | Path, subject: str) -> Path:
    """Quality numbers of a preprocessed subject; the file that preprocessing writes last."""
    return subject_folder(run_dir, subject) / "anat" / f"sub-{subject}_desc-qc.json"


def ensure_preprocessed(config: StudyConfig, run_dir: str | Path) -> None:
    """Preprocess the subjects that are not yet (for notebooks run alone)."""
    missing = [person for person in ensure_cohort(config, run_dir) if not qc_path(run_dir, person.id).exists()]
    for person in progress(missing, desc="preprocess", unit="subject", disable=not missing):
        preprocess(config, run_dir, person.id)


def stack_path(run_dir: str | Path, subject: str) -> Path:
    """Slice stack of a preprocessed subject."""
    return subject_folder(run_dir, subject) / "anat" / f"sub-{subject}_space-T1w_desc-slices.npz"


def usable_subjects(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Subjects of the checked cohort that preprocessing has not excluded."""
    excluded = exclusions(config, run_dir)
    return [person for person in subjects(config, run_dir) if person.id not in excluded]


def exclusions(config: StudyConfig, run_dir: str | Path) -> dict[str, str]:
    """Subjects that preprocessing excluded, with the reason."""
    found = {person.id: json.loads(qc_path(run_dir, person.id).read_text(encoding="utf-8"))
             for person in subjects(config, run_dir)}
    return {subject: row["excluded"] for subject, row in found.items() if "excluded" in row}


def faults(run_dir: str | Path) -> list[str]:
    """Faults that the check of the cohort listed."""
    return json.loads((Path(run_dir) / "cohort.json").read_text(encoding="utf-8"))["faults"]


def quality_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """One row per preprocessed subject: numbers of the registrations, and flags joined in one text."""
    rows = [json.loads(qc_path(run_dir, person.id).read_text(encoding="utf-8"))
            for person in usable_subjects(config, run_dir)]
    return pd.DataFrame([row | {"flags": "; ".join(row["flags"])} for row in rows])
