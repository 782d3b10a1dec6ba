"""MR signal equations and published 3 T tissue parameters: from tissue to grey value.

Relaxation times in ms, proton density relative to CSF. Sources: Wansapura et al. 1999, J Magn Reson Imaging
9:531 (T1, T2 of grey and white matter at 3 T); Gelman et al. 2001, Magn Reson Med 45:71 (T1 at 3 T, proton
density); Stanisz et al. 2005, Magn Reson Med 54:507 (T2 at 3 T); Lu et al. 2005, J Magn Reson Imaging 22:13
(T1 of blood-free tissue and of cerebrospinal fluid at 3 T). Lesion values lie in the range reported for
chronic multiple-sclerosis lesions at 3 T, within which they were chosen so that the lesion to white-matter
ratios of real patients are met (Lesjak et al. 2017: T1 0.54-0.69, T2 1.9-2.3, FLAIR 1.5-1.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """Longitudinal and transverse relaxation time (ms) and relative proton density."""

    t1: float
    t2: float
    pd: float


TISSUES = {
    "gm": Tissue(t1=1331.0, t2=99.0, pd=0.82),
    "wm": Tissue(t1=838.0, t2=74.0, pd=0.70),
    "csf": Tissue(t1=4163.0, t2=1500.0, pd=1.00),
    "lesion": Tissue(t1=1480.0, t2=122.0, pd=0.84),
    "black_hole": Tissue(t1=2050.0, t2=150.0, pd=0.90),
}
"""The five tissues of the phantom."""

SEQUENCES = {
    "T1w": {"RepetitionTime": 0.018, "EchoTime": 0.004, "FlipAngle": 25.0},
    "T2w": {"RepetitionTime": 5.0, "EchoTime": 0.090},
    "FLAIR": {"RepetitionTime": 9.0, "EchoTime": 0.095, "InversionTime": 2.5},
}
"""Protocol of each sequence in BIDS units (seconds, degrees)."""


def spoiled_gradient_echo(tissue: Tissue, tr: float, te: float, flip_deg: float) -> float:
    """Steady-state spoiled gradient echo (Ernst and Anderson 1966), times in ms; T2* is taken as 0.7 T2."""
    e1, flip = np.exp(-tr / tissue.t1), np.deg2rad(flip_deg)
    return float(tissue.pd * np.sin(flip) * (1 - e1) / (1 - e1 * np.cos(flip)) * np.exp(-te / (0.7 * tissue.t2)))


def spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    """(Turbo) spin echo at its effective echo time, times in ms: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    return float(tissue.pd * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2))


def inversion_recovery(tissue: Tissue, tr: float, te: float, ti: float) -> float:
    """Magnitude inversion-recovery spin echo, times in ms: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)."""
    mz = 1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1)
    return float(tissue.pd * abs(mz) * np.exp(-te / tissue.t2))


def signal(sequence: str, tissue: Tissue) -> float:
    """Relative signal of `tissue` in the protocol `sequence` of `SEQUENCES`.

    Raises
    ------
    KeyError
        No such sequence.
    """
    protocol = {name: 1000 * value for name, value in SEQUENCES[sequence].items()}
    tr, te = protocol["RepetitionTime"], protocol["EchoTime"]
    if sequence == "T1w":
        return spoiled_gradient_echo(tissue, tr, te, SEQUENCES[sequence]["FlipAngle"])
    if sequence == "T2w":
        return spin_echo(tissue, tr, te)
    return inversion_recovery(tissue, tr, te, protocol["InversionTime"])


def vary(rng: np.random.Generator, spread: float = 0.02) -> dict[str, Tissue]:
    """`TISSUES` of one person: every parameter times exp(N(0, spread)), proton density by half of that."""
    return {name: Tissue(*(value * np.exp(spread * scale * rng.standard_normal())
                           for value, scale in ((t.t1, 1), (t.t2, 1), (t.pd, 0.5))))
            for name, t in TISSUES.items()}


if __name__ == "__main__":
    for seq in SEQUENCES:
        white = signal(seq, TISSUES["wm"])
        print(seq, {name: round(signal(seq, t) / white, 3) for name, t in TISSUES.items()})
