"""Slices: choice by brute force, orientation by planted markers, exact averages, and the way back."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mslib.prep import load_stack, plane_to_volume, save_stack, select_slices, slice_stack
from mslib.study import StudyError


def _ball(shape=(60, 70, 50), radius=20.0):
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    return (grid ** 2).sum(axis=0) < radius ** 2


def test_window_against_brute_force_and_fewer_slices_than_wanted():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask = rng.random((8, 8, 40)) < rng.random(40)
        n = int(rng.integers(1, 20))
        sums = [mask[:, :, start:start + n].sum() for start in range(40 - n + 1)]
        np.testing.assert_array_equal(select_slices(mask, n), int(np.argmax(sums)) + np.arange(n))
    mask = np.zeros((4, 4, 30), bool)
    mask[1, 1, 7:15] = True
    np.testing.assert_array_equal(select_slices(mask, 135), np.arange(7, 15))


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


@pytest.mark.parametrize("pixel_mm", [0.5, 1.0, 2.0, 3.2])
def test_pixels_are_averages_of_the_voxels_they_cover(pixel_mm):
    """Against fine sampling of the voxels, where the stack's own affine says that the pixels lie."""
    brain = np.zeros((20, 24, 3), bool)
    brain[3:16, 5:20] = True
    volume = np.random.default_rng(0).random(brain.shape, np.float32)
    affine = np.array([[1.2, 0, 0, -9], [0, 0.8, 0, 4], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    stack = slice_stack([volume], brain, affine, image_size=(9, 7), pixel_mm=pixel_mm)
    to_voxel, parts = np.linalg.inv(affine) @ stack.affine, (np.arange(500) + 0.5) / 500 - 0.5
    padded = np.pad(volume, ((40, 40), (40, 40), (0, 0)))
    for row, column in ((0, 0), (4, 3), (8, 6), (2, 5)):
        x, y = ((to_voxel @ [column, row, 1, 1])[axis] + to_voxel[axis, axis] * parts for axis in (0, 1))
        covered = padded[np.ix_(np.round(x).astype(int) + 40, np.round(y).astype(int) + 40, [1])]
        assert stack.images[1, row, column, 0] == pytest.approx(covered.mean(), abs=3e-3)


def test_pixels_of_the_voxels_size_are_the_voxels():
    """Nothing is interpolated: values and masks are those of the volume, turned; the affine says where from."""
    brain, volume = _ball(), np.random.default_rng(1).random((60, 70, 50), np.float32).astype(np.float16)
    lesion = brain & (volume > 0.9)
    affine = np.array([[1, 0, 0, -30.0], [0, 1, 0, -35], [0, 0, 1.5, -25], [0, 0, 0, 1]])
    stack = slice_stack([volume], brain, affine, lesion, n_slices=30, image_size=(48, 44))
    index = np.indices((30, 48, 44)).reshape(3, -1)
    voxels = np.linalg.inv(affine) @ stack.affine @ [index[2], index[1], index[0], np.ones(index.shape[1])]
    at = tuple(np.round(voxels[:3]).astype(int))
    np.testing.assert_allclose(voxels[:3], at, atol=1e-9)
    for found, values in ((stack.images[..., 0], volume), (stack.brain, brain), (stack.lesions, lesion)):
        np.testing.assert_array_equal(found.ravel(), values[at])


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
    stack = slice_stack([volume], brain, affine, n_slices=30, image_size=(30, 27), pixel_mm=2.0)
    back = plane_to_volume(stack.images[..., 0], stack, nib.Nifti1Image(volume, affine))
    assert back.shape == volume.shape and not back[:, :, 0].any()
    inner = np.zeros_like(brain)
    inner[8:52, 10:60, 12:38] = True
    np.testing.assert_allclose(back[inner], volume[inner], atol=2e-3)
    maps = np.random.default_rng(0).random(stack.images.shape[:3], np.float32)
    other = nib.Nifti1Image(np.zeros((40, 45, 44), np.uint8), affine @ np.diag([1.3, 1.7, 1.1, 1]))
    to_map = np.linalg.inv(stack.affine) @ other.affine
    expected = ndimage.affine_transform(maps.transpose(2, 1, 0), to_map[:3, :3], to_map[:3, 3], other.shape, order=1,
                                        mode="grid-constant")
    np.testing.assert_allclose(plane_to_volume(maps, stack, other), expected, atol=1e-5)
    turned = nib.Nifti1Image(volume, affine[:, [1, 0, 2, 3]])
    with pytest.raises(ValueError, match="must run along those of the slices"):
        plane_to_volume(maps, stack, turned)


def test_stack_file(tmp_path):
    brain = _ball((30, 30, 20), 8)
    stack = slice_stack([brain * 0.5], brain, np.eye(4), brain, image_size=(16, 13))
    first, second = (save_stack(tmp_path / name, stack) for name in ("a.npz", "b.npz"))
    assert first.read_bytes() == second.read_bytes()
    for key, value in vars(load_stack(first)).items():
        np.testing.assert_array_equal(value, getattr(stack, key))
    first.write_bytes(first.read_bytes()[:-200])
    with pytest.raises(StudyError, match=r"a\.npz: is absent or damaged"):
        load_stack(first)
