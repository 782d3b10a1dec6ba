"""The patients of the database as subjects: which files belong to whom, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mslib.study import StudyError
from mslib.study.provenance import file_sha256

SEQUENCES = ("T1w", "T2w", "FLAIR")
MNI = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
RAW = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}
GROUPS = {"RR": "RRMS", "SP": "SPMS", "PR": "PRMS", "CIS": "CIS", "n/a": "unknown"}
CITATION = {
    "cross_sectional": "Lesjak Z, Galimzianova A, Koren A, Lukin M, Pernus F, Likar B, Spiclin Z. A novel public MR "
                       "image dataset of multiple sclerosis patients with lesion segmentations based on multi-rater "
                       "consensus. Neuroinformatics 2018;16:51-63. doi:10.1007/s12021-017-9348-7",
    "longitudinal": "Lesjak Z, Pernus F, Likar B, Spiclin Z. Validation of white-matter lesion change detection "
                    "methods on a novel publicly available MRI image database. Neuroinformatics 2016;14:403-420."}


@dataclass(frozen=True)
class Patient:
    """One subject of the BIDS dataset: where its files are in the database and what is known of it."""

    label: str
    images: dict[str, str]
    lesions: str | None
    transforms: dict[str, str]
    row: dict
    note: str

    @property
    def sources(self) -> list[str]:
        """All files the conversion needs."""
        return [*self.images.values(), *([self.lesions] if self.lesions else []), *self.transforms.values()]


def patient_table(source: str | Path, part: str) -> pd.DataFrame:
    """``patient_info.csv`` of ``cross_sectional`` or ``longitudinal``, indexed by patient number, all text."""
    path = Path(source) / part / "patient_info.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("patient_id")
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: is not the table of the patients; fetch it first ({error})") from error
    return table.replace(["", "N/A"], "n/a")


def _row(table: pd.DataFrame, number: int, days: float = 0) -> dict:
    row = table.loc[str(number)]
    age, kind = row["age"], row["ms_type"]
    if days and age != "n/a":
        age = f"{float(age) + days / 365.25:.1f}"
    return {"group": GROUPS.get(kind, kind), "age": age, "sex": row["sex"], "edss": row.get("edss", "n/a"),
            "cohort": "study"}


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("patient"))


def cross_sectional(source: Path) -> list[Patient]:
    """Patients of the MNI part; those with a lesion mask only have no images to convert and are left out."""
    table, patients = patient_table(source, "cross_sectional"), []
    for folder in sorted((source / "cross_sectional" / "MNI").glob("patient[0-9][0-9]")):
        place = f"cross_sectional/MNI/{folder.name}"
        images = {s: f"{place}/{n}_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
                  for s, n in MNI.items()}
        if any((source / name).is_file() for name in images.values()):
            lesions = f"{place}/GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"
            note = ("Bias-corrected, skull-stripped and rigidly brought to MNI orientation (1 mm) by the authors; "
                    "small negative values at edges come from their interpolation and are left as they are.")
            patients.append(Patient(f"sub-MNI{_number(folder):02d}", images, lesions, {},
                                    _row(table, _number(folder)), note))
    return patients


def longitudinal(source: Path) -> list[Patient]:
    """Sessions of the raw longitudinal part, each as a subject of its own."""
    table, patients = patient_table(source, "longitudinal"), []
    for folder in sorted((source / "longitudinal" / "raw").glob("patient[0-9][0-9]")):
        number, place = _number(folder), f"longitudinal/raw/{folder.name}"
        for study in (1, 2):
            days = float(table.loc[str(number), "days_between_studies"]) if study == 2 else 0
            images = {s: f"{place}/study{study}_{n}.nii.gz" for s, n in RAW.items()}
            transforms = {s: f"{place}/study{study}_{RAW[s]}_intrastudy_to_FLAIR.txt" for s in ("T1w", "T2w")}
            note = (f"Session {study} of 2 of one patient, as scanned. No lesion mask: the database marks only "
                    "lesion change between the sessions. The age is that of the session.")
            patients.append(Patient(f"sub-L{number:02d}s{study}", images, None, transforms,
                                    _row(table, number, days), note))
    return patients


def faults(patient: Patient, source: Path, checksums: dict[str, str]) -> list[str]:
    """One line per file of a patient that is absent or is not the registered one."""
    lines = []
    for name in patient.sources:
        path = source / name
        if not path.is_file():
            lines.append(f"{patient.label}: {name}: is absent")
        elif name in checksums and file_sha256(path) != checksums[name]:
            lines.append(f"{patient.label}: {name}: its checksum differs from the registered one")
    return lines
