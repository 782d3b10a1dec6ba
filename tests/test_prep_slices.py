"""Slices: choice by brute force, orientation by planted markers, exact averages, and the way back."""

import nibabel as nib
import numpy as np
import pytest

from mslib.prep import load_stack, plane_to_volume, save_stack, select_slices, slice_stack
from mslib.prep.slices import averaging_weights
from mslib.study import StudyError


def _ball(shape=(60, 70, 50), radius=20.0):
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    return (grid ** 2).sum(axis=0) < radius ** 2


@pytest.mark.parametrize("seed", range(5))
def test_window_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((8, 8, 40)) < rng.random(40)
    n = int(rng.integers(1, 20))
    sums = [mask[:, :, start:start + n].sum() for start in range(40 - n + 1)]
    np.testing.assert_array_equal(select_slices(mask, n), int(np.argmax(sums)) + np.arange(n))


def test_fewer_slices_than_wanted():
    mask = np.zeros((4, 4, 30), bool)
    mask[1, 1, 7:15] = True
    np.testing.assert_array_equal(select_slices(mask, 135), np.arange(7, 15))
    with pytest.raises(StudyError, match="is empty"):
        select_slices(mask & False, 3)


def test_orientation_by_planted_markers():
    """Row 0 is anterior, column 0 the patient's right, slice 0 inferior."""
    brain = _ball()
    volume = np.zeros(brain.shape, np.float32)
    volume[45:50, 33:37, 10:40] = 0.5   # right (x grows to the right)
    volume[28:32, 50:55, 10:40] = 1.0   # anterior
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -30, -35, -25
    stack = slice_stack([volume], brain, affine, n_slices=21, image_size=(64, 48), pixel_mm=1.5)
    middle = stack.images[10, :, :, 0].astype(float)
    rows, columns = np.nonzero(middle > 0.9)
    assert rows.max() < 32 and abs(columns.mean() - 23.5) < 2
    rows, columns = np.nonzero((middle > 0.4) & (middle < 0.6))
    assert np.median(columns) < 20 and abs(np.median(rows) - 31.5) < 2
    assert np.all(np.diff(stack.z_mm) > 0)
    spots = stack.affine @ [columns.mean(), rows.mean(), 10, 1]
    np.testing.assert_allclose(spots[:3], [47 - 30, 34.5 - 35, stack.z_mm[10]], atol=1.0)
    with pytest.raises(StudyError, match="RAS"):
        slice_stack([volume], brain, np.diag([-1.0, 1, 1, 1]))


@pytest.mark.parametrize("size_out", [0.7, 1.0, 1.5, 3.2])
def test_weights_are_averages_of_the_linear_interpolant(size_out):
    """Against a fine numerical integral."""
    values = np.random.default_rng(0).random(40)
    weights = averaging_weights(40, 1.0, 8, size_out, 5.3)
    for pixel, row in enumerate(weights):
        centre = 5.3 + size_out * pixel
        points = centre + size_out * ((np.arange(4000) + 0.5) / 4000 - 0.5)
        assert row @ values == pytest.approx(np.interp(points, np.arange(40), values).mean(), abs=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_lesion_needs_half_of_the_pixel():
    brain = np.ones((12, 12, 3), bool)
    lesion = np.zeros_like(brain)
    lesion[3:6, 3:6] = True      # one whole pixel
    lesion[9, 9:12] = True       # a third of another
    stack = slice_stack([brain], brain, np.eye(4), lesion, image_size=(4, 4), pixel_mm=3.0)
    expected = np.zeros((3, 4, 4), bool)
    expected[:, 2, 2] = True
    np.testing.assert_array_equal(stack.lesions, expected)


def test_map_goes_back_to_the_volume():
    """A smooth volume cut into slices and put back is that volume inside the field of view."""
    brain = _ball((60, 70, 50), 24)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in brain.shape), indexing="ij")
    volume = (0.5 + 0.3 * x + 0.1 * y - 0.1 * z).astype(np.float32)
    affine = np.array([[1, 0, 0, -30], [0, 1.0, 0, -35], [0, 0, 1.2, -25], [0, 0, 0, 1]])
    stack = slice_stack([volume], brain, affine, n_slices=30, image_size=(40, 36), pixel_mm=1.5)
    back = plane_to_volume(stack.images[..., 0], stack, nib.Nifti1Image(volume, affine))
    assert back.shape == volume.shape
    np.testing.assert_array_equal(back.affine, affine)
    inner = np.zeros_like(brain)
    inner[8:52, 10:60, 12:38] = True
    found = back.get_fdata()
    np.testing.assert_allclose(found[inner], volume[inner], atol=2e-3)
    assert not found[:, :, 0].any()
    with pytest.raises(StudyError, match="maps"):
        plane_to_volume(stack.images, stack, nib.Nifti1Image(volume, affine))


def test_stack_file(tmp_path):
    brain = _ball((30, 30, 20), 8)
    stack = slice_stack([brain * 0.5], brain, np.eye(4), image_size=(16, 16))
    first, second = (save_stack(tmp_path / name, stack) for name in ("a.npz", "b.npz"))
    assert first.read_bytes() == second.read_bytes()
    for key, value in vars(load_stack(first)).items():
        np.testing.assert_array_equal(value, getattr(stack, key))
    first.write_bytes(first.read_bytes()[:-200])
    with pytest.raises(StudyError, match=r"a\.npz: is not a readable slice stack"):
        load_stack(first)
    np.savez(second, images=stack.images)
    with pytest.raises(StudyError, match=r"b\.npz"):
        load_stack(second)
