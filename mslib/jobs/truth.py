"""What is known beforehand about simulated subjects (all) and real ones (lesion masks, their authors' transforms)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

from mslib.prep import load_stack
from mslib.prep.images import apply_points
from mslib.study import StudyConfig, progress

from .cohort import bids_root, stack_path, subject_folder, usable_subjects

LPS = np.array([-1.0, -1.0, 1.0])


def truth_folder(config: StudyConfig, run_dir: str | Path, subject: str) -> Path:
    """Folder of a subject's known truth."""
    return bids_root(config, run_dir) / "derivatives" / "truth" / f"sub-{subject}" / "anat"


def truth_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """One row per subject: facts about the person, and what is known about lesions and volumes.

    Returns
    -------
    pandas.DataFrame
        ``subject, group, cohort, age, sex, edss``; simulated: ``truth.json`` flattened (``lesion_load_ml``,
        ``ventricle_volume_ml``, ...); others with a lesion mask: ``lesion_load_ml``.
    """
    rows = []
    for person in progress(usable_subjects(config, run_dir), desc="facts", unit="subject"):
        row = {"subject": person.id, "group": person.group, "cohort": person.cohort, "age": person.age,
               "sex": person.sex, "edss": person.edss}
        path = truth_folder(config, run_dir, person.id) / f"sub-{person.id}_truth.json"
        if path.is_file():
            row |= {key: value for key, value in json.loads(path.read_text()).items() if not isinstance(value, dict)}
        elif person.lesion_mask:
            mask = nib.load(person.lesion_mask)
            voxel_ml = np.prod(mask.header.get_zooms()[:3]) / 1000
            row["lesion_load_ml"] = np.count_nonzero(np.asanyarray(mask.dataobj) > 0) * voxel_ml
        rows.append(row)
    return pd.DataFrame(rows)


def _brain_points(path: Path, n: int = 4000) -> np.ndarray:
    """Physical points (LPS, mm) spread evenly through a brain mask."""
    image = nib.load(path)
    index = np.argwhere(np.asanyarray(image.dataobj) > 0)
    index = index[:: max(1, len(index) // n)]
    return nib.affines.apply_affine(image.affine, index) * LPS


def registration_errors(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Mean distance over the brain between the found and the known transform of every sequence.

    Returns
    -------
    pandas.DataFrame
        ``subject, group, sequence, before`` (headers alone) and ``after``, in mm; empty where no truth is known.
    """
    rows = []
    for person in progress(usable_subjects(config, run_dir), desc="registration errors", unit="subject"):
        folder = subject_folder(run_dir, person.id) / "anat"
        for sequence in config.sequences[1:]:
            name = f"sub-{person.id}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            known, found = truth_folder(config, run_dir, person.id) / name, folder / name
            if not (known.is_file() and found.is_file()):
                continue
            points = _brain_points(folder / f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz")
            there = apply_points(sitk.ReadTransform(str(known)), points)
            error = np.linalg.norm(apply_points(sitk.ReadTransform(str(found)), points) - there, axis=1).mean()
            rows.append({"subject": person.id, "group": person.group, "sequence": sequence,
                         "before": np.linalg.norm(points - there, axis=1).mean(), "after": error})
    return pd.DataFrame(rows, columns=["subject", "group", "sequence", "before", "after"])


def _field_at(path: Path, points: np.ndarray) -> np.ndarray:
    """Values of a volume at physical points (LPS, mm), linear between voxels."""
    image = nib.load(path)
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points * LPS)
    values = np.asarray(image.dataobj, np.float32)
    return ndimage.map_coordinates(values, voxels.T, order=1, mode="nearest")


def bias_correlations(config: StudyConfig, run_dir: str | Path, most: int = 24) -> pd.DataFrame:
    """Correlation inside the brain between the logarithms of the planted and the recovered bias field.

    The recovered field is the one that preprocessing corrected the image by and kept. All sequences of at most `most`
    subjects are taken, spread evenly over the cohort.

    Returns
    -------
    pandas.DataFrame
        ``subject, sequence, correlation``; empty where no field is known.
    """
    rows = []
    people = usable_subjects(config, run_dir)
    people = people[:: max(1, math.ceil(len(people) / most))]
    for person in progress(people, desc="bias fields", unit="subject"):
        truth, found = truth_folder(config, run_dir, person.id), subject_folder(run_dir, person.id) / "anat"
        for sequence in config.sequences:
            known = truth / f"sub-{person.id}_{sequence}_biasfield.nii.gz"
            recovered = found / f"sub-{person.id}_desc-logbias_{sequence}.nii.gz"
            if not (known.is_file() and recovered.is_file()):
                continue
            points = _brain_points(found / f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz")
            moved = truth / f"sub-{person.id}_from-T1w_to-{sequence}_mode-points_xfm.tfm"
            if moved.is_file():
                points = apply_points(sitk.ReadTransform(str(moved)), points)
            pair = np.log(_field_at(known, points)), _field_at(recovered, points)
            rows.append({"subject": person.id, "sequence": sequence, "correlation": np.corrcoef(*pair)[0, 1]})
    return pd.DataFrame(rows, columns=["subject", "sequence", "correlation"])


def cohort_reference(config: StudyConfig, table: pd.DataFrame) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Median and range of real patients' lesion load and number: open_ms_data, 24 RRMS and 2 SPMS.

    Quoted from the description of the expert masks of all 30 patients (Lesjak et al. 2017; see DATA.md).

    Parameters
    ----------
    config : StudyConfig
    table : pandas.DataFrame
        From `truth_table`: what it does not hold has no reference. Nor have the real patients themselves.

    Returns
    -------
    dict of measure to dict of group to (median, low, high)
    """
    known = {"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6), "SPMS": (45.3, 40.7, 50.0)},
             "lesion_count": {"RRMS": (82, 15, 350), "SPMS": (215, 106, 324)}}
    groups = set() if config.cohort.source == "open_ms" else set(table["group"])
    return {measure: found for measure, of_group in known.items() if measure in table
            and (found := {group: values for group, values in of_group.items() if group in groups})}


def group_examples(config: StudyConfig, run_dir: str | Path) -> dict:
    """Arguments of `mslib.show.plot_examples`: per group the subject of median lesion load, its fullest slice."""
    people = [person for person in usable_subjects(config, run_dir) if person.group in config.groups]
    slices, lesions, z_mm, names = [], [], [], []
    for group in progress(config.groups, desc="examples", unit="group"):
        loads = {person.id: int(load_stack(stack_path(run_dir, person.id))["lesion"].sum())
                 for person in people if person.group == group}
        if not loads:
            continue
        stack = load_stack(stack_path(run_dir, sorted(loads, key=loads.get)[len(loads) // 2]))
        middle = len(stack["images"]) // 2
        window = stack["lesion"][middle - 10: middle + 20].sum(axis=(1, 2))
        best = max(0, middle - 10) + int(window.argmax()) if window.any() else middle
        slices.append(np.moveaxis(stack["images"][best], -1, 0).astype(np.float32))
        lesions.append(stack["lesion"][best])
        z_mm.append(float(stack["z_mm"][best]))
        names.append(group)
    return {"slices": np.stack(slices, 1), "sequences": list(config.sequences), "groups": names,
            "lesions": np.stack(lesions), "z_mm": z_mm}
