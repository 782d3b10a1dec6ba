"""MR signal equations, published 3 T tissue parameters and their variation: from tissue to grey value.

Relaxation times in ms, proton density relative to CSF. T1 of cortex and white matter, and T2 of white matter, are
those of Wansapura et al. 1999, J Magn Reson Imaging 9:531; T2 of cortex as in Stanisz et al. 2005, Magn Reson Med
54:507 (99 ms). Iron shortens the T2 of deep grey matter: Gelman et al. 1999, Radiology 210:759, find 1.25 (prefrontal
cortex) to 0.70 (globus pallidus) times that of white matter. Proton density by the water content of Gelman et al.
2001, Magn Reson Med 45:71. CSF: T1 of Lu et al. 2005, J Magn Reson Imaging 22:13; its T2 is set to 1500 ms. Lesions
have the longer T1, T2 and higher water content of chronic MS lesions: those of a lesion's core, chosen within the
wide published range such that the ratios of real patients come out (`mslib.analysis.truth.REAL_APPEARANCE`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .anatomy import Head, spline_field
from .lesions import Lesions


class Tissue(NamedTuple):
    """Longitudinal and transverse relaxation time (ms) and relative proton density."""

    t1: float
    t2: float
    pd: float


TISSUES = {
    "cortex": Tissue(t1=1331.0, t2=98.0, pd=0.85),
    "deep_grey": Tissue(t1=1180.0, t2=86.0, pd=0.80),
    "white": Tissue(t1=832.0, t2=79.6, pd=0.70),
    "csf": Tissue(t1=4163.0, t2=1500.0, pd=1.00),
    "lesion": Tissue(t1=1430.0, t2=179.0, pd=0.87),
    "black_hole": Tissue(t1=2050.0, t2=240.0, pd=0.90),
}

SEQUENCES = {  # protocols in BIDS units (seconds); T1w is a magnetisation-prepared gradient echo
    "T1w": {"RepetitionTime": 2.0, "EchoTime": 0.003, "InversionTime": 0.962},
    "T2w": {"RepetitionTime": 6.5, "EchoTime": 0.084},
    "FLAIR": {"RepetitionTime": 12.0, "EchoTime": 0.101, "InversionTime": 2.87},
}

PERSON_SPREAD = 0.016                # SD of the logarithm of T1 and T2 between people; proton density half of it
PROTOCOL_SPREAD = 0.008              # SD of the logarithm of the times of a protocol between people
TEXTURE = (0.03, 0.1, 0.0)           # SD of the logarithm of T1, T2 and proton density within a tissue
FREE_WATER = 0.015                   # what comes with one SD of texture, as a share of the voxel
TEXTURE_MM = (4.0, 10.0, 35.0)       # spacing of the control points of the parts of the texture
FLOW = {"T1w": 0.10, "T2w": -0.10, "FLAIR": 0.35}  # SD of the logarithm of CSF's signal: pulsation and inflow
DIFFUSE = 0.25                       # most that white matter at the ventricles changes, as a share of a lesion
POINT_SPREAD_MM = 0.6                # SD of the scanner's point spread
FIELD_SD = 0.33                      # of `spline_field`


def signal(protocol: dict[str, float], tissue: Tissue) -> float:
    """Relative signal of `tissue` in a protocol (BIDS names, seconds).

    (Turbo) spin echo at its effective echo time: PD (1 - exp(-TR/T1)) exp(-TE/T2); magnitude after an inversion:
    PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).
    """
    tr, te, ti = (1000 * protocol.get(name, 0) for name in ("RepetitionTime", "EchoTime", "InversionTime"))
    mz = 1 - np.exp(-tr / tissue.t1) if not ti else abs(1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1))
    return float(tissue.pd * mz * np.exp(-te / tissue.t2))


def _scaled(tissue: Tissue, logarithms) -> Tissue:
    """The tissue with T1, T2 and proton density times exp(`logarithms`)."""
    return Tissue(*(np.array(tissue) * np.exp(logarithms)).tolist())


def vary(rng: np.random.Generator, variation: float = 1.0) -> tuple[dict[str, Tissue], dict[str, dict[str, float]]]:
    """`TISSUES` and `SEQUENCES` of one person; `variation` multiplies the spread between people (draws cut at 2 SD)."""
    def draw(spread, size):
        return variation * spread * np.clip(rng.standard_normal(size), -2, 2)

    tissues = {name: _scaled(tissue, draw(PERSON_SPREAD, 3) * [1, 1, 0.5]) for name, tissue in TISSUES.items()}
    return tissues, {name: {key: float(value * np.exp(draw(PROTOCOL_SPREAD, ()))) for key, value in times.items()}
                     for name, times in SEQUENCES.items()}


def _textures(rng: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth random fields at the inside voxels of a head, SD about 1: of the tissue, of CSF flow, of the brain's rim.

    Real white matter varies over 5 to 20 mm and alike in all three sequences (T1w against T2w and FLAIR), as longer
    T1 and T2 make it; its deep part, several mm from the cortex, has longer ones.
    """
    fine, middle, coarse, flow, rim = (
        spline_field(rng, head.shape, max(mm / head.affine[0, 0], 1.0)).ravel()[head.inside] / FIELD_SD
        for mm in (*TEXTURE_MM, 15.0, 7.0))
    deep = np.exp(-((head.cortex - 7) / 3) ** 2)
    strength = np.exp(0.1 * np.clip(rng.standard_normal(), -2, 2))
    return np.float32(strength) * (0.5 * fine + 0.75 * middle + 0.4 * coarse + 0.8 * deep - 0.2), flow, rim


