"""The checked cohort as a small file, so that steps of one subject need not read all images again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mslib.study import read_json, write_json

from .bids import Cohort, Subject


def write_listing(path: str | Path, cohort: Cohort, root: str | Path) -> Path:
    """Write the subjects and faults of a checked cohort; image paths are kept relative to `root`."""
    def relative(file):
        return None if file is None else Path(file).resolve().relative_to(Path(root).resolve()).as_posix()

    subjects = [asdict(one) | {"images": {name: relative(file) for name, file in one.images.items()},
                               "brain_mask": relative(one.brain_mask), "lesion_mask": relative(one.lesion_mask)}
                for one in cohort]
    return write_json(path, {"subjects": subjects, "faults": [str(fault) for fault in cohort.faults]})


def read_listing(path: str | Path, root: str | Path) -> list[Subject]:
    """Read the subjects of `write_listing`; StudyError where the file is absent or damaged."""
    def absolute(file):
        return None if file is None else Path(root) / file

    return [Subject(**row | {"images": {name: absolute(file) for name, file in row["images"].items()},
                             "brain_mask": absolute(row["brain_mask"]), "lesion_mask": absolute(row["lesion_mask"])})
            for row in read_json(path)["subjects"]]
