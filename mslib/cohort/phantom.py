"""The simulated MS cohort: people drawn from fixed laws, their noise-free scans, and a BIDS dataset of them.

The group laws stand here as constants. They were set before any network was trained. Age and sex, head shape,
pose and every trait of the scanner follow one law in all groups: nothing but disease differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage, stats

from ..study import StudyError, atomic_path, write_json, write_table, write_text
from . import acquisition, contrast, lesions
from .acquisition import Nuisance
from .anatomy import Template, make_head, template

SEQUENCES = ("T1w", "T2w", "FLAIR")


@dataclass(frozen=True)
class GroupLaw:
    """Log-normal laws as (median, SD of the logarithm, lower and upper bound), normal ones as (mean, SD, ...).

    `load_ml`: lesion load, relapsing from 24 real patients (Lesjak et al. 2017); `ventricle`: factor on the
    template's ventricles; `loss`: share of the parenchyma lost; `black_holes`: T1-dark share of the lesion
    volume; `edss`: range of the disability score, climbed with severity.
    """

    load_ml: tuple[float, float, float, float] | None
    ventricle: tuple[float, float, float, float]
    loss: tuple[float, float, float, float]
    black_holes: tuple[float, float, float, float]
    edss: tuple[float, float]


LAWS = {
    "control": GroupLaw(None, (1.0, 0.30, 0.4, 4.0), (0.00, 0.02, -0.02, 0.12), (0, 0, 0, 0), (0.0, 0.0)),
    "RRMS": GroupLaw((14.9, 1.12, 0.66, 52.6), (1.4, 0.30, 0.4, 4.0), (0.03, 0.02, -0.02, 0.12),
                     (0.20, 0.10, 0.0, 0.9), (1.0, 4.5)),
    "SPMS": GroupLaw((40.0, 0.45, 12.0, 90.0), (2.0, 0.30, 0.4, 4.0), (0.06, 0.02, -0.02, 0.12),
                     (0.50, 0.12, 0.0, 0.9), (4.0, 7.5)),
}
COMMON_SEVERITY = 0.5    # correlation of load, ventricle and loss within a group
SPOT_SHARE = 0.40        # controls with incidental white-matter spots


@dataclass(frozen=True)
class DiseaseState:
    """What disease, or its absence, did to a brain; `severity` is the latent standard normal behind it."""

    load_ml: float
    ventricle_factor: float
    brain_loss: float
    black_hole_share: float
    spots_mm3: tuple[float, ...]
    severity: float


@dataclass(frozen=True)
class Participant:
    """One simulated person; everything else follows from `seed`."""

    id: str
    group: str
    age: int
    sex: str
    edss: float
    seed: int
    disease: DiseaseState
    nuisance: Nuisance


@dataclass(frozen=True)
class Rendered:
    """Noise-free aligned scans (X, Y, Z) on the T1w grid, masks, volumes in mL and the RAS affine."""

    images: dict[str, np.ndarray]
    lesions: np.ndarray
    black_holes: np.ndarray
    brain: np.ndarray
    volumes: dict[str, float]
    affine: np.ndarray


def _truncated(z: float, law, logarithmic: bool) -> float:
    """The law's quantile at the standard normal `z`, truncated to its bounds."""
    centre, spread, low, high = law
    if logarithmic:
        centre, low, high = np.log(centre), np.log(low), np.log(high)
    a, b = stats.norm.cdf([(low - centre) / spread, (high - centre) / spread])
    value = centre + spread * stats.norm.ppf(a + stats.norm.cdf(z) * (b - a))
    return float(np.exp(value) if logarithmic else value)


def draw_disease(rng: np.random.Generator, group: str) -> tuple[DiseaseState, float]:
    """Draw disease and disability score of one member of `group` from `LAWS`."""
    law = LAWS[group]
    severity = rng.standard_normal()
    load, ventricle, loss, score = (np.sqrt(COMMON_SEVERITY) * severity
                                    + np.sqrt(1 - COMMON_SEVERITY) * rng.standard_normal(4))
    dark, spotted = rng.standard_normal(), rng.random() < SPOT_SHARE
    spots = np.exp(rng.uniform(np.log(3), np.log(60), rng.integers(1, 9)))
    sick = law.load_ml is not None
    low, high = law.edss
    state = DiseaseState(
        load_ml=_truncated(load, law.load_ml, True) if sick else 0.0,
        ventricle_factor=_truncated(ventricle, law.ventricle, True),
        brain_loss=float(np.clip(law.loss[0] + law.loss[1] * loss, *law.loss[2:])),
        black_hole_share=float(np.clip(law.black_holes[0] + law.black_holes[1] * dark, *law.black_holes[2:])),
        spots_mm3=tuple(float(v) for v in spots) if spotted and not sick else (),
        severity=float(severity))
    return state, float(np.round(2 * (low + (high - low) * stats.norm.cdf(score))) / 2)


