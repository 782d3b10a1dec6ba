"""The table of a cohort: ``participants.tsv`` read strictly, with every fault named, and written."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mslib.study import StudyError, atomic_path, write_json, write_table, write_text

from .checks import Fault

TABLE = "participants.tsv"
SEQUENCES = ("T1w", "T2w", "FLAIR")
#: Stands for the subject in faults of the cohort as a whole.
COHORT = "cohort"
COHORTS = ("study", "independent")
LABEL = re.compile(r"sub-[A-Za-z0-9]+", re.ASCII)
LABEL_RULE = "'sub-' and ASCII letters or digits"


@dataclass(frozen=True)
class Subject:
    """One subject of a cohort; `id` is the label without ``sub-``, None is what is not known.

    `images`: one per sequence, in the order asked for; masks are in the grid of the T1w image; `age` in years; `edss`:
    Expanded Disability Status Scale, 0 to 10; `cohort`: ``study``, or ``independent`` (never seen by training); `site`:
    where the images come from.
    """

    id: str
    group: str
    images: dict[str, Path]
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    age: float | None = None
    sex: str | None = None
    edss: float | None = None
    cohort: str = COHORTS[0]
    site: str | None = None


def known_cells(cells: dict[str, str]) -> dict[str, str]:
    """Cells of a row by column, without those that say that something is not known."""
    return {name: text for name, text in cells.items() if text.lower() not in ("", "n/a", "na", "nan")}


def _subject(label: str, cells: dict[str, str], group_column: str, groups: Sequence[str] | None,
             fault: Callable[[str, str], None]) -> Subject:
    """One row, whose faults (found, allowed) are reported to `fault`."""
    known = known_cells(cells)

    def number(column, high):
        try:
            # BIDS writes ages of 89 and more as "89+" to protect the participant.
            value = float(known[column].removesuffix("+") if column == "age" else known[column])
        except KeyError:
            return None
        except ValueError:
            value = float("nan")
        if 0 <= value <= high:
            return value
        fault(f"has {column} {known[column]!r}", f"a number from 0 to {high}, or n/a")

    group, cohort = known.get(group_column, ""), known.get("cohort", COHORTS[0])
    if group_column in cells and not group:
        fault(f"has no group in column {group_column!r}", ", ".join(groups or ["a group's name"]))
    elif group and groups is not None and group not in groups:
        fault(f"has group {group!r}", ", ".join(groups))
    if cohort not in COHORTS:
        fault(f"has cohort {cohort!r}", " or ".join(COHORTS))
    return Subject(label.removeprefix("sub-"), group, {}, age=number("age", 120), sex=known.get("sex"),
                   edss=number("edss", 10), cohort=cohort, site=known.get("site"))


def _table(path: Path) -> tuple[list[str], list[list[str]], list[tuple[str, str]]]:
    """Columns and rows of a tab-separated table (none where it cannot be read), and its faults (found, allowed)."""
    def unreadable(found, allowed):
        return [], [], [(found, allowed)]

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return unreadable(f"is not UTF-8 (byte {error.start})", "a tab-separated table in UTF-8")
    except FileNotFoundError:
        return unreadable("is absent", "a tab-separated table with the columns participant_id and group")
    except OSError as error:
        return unreadable(f"cannot be read ({error.strerror or error})", "a readable tab-separated table")
    table = [[cell.strip() for cell in line.split("\t")] for line in text.split("\n") if line.strip()]
    if not table:
        return unreadable("is empty", "the columns participant_id and group")
    columns, *rows = table
    if len(columns) == 1 and (other := re.search("[;,]", columns[0])):
        return unreadable(f"has its cells separated by {other[0]!r}", "tabs between the cells")
    faults = []
    if ragged := [str(number) for number, cells in enumerate(rows, 1) if len(cells) != len(columns)]:
        faults.append((f"has another number of cells in row {', '.join(ragged)}", f"{len(columns)} cells in every row"))
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        faults.append((f"repeats column {', '.join(repeated)}", "every column once"))
    return columns, rows, faults


def read_cells(root: Path) -> pd.DataFrame:
    """``participants.tsv`` as texts, one row per line; StudyError where it cannot be read or has no ids."""
    columns, lines, faults = _table(root / TABLE)
    if not faults and "participant_id" not in columns:
        faults = [(f"has no column 'participant_id' (but {', '.join(columns)})",
                   "a column participant_id and one with the group")]
    if faults:
        raise StudyError("\n".join(str(Fault(COHORT, TABLE, *fault)) for fault in faults))
    return pd.DataFrame(lines, columns=columns)


def read_participants(root: Path, group_column: str, groups: Sequence[str] | Mapping[str, Sequence[str]] | None
                      ) -> tuple[dict[str, Subject] | None, list[Fault], dict[str, str]]:
    """Read ``participants.tsv``: one `Subject` (without images) per usable label, in the table's order, and all faults.

    `groups` are the allowed classes (None: any), or classes and the values that stand for them: then rows of other
    values are left out, and are the third that is given (label and value). Rows are None where the table has no
    participants; labels with path characters are left out.
    """
    mapped = isinstance(groups, Mapping)
    classes = {value: name for name, values in groups.items() for value in values} if mapped else {}
    rows, left_out = {}, {}
    columns, lines, found = _table(root / TABLE)
    faults = [Fault(COHORT, TABLE, *one) for one in found]

    def fault(found, allowed, subject=COHORT):
        faults.append(Fault(subject, TABLE, found, allowed))

    for name in ("participant_id", group_column):
        if columns and name not in columns:
            fault(f"has no column {name!r} (but {', '.join(columns)})",
                  "a column participant_id and one with the group, named by cohort.group_column")
    if "participant_id" not in columns:
        return None, faults, left_out
    people = [dict.fromkeys(columns, "") | dict(zip(columns, cells)) for cells in lines]
    for label, count in Counter(cells["participant_id"] for cells in people).items():
        if not LABEL.fullmatch(label):
            fault("is no valid participant_id", LABEL_RULE, label or "(no id)")
        elif count > 1:
            fault(f"has {count} rows", "one row per participant", label)
    for cells in people:
        label, value = cells["participant_id"], known_cells(cells).get(group_column, "n/a")
        if not LABEL.fullmatch(label) or label in rows:
            continue
        if mapped and group_column in columns:
            if value not in classes:
                left_out[label] = value
                continue
            cells[group_column] = classes[value]
        rows[label] = _subject(label, cells, group_column, groups, lambda *pair, label=label: fault(*pair, label))
    return rows, faults, left_out


def ending(path: Path) -> str:
    """The ending that a copy of an image needs."""
    return ".nii.gz" if path.suffix == ".gz" else ".nii"


def copy_image(source: Path, stem: Path, facts: dict) -> None:
    """Copy an image byte for byte to a path without its ending, with a sidecar."""
    with atomic_path(stem.with_suffix(ending(source))) as temporary:
        shutil.copyfile(source, temporary)
    write_json(stem.with_suffix(".json"), facts)


def write_description(root: str | Path, title: str, people: pd.DataFrame, levels: dict[str, str], readme: str,
                      derived: dict[str, str], origin: str = "", **facts) -> Path:
    """Write what a BIDS dataset holds beside its subjects: descriptions, participants, README; gives its path.

    `people`: ``participant_id, group, age, sex, edss, cohort``, perhaps ``site``; `levels`: group to what it means;
    `derived`: folder below ``derivatives`` to what it holds; `origin`: put before what a column holds ("simulated");
    `facts`: further entries of every description.
    """
    root = Path(root)
    facts = {"Name": title, "BIDSVersion": "1.10.0"} | facts
    write_json(root / "dataset_description.json", facts | {"DatasetType": "raw"})
    for folder, text in derived.items():
        name, place = f"{title}: {text}", root / "derivatives" / folder
        write_text(place / ".bidsignore", "*_xfm.*\n*_truth.json\n*_biasfield.nii.gz\n")
        write_text(place / "README", f"{name}. The raw dataset lies two folders above.\n")
        write_json(place / "dataset_description.json", facts | {
            "Name": name, "DatasetType": "derivative", "DatasetLinks": {"raw": "../.."},
            "SourceDatasets": [{"URL": "../.."}]})
    columns = {"group": {"Description": "diagnosis", "Levels": levels},
               "age": {"Description": "age at the scan", "Units": "year"},
               "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
               "edss": {"Description": "Expanded Disability Status Scale, 0 to 10"},
               "cohort": {"Description": "part of the study, or an independent test cohort",
                          "Levels": {"study": "own cohort", "independent": "test only"}}}
    if "site" in people:
        columns["site"] = {"Description": "where the images come from"}
    for column in columns.values():
        column["Description"] = f"{origin} {column['Description']}".strip()
    write_json(root / "participants.json", columns)
    write_text(root / "README", readme)
    write_table(root / TABLE, people)
    return root
