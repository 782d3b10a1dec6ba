"""MR signal equations and published 3 T tissue parameters: from tissue to grey value.

Relaxation times in ms, proton density relative to CSF. Grey and white matter: T1 and T2 of Wansapura et al. 1999,
J Magn Reson Imaging 9:531 (Stanisz et al. 2005, Magn Reson Med 54:507, find T2 of 99 and 69 ms), proton density by
the water content of Gelman et al. 2001, Magn Reson Med 45:71. CSF: T1 of Lu et al. 2005, J Magn Reson Imaging 22:13;
its T2 is set to 1500 ms. Lesions have the longer T1, T2 and higher water content of chronic MS lesions; within the
wide published range they were chosen such that the lesion to white-matter ratios of real patients come out (Lesjak
et al. 2017: T1 0.54-0.69, T2 1.9-2.3, FLAIR 1.5-1.6). Black holes have a markedly longer T1.
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
    "gm": Tissue(t1=1331.0, t2=110.0, pd=0.82),
    "wm": Tissue(t1=832.0, t2=79.6, pd=0.70),
    "csf": Tissue(t1=4163.0, t2=1500.0, pd=1.00),
    "lesion": Tissue(t1=1400.0, t2=148.0, pd=0.84),
    "black_hole": Tissue(t1=1900.0, t2=200.0, pd=0.90),
}
"""The five tissues of the phantom."""

SEQUENCES = {
    "T1w": {"RepetitionTime": 2.0, "EchoTime": 0.003, "InversionTime": 1.0},
    "T2w": {"RepetitionTime": 5.0, "EchoTime": 0.1},
    "FLAIR": {"RepetitionTime": 9.0, "EchoTime": 0.1, "InversionTime": 2.5},
}
"""Protocol of each sequence in BIDS units (seconds). T1w is a magnetisation-prepared gradient echo."""


def spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    """(Turbo) spin echo at its effective echo time, times in ms: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    return float(tissue.pd * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2))


def inversion_recovery(tissue: Tissue, tr: float, te: float, ti: float) -> float:
    """Magnitude after an inversion, times in ms: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)."""
    mz = 1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1)
    return float(tissue.pd * abs(mz) * np.exp(-te / tissue.t2))


def signal(sequence: str, tissue: Tissue) -> float:
    """Relative signal of `tissue` in the protocol `sequence` of `SEQUENCES`."""
    tr, te, ti = (1000 * SEQUENCES[sequence].get(name, 0)
                  for name in ("RepetitionTime", "EchoTime", "InversionTime"))
    return inversion_recovery(tissue, tr, te, ti) if ti else spin_echo(tissue, tr, te)


def vary(rng: np.random.Generator) -> dict[str, Tissue]:
    """`TISSUES` of one person: every parameter times exp(N(0, 0.02)), proton density by half of that."""
    return {name: Tissue(*(value * np.exp(spread * rng.standard_normal())
                           for value, spread in ((t.t1, 0.02), (t.t2, 0.02), (t.pd, 0.01))))
            for name, t in TISSUES.items()}
