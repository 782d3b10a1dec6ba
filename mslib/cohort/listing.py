"""The checked cohort as a small file, so that per-subject jobs need not read all images again."""

from __future__ import annotations

import json
from pathlib import Path

from mslib.study import StudyError, write_json

from .bids import Cohort, Subject


def write_listing(path: str | Path, cohort: Cohort, root: str | Path) -> Path:
    """Write the subjects and faults of a checked cohort; image paths are kept relative to `root`."""
    def relative(file):
        return None if file is None else Path(file).resolve().relative_to(Path(root).resolve()).as_posix()

    subjects = [{"id": s.id, "group": s.group, "age": s.age, "sex": s.sex, "edss": s.edss, "cohort": s.cohort,
                 "images": {name: relative(file) for name, file in s.images.items()},
                 "brain_mask": relative(s.brain_mask), "lesion_mask": relative(s.lesion_mask)} for s in cohort]
    return write_json(path, {"subjects": subjects, "faults": [str(fault) for fault in cohort.faults]})


def read_listing(path: str | Path, root: str | Path) -> list[Subject]:
    """Read the subjects of `write_listing`.

    Raises
    ------
    StudyError
        The file is absent or not a listing.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))["subjects"]
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: is not the list of a checked cohort; run notebook 00 first ({error})") from error
    root = Path(root)

    def absolute(file):
        return None if file is None else root / file

    return [Subject(**{**row, "images": {name: root / file for name, file in row["images"].items()},
                       "brain_mask": absolute(row["brain_mask"]), "lesion_mask": absolute(row["lesion_mask"])})
            for row in stored]
