"""Jobs up to the slice stacks: make or fetch the cohort, check it, bring every subject through preprocessing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd

from mslib.cohort import Cohort, Subject, openms, phantom
from mslib.cohort.listing import read_listing, write_listing
from mslib.study import StudyConfig, StudyError, WriteError, progress, stamped_folder, write_json, write_text
from mslib.study.provenance import ROOT, made_by

#: Code that makes the raw data, by source; the user's own data no code makes.
MAKERS = {"simulated": ["mslib.cohort.phantom"], "open_ms": ["mslib.cohort.openms"], "bids": []}


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


def raw_facts(config: StudyConfig) -> dict:
    """What decides the raw data: where it comes from, settings of the simulation, seed, the code that makes it."""
    facts = {"source": config.cohort.source, "code": [made_by(maker) for maker in MAKERS[config.cohort.source]]}
    if config.cohort.source == "simulated":
        facts |= {"simulated": config.cohort.simulated.model_dump(mode="json"), "seed": config.seed}
    return facts


def start_cohort(config: StudyConfig, run_dir: str | Path) -> None:
    """Make the dataset's descriptions (simulated), or fetch and convert the real patients.

    Raw data that was made under other settings or by other code is removed first (never the user's own).
    """
    if config.cohort.source == "bids":
        return
    root = stamped_folder(bids_root(config, run_dir), raw_facts(config))
    write_text(root / ".bidsignore", "stamp.json\n")
    if config.cohort.source == "simulated":
        template_cache(run_dir).unlink(missing_ok=True)
        phantom.template(config.cohort.simulated.voxel_mm, cache=template_cache(run_dir))
        phantom.write_dataset(participants(config), root)
    else:
        source = Path(run_dir) / "source"
        missing = openms.fetch(source)
        left_out = openms.to_bids(source, root).incomplete
        write_json(Path(run_dir) / "source_faults.json", source_faults(missing, left_out))


def source_faults(missing: dict[str, str], left_out: tuple[str, ...]) -> list[str]:
    """One line per file of the real patients that could not be had (why) or is not whole (whose)."""
    named = [next((f"{line} ({reason})" for name, reason in missing.items() if name in line), line)
             for line in left_out]
    others = [f"{name}: could not be had: {reason}" for name, reason in missing.items()
              if not any(name in line for line in left_out)]
    return [*(f"{line}; left out" for line in named), *others]


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
    source = Path(run_dir) / "source_faults.json"
    if config.cohort.source == "open_ms" and source.is_file():
        cohort = dataclasses.replace(cohort, faults=[*read_json(source), *cohort.faults])
    write_listing(Path(run_dir) / "cohort.json", cohort, root)
    write_json(Path(run_dir) / "checked.json", checked_facts(config))
    return list(cohort)


def own_files(config: StudyConfig) -> list[Path]:
    """Files of the user's own cohort that decide it: table of participants, images, masks."""
    root = ROOT / config.cohort.root
    images = [path for place in ("", "derivatives/truth/", "derivatives/brainmask/")
              for path in root.glob(f"{place}sub-*/**/anat/*.nii*")]
    return [path for path in sorted([root / "participants.tsv", *images]) if path.is_file()]


def checked_facts(config: StudyConfig) -> dict:
    """What decides the checked cohort: raw data, the settings of the check, and the files of the user's own data."""
    facts = {"raw": raw_facts(config), "groups": config.groups, "sequences": list(config.sequences),
             "cohort": config.cohort.model_dump(mode="json"),
             "code": made_by("mslib.cohort.bids")}
    if config.cohort.source == "bids":
        stats = {path.relative_to(ROOT / config.cohort.root).as_posix(): path.stat() for path in own_files(config)}
        facts["files"] = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return facts


def read_json(path: str | Path):
    """Read a JSON file of an earlier job.

    Raises
    ------
    StudyError
        Absent or damaged, with the remedy.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: is absent or damaged ({error}); delete it and run the same command again") from error


def subjects(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Subjects of the checked cohort (checks it first where that has not been done)."""
    listing = Path(run_dir) / "cohort.json"
    return read_listing(listing, bids_root(config, run_dir)) if listing.exists() else check_cohort(config, run_dir)


def subject_folder(run_dir: str | Path, subject: str) -> Path:
    """Folder of a subject's derivatives."""
    return Path(run_dir) / "derivatives" / "mslib" / f"sub-{subject}"


def preprocess(config: StudyConfig, run_dir: str | Path, subject: str) -> None:
    """Preprocess one subject; what an earlier run finished is taken up where nothing that decides it has changed.

    With ``on_fault: skip`` a faulty subject is marked excluded instead of failing; a full disk always fails.
    """
    from mslib.prep import preprocess_subject  # its libraries load slowly, and most jobs need none

    chosen = [person for person in subjects(config, run_dir) if person.id == subject]
    if not chosen:
        raise StudyError(f"sub-{subject}: is not in the checked cohort of study {config.study}")
    folder = stamped_folder(subject_folder(run_dir, subject), {"code": made_by("mslib.prep")})
    try:
        preprocess_subject(chosen[0], folder.parent, config.prep, config.sequences, config.model.image_size,
                           config.model.pixel_mm)
    except StudyError as error:
        if config.cohort.on_fault == "stop" or _is_ours(error):
            raise
        write_json(qc_path(run_dir, subject), {"subject": subject, "excluded": str(error)})


def _is_ours(error: BaseException | None) -> bool:
    """Whether an error comes from output that cannot be written, and not from the subject's data."""
    while error is not None and not isinstance(error, WriteError):
        error = error.__cause__
    return error is not None


def ensure_cohort(config: StudyConfig, run_dir: str | Path) -> list[Subject]:
    """Subjects of the checked cohort, making or fetching first what is missing or made under other settings."""
    listing, checked = Path(run_dir) / "cohort.json", Path(run_dir) / "checked.json"
    if listing.exists() and checked.exists() and read_json(checked) == checked_facts(config):
        return subjects(config, run_dir)
    start_cohort(config, run_dir)
    if config.cohort.source == "simulated":
        truths = {one.id: phantom.subject_files(bids_root(config, run_dir), one.id)["truth"]
                  for one in participants(config)}
        missing = [subject for subject, truth in truths.items() if not truth.exists()]
        for subject in progress(missing, desc="simulate", unit="subject", disable=not missing):
            simulate(config, run_dir, subject)
    return check_cohort(config, run_dir)


def qc_path(run_dir: str | Path, subject: str) -> Path:
    """Quality numbers of a preprocessed subject; the file that preprocessing writes last."""
    return subject_folder(run_dir, subject) / "anat" / f"sub-{subject}_desc-qc.json"


def ensure_preprocessed(config: StudyConfig, run_dir: str | Path) -> None:
    """Preprocess every subject that is not yet, or was under other settings; damaged files are made again."""
    for person in progress(ensure_cohort(config, run_dir), desc="preprocess", unit="subject"):
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
    found = {person.id: read_json(qc_path(run_dir, person.id)) for person in subjects(config, run_dir)}
    return {subject: row["excluded"] for subject, row in found.items() if "excluded" in row}


def faults(run_dir: str | Path) -> list[str]:
    """Faults that the check of the cohort listed."""
    return read_json(Path(run_dir) / "cohort.json")["faults"]


def quality_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """One row per preprocessed subject: numbers of the registrations, and flags joined in one text."""
    rows = [read_json(qc_path(run_dir, person.id)) for person in usable_subjects(config, run_dir)]
    return pd.DataFrame([row | {"flags": "; ".join(row["flags"])} for row in rows])
