"""What is known beforehand about simulated subjects (all of it) and real patients (their authors' transforms)."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.study import StudyConfig

from .cohort import bids_root, subject_folder, subjects

LPS = np.array([-1.0, -1.0, 1.0])


def truth_folder(config: StudyConfig, run_dir: str | Path, subject: str) -> Path:
    """Folder of a subject's known truth."""
    return bids_root(config, run_dir) / "derivatives" / "truth" / f"sub-{subject}" / "anat"


def truth_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """One row per subject: participant facts and, where simulated, ``truth.json`` flattened."""
    rows = []
    for person in subjects(config, run_dir):
        row = {"subject": person.id, "group": person.group, "cohort": person.cohort, "age": person.age,
               "sex": person.sex, "edss": person.edss}
        path = truth_folder(config, run_dir, person.id) / f"sub-{person.id}_truth.json"
        if path.is_file():
            row |= {key: value for key, value in json.loads(path.read_text()).items() if not isinstance(value, dict)}
        rows.append(row)
    return pd.DataFrame(rows)


def _brain_points(path: Path, n: int = 4000) -> np.ndarray:
    """Physical points (LPS, mm) spread evenly through a brain mask."""
    image = nib.load(path)
    index = np.argwhere(np.asanyarray(image.dataobj) > 0)
    index = index[:: max(1, len(index) // n)]
    return nib.affines.apply_affine(image.affine, index) * LPS


def _apply(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points])


def registration_errors(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Mean distance over the brain between the found and the known transform of every sequence.

    Returns
    -------
    pandas.DataFrame
        ``subject, group, sequence, before_mm`` (headers alone), ``error_mm``; empty where no truth is known.
    """
    rows = []
    for person in subjects(config, run_dir):
        folder = subject_folder(run_dir, person.id) / "anat"
        for sequence in config.sequences[1:]:
            name = f"sub-{person.id}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            known, found = truth_folder(config, run_dir, person.id) / name, folder / name
            if not (known.is_file() and found.is_file()):
                continue
            points = _brain_points(folder / f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz")
            there = _apply(sitk.ReadTransform(str(known)), points)
            error = np.linalg.norm(_apply(sitk.ReadTransform(str(found)), points) - there, axis=1).mean()
            rows.append({"subject": person.id, "group": person.group, "sequence": sequence,
                         "before_mm": np.linalg.norm(points - there, axis=1).mean(), "error_mm": error})
    return pd.DataFrame(rows, columns=["subject", "group", "sequence", "before_mm", "error_mm"])
