"""MR signal equations against the Bloch equation stepped in time, and the grey values they must give."""

import numpy as np
import pytest

from mslib.cohort import contrast
from mslib.cohort.contrast import SEQUENCES, TISSUES, Tissue, inversion_recovery, signal, spin_echo, vary

LESION_TO_WHITE = {"T1w": (0.54, 0.69), "T2w": (1.9, 2.3), "FLAIR": (1.5, 1.6)}  # Lesjak et al. 2017


def ratio(sequence, tissue, tissues=TISSUES):
    return signal(sequence, tissues[tissue]) / signal(sequence, tissues["wm"])


def bloch(tissue, tr, te, ti, repetitions=12, step=0.25):
    """Longitudinal magnetisation stepped through inversions and perfect 90-degree read-outs, then T2 decay."""
    m, read = tissue.pd, 0.0
    for _ in range(repetitions):
        if ti:
            m = -m
        for k in range(round(tr / step)):
            if k == round(ti / step):
                read, m = abs(m), 0.0
            m += step * (tissue.pd - m) / tissue.t1
    return read * np.exp(-te / tissue.t2)


@pytest.mark.parametrize("name", TISSUES)
def test_spin_echo_is_the_bloch_equation_in_steady_state(name):
    tissue = TISSUES[name]
    assert spin_echo(tissue, 5000, 100) == pytest.approx(bloch(tissue, 5000, 100, 0), rel=2e-3)


@pytest.mark.parametrize("name", TISSUES)
def test_inversion_recovery_is_the_bloch_equation_in_steady_state(name):
    # The read-out saturates, so Mz before the inversion is PD (1 - exp(-(TR - TI) / T1)): the same closed form.
    tissue = TISSUES[name]
    assert inversion_recovery(tissue, 9000, 100, 2500) == pytest.approx(bloch(tissue, 9000, 100, 2500), rel=5e-3,
                                                                        abs=2e-4)


def test_inversion_recovery_is_null_at_ln2_t1():
    assert inversion_recovery(Tissue(1000, 100, 1), 1e6, 10, 1000 * np.log(2)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_lesion_to_white_matter_as_in_real_patients(sequence):
    low, high = LESION_TO_WHITE[sequence]
    assert low <= ratio(sequence, "lesion") <= high


def test_order_of_tissues():
    assert ratio("T1w", "csf") < ratio("T1w", "black_hole") < 0.54 < ratio("T1w", "gm") < 1
    assert 1 < ratio("T2w", "gm") < ratio("T2w", "lesion") < ratio("T2w", "csf")
    assert ratio("FLAIR", "csf") < 0.2 < 1 < ratio("FLAIR", "gm") < ratio("FLAIR", "lesion")


def test_relaxation_varies_a_little_and_by_seed():
    one, again, other = (vary(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again != other
    for name, tissue in one.items():
        assert tissue.t1 == pytest.approx(TISSUES[name].t1, rel=0.1)


def test_unknown_sequence_raises():
    with pytest.raises(KeyError):
        contrast.signal("PDw", TISSUES["wm"])
