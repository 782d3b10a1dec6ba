"""What a BIDS dataset offers to a study: sessions, groups, voxels, masks, faults and suspicions; and a study's file."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import nibabel as nib
import numpy as np
import pandas as pd
import yaml

from mslib.study import CONTROL, StudyError, read_json
from mslib.study.config import MIN_PER_GROUP

from .bids import Cohort, entities_of, sessions_of
from .checks import printable
from .participants import COHORTS, LABEL, TABLE, known_cells, read_cells

SEQUENCES = ("T1w", "T2w", "FLAIR")
#: Columns that usually hold the group, the likeliest first, and columns that never do.
LIKELY = ("group", "diagnosis", "dx", "phenotype", "ms_type", "subtype", "disease", "condition", "status")
NEVER = {"participant_id", "age", "sex", "gender", "edss", "cohort", "handedness", "site", "scanner", "session"}
#: What tables that are read again take for a missing value.
NO_NAMES = ("", "na", "nan", "none", "null")
HEALTHY = re.compile(r"\b(controls?|healthy|hc|hv|ctrl|normal)\b", re.IGNORECASE)
#: Entities by which files of one sequence differ.
CHOICES = ("run", "acq", "rec", "ce", "dir", "echo", "part")
#: A head is larger than this along every axis; slices are thinner.
HEAD_MM, SLICE_MM = 100.0, 6.0
#: Seconds: T1w has a shorter echo, T2w a longer one; FLAIR inverts later than T1w.
ECHO_S, INVERSION_S = 0.04, 1.5


@dataclass(frozen=True)
class Survey:
    """What was found in a dataset, and what a study would take of it.

    `columns`: columns of the table that could be the group, to values and counts; `column`: the one taken (None: left
    open); `classes`: to its values; `usable`: people without a fault by class (the study's own cohort); `sessions`:
    labels to numbers of subjects; `voxel_mm`: size of every T1w image's voxels, (n, 3); `masks`: numbers of subjects by
    kind.
    """

    root: Path
    cohort: Cohort | None
    faults: list[str]
    columns: dict[str, dict[str, int]]
    column: str | None
    classes: dict[str, list[str]]
    usable: dict[str, int]
    sessions: dict[str, int]
    session: str | None
    entities: dict[str, str]
    voxel_mm: np.ndarray
    masks: dict[str, int]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Classes of enough usable people to train on."""
        return {name: values for name, values in self.classes.items() if self.usable[name] >= MIN_PER_GROUP}

    @property
    def small(self) -> dict[str, int]:
        """Values of the column that stand for classes of too few people, with their numbers."""
        return {value: self.columns.get(self.column, {}).get(value, 0) for name, values in self.classes.items()
                if name not in self.groups for value in values}

    @property
    def fine(self) -> bool:
        """Whether slices may be cut from the T1w images' own grids: all voxels are about 1 mm."""
        return bool(len(self.voxel_mm)) and bool((abs(self.voxel_mm - 1) <= 0.1).all())

    @property
    def left_open(self) -> list[str]:
        """What keeps a study from running, and what a person must decide; a line each."""
        lines = []
        if self.column is None:
            told = [f"{name} ({_counts(values)})" for name, values in self.columns.items()] or ["none was found"]
            lines.append(f"cohort.group_column: which column of {TABLE} holds the group? Could be {'; '.join(told)}")
        elif len(self.groups) < 2:
            lines.append(f"groups: column {self.column!r} has {len(self.groups)} class of at least {MIN_PER_GROUP} "
                         "usable people; networks need two to tell apart")
        return [printable(line) for line in lines]


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value!r}: {count}" for value, count in values.items())


def _values(cells: pd.Series) -> dict[str, int]:
    """Known values of a column, the commonest first, with their counts."""
    return dict(Counter(text for cell in cells for text in known_cells({"": cell}).values()).most_common())


