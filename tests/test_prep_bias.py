"""N4: a planted field comes back; the reduced grid changes nothing that matters."""

import numpy as np
import prep_cases as cases
import pytest
import SimpleITK as sitk

from mslib.prep import correct_bias, scale_intensity
from mslib.study import StudyError


@pytest.fixture(scope="module")
def biased():
    maps = cases.tissues(2)
    # Strength over the whole grid; inside the brain SD 0.077, as at the 40 % level of BrainWeb.
    image, field = cases.scan(maps, "T2w", sitk.Transform(), (2, 2, 2), bias=0.5, noise=0.02, seed=11)
    return image, field, maps[0], correct_bias(image, maps[0])


def _inside(image, mask):
    return sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(mask) > 0]


def test_planted_field_is_recovered(biased):
    _, truth, mask, (_, found) = biased
    assert np.corrcoef(_inside(truth, mask), _inside(found, mask))[0, 1] >= 0.9
    assert abs(_inside(found, mask).mean()) < 0.01


def test_correction_is_division_by_the_field_at_full_resolution(biased):
    image, _, _, (corrected, field) = biased
    assert corrected.GetSize() == field.GetSize() == image.GetSize()
    assert corrected.GetOrigin() == image.GetOrigin()
    expected = sitk.GetArrayViewFromImage(image) / np.exp(sitk.GetArrayViewFromImage(field))
    np.testing.assert_allclose(sitk.GetArrayViewFromImage(corrected), expected, rtol=1e-5)


def test_correction_evens_out_white_matter(biased):
    image, _, _, (corrected, _) = biased
    white = sitk.GetArrayFromImage(cases.tissues(2)[3]) > 0.95
    flat, _ = cases.scan(cases.tissues(2), "T2w", sitk.Transform(), (2, 2, 2), bias=0.0, noise=0.02, seed=11)
    spread = [np.std(values) / np.mean(values) for values in
              (sitk.GetArrayViewFromImage(i)[white] for i in (image, corrected, flat))]
    assert spread[1] - spread[2] < 0.5 * (spread[0] - spread[2])


def test_bad_masks(biased):
    image, _, mask, _ = biased
    with pytest.raises(StudyError, match="is empty"):
        correct_bias(image, mask * 0)
    with pytest.raises(StudyError, match="another grid"):
        correct_bias(image, mask[:, 3:])


def test_scaling_by_percentiles_inside_the_brain():
    rng = np.random.default_rng(0)
    image = rng.normal(500, 100, (20, 20, 20)).astype(np.float32)
    image[:5] = 1e6
    mask = np.zeros(image.shape, bool)
    mask[8:] = True
    scaled = scale_intensity(image, mask, (1, 99))
    low, high = np.percentile(image[mask], (1, 99))
    np.testing.assert_allclose(scaled[mask], np.clip((image[mask] - low) / (high - low), 0, 1), atol=2.0 ** -14)
    assert not scaled[~mask].any()
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("image, mask, text", [
    (np.ones((4, 4, 4)), np.ones((4, 4, 4), bool), "no contrast"),
    (np.ones((4, 4, 4)), np.zeros((4, 4, 4), bool), "is empty")])
def test_scaling_of_what_cannot_be_scaled(image, mask, text):
    with pytest.raises(StudyError, match=text):
        scale_intensity(image, mask)
