"""Who is explained: patients that no net has learnt from, their slices, and whose maps are kept as volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mslib.prep import load_stack
from mslib.study import StudyConfig, StudyError, write_json

from .cohort import stack_path, subject_folder, usable_subjects
from .predictions import predictions_path, read_predictions, tested
from .words import nets_folder, patient_groups


def stack_of(run_dir: str | Path, subject: str) -> dict:
    """Slice stack of a preprocessed subject."""
    return load_stack(stack_path(run_dir, subject))


def explained_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """Patients (`mslib.jobs.words.patient_groups`) whom no explained net has trained or stopped on.

    The independent cohort and the test part of the subject-wise split; real patients: all whose type of MS the nets
    know. Where any of them has a lesion mask, those without are left out; where none has, all are explained, and
    nothing is measured against lesions.

    Raises
    ------
    StudyError
        No net has been fitted yet, or there is no such patient.
    """
    people = [person for person in fresh_subjects(config, run_dir) if person.group in patient_groups(config)]
    if not people:
        raise StudyError(f"{run_dir}: no patient outside training and validation (groups {patient_groups(config)}); "
                         "notebook 03 explains only subjects that the nets have not learnt from")
    return [person for person in people if person.lesion_mask] or people


def fresh_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """Everyone whom no explained net has trained or stopped on, controls too (real patients: all).

    Raises
    ------
    StudyError
        No net has been fitted yet.
    """
    people = usable_subjects(config, run_dir)
    if config.cohort.source == "open_ms":
        return people
    place = nets_folder(config, run_dir), config.model.backbones[0], "subject"
    if not predictions_path(*place).is_file():
        raise StudyError(f"{predictions_path(*place)}: no fitted nets yet; run notebook 02 first")
    fresh = set(tested(read_predictions(*place))["subject"])
    return [person for person in people if person.cohort == "independent" or person.id in fresh]


def example_subject(config: StudyConfig, run_dir: str | Path):
    """The patient of the figures: the first SPMS patient of the test part (real patients: the largest load)."""
    people = explained_subjects(config, run_dir)
    chosen = [person for person in people if person.group == "SPMS" and person.cohort == "study"]
    if chosen or config.cohort.source != "open_ms":
        return (chosen or people)[0]
    return max(people, key=lambda person: int(stack_of(run_dir, person.id)["lesion"].sum()))


def explained_slices(person, stack) -> np.ndarray:
    """Slices that are explained: those with lesions; all where no lesion mask is known."""
    return np.flatnonzero(stack["lesion"].any(axis=(1, 2))) if person.lesion_mask else np.arange(len(stack["images"]))


def volume_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """Patients whose maps are kept as volumes: the example patient first, then the first others."""
    example = example_subject(config, run_dir)
    others = [person for person in explained_subjects(config, run_dir) if person.id != example.id]
    return [example, *others][: config.explain.nifti_subjects]


def volume_path(backbone: str, run_dir: str | Path, subject: str) -> Path:
    """Where a patient's Grad-CAM volume of a net lies."""
    return subject_folder(run_dir, subject) / "anat" / f"sub-{subject}_space-T1w_desc-{backbone}gradcam_cam.nii.gz"


def attributed_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """The first explained patients, groups taking turns (``attribution.patients`` of them)."""
    people = explained_subjects(config, run_dir)
    turns = pd.Series([person.group for person in people]).groupby([person.group for person in people]).cumcount()
    order = sorted(range(len(people)), key=lambda i: (turns.iloc[i], people[i].group, people[i].id))
    return [people[i] for i in order[: config.attribution.patients]]


def choose_patients(config: StudyConfig, run_dir: str | Path) -> None:
    """Write the ids of `attributed_subjects` to ``attributions/patients.json``."""
    write_json(Path(run_dir) / "attributions" / "patients.json",
               [person.id for person in attributed_subjects(config, run_dir)])
