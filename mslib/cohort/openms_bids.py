"""Conversion of the real patients to BIDS: raw images byte for byte, expert lesions and transforms beside them."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.study import StudyError, atomic_path, write_json
from mslib.study.provenance import file_sha256

from .openms import BASE, COMMIT, REPOSITORY, registry
from .participants import write_description

MNI = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
RAW = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}
GROUPS = {"RR": "RRMS", "SP": "SPMS", "PR": "PRMS", "CIS": "CIS", "n/a": "unknown"}
LEVELS = {"RRMS": "relapsing-remitting", "SPMS": "secondary-progressive", "PRMS": "progressive-relapsing",
          "CIS": "clinically isolated syndrome", "unknown": "not stated"}
LICENCE = "CC-BY"
CITATION = {
    "cross_sectional": "Lesjak Z, Galimzianova A, Koren A, Lukin M, Pernus F, Likar B, Spiclin Z. A novel public MR "
                       "image dataset of multiple sclerosis patients with lesion segmentations based on multi-rater "
                       "consensus. Neuroinformatics 2018;16:51-63. doi:10.1007/s12021-017-9348-7",
    "longitudinal": "Lesjak Z, Pernus F, Likar B, Spiclin Z. Validation of white-matter lesion change detection "
                    "methods on a novel publicly available MRI image database. Neuroinformatics 2016;14:403-420."}
NOTES = {
    "cross_sectional": "Bias-corrected, skull-stripped and rigidly brought to MNI orientation (1 mm) by the authors; "
                       "small negative values at edges come from their interpolation and are left as they are.",
    "longitudinal": "One of two sessions of a patient, as scanned. No lesion mask: the database marks only lesion "
                    "change between the sessions. The age is that of the session."}
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


@dataclass(frozen=True)
class Patient:
    """One subject of the BIDS dataset: where its files are in the database, and its row of ``participants.tsv``."""

    label: str
    images: dict[str, str]
    lesions: str | None
    transforms: dict[str, str]
    row: dict

    def faults(self, source: Path, checksums: dict[str, str]) -> list[str]:
        """One line per file that is absent or is not the registered one."""
        lines = []
        for name in [*self.images.values(), *([self.lesions] if self.lesions else []), *self.transforms.values()]:
            if not (source / name).is_file():
                lines.append(f"{self.label}: {name}: is absent")
            elif name in checksums and file_sha256(source / name) != checksums[name]:
                lines.append(f"{self.label}: {name}: its checksum differs from the registered one")
        return lines


def _table(source: Path, part: str) -> pd.DataFrame:
    """``patient_info.csv`` of a part of the database, indexed by patient number, all text."""
    path = source / part / "patient_info.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("patient_id")
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: is not the table of the patients; fetch it first ({error})") from error
    return table.replace(["", "N/A"], "n/a")


def _patients(source: Path) -> list[Patient]:
    """Patients of the MNI part, without those of whom there is a mask only; sessions of the raw longitudinal part."""
    patients = []

    def add(label, images, lesions, transforms, known, days=0.0):
        age = known["age"] if not days or known["age"] == "n/a" else f"{float(known['age']) + days / 365.25:.1f}"
        patients.append(Patient(f"sub-{label}", images, lesions, transforms, {
            "group": GROUPS.get(known["ms_type"], known["ms_type"]), "age": age, "sex": known["sex"],
            "edss": known.get("edss", "n/a"), "cohort": "study"}))

    for part, layout in (("cross_sectional", "MNI"), ("longitudinal", "raw")):
        table = _table(source, part)
        for folder in sorted((source / part / layout).glob("patient[0-9][0-9]")):
            number, place = int(folder.name.removeprefix("patient")), f"{part}/{layout}/{folder.name}"
            known = table.loc[str(number)]
            if layout == "MNI":
                images = {name: f"{place}/{stem}_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
                          for name, stem in MNI.items()}
                lesions = f"{place}/GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"
                if any((source / name).is_file() for name in images.values()):
                    add(f"MNI{number:02d}", images, lesions, {}, known)
                continue
            for session in (1, 2):
                stems = {name: f"{place}/study{session}_{stem}" for name, stem in RAW.items()}
                add(f"L{number:02d}s{session}", {name: f"{stem}.nii.gz" for name, stem in stems.items()}, None,
                    {name: f"{stems[name]}_intrastudy_to_FLAIR.txt" for name in ("T1w", "T2w")}, known,
                    float(known["days_between_studies"]) if session == 2 else 0.0)
    return patients


def t1_to_others(t1_file: str | Path, t2_file: str | Path) -> dict[str, sitk.Transform]:
    """The authors' transforms (``*_intrastudy_to_FLAIR.txt``) as T1w points to FLAIR and T2w points (LPS mm).

    Theirs take FLAIR points to T1w and T2w points: ``FLAIR`` is the inverse of the first, ``T2w`` the second after it.
    """
    t1, t2 = (sitk.ReadTransform(str(path)) for path in (t1_file, t2_file))
    to_t2w = sitk.CompositeTransform([t2, t1.GetInverse()])
    to_t2w.FlattenTransform()  # files hold one level
    return {"FLAIR": t1.GetInverse(), "T2w": to_t2w}


def _brain_mask(patient: Patient, source: Path) -> bytes:
    """Voxels that are not 0 in any of the skull-stripped images, in the grid of the T1w image, as a NIfTI file."""
    images = [nib.load(source / name) for name in patient.images.values()]
    if any(i.shape != images[0].shape or not np.allclose(i.affine, images[0].affine, atol=1e-3) for i in images):
        raise StudyError(f"{patient.label}: {patient.images['T1w']}: the three images have different grids")
    inside = np.any([np.asanyarray(image.dataobj) != 0 for image in images], axis=0).astype(np.uint8)
    header = images[0].header.copy()
    header.set_data_dtype(np.uint8)
    return gzip.compress(nib.Nifti1Image(inside, None, header).to_bytes(), 6, mtime=0)


def _write_subject(patient: Patient, source: Path, root: Path) -> None:
    """Images, expert lesions (in the T1w image's grid), brain mask and the authors' transforms, each with a sidecar."""
    label = patient.label
    truth = root / "derivatives" / "truth" / label / "anat"

    def origin(name):
        part = name.split("/")[0]
        return {"SourceFile": name, "SourceURL": BASE + name, "SourceSHA256": file_sha256(source / name),
                "License": LICENCE, "Citation": CITATION[part], "Note": NOTES[part]}

    def copy(name, target, **facts):
        with atomic_path(target.with_suffix(".nii.gz")) as temporary:
            shutil.copyfile(source / name, temporary)
        write_json(target.with_suffix(".json"), origin(name) | facts)

    for sequence, name in patient.images.items():
        copy(name, root / label / "anat" / f"{label}_{sequence}")
    if patient.lesions:
        lesions, t1w = nib.load(source / patient.lesions), nib.load(source / patient.images["T1w"])
        if lesions.shape != t1w.shape or not np.allclose(lesions.affine, t1w.affine, atol=1e-3):
            raise StudyError(f"{label}: {patient.lesions}: has another grid than the T1w image")
        space = {"SpatialReference": f"bids:raw:{label}/anat/{label}_T1w.nii.gz"}
        copy(patient.lesions, truth / f"{label}_space-T1w_label-lesion_mask", Type="Lesion", **space)
        stem = root / "derivatives" / "brainmask" / label / "anat" / f"{label}_space-T1w_desc-brain_mask"
        with atomic_path(stem.with_suffix(".nii.gz")) as temporary:
            temporary.write_bytes(_brain_mask(patient, source))
        write_json(stem.with_suffix(".json"), {"Type": "Brain", **space, "Sources": list(patient.images.values()),
                                               "Description": "voxels that are not 0 in any skull-stripped image"})
    if patient.transforms:
        transforms = t1_to_others(*(source / patient.transforms[name] for name in ("T1w", "T2w")))
        for name, transform in transforms.items():
            target = truth / f"{label}_from-T1w_to-{name}_mode-points_xfm.tfm"
            with atomic_path(target) as temporary:
                sitk.WriteTransform(transform, str(temporary))
            used = ["T1w"] if name == "FLAIR" else ["T1w", "T2w"]
            write_json(target.with_suffix(".json"),
                       {"Sources": [origin(patient.transforms[one]) for one in used],
                        "Description": "T1w points to points of the other image, mm, LPS (ITK)"})


def to_bids(source: str | Path, bids_root: str | Path, *, checksums: dict[str, str] | None = None) -> Conversion:
    """Convert what is whole in a copy of the database; the rest is listed, also as printed lines.

    Images are copied byte for byte, so that headers and orientation stay as they are. `source`: folder that
    `openms.fetch` filled; `checksums`: paths and their SHA-256 (default: `openms.registry`), a file that differs is not
    used. StudyError: no patient is complete, the patients' tables are absent, or `bids_root` cannot be written.
    """
    source, root = Path(source), Path(bids_root)
    checksums = registry() if checksums is None else checksums
    patients = _patients(source)
    lines = {patient.label: patient.faults(source, checksums) for patient in patients}
    for label, found in lines.items():
        print(*(f"{line}; {label} is left out\n" for line in found), sep="", end="")
    whole = [patient for patient in patients if not lines[patient.label]]
    if not whole:
        raise StudyError(f"{source}: holds no patient with T1w, T2w and FLAIR whose files are whole")
    for patient in whole:
        _write_subject(patient, source, root)
    table = pd.DataFrame([{"participant_id": one.label} | one.row for one in whole])
    write_description(
        root, "open_ms_data: real MS patients", table, LEVELS, README + "\n".join(CITATION.values()) + "\n",
        {"truth": "expert lesion masks and the authors' transforms", "brainmask": "brain masks"}, License=LICENCE,
        ReferencesAndLinks=list(CITATION.values()), HowToAcknowledge="Cite the papers in ReferencesAndLinks",
        GeneratedBy=[{"Name": "mslib.cohort.openms_bids"}],
        SourceDatasets=[{"URL": f"https://github.com/{REPOSITORY}", "Version": COMMIT}])
    return Conversion(tuple(one.label.removeprefix("sub-") for one in whole),
                      tuple(line for found in lines.values() for line in found))
