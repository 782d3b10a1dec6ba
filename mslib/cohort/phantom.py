"""The simulated MS cohort: noise-free scans of a drawn person, and a BIDS dataset of many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

from mslib.study import atomic_path, write_json

from . import acquisition, anatomy, contrast, lesions
from .anatomy import Template
from .participants import COHORTS, SEQUENCES, write_description
from .people import Participant

SCANNING_SEQUENCE = {"T1w": "GR", "T2w": "SE", "FLAIR": ["SE", "IR"]}
BIAS_STEP, BIAS_MM = 1e-4, 6.0  # of the written bias fields: resolution, and spacing (they are smooth)


@dataclass(frozen=True)
class Rendered:
    """Noise-free aligned scans (X, Y, Z) on the T1w grid, masks and the RAS affine.

    `lesion_free` are the scans of the same person without lesions: equal to `images` but in lesions and their halo.
    `ventricles` is the share of ventricle in each voxel (float32), `protocols` the times of the sequences (seconds),
    `volumes` are those of parenchyma (``brain_ml``), ventricles and lesions in mL.
    """

    images: dict[str, np.ndarray]
    lesion_free: dict[str, np.ndarray]
    lesions: np.ndarray
    black_holes: np.ndarray
    ventricles: np.ndarray
    brain: np.ndarray
    protocols: dict[str, dict[str, float]]
    volumes: dict[str, float]
    affine: np.ndarray


def _streams(participant: Participant) -> list[np.random.Generator]:
    """Independent generators: shape, lesions, tissue, noise of T1w, T2w and FLAIR."""
    return [np.random.default_rng(part) for part in np.random.SeedSequence(participant.seed).spawn(6)]


def render(participant: Participant, voxel_mm: float = 1.0, template: Template | None = None,
           variation: float = 1.0) -> Rendered:
    """The person's noise-free, aligned scans on the T1w grid; `template` is that of `anatomy.template(voxel_mm)`.

    `variation` multiplies how much tissues and protocols differ between people. Voxels of 2 mm and more are for quick
    trials: small lesions then fill part of a voxel only.
    """
    shape_rng, lesion_rng, tissue_rng = _streams(participant)[:3]
    disease = participant.disease
    head = anatomy.make_head(template or anatomy.template(voxel_mm), shape_rng, voxel_mm, disease.ventricle_factor,
                             disease.brain_loss, participant.sex, participant.age)
    found = lesions.make_lesions(head, lesion_rng, disease.load_ml, lesions.SHARES.get(participant.group),
                                 disease.black_hole_share, disease.spots_mm3)
    *scans, protocols = contrast.scans(head, found, tissue_rng, disease.load_ml, variation)
    images, lesion_free = ({name: head.volume(values) for name, values in scan.items()} for scan in scans)
    mask = found.labels > 0
    volumes = {f"{name}_ml": float(part.sum() * voxel_mm**3 / 1000) for name, part in (
        ("brain", head.gm + head.wm), ("ventricle", head.ventricle_fraction), ("lesion", mask))}
    return Rendered(images, lesion_free, mask, found.black_holes, head.volume(head.ventricle_fraction),
                    head.volume(head.brain > 0.5, bool), protocols, volumes, head.affine)


def save_nifti(path: str | Path, values: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    """Write values (axes x, y, z; `slope` multiplies them) as NIfTI, qform as sform: same values, same bytes."""
    image = nib.Nifti1Image(np.asarray(values), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0 if slope else None)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def subject_files(bids_root: str | Path, participant_id: str) -> dict[str, Path]:
    """Every file that `simulate_subject` writes, by a short name."""
    anat = f"sub-{participant_id}/anat/sub-{participant_id}"
    truth = f"derivatives/truth/{anat}"
    files = {"lesion": f"{truth}_space-T1w_label-lesion_mask.nii.gz", "truth": f"{truth}_truth.json",
             "black_hole": f"{truth}_space-T1w_label-blackhole_mask.nii.gz",
             "brain": f"derivatives/brainmask/{anat}_space-T1w_desc-brain_mask.nii.gz"}
    for name in SEQUENCES:
        files |= {name: f"{anat}_{name}.nii.gz", f"{name}_json": f"{anat}_{name}.json",
                  f"{name}_bias": f"{truth}_{name}_biasfield.nii.gz"}
        if name != "T1w":
            files[f"{name}_xfm"] = f"{truth}_from-T1w_to-{name}_mode-points_xfm.tfm"
    return {short: Path(bids_root) / name for short, name in files.items()}


def _write_scan(files: dict[str, Path], name: str, participant: Participant, rendered: Rendered,
                voxel_mm: float, rng: np.random.Generator) -> None:
    """Move, sample, corrupt and write one sequence with its sidecar, bias field and transform."""
    scan = participant.nuisance[name]
    image, brain, affine = rendered.images[name], rendered.brain, rendered.affine
    brain_signal = float(image[brain].mean())
    if name != "T1w":
        brain, _ = acquisition.acquire(brain.astype(np.uint8), affine, scan, voxel_mm)
        image, affine = acquisition.acquire(image, affine, scan, voxel_mm)
        brain = brain >= 0.5
        with atomic_path(files[f"{name}_xfm"]) as temporary:
            sitk.WriteTransform(acquisition.rigid_transform(scan), str(temporary))
    size = np.diag(affine)[:3]
    field = acquisition.bias_field(rng, brain, size, scan.bias)
    noisy = acquisition.rician(rng, image * field * (scan.gain / brain_signal), scan.gain / scan.snr)
    save_nifti(files[name], np.clip(np.rint(noisy), 0, 32767).astype(np.int16), affine)
    every = np.maximum(np.rint(BIAS_MM / size), 1).astype(int)
    coarse = field[tuple(slice(None, None, step) for step in every)]
    save_nifti(files[f"{name}_bias"], np.rint(coarse / BIAS_STEP).astype(np.int16), affine @ np.diag([*every, 1]),
               BIAS_STEP)
    write_json(files[f"{name}_json"], {
        "Manufacturer": "none (simulated)", "MagneticFieldStrength": 3, "ScanningSequence": SCANNING_SEQUENCE[name],
        "SliceThickness": round(float(size[2]), 4),
        **{key: round(value, 6) for key, value in rendered.protocols[name].items()}})


def simulate_subject(participant: Participant, bids_root: str | Path, voxel_mm: float = 1.0,
                     cache: str | Path | None = None) -> dict[str, Path]:
    """Write one subject (`subject_files`) below the root of the dataset (`write_dataset`), last the truth.

    `voxel_mm`: voxel size of T1w, the other grids scale with it; `cache`: see `anatomy.template`.
    """
    files = subject_files(bids_root, participant.id)
    rendered = render(participant, voxel_mm, anatomy.template(voxel_mm, cache))
    for name, rng in zip(SEQUENCES, _streams(participant)[3:]):
        _write_scan(files, name, participant, rendered, voxel_mm, rng)
    space = {"SpatialReference": f"bids:raw:{files['T1w'].relative_to(bids_root).as_posix()}"}
    masks = {"lesion": rendered.lesions, "black_hole": rendered.black_holes, "brain": rendered.brain}
    for name, mask in masks.items():
        save_nifti(files[name], mask.astype(np.uint8), rendered.affine)
        facts = {"Type": "Brain" if name == "brain" else "Lesion", "Sources": [], **space}
        write_json(files[name].with_suffix("").with_suffix(".json"), facts)
    z_mm = rendered.affine[2, 3] + voxel_mm * np.arange(rendered.brain.shape[2])
    areas = {name: (mask.sum((0, 1)) * voxel_mm**2).round(2).tolist()
             for name, mask in (masks | {"ventricle": rendered.ventricles}).items() if name != "brain"}
    write_json(files["truth"], {
        "lesion_load_ml": rendered.volumes["lesion_ml"], "lesion_count": int(ndimage.label(rendered.lesions)[1]),
        "black_hole_share": float(rendered.black_holes.sum() / max(rendered.lesions.sum(), 1)),
        "ventricle_volume_ml": rendered.volumes["ventricle_ml"], "brain_volume_ml": rendered.volumes["brain_ml"],
        "areas_mm2": {"z_mm": z_mm.round(3).tolist(), **areas},
        "recipe": {"voxel_mm": float(voxel_mm), "participant": asdict(participant)}})
    return files


README = """SIMULATED DATA. No person was scanned. Every image here was computed from the ICBM152 template, MR signal
equations and published statistics of multiple sclerosis; groups, ages and scores were drawn at random.

The images show the brain only (the template is skull-stripped). derivatives/truth holds what was put in: lesion
masks, transforms (T1w points -> T2w or FLAIR points), bias fields and volumes; derivatives/brainmask the masks.
"""

LEVELS = {"control": "healthy control", "RRMS": "relapsing-remitting multiple sclerosis",
          "SPMS": "secondary-progressive multiple sclerosis"}


def write_dataset(participants: list[Participant], bids_root: str | Path) -> Path:
    """Write what the dataset holds beside its subjects; ids that are no numbers are of the independent cohort."""
    rows = [{"participant_id": f"sub-{p.id}", "group": p.group, "age": p.age, "sex": p.sex, "edss": p.edss,
             "cohort": COHORTS[0] if p.id.isdigit() else COHORTS[1]} for p in participants]
    return write_description(
        bids_root, "SIMULATED multiple-sclerosis cohort", pd.DataFrame(rows), LEVELS, README,
        {"truth": "truth of the simulation", "brainmask": "brain masks"}, "simulated", License="CC0",
        GeneratedBy=[{"Name": "mslib.cohort.phantom"}])
