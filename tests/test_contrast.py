"""MR signal equations against the Bloch equation stepped in time; contrast, lesions and diffuse change in a head."""

import numpy as np
import pytest

from mslib.cohort import contrast, template
from mslib.cohort.anatomy import make_head
from mslib.cohort.contrast import SEQUENCES, TISSUES, signal, vary
from mslib.cohort.lesions import SHARES, make_lesions


def ratio(sequence, tissue):
    return signal(SEQUENCES[sequence], TISSUES[tissue]) / signal(SEQUENCES[sequence], TISSUES["white"])


def bloch(tissue, tr, te, ti, repetitions=8, step=0.5):
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
def test_signals_are_the_bloch_equation_in_steady_state(name):
    spin_echo, inversion = {"RepetitionTime": 6.5, "EchoTime": 0.084}, SEQUENCES["FLAIR"]
    assert signal(spin_echo, TISSUES[name]) == pytest.approx(bloch(TISSUES[name], 6500, 84, 0), rel=2e-3)
    # The read-out saturates, so Mz before the inversion is PD (1 - exp(-(TR - TI) / T1)): the same closed form.
    assert signal(inversion, TISSUES[name]) == pytest.approx(bloch(TISSUES[name], 12000, 101, 2870), rel=5e-3, abs=2e-4)


def test_order_of_tissues():
    assert ratio("T1w", "csf") < ratio("T1w", "black_hole") < 0.54 < ratio("T1w", "lesion") < ratio("T1w", "cortex") < 1
    assert 1 < ratio("T2w", "deep_grey") < ratio("T2w", "cortex") < ratio("T2w", "lesion") < ratio("T2w", "csf")
    assert ratio("FLAIR", "csf") < 0.4 < 1 < ratio("FLAIR", "deep_grey") < ratio("FLAIR", "cortex")
    assert ratio("FLAIR", "cortex") < ratio("FLAIR", "black_hole") < ratio("FLAIR", "lesion")


def test_people_vary_by_seed_and_as_much_as_asked():
    assert vary(np.random.default_rng(1)) == vary(np.random.default_rng(1)) != vary(np.random.default_rng(2))
    assert vary(np.random.default_rng(1), 0.0) == (TISSUES, SEQUENCES)
    found = {}
    for variation in (1.0, 3.0):
        drawn = [vary(np.random.default_rng(seed), variation) for seed in range(300)]
        found[variation] = np.std(np.log([[tissues["white"].t1, protocols["FLAIR"]["EchoTime"]]
                                          for tissues, protocols in drawn]), axis=0)
    np.testing.assert_allclose(found[1.0], [contrast.PERSON_SPREAD, contrast.PROTOCOL_SPREAD], rtol=0.2)
    np.testing.assert_allclose(found[3.0], 3 * found[1.0], rtol=1e-6)


@pytest.fixture(scope="module")
def head():
    return make_head(template(3.0), np.random.default_rng(4), 3.0, 1.4, 0.03)


def rendered(head, load, found=None):
    none = make_lesions(head, np.random.default_rng(0), 0.0, None, 0.0)
    return contrast.scans(head, found or none, np.random.default_rng(3), load)


def test_lesions_change_nothing_but_themselves_and_their_halo(head):
    found = make_lesions(head, np.random.default_rng(5), 20.0, SHARES["RRMS"], 0.3)
    sick, free, _ = rendered(head, 20.0, found)
    other, same, _ = rendered(head, 20.0)
    share = found.share.ravel()[head.inside]
    for name in SEQUENCES:
        assert np.array_equal(free[name], same[name]) and np.array_equal(other[name], same[name])
        assert np.array_equal(sick[name][share == 0], free[name][share == 0])
    change = sick["FLAIR"] - free["FLAIR"]
    assert np.median(change[share > 0.6]) > 3 * np.median(change[(share > 0) & (share < 0.3)]) > 0


def test_diffuse_change_grows_with_the_load_and_controls_have_none(head):
    levels = [rendered(head, load)[1] for load in (0.0, 10.0, 50.0)]
    none = contrast.diffuse_share(head, 0.0, np.zeros(head.inside.size, np.float32))
    assert not none.any()
    near, far = ((head.wm > 0.9) & place for place in (head.ventricle < 5, head.ventricle > 30))
    change = {name: [[np.median(one[name][place] / levels[0][name][place]) for place in (near, far)] for one in levels]
              for name in SEQUENCES}
    for name, sign in (("T1w", -1), ("T2w", 1), ("FLAIR", 1)):
        (start, _), (some, some_far), (much, _) = change[name]
        assert start == 1 and 0 < sign * (some - 1) < sign * (much - 1) < 0.2
        assert abs(some_far - 1) < abs(some - 1) / 3
