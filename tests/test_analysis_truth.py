"""Known truth against what was found: hand-made transforms, fields, tables and stacks."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from shared_cases import real_data

from mslib.analysis import truth
from mslib.prep import SliceStack

AFFINE = np.array([[2.0, 0, 0, -20], [0, 1.0, 0, 5], [0, 0, 3.0, -7], [0, 0, 0, 1]])


def volume(values):
    return nib.Nifti1Image(np.asarray(values, np.float32), AFFINE)


@pytest.fixture
def points():
    mask = np.zeros((8, 9, 7))
    mask[2:6, 2:7, 1:6] = 1
    return truth.brain_points(volume(mask))


def test_load_and_points_of_a_mask():
    mask = np.zeros((8, 9, 7))
    mask[2, 3, 1:5] = 1
    assert truth.lesion_load(volume(mask)) == pytest.approx(4 * 6 / 1000)
    found = truth.brain_points(volume(mask))
    np.testing.assert_allclose(found, [[16, -8, -7 + 3 * k] for k in range(1, 5)])  # LPS: x and y change their sign
    assert len(truth.brain_points(volume(np.ones((8, 9, 7))), n=100)) == 101


def test_error_is_the_distance_to_the_known_place(points):
    known = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0, 0, 0, (3.0, 0.0, 4.0))
    assert truth.registration_error(points, known, known) == pytest.approx({"before": 5, "after": 0})
    near = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0, 0, 0, (3.0, 0.5, 4.0))
    assert truth.registration_error(points, known, near) == pytest.approx({"before": 5, "after": 0.5})
    turned = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.1, -0.05, 0.2, (1.0, 2.0, 3.0))
    one_by_one = [np.subtract(turned.TransformPoint(p), p) for p in points.tolist()]
    assert truth.registration_error(points, turned, known)["before"] == pytest.approx(
        np.linalg.norm(one_by_one, axis=1).mean())


def test_a_linear_field_is_read_exactly_and_correlates_with_itself(points):
    x, y, z = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices((8, 9, 7)), 0, -1)).transpose(3, 0, 1, 2)
    linear = 0.02 * x - 0.01 * y + 0.03 * z
    np.testing.assert_allclose(truth.field_at(volume(linear), points + 0.3),
                               -0.02 * (points[:, 0] + 0.3) + 0.01 * (points[:, 1] + 0.3) + 0.03 * (points[:, 2] + 0.3),
                               atol=1e-5)
    known, still = volume(np.exp(linear)), sitk.Transform()
    assert truth.bias_correlation(points, still, known, volume(2 * linear + 1)) == pytest.approx(1, abs=1e-6)
    assert truth.bias_correlation(points, still, known, volume(-linear)) == pytest.approx(-1, abs=1e-6)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    moved = nib.Nifti1Image(np.exp(linear**3), shifted)  # the image's field, its head 5 mm to the right of T1w's
    shift = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0, 0, 0, (-5.0, 0.0, 0.0))
    assert truth.bias_correlation(points, shift, moved, volume(linear**3)) == pytest.approx(1, abs=1e-6)
    assert truth.bias_correlation(points, still, moved, volume(linear**3)) < 0.999
    noise = np.random.default_rng(0).standard_normal(linear.shape)
    assert abs(truth.bias_correlation(points, still, known, volume(noise))) < 0.4


def test_a_range_is_covered_where_both_ends_are():
    table = pd.DataFrame({"group": ["RRMS"] * 3 + ["SPMS"] * 2 + ["control"], "load": [1, 5, 60, 41, 60, 0]})
    ranges = {"load": {"RRMS": (14.9, 1, 52), "SPMS": (45, 40, 50), "CIS": (3, 1, 5)}, "absent": {"RRMS": (1, 0, 2)}}
    found = truth.coverage(table, ranges)
    assert found.to_dict("records") == [
        {"measure": "load", "group": "RRMS", "low": 1, "high": 60, "real_low": 1, "real_high": 52, "covered": True},
        {"measure": "load", "group": "SPMS", "low": 41, "high": 60, "real_low": 40, "real_high": 50, "covered": False}]
    assert truth.coverage(table, {}).empty and "covered" in truth.coverage(table, {})


def layered_brain(rng):
    """Shells of CSF, grey and white matter, and a lesion in the white, with noise."""
    place = np.moveaxis(np.indices((44, 44, 44)), 0, -1)
    radius = np.linalg.norm(place - 21.5, axis=-1)
    brain, lesions = radius < 20, np.linalg.norm(place - [21, 16, 21], axis=-1) < 4
    white, grey = radius < 11, (radius >= 11) & (radius < 16)
    images = {}
    for name, values in (("T1w", (100, 66, 12, 60)), ("FLAIR", (100, 120, 30, 155))):
        image = np.select([lesions, white, grey, brain], [values[3], *values[:3]], 0.0)
        images[name] = np.where(brain, image * (1 + 0.05 * rng.standard_normal(image.shape)), 0)
    return images, brain, lesions


def test_appearance_finds_the_ratios_that_were_put_in():
    images, brain, lesions = layered_brain(np.random.default_rng(0))
    found = truth.appearance(images, brain, lesions, voxel_mm3=8.0)
    expected = {"grey_T1w": 0.66, "csf_T1w": 0.12, "lesion_T1w": 0.60, "grey_FLAIR": 1.2, "csf_FLAIR": 0.3,
                "lesion_FLAIR": 1.55, "variation_T1w": 0.05, "variation_FLAIR": 0.05}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0.04)
    radius = np.linalg.norm(np.indices(brain.shape) - 21.5, axis=0)
    assert found["parenchyma_ml"] == pytest.approx((radius < 16).sum() * 8 / 1000, rel=0.03)
    scaled = truth.appearance({name: 7 * image for name, image in images.items()}, brain, lesions, 8.0)
    assert scaled == pytest.approx(found, rel=0.02), "units do not matter"
    small = truth.appearance(images, brain, lesions & (np.arange(44) < 19))
    assert np.isnan(small["lesion_T1w"]) and small["grey_T1w"] == pytest.approx(0.66, rel=0.04)


@pytest.mark.real
def test_appearance_of_the_two_real_patients():
    """The constants are of preprocessed scans; the authors' images, one interpolation earlier, are near."""
    folder, found = real_data("open_ms_data/cross_sectional/MNI"), []
    for number in ("07", "26"):
        images = {sequence: nib.load(next((folder / f"patient{number}").glob(f"{name}_*"))).get_fdata()
                  for sequence, name in (("T1w", "T1"), ("T2w", "T2"), ("FLAIR", "FLAIR"))}
        lesions = nib.load(next((folder / f"patient{number}").glob("GOLD*"))).get_fdata() > 0
        found.append(truth.appearance(images, images["T1w"] != 0, lesions))
    for name, ranges in truth.REAL_APPEARANCE.items():
        values = sorted(one[name] for one in found)
        assert values == pytest.approx(ranges["brains"][1:], rel=0.2 if "variation" in name else 0.13), name


