"""Conversion of the real patients to BIDS: raw images byte for byte, expert lesions and transforms beside them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.study import StudyError, atomic_path, write_json
from mslib.study.provenance import file_sha256

from .openms import BASE, COMMIT, REPOSITORY, registry
from .participants import SEQUENCES, copy_image, write_description

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
    """One subject of the BIDS dataset: its row of ``participants.tsv``, and where its files are in the database.

    `files`: by sequence, ``lesion`` (patients in MNI orientation), ``xfm_T1w`` and ``xfm_T2w`` (raw sessions).
    """

    label: str
    files: dict[str, str]
    row: dict

    def faults(self, source: Path) -> list[str]:
        """One line per file that is absent or is not the registered one."""
        lines, checksums = [], registry()
        for name in self.files.values():
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


def _files(place: str, session: int) -> dict[str, str]:
    """What a folder holds of a patient in MNI orientation (session 0), or of one raw session."""
    if not session:
        steps = "N4_noneck_reduced_winsor_regtoFLAIR"
        images = {name: f"{place}/{name.removesuffix('w')}_{steps}_brain_N4_regtoMNI.nii.gz" for name in SEQUENCES}
        return images | {"lesion": f"{place}/GOLD_STANDARD_{steps}_regtoMNI.nii.gz"}
    stems = {name: f"{place}/study{session}_{name.upper()}" for name in SEQUENCES}
    return {name: f"{stem}.nii.gz" for name, stem in stems.items()} | {
        f"xfm_{name}": f"{stems[name]}_intrastudy_to_FLAIR.txt" for name in ("T1w", "T2w")}


def _patients(source: Path) -> list[Patient]:
    """Patients of the MNI part, without those of whom there is a mask only; sessions of the raw longitudinal part."""
    patients = []
    for part, layout, sessions in (("cross_sectional", "MNI", (0,)), ("longitudinal", "raw", (1, 2))):
        table = _table(source, part)
        for folder in sorted((source / part / layout).glob("patient[0-9][0-9]")):
            number = int(folder.name.removeprefix("patient"))
            known = table.loc[str(number)]
            for session in sessions:
                files = _files(f"{part}/{layout}/{folder.name}", session)
                if not session and not any((source / files[name]).is_file() for name in SEQUENCES):
                    continue
                label, age = f"sub-L{number:02d}s{session}" if session else f"sub-MNI{number:02d}", known["age"]
                if session == 2 and age != "n/a" and (days := float(known["days_between_studies"])):
                    age = f"{float(age) + days / 365.25:.1f}"
                patients.append(Patient(label, files, {
                    "group": GROUPS.get(known["ms_type"], known["ms_type"]), "age": age, "sex": known["sex"],
                    "edss": known.get("edss", "n/a"), "cohort": "study"}))
    return patients


def _brain_mask(paths: list[Path]) -> bytes:
    """Voxels that are not 0 in any of the skull-stripped images, which share a grid, as a NIfTI file."""
    images = [nib.load(path) for path in paths]
    inside = np.any([np.asanyarray(image.dataobj) != 0 for image in images], axis=0).astype(np.uint8)
    header = images[0].header.copy()
    header.set_data_dtype(np.uint8)
    return gzip.compress(nib.Nifti1Image(inside, None, header).to_bytes(), 6, mtime=0)


def _write_subject(patient: Patient, source: Path, root: Path) -> None:
    """Images, expert lesions (in the T1w image's grid), brain mask and the authors' transforms, each with a sidecar."""
    label, files = patient.label, patient.files
    truth = root / "derivatives" / "truth" / label / "anat"

    def origin(kind):
        name, part = files[kind], files[kind].split("/")[0]
        return {"SourceFile": name, "SourceURL": BASE + name, "SourceSHA256": file_sha256(source / name),
                "License": LICENCE, "Citation": CITATION[part], "Note": NOTES[part]}

    for sequence in SEQUENCES:
        copy_image(source / files[sequence], root / label / "anat" / f"{label}_{sequence}", origin(sequence))
    if "lesion" in files:
        space = {"SpatialReference": f"bids:raw:{label}/anat/{label}_T1w.nii.gz"}
        copy_image(source / files["lesion"], truth / f"{label}_space-T1w_label-lesion_mask",
                   origin("lesion") | {"Type": "Lesion", **space})
        stem = root / "derivatives" / "brainmask" / label / "anat" / f"{label}_space-T1w_desc-brain_mask"
        used = [files[sequence] for sequence in SEQUENCES]
        with atomic_path(stem.with_suffix(".nii.gz")) as temporary:
            temporary.write_bytes(_brain_mask([source / name for name in used]))
        write_json(stem.with_suffix(".json"), {"Type": "Brain", **space, "Sources": used,
                                               "Description": "voxels that are not 0 in any skull-stripped image"})
        return
    # Of the authors' transforms one takes FLAIR points to T1w points, the other to T2w points (LPS mm).
    to_t1w, to_t2w = (sitk.ReadTransform(str(source / files[f"xfm_{name}"])) for name in ("T1w", "T2w"))
    both = sitk.CompositeTransform([to_t2w, to_t1w.GetInverse()])
    both.FlattenTransform()  # files hold one level
    for name, transform, used in (("FLAIR", to_t1w.GetInverse(), ["xfm_T1w"]), ("T2w", both, ["xfm_T1w", "xfm_T2w"])):
        target = truth / f"{label}_from-T1w_to-{name}_mode-points_xfm.tfm"
        with atomic_path(target) as temporary:
            sitk.WriteTransform(transform, str(temporary))
        write_json(target.with_suffix(".json"), {
            "Sources": [origin(kind) for kind in used],
            "Description": "T1w points to points of the other image, mm, LPS (ITK)"})


def to_bids(source: str | Path, bids_root: str | Path) -> Conversion:
    """Convert what is whole in a copy of the database; the rest is listed, also as printed lines.

    Images are copied byte for byte, so that headers and orientation stay as they are. `source`: folder that
    `openms.fetch` filled; a file that differs from the registered one is not used. StudyError: no patient is complete,
    the patients' tables are absent, or `bids_root` cannot be written.
    """
    source, root = Path(source), Path(bids_root)
    patients = _patients(source)
    faults = [(patient.label, line) for patient in patients for line in patient.faults(source)]
    print(*(f"{line}; {label} is left out\n" for label, line in faults), sep="", end="")
    whole = [patient for patient in patients if patient.label not in dict(faults)]
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
    return Conversion(tuple(one.label.removeprefix("sub-") for one in whole), tuple(line for _, line in faults))
