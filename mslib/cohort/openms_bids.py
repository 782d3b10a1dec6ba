"""Conversion of the real patients to BIDS: raw images byte for byte, expert lesions and transforms beside them."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.study import StudyError, atomic_path, write_json, write_table, write_text
from mslib.study.provenance import file_sha256

from .openms_files import BASE, COMMIT, REPOSITORY, registry
from .openms_patients import CITATION, SEQUENCES, Patient, cross_sectional, faults, longitudinal
from .participants import TABLE

LICENCE = "CC-BY"
COLUMNS = {
    "group": {"Description": "MS type as the database states it",
              "Levels": {"RRMS": "relapsing-remitting", "SPMS": "secondary-progressive",
                         "PRMS": "progressive-relapsing", "CIS": "clinically isolated syndrome",
                         "unknown": "not stated"}},
    "age": {"Description": "age at the scan", "Units": "year"},
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    "edss": {"Description": "Expanded Disability Status Scale, 0 to 10"},
    "cohort": {"Description": "part of the study's own cohort, or an independent test cohort",
               "Levels": {"study": "own cohort", "independent": "test only"}}}
README = f"""Real MS patients of https://github.com/{REPOSITORY} (commit {COMMIT}), licence {LICENCE}.

sub-MNI*: brains in MNI orientation at 1 mm with the experts' consensus lesions (derivatives/truth) and brain masks
(voxels that are not 0, derivatives/brainmask). sub-L*s*: raw sessions of the longitudinal part, each session as a
subject of its own, with the authors' co-registration turned to "T1w points to T2w and FLAIR points"
(derivatives/truth).

There is NO healthy control in this database, and controls from elsewhere would be confounded by scanner and site.
The data serves co-registration, robustness and lesion localisation, never a claim of classification accuracy.