def test_the_subject_of_median_load():
    table = pd.DataFrame({"subject": list("abcdef"), "group": ["RRMS"] * 4 + ["control"] * 2,
                          "lesion_load_ml": [9, 1, np.nan, 4, 0, 0]})
    assert truth.median_subjects(table) == {"RRMS": "d", "control": "f"}  # of 0, 1, 4, 9 the upper of the middle two
    assert truth.median_subjects(table.drop(columns="lesion_load_ml")) == {"RRMS": "c", "control": "f"}


def test_examples_are_the_fullest_slices_near_the_middle():
    lesions = np.zeros((40, 4, 5), bool)
    lesions[2] = True             # fullest, but too low
    lesions[33, 1, 1:3] = True
    lesions[34, 1, 1:2] = True
    assert truth.fullest_slice(lesions) == 33 and truth.fullest_slice(lesions[:8] & False) == 4
    images = np.random.default_rng(0).random((40, 4, 5, 3)).astype(np.float16)
    stack = SliceStack(images, np.ones_like(lesions), lesions, np.arange(40, dtype=np.float32), np.eye(4))
    healthy = SliceStack(images, stack.brain, lesions & False, stack.z_mm, stack.affine)
    found = truth.group_examples({"control": healthy, "RRMS": stack})
    assert found["groups"] == ["control", "RRMS"] and found["z_mm"] == [20, 33]
    np.testing.assert_array_equal(found["slices"][2, 1], images[33, :, :, 2].astype(np.float32))
    np.testing.assert_array_equal(found["lesions"], [lesions[0], lesions[33]])
