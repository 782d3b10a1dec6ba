"""A cohort of patients in a BIDS folder, checked as a whole: all faults are reported together; its listing."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from mslib.study import StudyConfig, StudyError, progress, read_json, write_json
from mslib.study.config import MIN_PER_GROUP

from .checks import Fault, ImageFault, check_image, check_mask
from .participants import COHORT, COHORTS, LABEL, LABEL_RULE, SEQUENCES, TABLE, Subject, read_participants

GROUP = "group"  # stands for the subject in faults of a whole group
OUTSIDE, INSIDE = "links outside the cohort's folder", "files inside it"


@dataclass(frozen=True)
class Cohort:
    """Checked subjects in the order of their ids (iterable, with a length) and the `faults` of all others.

    `left_out`: a line for every value of the group column that is of no class.
    """

    subjects: tuple[Subject, ...]
    faults: list[Fault] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects)

    def __len__(self) -> int:
        return len(self.subjects)

    @classmethod
    def from_bids(cls, root: str | Path, sequences: Sequence[str] = SEQUENCES, *,
                  groups: Sequence[str] | Mapping[str, Sequence[str]] | None = None, group_column: str = "group",
                  session: str | None = None, entities: Mapping[str, str] | None = None, min_per_group: int = 1,
                  on_fault: str = "stop") -> Cohort:
        """Read and check a BIDS folder: names, table, headers and every voxel.

        Parameters
        ----------
        root : path
            Folder with ``participants.tsv`` and ``sub-*/[ses-*/]anat``.
        sequences : sequence of str
            BIDS suffixes; each subject needs exactly one image of each.
        groups, group_column
            Allowed classes (None: those of the table), and their column. A mapping gives the values of the column that
            stand for each class; subjects of other values are left out.
        session, entities
            Label of the session where subjects have several; entities (``{"run": "2"}``) of the image where they have
            several of a sequence. Numbers may be padded.
        min_per_group : int
            Subjects without a fault that every group needs in the study (not in its independent cohort).
        on_fault : {'stop', 'skip'}
            Raise on any fault, or go on without the faulty subjects.

        Raises
        ------
        StudyError
            One line per fault, all together, with ``stop``; with ``skip`` only where the cohort as a whole
            cannot be used (no table, no subject, too few subjects in a group).
        """
        root = Path(root)
        try:
            folders, wrong = _folders(root)
        except OSError as error:
            raise StudyError(f"{root}: {error.strerror or error}; allowed: a readable BIDS folder") from error
        rows, faults, left_out = read_participants(root, group_column, groups)
        folders -= left_out.keys()
        faults += wrong + (_unpaired(rows, folders) if rows is not None else [])
        rows = rows or {}
        paired = [rows[label] for label in sorted(folders & rows.keys() - {fault.subject for fault in wrong})]
        with ThreadPoolExecutor(2) as pool:
            jobs = pool.map(lambda row: _subject(root, row, tuple(sequences), session, entities or {}), paired)
            results = list(progress(jobs, total=len(paired), desc="check images", unit="subject"))
        faults += [fault for _, wrong in results for fault in wrong]
        faulty = {fault.subject for fault in faults}
        healthy = [subject for subject, _ in results if f"sub-{subject.id}" not in faulty]
        # With "stop" the faults get repaired, so that every row counts; with "skip" only what is left does.
        counted = rows.values() if on_fault == "stop" else healthy
        if COHORT not in faulty:
            counts = Counter(one.group for one in counted if one.cohort == COHORTS[0])
            faults += [Fault(GROUP, TABLE, f"group {group!r} has {counts[group]} usable subjects",
                             f"at least {min_per_group}, for the split")
                       for group in groups or sorted({row.group for row in rows.values()} - {""})
                       if counts[group] < min_per_group]
        if any(on_fault == "stop" or fault.subject in (COHORT, GROUP) for fault in faults):
            raise StudyError("\n".join(map(str, faults)))
        return cls(tuple(healthy), faults, [
            f"left out: {count} subject{'s' * (count > 1)} with {group_column} {value!r}, which is of no class"
            for value, count in Counter(left_out.values()).items()])

    @classmethod
    def of_study(cls, root: str | Path, config: StudyConfig, **changes) -> Cohort:
        """The cohort of a study's settings (`from_bids`); `changes` of its arguments."""
        own, few = config.cohort, 0 if config.group_values else 1  # shipped networks may know classes that nobody is of
        options = {"groups": config.group_values or (config.groups if config.trains else None),
                   "group_column": own.group_column, "session": own.session, "entities": own.entities,
                   "min_per_group": MIN_PER_GROUP if config.trains else few, "on_fault": own.on_fault}
        return cls.from_bids(root, config.sequences, **options | changes)


