"""Finished attributions, and what takes the place of removed values, against loops and answers that are known."""

import math

import numpy as np
import pytest
from shared_cases import refused

from mslib.explain import REPLACEMENTS, baseline_images, postprocess, replace_removed


def smoothed(line, sigma):
    """A line under a sampled Gaussian of four SD, mirrored at its ends."""
    reach, n = int(4 * sigma + 0.5), len(line)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    found = []
    for place in range(n):
        total = 0.0
        for k, weight in zip(range(-reach, reach + 1), weights):
            at = (place + k) % (2 * n)
            total += weight * line[at if at < n else 2 * n - 1 - at]
        found.append(total / sum(weights))
    return np.array(found)


def by_loops(image, sigma, share):
    for axis in range(image.ndim - 1):
        image = np.apply_along_axis(smoothed, axis, image, sigma)
    magnitudes = sorted(abs(value) for value in image.ravel())
    total, reached = sum(magnitudes), 0.0
    for magnitude in magnitudes:
        reached += magnitude
        if reached >= share * total:
            break
    return np.array([max(0, min(1, value / magnitude)) for value in image.ravel()]).reshape(image.shape)


@pytest.mark.parametrize("shape", [(3, 14, 9, 3), (3, 40, 2)])
@pytest.mark.parametrize("share", [0.99, 0.8])
def test_postprocessing_written_out(shape, share):
    maps = np.random.default_rng(0).normal(size=shape)
    kept = maps.copy()
    found = postprocess(maps, sigma=1.3, quantile_share=share)
    np.testing.assert_allclose(found, [by_loops(one, 1.3, share) for one in maps], rtol=1e-5, atol=1e-6)
    for factor in (1e-30, 1e20):
        np.testing.assert_allclose(postprocess(factor * maps, 1.3, share), found, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(maps, kept)
    assert found.max() <= 1 and found.min() == 0 and found.dtype == np.float32


def test_a_blank_map_stays_blank_and_one_value_becomes_one():
    maps = np.zeros((2, 6, 6, 3))
    maps[1, 2, 3, 0] = 1e-9
    with np.errstate(all="raise"):
        found = postprocess(maps, 0)
    assert not found[0].any() and found[1].sum() == 1 == found[1, 2, 3, 0]
    assert not postprocess(-maps, 0).any()


@pytest.mark.parametrize("given,message", [
    ({"maps": np.zeros((4, 4))}, "maps: must be finite, (N, H, W, M), (N, T, M) or (N, D, H, W, M)"),
    ({"maps": np.zeros((0, 4, 4, 3))}, "not empty"),
    ({"maps": np.full((1, 4, 4, 3), np.nan)}, "48 values not finite"),
    ({"sigma": -1}, "sigma must be from 0 on"),
    ({"quantile_share": 1.01}, "quantile_share above 0, at most 1")])
def test_unfit_maps_are_refused_in_one_line(given, message):
    with refused(message):
        postprocess(**{"maps": np.ones((1, 4, 4, 3)), "sigma": 1} | given)


@pytest.fixture(scope="module")
def holes():
    """Half of every modality's values, others in each, the edge among them."""
    return np.random.default_rng(3).random((2, 20, 16, 3)) < 0.5


@pytest.mark.parametrize("baseline", [*(name for name in REPLACEMENTS if name != "inpainted"), 0.7])
def test_only_removed_values_are_replaced(holes, baseline):
    images = np.random.default_rng(4).uniform(size=holes.shape).astype("float32")
    replaced = replace_removed(images, holes, baseline, seed=2)
    np.testing.assert_array_equal(replaced[~holes], images[~holes])
    np.testing.assert_array_equal(replaced[holes], baseline_images(images, baseline, seed=2)[holes])


def test_inpainting_knows_constants_and_ramps(holes):
    level = np.arange(1, 7, dtype="float32").reshape(2, 1, 1, 3) * np.ones(holes.shape, "float32")
    np.testing.assert_allclose(replace_removed(level, holes, "inpainted"), level, rtol=1e-5)
    y, x = np.mgrid[:20, :16]
    ramp = level * (2 * y - x + 20)[..., None].astype("float32")
    within = np.zeros(holes.shape, bool)
    within[:, 4:16, 3:12] = True
    np.testing.assert_allclose(replace_removed(ramp, within, "inpainted"), ramp, rtol=1e-3)
    np.testing.assert_array_equal(replace_removed(ramp, holes, "inpainted")[~holes], ramp[~holes])


def test_inpainting_of_signals_and_of_nothing():
    ramp = np.linspace(0, 1, 50, dtype="float32")[None, :, None] * np.array([1, -2], "float32")
    gone = np.zeros(ramp.shape, bool)
    gone[:, 10:30, 0] = gone[:, 20:25, 1] = True
    np.testing.assert_allclose(replace_removed(ramp, gone, "inpainted"), ramp, atol=1e-4)
    np.testing.assert_array_equal(replace_removed(ramp, np.zeros_like(gone), "inpainted"), ramp)


@pytest.mark.parametrize("given,message", [
    ({"removed": np.zeros((1, 4, 4), bool)}, "removed: must be bool of the shape of the images"),
    ({"images": np.full((1, 4, 4, 3), np.nan)}, "images: hold NaN"),
    ({"baseline": "painted"}, "an array or one of zero, mean, blurred, noise, inpainted (got 'painted')"),
    ({"baseline": np.nan}, "baseline: holds NaN"),
    ({}, "baseline: nothing of modality 0 of image 0 stays to in-paint from")])
def test_unfit_replacements_are_refused_in_one_line(given, message):
    with refused(message):
        replace_removed(**{"images": np.ones((1, 4, 4, 3)), "removed": np.ones((1, 4, 4, 3), bool),
                           "baseline": "inpainted"} | given)
