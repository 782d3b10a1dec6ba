"""What is known beforehand about simulated subjects (all of it) and real patients (their authors' transforms)."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.prep import correct_bias, load_stack
from mslib.study import StudyConfig

from .cohort import bids_root, stack_path, subject_folder, usable_subjects

LPS = np.array([-1.0, -1.0, 1.0])


def truth_folder(config: StudyConfig, run_dir: str | Path, subject: str) -> Path:
    """Folder of a subject's known truth."""
    return bids_root(config, run_dir) / "derivatives" / "truth" / f"sub-{subject}" / "anat"


def truth_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """One row per subject: participant facts and, where simulated, ``truth.json`` flattened."""
    rows = []
    for person in usable_subjects(config, run_dir):
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
        ``subject, group, sequence, before`` (headers alone) and ``after``, in mm; empty where no truth is known.
    """
    rows = []
    for person in usable_subjects(config, run_dir):
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
                         "before": np.linalg.norm(points - there, axis=1).mean(), "after": error})
    return pd.DataFrame(rows, columns=["subject", "group", "sequence", "before", "after"])


def bias_correlations(config: StudyConfig, run_dir: str | Path, most: int = 24) -> pd.DataFrame:
    """Correlation inside the brain between the logarithms of the planted and the recovered bias field.

    The recovered field is that which N4 finds on the raw image with the settings of the study. N4 runs again here,
    so one sequence of at most `most` subjects is taken, in turn.

    Returns
    -------
    pandas.DataFrame
        ``subject, sequence, correlation``; empty where no field is known.
    """
    rows = []
    people = usable_subjects(config, run_dir)
    for number, person in enumerate(people[:: max(1, round(len(people) / most))]):
        sequence = config.sequences[number % len(config.sequences)]
        folder = truth_folder(config, run_dir, person.id)
        path = folder / f"sub-{person.id}_{sequence}_biasfield.nii.gz"
        if path.is_file():
            known = sitk.ReadImage(str(path), sitk.sitkFloat32)
            image = sitk.ReadImage(str(person.images[sequence]), sitk.sitkFloat32)
            xfm = folder / f"sub-{person.id}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            mask = sitk.ReadImage(str(person.brain_mask), sitk.sitkFloat32)
            there = sitk.ReadTransform(str(xfm)).GetInverse() if xfm.is_file() else sitk.Transform()
            mask = sitk.Resample(mask, image, there, sitk.sitkLinear, 0.0) >= 0.5
            _, log_found = correct_bias(image, mask, config.prep.n4_shrink, config.prep.n4_iterations)
            inside = sitk.GetArrayViewFromImage(mask) > 0
            log_known = np.log(sitk.GetArrayViewFromImage(known)[inside])
            correlation = np.corrcoef(log_known, sitk.GetArrayViewFromImage(log_found)[inside])[0, 1]
            rows.append({"subject": person.id, "sequence": sequence, "correlation": correlation})
    return pd.DataFrame(rows, columns=["subject", "sequence", "correlation"])


def cohort_reference() -> dict[str, dict[str, tuple[float, float, float]]]:
    """Median and range of real patients' lesion load and number: open_ms_data, 24 RRMS and 2 SPMS.

    Quoted from the description of the expert masks of all 30 patients (Lesjak et al. 2017; see DATA.md).
    """
    return {"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6), "SPMS": (45.3, 40.7, 50.0)},
            "lesion_count": {"RRMS": (82, 15, 350), "SPMS": (215, 106, 324)}}


def group_examples(config: StudyConfig, run_dir: str | Path) -> dict:
    """Arguments of `mslib.show.plot_examples`: per group the subject of median lesion load, its fullest slice."""
    people = [person for person in usable_subjects(config, run_dir) if person.group in config.groups]
    slices, lesions, z_mm, names = [], [], [], []
    for group in config.groups:
        stacks = [load_stack(stack_path(run_dir, person.id)) for person in people if person.group == group][:9]
        if not stacks:
            continue
        stack = sorted(stacks, key=lambda one: int(one["lesion"].sum()))[len(stacks) // 2]
        middle = len(stack["images"]) // 2
        window = stack["lesion"][middle - 10: middle + 20].sum(axis=(1, 2))
        best = max(0, middle - 10) + int(window.argmax()) if window.any() else middle
        slices.append(np.moveaxis(stack["images"][best], -1, 0).astype(np.float32))
        lesions.append(stack["lesion"][best])
        z_mm.append(float(stack["z_mm"][best]))
        names.append(group)
    return {"slices": np.stack(slices, 1), "sequences": list(config.sequences), "groups": names,
            "lesions": np.stack(lesions), "z_mm": z_mm}
