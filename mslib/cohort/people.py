"""The simulated people: group laws of the disease, and everyone's draw from them.

The laws stand here as constants. They were set before any network was trained. Age and sex, head shape, pose and
every trait of the scanner follow one law in all groups: nothing but disease differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from .acquisition import SequenceNuisance, draw_nuisance


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
    nuisance: dict[str, SequenceNuisance]


def _log_normal(z: float, law) -> float:
    """The law's quantile at the standard normal `z`, truncated to its bounds."""
    median, spread, low, high = law
    centre, low, high = np.log(median), np.log(low), np.log(high)
    a, b = ndtr([(low - centre) / spread, (high - centre) / spread])
    return float(np.exp(centre + spread * ndtri(a + ndtr(z) * (b - a))))


def _draw_disease(rng: np.random.Generator, law: GroupLaw) -> tuple[DiseaseState, float]:
    """Draw disease and disability score of one person of a group."""
    severity = rng.standard_normal()
    load, ventricle, loss, score = (np.sqrt(COMMON_SEVERITY) * severity
                                    + np.sqrt(1 - COMMON_SEVERITY) * rng.standard_normal(4))
    dark, spotted = rng.standard_normal(), rng.random() < SPOT_SHARE
    spots = np.exp(rng.uniform(np.log(3), np.log(60), rng.integers(1, 9)))
    low, high = law.edss
    state = DiseaseState(
        load_ml=_log_normal(load, law.load_ml) if law.load_ml else 0.0,
        ventricle_factor=_log_normal(ventricle, law.ventricle),
        brain_loss=float(np.clip(law.loss[0] + law.loss[1] * loss, *law.loss[2:])),
        black_hole_share=float(np.clip(law.black_holes[0] + law.black_holes[1] * dark, *law.black_holes[2:])),
        spots_mm3=tuple(float(v) for v in spots) if spotted and not law.load_ml else (),
        severity=float(severity))
    return state, float(np.round(2 * (low + (high - low) * ndtr(score))) / 2)


def draw_participants(counts: dict[str, int], seed: int, prefix: str = "", **nuisance: float) -> list[Participant]:
    """Draw the people of a cohort; cheap, deterministic, and independent of each other.

    `counts`: people per group of `LAWS`; `prefix`: put before the number of the id ("T" gives T01, T02, ...);
    `nuisance`: of `acquisition.draw_nuisance`.
    """
    root = np.random.SeedSequence([seed, *prefix.encode()])
    groups = [group for group in sorted(counts, key=list(LAWS).index) for _ in range(counts[group])]
    np.random.default_rng(root).shuffle(groups)
    width = max(3 - len(prefix), len(str(len(groups))))
    people = []
    for number, (group, child) in enumerate(zip(groups, root.spawn(len(groups))), start=1):
        disease_rng, scan_rng = (np.random.default_rng(part) for part in child.spawn(2))
        disease, edss = _draw_disease(disease_rng, LAWS[group])
        people.append(Participant(
            id=f"{prefix}{number:0{width}d}", group=group,
            age=int(np.clip(round(42 + 9 * scan_rng.standard_normal()), 20, 65)),
            sex="F" if scan_rng.random() < 0.7 else "M", edss=edss,
            seed=int(child.generate_state(1, np.uint64)[0] >> np.uint64(11)), disease=disease,
            nuisance=draw_nuisance(scan_rng, **nuisance)))
    return people