def group_columns(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Columns of a table of texts that could tell groups apart: few values, two of them of several people."""
    found = {name: _values(table[name]) for name in table.columns if name.lower() not in NEVER}
    return {name: values for name, values in found.items()
            if 1 < len(values) <= max(4, len(table) // MIN_PER_GROUP) and list(values.values())[1] >= MIN_PER_GROUP
            and not any(re.fullmatch(r"-?\d+\.\d+", value) for value in values)}


def _likeliest(columns) -> str | None:
    """The column that is most likely the group; None where it is anybody's guess."""
    named = [name for likely in LIKELY for name in columns if name.lower() == likely]
    return named[0] if named else next(iter(columns)) if len(columns) == 1 else None


def class_names(values, meanings: Mapping[str, str]) -> dict[str, list[str]]:
    """Classes, as plain words, to values of the table; `meanings`: of coded values (``Levels`` of participants.json).

    Values that mean healthy people become `CONTROL`.
    """
    classes = defaultdict(list)
    for value in values:
        meaning = str(meanings.get(value, value))
        name = CONTROL if HEALTHY.search(meaning) else re.sub("[^A-Za-z0-9]", "", meaning if value.isdigit() else value)
        if name != CONTROL and (name.lower() in NO_NAMES or name in classes):
            name = f"{name or 'class'}{len(classes) + 1}"
        classes[name].append(value)
    return dict(sorted(classes.items(), key=lambda item: item[0] != CONTROL))


def _meanings(root: Path, column: str) -> dict[str, str]:
    """What values of a column mean, as far as participants.json says so."""
    try:
        levels = read_json(root / "participants.json")[column]["Levels"]
    except (StudyError, KeyError, TypeError):
        return {}
    return levels if isinstance(levels, dict) else {}


def _choice(root: Path, labels) -> tuple[dict[str, int], str | None, dict[str, str]]:
    """Sessions with their numbers of subjects, the one to take, and entities where a sequence has several images."""
    images = {label: sessions_of(root / label, SEQUENCES) for label in labels}
    sessions = Counter(name for found in images.values() for name in found)
    session = None
    if any(len(found) > 1 for found in images.values()):
        session = min((name for name in sessions if name), key=lambda name: (-sessions[name], name), default=None)
    differing = defaultdict(Counter)
    for found in images.values():
        files = found.get(session, []) if session else [path for paths in found.values() for path in paths]
        for sequence in SEQUENCES:
            own = [entities_of(path) for path in files if path.name.split(".")[0].endswith(f"_{sequence}")]
            for name in CHOICES if len(own) > 1 else ():
                if len({entities.get(name) for entities in own}) == len(own):
                    differing[name].update(entities[name] for entities in own if name in entities)
    entities = {name: min(labels, key=lambda label: (-labels[label], label))
                for name, labels in list(differing.items())[:1]}
    return dict(sorted(sessions.items())), session and session.removeprefix("ses-"), entities


def survey(root: str | Path, column: str | None = None) -> Survey:
    """Look at a BIDS dataset as a study would, and read every image once.

    `column` holds the group (default: the likeliest). StudyError: no folder, no table of participants, no such column.
    """
    root = Path(root)
    if not root.is_dir():
        raise StudyError(f"{root}: is no folder; allowed: a BIDS dataset, with {TABLE}")
    table = read_cells(root)
    columns = group_columns(table)
    if column is not None and column not in table:
        raise StudyError(f"--group-column: must be a column of {root / TABLE}: {', '.join(table)} (got {column!r})")
    column = column or _likeliest(columns)
    labels = [label for label in table["participant_id"] if LABEL.fullmatch(label) and (root / label).is_dir()]
    sessions, session, entities = _choice(root, labels)
    values = columns.get(column) or (_values(table[column]) if column else {})
    groups = class_names(values, _meanings(root, column)) if column else {}
    options = {"group_column": column or "participant_id", "session": session, "entities": entities,
               "min_per_group": 0, "on_fault": "skip", "groups": groups or None}
    try:
        cohort = Cohort.from_bids(root, SEQUENCES, **options)
        faults = list(map(str, cohort.faults))
    except StudyError as error:  # of the dataset as a whole
        cohort, faults = None, str(error).splitlines()
    people = [] if cohort is None or column is None else list(cohort)
    usable = Counter(one.group for one in people if one.cohort == COHORTS[0])
    masks = {kind: sum(getattr(one, f"{kind}_mask") is not None for one in cohort or ())
             for kind in ("brain", "lesion")}
    sizes = [nib.load(one.images["T1w"]).header.get_zooms()[:3] for one in cohort or ()]
    return Survey(root, cohort, faults, columns, column, groups, {name: usable[name] for name in groups}, sessions,
                  session, entities, np.reshape(sizes, (-1, 3)).round(3), masks)


# --- suspicions --------------------------------------------------------------------------------------------------


def suspicions(cohort: Cohort, root: str | Path) -> list[str]:
    """What is allowed and yet likely wrong, a line each: copies, swapped sequences, confounded groups."""
    lines, seen, rows = [], {}, []
    for one in cohort:
        row = {"group": one.group, "age": one.age, "site": one.site}
        for sequence, path in one.images.items():
            place = path.relative_to(root).as_posix()
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in seen:
                lines.append(f"sub-{one.id}: {place}: is the same file as {seen[digest]}")
            seen.setdefault(digest, place)
            header = nib.load(path).header
            extent = np.multiply(header.get_zooms()[:3], header.get_data_shape()[:3])
            if extent.min() < HEAD_MM:
                lines.append(f"sub-{one.id}: {place}: covers {_by(extent)} mm, less than a head")
            if max(header.get_zooms()[:3]) > SLICE_MM:
                lines.append(f"sub-{one.id}: {place}: has voxels of {_by(header.get_zooms()[:3])} mm")
            facts = sidecar(path)
            lines += [f"sub-{one.id}: {place}: {doubt}" for doubt in _not_the_sequence(sequence, facts)]
            if sequence == "T1w":
                row |= {key: str(facts[key]) for key in ("Manufacturer", "ManufacturersModelName",
                                                         "MagneticFieldStrength", "InstitutionName") if key in facts}
                row["voxels of T1w"] = _by(np.round(header.get_zooms()[:3], 1))
        rows.append(row)
    return [printable(line) for line in [*lines, *confounded(pd.DataFrame(rows))]]


def _by(sizes) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def sidecar(path: Path) -> dict:
    """What the sidecar of an image says; nothing where it is absent or damaged."""
    file = path.with_name(path.name.split(".")[0] + ".json")
    try:
        facts = read_json(file) if file.exists() else {}
    except StudyError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _not_the_sequence(sequence: str, facts: Mapping) -> list[str]:
    """What the times of a sidecar say against the sequence of a file's name."""
    echo, inversion = (facts.get(f"{name}Time") for name in ("Echo", "Inversion"))
    echo, inversion = (value if isinstance(value, int | float) else None for value in (echo, inversion))
    doubts = []
    if echo is not None and (echo > ECHO_S) != (sequence != "T1w"):
        doubts.append(f"is named {sequence}, but has an EchoTime of {echo:g} s")
    if inversion is not None and sequence != "T1w" and (inversion > INVERSION_S) != (sequence == "FLAIR"):
        doubts.append(f"is named {sequence}, but has an InversionTime of {inversion:g} s")
    return doubts


def confounded(table: pd.DataFrame) -> list[str]:
    """What tells groups apart beside disease, a line each: sites, scanners, voxels; and age.

    `table`: ``group``, ``age`` and what may tell them apart, a row per person. Told is what no two groups share, and
    what controls and patients do not share.
    """
    lines = []
    for key in table.columns.difference(["group", "age"]):
        groups = table.dropna(subset=key).groupby(key)["group"].agg(set)
        kinds = groups.map(lambda found: {name == CONTROL for name in found})
        if len(groups) < 2 or len(set.union(*groups)) < 2:
            continue
        told = ", ".join(f"{value}: {' and '.join(sorted(found))}" for value, found in groups.items())
        if groups.map(len).max() == 1:
            lines.append(f"cohort: {key} tells the groups apart ({told}); a network can learn it instead of disease")
        elif kinds.map(len).max() == 1 and len(set.union(*kinds)) == 2:
            lines.append(f"cohort: {key} tells controls from patients ({told}); a network can learn it instead of "
                         "disease")
    ages = table.dropna(subset="age").groupby("group")["age"].mean() if len(table) else pd.Series(dtype=float)
    if len(ages) > 1 and ages.max() - ages.min() > 10:
        lines.append(f"cohort: mean ages differ ({', '.join(f'{name}: {age:.0f}' for name, age in ages.items())}); a "
                     "network can learn age instead of disease")
    return lines


# --- the study's file --------------------------------------------------------------------------------------------


def study_text(found: Survey, name: str, weights: str, training: Mapping) -> str:
    """A study's YAML file with a comment per key; texts of the dataset stand in quotes, escaped.

    `weights`, `training`: values of ``model.weights`` and of the section ``training``.
    """
    def quoted(value):
        return json.dumps(value)

    def note(text):
        return f"# {printable(text)}"

    values = found.columns.get(found.column, {})
    small = f"; left out, fewer than {MIN_PER_GROUP} usable: {_counts(found.small)}" if found.small else ""
    others = [f"{key!r} ({_counts(own)})" for key, own in found.columns.items() if key != found.column]
    low, high = (found.voxel_mm.min(0), found.voxel_mm.max(0)) if len(found.voxel_mm) else ([], [])
    lines = [
        note(f"Written by mslib init from {found.root.resolve()}. Every key is explained in config/README.md."),
        f"study: {name}",
        note(f"Classes, and the values of the column that stand for each ({_counts(values)}{small})."),
        note("Healthy people must be called control: all other classes count as patients."),
        f"groups: {quoted(found.groups)}", "cohort:", "  source: bids", f"  root: {quoted(str(found.root.resolve()))}",
        "  " + note("Column of participants.tsv that holds the group." + (
            f" Others that could: {'; '.join(others)}." if others else "")),
        f"  group_column: {quoted(found.column or 'group')}"]
    if found.session:
        lines += ["  " + note(f"Sessions, and their numbers of subjects: {_counts(found.sessions)}."),
                  f"  session: {quoted(found.session)}"]
    if found.entities:
        lines += ["  " + note("Of several images of a sequence, the one whose name has this."),
                  f"  entities: {quoted(found.entities)}"]
    lines += ["  " + note(f"Faults, which mslib check lists: {len(found.faults)}. Their subjects are left out; stop "
                          "would refuse the study." if found.faults else "No fault was found; a later one stops."),
              f"  on_fault: {'skip' if found.faults else 'stop'}",
              "prep:", "  " + note(f"Voxels of T1w: {_by(low)} to {_by(high)} mm." + (
                  "" if found.fine else " Slices are cut from cubic voxels.")),
              f"  resample_mm: {'null' if found.fine else '1.0'}",
              "model:",
              "  " + note("Where networks start: simulated (shipped), imagenet (downloaded), scratch, a .h5 file."),
              f"  weights: {weights}",
              note("As in config/simulated.yaml."), "training:",
              indent(yaml.safe_dump(dict(training), sort_keys=False, default_flow_style=None, width=120), "  ")]
    return "\n".join(lines).rstrip() + "\n"