def draw_participants(counts: dict[str, int], seed: int, prefix: str = "", misplacement_mm: float = 5.0,
                      misplacement_deg: float = 5.0, thick_slice_share: float = 0.4) -> list[Participant]:
    """Draw the people of a cohort; cheap, deterministic, and independent of each other.

    Parameters
    ----------
    counts : dict
        People per group, of `LAWS`.
    seed : int
    prefix : str
        Put before the number of the id ("T" gives T01, T02, ...).
    misplacement_mm, misplacement_deg, thick_slice_share : float
        See `acquisition.draw_nuisance`.

    Raises
    ------
    StudyError
        A group without a law.
    """
    unknown = sorted(set(counts) - set(LAWS))
    if unknown:
        raise StudyError(f"simulated cohort: group must be one of {', '.join(LAWS)} (got {', '.join(unknown)})")
    root = np.random.SeedSequence([seed, *prefix.encode()])
    groups = [group for group in LAWS for _ in range(counts.get(group, 0))]
    np.random.default_rng(root).shuffle(groups)
    width = max(3 - len(prefix), len(str(len(groups))))
    people = []
    for number, (group, child) in enumerate(zip(groups, root.spawn(len(groups))), start=1):
        disease_rng, scan_rng = (np.random.default_rng(part) for part in child.spawn(2))
        disease, edss = draw_disease(disease_rng, group)
        people.append(Participant(
            id=f"{prefix}{number:0{width}d}", group=group,
            age=int(np.clip(round(42 + 9 * scan_rng.standard_normal()), 20, 65)),
            sex="F" if scan_rng.random() < 0.7 else "M", edss=edss,
            seed=int(child.generate_state(1, np.uint64)[0] >> np.uint64(11)), disease=disease,
            nuisance=acquisition.draw_nuisance(scan_rng, misplacement_mm, misplacement_deg, thick_slice_share)))
    return people


def _streams(participant: Participant) -> list[np.random.Generator]:
    """Independent generators: shape, lesions, tissue, noise of T1w, T2w and FLAIR."""
    return [np.random.default_rng(part) for part in np.random.SeedSequence(participant.seed).spawn(6)]


def render(participant: Participant, voxel_mm: float = 1.0, template: Template | None = None) -> Rendered:
    """The person's noise-free, aligned scans on the T1w grid.

    Parameters
    ----------
    participant : Participant
    voxel_mm : float
        Voxel size of the grid; 2 mm and more for quick trials (small lesions then fill part of a voxel only).
    template : Template, optional
        From `anatomy.template(voxel_mm)`.
    """
    maps = template if template is not None else _default_template(voxel_mm)
    shape_rng, lesion_rng, tissue_rng = _streams(participant)[:3]
    disease = participant.disease
    head = make_head(maps, shape_rng, voxel_mm, disease.ventricle_factor, disease.brain_loss)
    labels, dark = lesions.make_lesions(head, lesion_rng, disease.load_ml,
                                        lesions.SHARES.get(participant.group), disease.black_hole_share,
                                        disease.spots_mm3)
    mask = labels > 0
    tissues = contrast.vary(tissue_rng)
    fractions = {"gm": head.gm, "wm": head.wm, "csf": head.csf}
    if mask.any():
        sigma = 0.35 / voxel_mm
        sick = ndimage.gaussian_filter(mask.astype(np.float32), sigma).ravel()[head.inside]
        holes = ndimage.gaussian_filter(dark.astype(np.float32), sigma).ravel()[head.inside]
        fractions = {name: part * (1 - sick) for name, part in fractions.items()}
        fractions |= {"lesion": (sick - holes) * head.brain, "black_hole": holes * head.brain}
    images = {}
    for name in SEQUENCES:
        values = sum(np.float32(contrast.signal(name, tissues[t])) * part for t, part in fractions.items())
        images[name] = head.volume(values)
    ml = voxel_mm**3 / 1000
    volumes = {"brain_ml": float((head.gm + head.wm).sum() * ml), "csf_ml": float(head.csf.sum() * ml),
               "ventricle_ml": float(head.ventricle_fraction.sum() * ml),
               "gm_ml": float(head.gm.sum() * ml), "wm_ml": float(head.wm.sum() * ml),
               "lesion_ml": float(mask.sum() * ml), "black_hole_ml": float(dark.sum() * ml)}
    return Rendered(images, mask, dark, head.volume(head.brain > 0.5, bool), volumes, head.affine)


def _default_template(voxel_mm: float) -> Template:
    return template(voxel_mm)
