"""What a BIDS dataset offers to a study: sessions, groups, voxels, masks, faults and suspicions; and a study's file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
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
from .participants import COHORTS, LABEL, SEQUENCES, TABLE, known_cells, read_cells

#: Columns that usually hold the group, the likeliest first, and columns that never do.
LIKELY = ("group", "diagnosis", "dx", "phenotype", "ms_type", "subtype", "disease", "condition", "status")
NEVER = {"participant_id", "age", "sex", "gender", "edss", "cohort", "handedness", "site", "scanner", "session"}
#: Words that say that somebody is healthy, and those that may stand beside them.
HEALTHY = {"control", "controls", "healthy", "hc", "hcs", "hv", "hvs", "ctrl", "normal"}
BESIDE = {"volunteer", "volunteers", "subject", "subjects", "participant", "participants", "person", "persons",
          "people", "individual", "individuals", "adult", "adults", "young", "older", "elderly", "cognitively",
          "comparison", "group", "age", "sex", "gender", "matched", "and"}
#: Entries of a sidecar that tell scanners apart.
SCANNER = ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "InstitutionName")
#: Entities by which files of one sequence differ.
CHOICES = ("run", "acq", "rec", "ce", "dir", "echo", "part")


@dataclass(frozen=True)
class Survey:
    """What was found in a dataset, and what a study would take of it.

    `columns`: that could be the group, to values and counts; `column`: the one taken (None: left open); `classes`: to
    its values; `usable`: people without a fault by class (the study's own cohort); `sessions`: to numbers of subjects;
    `voxel_mm`: of every T1w image, (n, 3); `megavoxels`: likewise millions of voxels, as scanned and of 1 mm, (n, 2);
    `masks`: numbers of subjects by kind.
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
    megavoxels: np.ndarray
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
        return len(self.voxel_mm) > 0 and bool((abs(self.voxel_mm - 1) <= 0.1).all())

    @property
    def left_open(self) -> list[str]:
        """What keeps a study from running, and what a person must decide; a line each."""
        if self.column is None:
            told = "; ".join(f"{name} ({_counts(values)})" for name, values in self.columns.items()) or "none was found"
            return [printable(f"cohort.group_column: which column of {TABLE} holds the group? Could be {told}")]
        if len(self.groups) < 2:
            return [f"groups: column {self.column!r} has {len(self.groups)} class of at least {MIN_PER_GROUP} usable "
                    "people; networks need two to tell apart"]
        return []


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value!r}: {count}" for value, count in values.items())


def _values(cells: pd.Series) -> dict[str, int]:
    """Known values of a column, the commonest first, with their counts."""
    return dict(Counter(text for cell in cells for text in known_cells({"": cell}).values()).most_common())


