"""The table of a cohort: ``participants.tsv`` read strictly, with every fault named."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .checks import Fault

TABLE = "participants.tsv"
#: Stands for the subject in faults of the cohort as a whole.
COHORT = "cohort"
COHORTS = ("study", "independent")
LABEL = re.compile(r"sub-[A-Za-z0-9]+", re.ASCII)
LABEL_RULE = "'sub-' and ASCII letters or digits"
_MISSING = {"", "n/a", "na", "nan"}


@dataclass(frozen=True)
class Subject:
    """One subject of a cohort; `id` is the label without ``sub-``, None is what is not known.

    `images`: one per sequence, in the order asked for; masks are in the grid of the T1w image; `age` in years; `edss`:
    Expanded Disability Status Scale, 0 to 10; `cohort`: ``study``, or ``independent`` (never seen by training).
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


def _number(row: dict, column: str, limits: tuple[float, float], faults: list) -> float | None:
    text = (row.get(column) or "").strip()
    if text.lower() in _MISSING:
        return None
    low, high = limits
    try:
        # BIDS writes ages of 89 and more as "89+" to protect the participant.
        value = float(text.removesuffix("+") if column == "age" else text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        faults.append((f"has {column} {text!r}", f"a number from {low:g} to {high:g}, or n/a"))
        return None
    return value


def _parse(row: dict, label: str, group_column: str, groups: Sequence[str] | None) -> tuple[Subject, list]:
    faults: list[tuple[str, str]] = []
    group = (row.get(group_column) or "").strip()
    group = "" if group.lower() in _MISSING else group
    if group_column in row and not group:
        faults.append((f"has no group in column {group_column!r}", ", ".join(groups or ["a group's name"])))
    elif group_column in row and groups is not None and group not in groups:
        faults.append((f"has group {group!r}", ", ".join(groups)))
    cohort = (row.get("cohort") or "").strip()
    cohort = COHORTS[0] if cohort.lower() in _MISSING else cohort
    if cohort not in COHORTS:
        faults.append((f"has cohort {cohort!r}", " or ".join(COHORTS)))
    sex = (row.get("sex") or "").strip()
    sex = None if sex.lower() in _MISSING else sex
    age, edss = _number(row, "age", (0, 120), faults), _number(row, "edss", (0, 10), faults)
    return Subject(label.removeprefix("sub-"), group, {}, None, None, age, sex, edss, cohort), faults


def _read(path: Path) -> tuple[list[dict], list[str], list[Fault]]:
    def fault(found, allowed):
        return [], [], [Fault(COHORT, TABLE, found, allowed)]

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return fault(f"is not UTF-8 (byte {error.start})", "a tab-separated table in UTF-8")
    except FileNotFoundError:
        return fault("is absent", "a tab-separated table with the columns participant_id and group")
    except OSError as error:
        return fault(f"cannot be read ({error.strerror or error})", "a readable tab-separated table")
    reader = csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    rows = [row for row in reader if any(isinstance(v, str) and v.strip() for v in row.values())]
    ragged = [str(n) for n, row in enumerate(rows, 1) if None in row or None in row.values()]
    faults = [Fault(COHORT, TABLE, f"has another number of cells in row {', '.join(ragged)}",
                    f"{len(columns)} cells in every row")] if ragged else []
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        faults.append(Fault(COHORT, TABLE, f"repeats column {', '.join(repeated)}", "every column once"))
    return rows, columns, faults


def read_participants(root: Path, group_column: str, groups: Sequence[str] | None
                      ) -> tuple[dict[str, Subject] | None, list[Fault]]:
    """Read ``participants.tsv``: one `Subject` (without images) per usable label, in the table's order, and all faults.

    `group_column` names the class; `groups` are the allowed ones (None: any). Rows are None where the table has no
    participants; labels with path characters are left out. Faults of the table as a whole carry the subject ``cohort``.
    """
    raw, columns, faults = _read(root / TABLE)
    for name in ("participant_id", group_column):
        if columns and name not in columns:
            faults.append(Fault(COHORT, TABLE, f"has no column {name!r} (but {', '.join(columns)})",
                                "a column participant_id and one with the group"))
    if not columns and not faults:
        faults.append(Fault(COHORT, TABLE, "is empty", "the columns participant_id and group"))
    if "participant_id" not in columns:
        return None, faults
    rows: dict[str, Subject] = {}
    labels = [(row["participant_id"] or "").strip() for row in raw]
    for label, count in Counter(labels).items():
        if not LABEL.fullmatch(label):
            faults.append(Fault(label or "(no id)", TABLE, "is no valid participant_id", LABEL_RULE))
        elif count > 1:
            faults.append(Fault(label, TABLE, f"has {count} rows", "one row per participant"))
    for label, row in zip(labels, raw):
        if LABEL.fullmatch(label) and label not in rows:
            rows[label], wrong = _parse(row, label, group_column, groups)
            faults += [Fault(label, TABLE, *pair) for pair in wrong]
    return rows, faults
