"""The simulated head: volumes as ordered, people who differ in size and folds, deformations that fold nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mslib.cohort import anatomy, draw_participants, template
from mslib.study import StudyError

COARSE = 3.0


@pytest.fixture(scope="module")
def maps():
    return template(COARSE)


def head_of(maps, seed, *change):
    return anatomy.make_head(maps, np.random.default_rng(seed), maps.affine[0, 0], *change)


def tissue_ml(head):
    return float((head.gm + head.wm).sum()) * head.affine[0, 0] ** 3 / 1000


def test_ventricles_and_brain_change_as_ordered():
    maps = template(2.0)
    plain = head_of(maps, 4, 1.0, 0.0)
    for factor, loss in ((2.0, 0.0), (4.0, 0.12), (0.4, -0.02)):
        head = head_of(maps, 4, factor, loss)
        assert head.ventricle_fraction.sum() / plain.ventricle_fraction.sum() == pytest.approx(factor, rel=0.1)
        assert tissue_ml(head) / tissue_ml(plain) == pytest.approx(1 - loss, abs=0.002)
        fluid = head.brain - head.gm - head.wm
        assert min(part.min() for part in (head.gm, head.wm, fluid)) > -1e-6
        assert head.brain.sum() / plain.brain.sum() == pytest.approx(1, abs=0.03)  # disease leaves the skull as it is


def test_volumes_are_those_of_men_and_women_and_shrink_with_age(maps):
    people = draw_participants({"control": 4, "RRMS": 3, "SPMS": 4}, 3)
    heads = [head_of(maps, p.seed, p.disease.ventricle_factor, p.disease.brain_loss, p.sex, p.age) for p in people]
    sick = np.array([tissue_ml(head) for head in heads])
    own = sick / [1 - person.disease.brain_loss for person in people]
    assert np.mean((sick > 1000) & (sick < 1450)) >= 0.9 and sick.min() > 880 and sick.max() < 1550
    assert 0.04 < np.log(own).std() < 0.12
    for head in heads:  # no head reaches the edge of the image
        mask = head.volume(head.brain)
        assert not any(mask.take([0, -1], axis).any() for axis in range(3))
    woman, man, old = (tissue_ml(head_of(maps, 1, 1.0, 0.0, *who)) for who in (("F", 42), ("M", 42), ("F", 62)))
    assert (man / woman, old / woman) == pytest.approx((1.1, 0.96), abs=0.005)


def test_people_differ_in_shape_and_nothing_folds(maps):
    """Jacobian of the map to the template, and what is left of it after the best affine map."""
    for seed, factor in enumerate((4.0, 0.4)):
        head = head_of(maps, seed, factor, 0.0)
        interior = ndimage.binary_erosion(head.volume(np.ones(len(head.inside)), bool))
        jacobian = np.stack([np.stack(np.gradient(head.volume(part), COARSE))[:, interior] for part in head.points])
        assert np.linalg.det(jacobian.transpose(2, 0, 1)).min() > 0
        where = np.stack((*np.unravel_index(head.inside, head.shape), np.ones(len(head.inside))))
        affine = np.linalg.lstsq(where.T, head.points.T, rcond=None)[0]
        residual = head.points - affine.T @ where
        assert np.sqrt((residual**2).sum(0).mean()) > 3


def test_a_stored_template_is_the_template(maps, tmp_path):
    cache = anatomy.write_template(tmp_path / "coarse.npz", COARSE)
    stored = template(COARSE, cache)
    assert all(np.array_equal(getattr(maps, name), value) for name, value in vars(stored).items())
    with pytest.raises(StudyError, match=r"coarse\.npz: must hold the template at 2 mm \(got 3 mm\)"):
        template(2.0, cache)
    (tmp_path / "cut.npz").write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(StudyError, match=r"cut\.npz: is absent or damaged"):
        template(COARSE, tmp_path / "cut.npz")