def _group_columns(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Columns of a table of texts that could tell groups apart: few values, two of them of several people."""
    found = {name: _values(table[name]) for name in table.columns if name.lower() not in NEVER}
    return {name: values for name, values in found.items()
            if 1 < len(values) <= max(4, len(table) // MIN_PER_GROUP) and list(values.values())[1] >= MIN_PER_GROUP
            and not any(re.fullmatch(r"-?\d+\.\d+", value) for value in values)}


def class_names(values, meanings: Mapping[str, str]) -> dict[str, list[str]]:
    """Classes, as plain words, to values of the table; `meanings`: of coded values (``Levels`` of participants.json).

    Values that mean healthy people, in words of `HEALTHY` and `BESIDE` alone, become `CONTROL`.
    """
    classes = defaultdict(list)
    for value in values:
        meaning = str(meanings.get(value, value))
        words = set(re.findall(r"[^\W_]+", meaning.lower()))
        healthy = bool(words & HEALTHY) and words <= HEALTHY | BESIDE
        name = CONTROL if healthy else re.sub("[^A-Za-z0-9]", "", meaning if value.isdigit() else value)
        # To tables that are read again some names say that nothing is known; healthy people alone are controls.
        if not healthy and (name.lower() in ("", "na", "nan", "none", "null", CONTROL) or name in classes):
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
    """Sessions with their numbers of subjects, the one to take, and entities where a sequence has several images.

    An entity is empty where the image without it is the commonest.
    """
    images = {}
    for label in labels:
        with suppress(OSError):  # a fault of this subject, which the check of the images tells
            images[label] = sessions_of(root / label, SEQUENCES)
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
                    differing[name].update(entities.get(name, "") for entities in own)
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
    columns = _group_columns(table)
    if column is not None and column not in table:
        raise StudyError(f"--group-column: must be a column of {root / TABLE}: {', '.join(table)} (got {column!r})")
    named = [name for likely in LIKELY for name in columns if name.lower() == likely]
    if column is None and (named or len(columns) == 1):
        column = [*named, *columns][0]
    labels = [label for label in table["participant_id"] if LABEL.fullmatch(label) and (root / label).is_dir()]
    sessions, session, entities = _choice(root, labels)
    groups = class_names(_values(table[column]), _meanings(root, column)) if column else {}
    try:
        cohort = Cohort.from_bids(root, SEQUENCES, groups=groups or None, group_column=column or "participant_id",
                                  session=session, entities=entities, min_per_group=0, on_fault="skip")
        faults = list(map(str, cohort.faults))
        if column is None:  # ids are no groups
            cohort = replace(cohort, subjects=tuple(replace(one, group="") for one in cohort))
    except StudyError as error:  # of the dataset as a whole
        cohort, faults = None, str(error).splitlines()
    people = list(cohort or ())
    usable = Counter(one.group for one in people if one.cohort == COHORTS[0])
    masks = {kind: sum(getattr(one, f"{kind}_mask") is not None for one in people) for kind in ("brain", "lesion")}
    headers = [nib.load(one.images["T1w"]).header for one in people]
    sizes = np.reshape([header.get_zooms()[:3] for header in headers], (-1, 3))
    scanned = np.array([np.prod(header.get_data_shape()[:3]) for header in headers]) / 1e6
    return Survey(root, cohort, faults, columns, column, groups, {name: usable[name] for name in groups}, sessions,
                  session, entities, sizes.round(3), np.stack([scanned, scanned * sizes.prod(1)], 1), masks)


def suspicions(cohort: Cohort, root: str | Path) -> list[str]:
    """What is allowed and yet likely wrong, a line each: copies, swapped sequences, confounded groups."""
    lines, seen, rows = [], {}, []
    for one in cohort:
        row = {"group": one.group, "age": one.age, "site": one.site}
        for sequence, path in one.images.items():
            place = path.relative_to(root).as_posix()
            digest = hashlib.sha256(path.read_bytes()).digest()
            doubts = [f"is the same file as {seen[digest]}"] if digest in seen else []
            seen.setdefault(digest, place)
            header = nib.load(path).header
            sizes = np.array(header.get_zooms()[:3])
            extent = sizes * header.get_data_shape()[:3]
            if extent.min() < 100:
                doubts.append(f"covers {_by(extent)} mm, less than a head")
            if sizes.max() > 6:
                doubts.append(f"has voxels of {_by(sizes)} mm")
            facts = sidecar(path)
            lines += [f"sub-{one.id}: {place}: {doubt}" for doubt in [*doubts, *_not_the_sequence(sequence, facts)]]
            if sequence == "T1w":
                row |= {key: str(facts[key]) for key in SCANNER if key in facts}
                row["voxels of T1w"] = _by(sizes.round(1))
            row[f"contrast agent of {sequence}"] = entities_of(path).get("ce", "none")
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
    # T1w has a shorter echo, T2w a longer one; FLAIR inverts later than T1w.
    late = {"EchoTime": (0.04, sequence != "T1w"), "InversionTime": (1.5, sequence == "FLAIR")}
    return [f"is named {sequence}, but has an {name} of {facts[name]:g} s" for name, (seconds, expected) in late.items()
            if isinstance(facts.get(name), int | float) and (facts[name] > seconds) != expected
            and (name, sequence) != ("InversionTime", "T1w")]


def confounded(table: pd.DataFrame) -> list[str]:
    """What tells groups apart beside disease, a line each: sites, scanners, voxels; and age.

    `table`: ``group``, ``age`` and what may tell them apart, a row per person. Told is what no two groups share, and
    what controls and patients do not share.
    """
    lines = []
    for key in table.columns.difference(["group", "age"]):
        groups = table.dropna(subset=key).groupby(key)["group"].agg(set)
        kinds = groups.map(lambda found: {name == CONTROL for name in found})
        told = ", ".join(f"{value}: {' and '.join(sorted(found))}" for value, found in groups.items())
        for sets, what in ((groups, "the groups apart"), (kinds, "controls from patients")):
            if len(sets) > 1 and sets.map(len).max() == 1 and len(set.union(*sets)) > 1:
                lines.append(f"cohort: {key} tells {what} ({told}); a network can learn it instead of disease")
                break
    ages = table.dropna(subset="age").groupby("group")["age"].mean() if len(table) else pd.Series(dtype=float)
    if len(ages) > 1 and ages.max() - ages.min() > 10:
        lines.append(f"cohort: mean ages differ ({', '.join(f'{name}: {age:.0f}' for name, age in ages.items())}); a "
                     "network can learn age instead of disease")
    return lines


STUDY = """\
# Written by mslib init from {place}. Every key is explained in config/README.md.
study: {name}
# Classes, and the values of the column that stand for each ({values}).
# Healthy people must be called control: all other classes count as patients.
groups: {groups}
cohort:
  source: bids
  root: {root}
  # Column of participants.tsv that holds the group.{others}
  group_column: {column}
{choice}  # {faults}
  on_fault: {on_fault}
prep:
  # Voxels of T1w: {low} to {high} mm.{cubes}
  resample_mm: {resample}
model:
  # Where networks start: simulated (shipped), imagenet (downloaded), scratch, a .h5 file.
  weights: {weights}
# As in config/simulated.yaml.
{sections}"""


def _quoted(value) -> str:
    """Text, list or mapping of texts in a line of YAML."""
    return yaml.safe_dump(value, default_style='"', default_flow_style=True, allow_unicode=True, width=float("inf"),
                          sort_keys=False).strip()


def study_text(found: Survey, name: str, weights: str, sections: Mapping[str, Mapping]) -> str:
    """A study's YAML file with a comment per key, of a survey that leaves nothing open; texts are quoted and escaped.

    `weights`: value of ``model.weights``; `sections`: others by name, as they are to be written.
    """
    place, choice = str(found.root.resolve()), ""
    others = "; ".join(f"{key!r} ({_counts(own)})" for key, own in found.columns.items() if key != found.column)
    small = f"; left out, fewer than {MIN_PER_GROUP} usable: {_counts(found.small)}" if found.small else ""
    if found.session:
        choice += (f"  # Sessions, and their numbers of subjects: {_counts(found.sessions)}.\n"
                   f"  session: {_quoted(found.session)}\n")
    if found.entities:
        choice += ("  # Of several images of a sequence, the one whose name has this (empty: lacks it).\n"
                   f"  entities: {_quoted(found.entities)}\n")
    return STUDY.format(
        place=printable(place), name=_quoted(name), values=_counts(found.columns.get(found.column, {})) + small,
        groups=_quoted(found.groups), root=_quoted(place), column=_quoted(found.column), choice=choice,
        others=f" Others that could: {others}." if others else "",
        faults=f"Faults, which mslib check lists: {len(found.faults)}. Their subjects are left out; stop would refuse "
               "the study." if found.faults else "No fault was found; a later one stops.",
        on_fault="skip" if found.faults else "stop", low=_by(found.voxel_mm.min(0)), high=_by(found.voxel_mm.max(0)),
        cubes="" if found.fine else " Slices are cut from cubic voxels.", resample="null" if found.fine else "1.0",
        weights=weights,
        sections="".join(f"{key}:\n" + indent(yaml.safe_dump(
            dict(section), sort_keys=False, default_flow_style=None, width=120), "  ")
                         for key, section in sections.items()))