def _blurred(head: Head, values: np.ndarray, sd_mm: float) -> np.ndarray:
    """Values at the inside voxels (0 outside) after a Gaussian of `sd_mm`."""
    return ndimage.gaussian_filter(head.volume(values), sd_mm / head.affine[0, 0], truncate=2.5).ravel()[head.inside]


def diffuse_share(head: Head, load_ml: float, field: np.ndarray) -> np.ndarray:
    """Share of changed tissue in a voxel's white matter: grows with the load, falls with the distance to the wall.

    Diffusely abnormal white matter has longer T1 and T2 (Seewann et al. 2009, Arch Neurol 66:601).
    """
    near = np.exp(np.maximum(head.ventricle, 0) / -10)
    return np.float32(DIFFUSE * load_ml / (load_ml + 20)) * near * np.clip(0.5 + 0.4 * field, 0, 1)


def scans(head: Head, lesions: Lesions, rng: np.random.Generator, load_ml: float, variation: float = 1.0):
    """Noise-free signal of one person's brain with and without lesions, and the person's protocols (as `SEQUENCES`).

    Signals are float32, (n,), by sequence, at the inside voxels of `head`; equal where ``lesions.share`` is 0. `rng`
    draws tissues, protocols and texture, the same whatever the lesions; the diffuse change of white matter depends on
    `load_ml`, with lesions and without; `variation` as in `vary`.
    """
    tissues, protocols = vary(rng, variation)
    texture, flow, rim = _textures(rng, head)
    grey, white = (_blurred(head, values, POINT_SPREAD_MM) for values in (head.gm, head.wm))
    water = np.maximum(head.brain - grey - white, 0)
    # Deep grey matter is thalamus and basal ganglia, by template coordinates. In the outermost millimetre a brain mask
    # holds patches of dura, veins and bone without signal: without them white matter would be the darkest tissue of
    # T2w, and black after scaling by percentiles of the brain.
    x, y, z = head.points
    depth = np.minimum(np.minimum(32 - np.abs(x), np.minimum(y + 38, 24 - y)), np.minimum(z + 14, 20 - z))
    deep = np.clip(depth / 4, 0, 1)
    edge = np.clip((0.97 - _blurred(head, head.brain, 1.0)) / 0.25, 0, 1)
    visible = 1 - edge * np.clip(0.3 + 1.5 * rim, 0, 0.95)
    changed = diffuse_share(head, load_ml, flow)
    share, dark = (values.ravel()[head.inside] for values in (lesions.share, lesions.dark_share))
    at = np.flatnonzero(share)
    solid = (grey + white)[at]
    sick_part = share[at] * np.minimum(1, 2 * white[at] / np.maximum(solid, 1e-6))
    dark = dark[at] / share[at]
    sick, free = {}, {}
    for name, protocol in protocols.items():
        typical = {tissue: np.float32(signal(protocol, one)) for tissue, one in tissues.items()}
        # What one SD of texture multiplies a tissue's signal by, which the others of its kind share.
        gain = {tissue: np.exp(np.log(((1 - FREE_WATER) * signal(protocol, _scaled(tissues[tissue], TEXTURE))
                                       + FREE_WATER * typical["csf"]) / typical[tissue]).astype(np.float32) * texture)
                for tissue in ("cortex", "white")}
        fluid = typical["csf"] * np.exp(np.float32(FLOW[name]) * flow) * water
        values = gain["cortex"] * grey * (typical["cortex"] + (typical["deep_grey"] - typical["cortex"]) * deep)
        values += gain["white"] * white * (typical["white"] + (typical["lesion"] - typical["white"]) * changed)
        free[name] = (values + fluid) * visible
        core = solid * gain["white"][at] * (typical["lesion"] + (typical["black_hole"] - typical["lesion"]) * dark)
        sick[name] = free[name].copy()
        sick[name][at] = (values[at] * (1 - sick_part) + core * sick_part + fluid[at]) * visible[at]
    return sick, free, protocols