def _folders(root: Path) -> tuple[set[str], list[Fault]]:
    """Names of the subjects' folders that are valid, and faults of those that are not or lead outside."""
    found = sorted(path for path in root.iterdir() if path.name.startswith("sub-") and path.is_dir())
    folders, faults = {path.name for path in found if LABEL.fullmatch(path.name)}, []
    for path in found:
        if path.name not in folders:
            faults.append(Fault(path.name, path.name, "is no valid name of a folder", LABEL_RULE))
        elif not path.resolve().is_relative_to(root.resolve()):
            faults.append(Fault(path.name, path.name, OUTSIDE, INSIDE))
    return folders, faults


def _unpaired(rows: dict[str, Subject], folders: set[str]) -> list[Fault]:
    faults = [Fault(label, label, f"has a folder but no row in {TABLE}", "one row per folder")
              for label in sorted(folders - set(rows))]
    faults += [Fault(label, TABLE, "has a row but no folder", "one folder per row")
               for label in sorted(set(rows) - folders)]
    if not rows:
        faults.append(Fault(COHORT, TABLE, "names no usable participant", "at least one"))
    return faults


def _files(folder: Path) -> list[Path]:
    """Visible files of a folder, empty where there is none."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _same(label: str, wanted: str) -> bool:
    """Whether two labels are the same, numbers with and without leading zeros."""
    return label == wanted or (label.isdigit() and wanted.isdigit() and int(label) == int(wanted))


def entities_of(path: Path) -> dict[str, str]:
    """Entities in a file's name: ``{"sub": "001", "run": "2"}``."""
    return dict(part.split("-", 1) for part in path.name.split(".")[0].split("_") if "-" in part)


def sessions_of(folder: Path, sequences: Sequence[str]) -> dict[str, list[Path]]:
    """Images of the sequences in a subject's folder, by session (``ses-...``, '' without one); OSError: unreadable."""
    ending = re.compile(rf"_({'|'.join(map(re.escape, sequences))})\.nii(\.gz)?")
    sessions = {}
    for name in ("", *(path.name for path in _files(folder) if path.name.startswith("ses-"))):
        images = [path for path in _files(folder / name / "anat") if ending.search(path.name)]
        sessions |= {name: images} if images else {}
    return sessions


def _choose(root: Path, label: str, sequences: tuple[str, ...], wanted: str | None, entities: Mapping[str, str]
            ) -> tuple[tuple[str, ...], dict[str, Path], list[Fault]]:
    """Sessions of the masks ('' for masks without one, as an only session may have) and an image per sequence."""
    def none(found, allowed):
        return (), {}, [Fault(label, label, found, allowed)]

    try:
        sessions = sessions_of(root / label, sequences)
    except OSError as error:
        return none(f"cannot be read ({error.strerror or error})", "a readable folder")
    listed, alone = ", ".join(name or "none" for name in sessions), len(sessions) == 1
    if wanted is not None:
        sessions = {name: images for name, images in sessions.items() if _same(name.removeprefix("ses-"), wanted)}
        if not sessions:
            return none(f"has images in sessions {listed}" if listed else "has no images",
                        f"images in session {wanted!r}")
    if len(sessions) > 1:
        return none(f"has images in {len(sessions)} sessions ({listed})",
                    "one session, or the label of one as cohort.session")
    session, images = next(iter(sessions.items()), ("", []))
    place = "/".join(part for part in (label, session, "anat") if part)
    prefix = f"{label}_{session}_" if session else f"{label}_"
    faults = [Fault(label, f"{place}/{path.name}", "is named for another subject or session", f"{prefix}...")
              for path in images if not path.name.startswith(prefix)]
    chosen = {}
    for sequence in sequences:
        found = [path for path in images if path.name.split(".")[0].endswith(f"_{sequence}")]
        if len(found) > 1 and entities:
            found = [path for path in found if all(
                _same(entities_of(path).get(name, ""), wish) for name, wish in entities.items())] or found
        if len(found) == 1:
            chosen[sequence] = found[0]
        else:
            listed = ", ".join(path.name for path in found or images) or "no image"
            count = f"{len(found)} {sequence} images" if found else f"no {sequence} image"
            choice = ", or entities of one as cohort.entities" if found else ""
            faults.append(Fault(label, place, f"has {count} ({listed})",
                                f"exactly one {prefix}{sequence}.nii[.gz]{choice}"))
    return (session, "") if alone else (session,), chosen, faults