"""


@dataclass(frozen=True)
class Conversion:
    """Ids (without ``sub-``) of the converted subjects, and one line per patient or session left out."""

    subjects: tuple[str, ...]
    incomplete: tuple[str, ...]


def _matrix(path: Path) -> np.ndarray:
    """4 x 4 matrix of an ITK affine transform, centre folded in: y = A (x - c) + t + c."""
    transform = sitk.ReadTransform(str(path))
    values, centre = np.array(transform.GetParameters()), np.array(transform.GetFixedParameters())
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:12] + centre - matrix[:3, :3] @ centre
    return matrix


def t1_to_others(t1_file: str | Path, t2_file: str | Path) -> dict[str, sitk.AffineTransform]:
    """The authors' transforms (``*_intrastudy_to_FLAIR.txt``) as T1w points to FLAIR and T2w points (LPS mm).

    Theirs take FLAIR points to T1w and T2w points: ``FLAIR`` is the inverse of the first, ``T2w`` the second after it.
    """
    to_flair = np.linalg.inv(_matrix(Path(t1_file)))
    matrices = {"FLAIR": to_flair, "T2w": _matrix(Path(t2_file)) @ to_flair}
    return {name: sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
            for name, matrix in matrices.items()}


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _write_brain_mask(patient: Patient, source: Path, target: Path) -> None:
    """Voxels that are not 0 in any of the skull-stripped images, in the grid of the T1w image."""
    images = [nib.load(source / patient.images[sequence]) for sequence in SEQUENCES]
    if any(i.shape != images[0].shape or not np.allclose(i.affine, images[0].affine, atol=1e-3) for i in images):
        raise StudyError(f"{patient.label}: {patient.images['T1w']}: the three images have different grids")
    inside = np.zeros(images[0].shape, np.uint8)
    for image in images:
        inside |= np.asanyarray(image.dataobj) != 0
    header = images[0].header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 1
    mask = nib.Nifti1Image(inside, None, header)
    with atomic_path(target) as temporary:
        temporary.write_bytes(gzip.compress(mask.to_bytes(), 6, mtime=0))


def _origin(patient: Patient, source: Path, name: str) -> dict:
    """Where a file comes from; goes into the JSON sidecar."""
    return {"SourceFile": name, "SourceURL": BASE + name, "SourceSHA256": file_sha256(source / name),
            "License": LICENCE, "Citation": CITATION[name.split("/")[0]], "Note": patient.note}


def _write_truth(patient: Patient, source: Path, anat: Path) -> None:
    """Expert lesions (they must lie in the T1w image's grid) and the authors' transforms."""
    if patient.lesions:
        lesions, t1w = nib.load(source / patient.lesions), nib.load(source / patient.images["T1w"])
        if lesions.shape != t1w.shape or not np.allclose(lesions.affine, t1w.affine, atol=1e-3):
            raise StudyError(f"{patient.label}: {patient.lesions}: has another grid than the T1w image")
        stem = anat / f"{patient.label}_space-T1w_label-lesion_mask"
        _copy(source / patient.lesions, stem.with_suffix(".nii.gz"))
        write_json(stem.with_suffix(".json"), _origin(patient, source, patient.lesions))
    if patient.transforms:
        originals = [source / patient.transforms[name] for name in ("T1w", "T2w")]
        for name, transform in t1_to_others(*originals).items():
            target = anat / f"{patient.label}_from-T1w_to-{name}_mode-points_xfm.tfm"
            with atomic_path(target) as temporary:
                sitk.WriteTransform(transform, str(temporary))
            used = ["T1w"] if name == "FLAIR" else ["T1w", "T2w"]
            write_json(target.with_suffix(".json"),
                        {"Sources": [_origin(patient, source, patient.transforms[u]) for u in used],
                         "Description": "T1w points to points of the other image, mm, LPS (ITK)"})


def _write_subject(patient: Patient, source: Path, root: Path) -> None:
    for sequence, name in patient.images.items():
        target = root / patient.label / "anat" / f"{patient.label}_{sequence}"
        _copy(source / name, target.with_suffix(".nii.gz"))
        write_json(target.with_suffix(".json"), _origin(patient, source, name))
    _write_truth(patient, source, root / "derivatives" / "truth" / patient.label / "anat")
    if patient.lesions:
        stem = root / "derivatives" / "brainmask" / patient.label / "anat" / (
            f"{patient.label}_space-T1w_desc-brain_mask")
        _write_brain_mask(patient, source, stem.with_suffix(".nii.gz"))
        write_json(stem.with_suffix(".json"), {"Type": "Brain", "Sources": list(patient.images.values()),
                                                "Description": "voxels that are not 0 in any skull-stripped image"})


def _write_dataset(patients: Sequence[Patient], root: Path) -> None:
    write_table(root / TABLE, pd.DataFrame([{"participant_id": one.label} | one.row for one in patients]))
    write_json(root / "participants.json", COLUMNS)
    write_text(root / "README", README + "\n".join(CITATION.values()) + "\n")
    common = {"BIDSVersion": "1.10.0", "License": LICENCE, "ReferencesAndLinks": list(CITATION.values())}
    origin = [{"URL": f"https://github.com/{REPOSITORY}", "Version": COMMIT}]
    write_json(root / "dataset_description.json",
                {"Name": "open_ms_data: real MS patients", "DatasetType": "raw", **common,
                 "HowToAcknowledge": "Cite the papers in ReferencesAndLinks", "SourceDatasets": origin})
    for name, text in (("truth", "expert lesion masks and the authors' transforms"), ("brainmask", "brain masks")):
        write_json(root / "derivatives" / name / "dataset_description.json",
                    {"Name": f"open_ms_data: {text}", "DatasetType": "derivative", **common,
                     "GeneratedBy": [{"Name": "mslib.cohort.openms"}], "SourceDatasets": origin})


def to_bids(source: str | Path, bids_root: str | Path, *, checksums: dict[str, str] | None = None) -> Conversion:
    """Convert what is whole in a copy of the database; the rest is listed, also as printed lines.

    Images are copied byte for byte, so that headers and orientation stay as they are.

    Parameters
    ----------
    source : str or Path
        Folder that `fetch` filled.
    bids_root : str or Path
        BIDS folder to write.
    checksums : dict or None
        Paths and their SHA-256; None takes `registry`. A file that differs is not used.

    Raises
    ------
    StudyError
        No patient is complete, the patients' tables are absent, or `bids_root` cannot be written.
    """
    source, root = Path(source), Path(bids_root)
    checksums = registry() if checksums is None else checksums
    whole, incomplete = [], []
    for patient in [*cross_sectional(source), *longitudinal(source)]:
        lines = faults(patient, source, checksums)
        incomplete += lines
        if not lines:
            whole.append(patient)
    for line in incomplete:
        print(f"{line}; {line.split(':')[0]} is left out")
    if not whole:
        raise StudyError(f"{source}: holds no patient with T1w, T2w and FLAIR whose files are whole")
    for patient in whole:
        _write_subject(patient, source, root)
    _write_dataset(whole, root)
    return Conversion(tuple(p.label.removeprefix("sub-") for p in whole), tuple(incomplete))