def _mask(root: Path, kind: str, label: str, sessions: Sequence[str], name: str) -> Path | None:
    """A mask of the derivatives `kind`, of the first of the sessions that has one; OSError: unreadable folder."""
    places = (root / "derivatives" / kind / label / part / "anat" / f"{label}_{part and part + '_'}{name}{ending}"
              for part in sessions for ending in (".nii.gz", ".nii"))
    return next((path for path in places if path.exists() or path.is_symlink()), None)


def _subject(root: Path, row: Subject, *choice) -> tuple[Subject, list[Fault]]:
    """Find and check all files of one subject; `choice` as `_choose` takes it."""
    label = f"sub-{row.id}"
    sessions, images, faults = _choose(root, label, *choice)

    def check(path, function):
        try:
            if any("\ud800" <= character <= "\udfff" for character in str(path.relative_to(root))):
                raise ImageFault("has a name that is not UTF-8", "letters, digits, - and _")
            if not os.path.exists(path):
                raise ImageFault("is a link to nothing", "a file (fetch the data first)")
            if not path.resolve().is_relative_to(root.resolve()):
                raise ImageFault(OUTSIDE, INSIDE)
            return function(path)
        except ImageFault as fault:
            faults.append(Fault(label, path.relative_to(root).as_posix(), *fault.args))

    grids = {sequence: check(path, check_image) for sequence, path in images.items()}
    masks = {}
    for kind, name in (("brainmask", "space-T1w_desc-brain_mask"), ("truth", "space-T1w_label-lesion_mask")):
        try:
            masks[kind] = path = _mask(root, kind, label, sessions, name)
        except OSError as error:
            masks[kind] = path = None
            faults.append(Fault(label, f"derivatives/{kind}", f"cannot be read ({error.strerror or error})",
                                "a readable folder"))
        if path is not None and grids.get("T1w"):
            shape, affine = grids["T1w"]
            check(path, partial(check_mask, shape=shape, affine=affine, may_be_empty=kind == "truth"))
    return replace(row, images=images, brain_mask=masks["brainmask"], lesion_mask=masks["truth"]), faults


def _moved(subject: Subject, move) -> Subject:
    """The subject with every path that it has given to `move`."""
    masks = {name: path and move(path) for name, path in vars(subject).items() if name.endswith("_mask")}
    return replace(subject, images={name: move(path) for name, path in subject.images.items()}, **masks)


def write_listing(path: str | Path, cohort: Cohort, root: str | Path, suspicions: Sequence[str] = ()) -> Path:
    """Write the subjects, faults and suspicions of a checked cohort; image paths are kept relative to `root`."""
    def relative(file):
        return file.absolute().relative_to(Path(root).absolute()).as_posix()  # links keep their names

    return write_json(path, {"subjects": [asdict(_moved(one, relative)) for one in cohort],
                             "faults": [str(fault) for fault in cohort.faults], "left_out": cohort.left_out,
                             "suspicions": list(suspicions)})


def read_listing(path: str | Path, root: str | Path) -> list[Subject]:
    """Read the subjects of `write_listing`; StudyError where the file is absent or damaged."""
    return [_moved(Subject(**row), Path(root).joinpath) for row in read_json(path)["subjects"]]
