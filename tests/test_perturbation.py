"""Attributions by removal, finished maps, replaced values: loops written out, exact Shapley values, known answers."""

from itertools import combinations
from math import exp, factorial

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from shared_cases import refused
from skimage.segmentation import slic

from mslib.explain import REPLACEMENTS, baseline_images, perturbation, postprocess, replace_removed
from mslib.explain.groups import default_groups, number_groups, superpixels, window_groups

IN_GROUPS = {"feature_ablation": {}, "lime": {"samples": 80}, "shapley_sampling": {"permutations": 6},
             "kernel_shap": {"samples": 60}}


@pytest.fixture(scope="module")
def case():
    """Two images of three modalities, quarters of every modality as groups, one corner in none; a small curved net."""
    rng = np.random.default_rng(1)
    inputs = keras.Input((8, 6, 3))
    x = keras.layers.Conv2D(5, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(6, 3, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    model.set_weights([rng.normal(0, 1, weight.shape) for weight in model.get_weights()])
    images = rng.uniform(0, 1, (2, 8, 6, 3)).astype("float32")
    own = np.repeat(np.repeat([[0, 1], [2, 3]], 4, 0), 3, 1)
    groups = own[..., None] // np.array([1, 2, 4]) + np.array([0, 4, 6])  # 4, 2 and 1 groups
    groups[0, 0] = -1
    return model, images, np.array([1, 2]), groups


@pytest.fixture(scope="module")
def linear():
    rng = np.random.default_rng(2)
    inputs = keras.Input((8, 6, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    model.set_weights([rng.normal(0, 1, weight.shape) for weight in model.get_weights()])
    return model


def score(model, image, target):
    return float(np.asarray(model(image[None]))[0, target])


def with_only(image, base, groups, stay):
    """An image in which the groups that do not stay have become baseline, value by value."""
    made = image.copy()
    for place in np.ndindex(image.shape):
        if groups[place] != -1 and groups[place] not in stay:
            made[place] = base[place]
    return made


def exact_shapley(model, image, base, groups, target):
    """Every coalition, weighted as Shapley 1953 does it."""
    n = groups.max() + 1
    stays = [stay for k in range(n + 1) for stay in combinations(range(n), k)]
    pictures = np.stack([with_only(image, base, groups, stay) for stay in stays])
    worth = dict(zip(stays, np.asarray(model(pictures), float)[:, target]))
    values = np.zeros(n)
    for one in range(n):
        for k in range(n):
            for stay in combinations([g for g in range(n) if g != one], k):
                weight = factorial(k) * factorial(n - k - 1) / factorial(n)
                values[one] += weight * (worth[tuple(sorted((*stay, one)))] - worth[stay])
    return values


def of_groups(values, groups):
    """One value per group from a map; every member must have it, what is in no group must have none."""
    found = []
    for group in range(groups.max() + 1):
        assert np.ptp(values[groups == group]) == 0
        found.append(values[groups == group][0])
    assert (values[groups == -1] == 0).all()
    return np.array(found)


def test_feature_ablation_written_out(case):
    model, images, targets, groups = case
    maps = perturbation.feature_ablation(model, images, targets, groups=groups, baseline="mean")
    for image, values, target in zip(images, maps, targets):
        base = np.broadcast_to(image.mean((0, 1)), image.shape)
        everyone = set(range(groups.max() + 1))
        expected = [score(model, image, target) - score(model, with_only(image, base, groups, everyone - {g}), target)
                    for g in sorted(everyone)]
        np.testing.assert_allclose(of_groups(values, groups), expected, rtol=1e-3, atol=1e-5)


def test_shapley_methods_approach_the_exact_values_and_add_up(case):
    model, images, targets, groups = case
    sampled = perturbation.shapley_sampling(model, images, targets, groups=groups, permutations=2000)
    regressed = perturbation.kernel_shap(model, images, targets, groups=groups, samples=4000)
    for i, (image, target) in enumerate(zip(images, targets)):
        exact = exact_shapley(model, image, np.zeros_like(image), groups, target)
        nothing = with_only(image, np.zeros_like(image), groups, ())
        owed = score(model, image, target) - score(model, nothing, target)
        assert abs(exact.sum() - owed) < 1e-4
        for values in (of_groups(sampled[i], groups), of_groups(regressed[i], groups)):
            assert np.corrcoef(values, exact)[0, 1] > 0.999
            assert abs(values.sum() - owed) < 1e-4 * max(1, abs(owed))


@pytest.mark.parametrize("method", IN_GROUPS)
def test_a_linear_net_owes_every_group_its_part(case, linear, method):
    _, images, targets, groups = case
    base = np.random.default_rng(4).uniform(0, 1, images.shape).astype("float32")
    maps = getattr(perturbation, method)(linear, images, targets, groups=groups, baseline=base, **IN_GROUPS[method])
    kernel = linear.get_weights()[0].reshape(8, 6, 3, 3)
    for i, target in enumerate(targets):
        parts = (images[i] - base[i]) * kernel[..., target]
        expected = [parts[groups == group].sum() for group in range(groups.max() + 1)]
        np.testing.assert_allclose(of_groups(maps[i], groups), expected, rtol=1e-3, atol=1e-4)


def test_permutation_takes_values_from_other_images(linear):
    rng = np.random.default_rng(0)
    images, targets = rng.uniform(0, 1, (8, 8, 6, 3)).astype("float32"), rng.integers(0, 3, 8)
    groups = np.broadcast_to(np.arange(3), (8, 6, 3))
    maps = perturbation.feature_permutation(linear, images, targets, groups=groups, permutations=400)
    kernel = linear.get_weights()[0].reshape(8, 6, 3, 3)
    for modality in range(3):
        worth = np.array([[(image * kernel[..., target])[..., modality].sum() for image in images]
                          for target in targets])
        others = (worth.sum(1) - worth.diagonal()) / 7
        np.testing.assert_allclose(maps[..., modality][:, 0, 0], worth.diagonal() - others, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("permutations", [1, 3])
def test_permutation_never_leaves_an_image_its_own_values(linear, permutations):
    """Image i holds 2^i, and the net adds values up, so that a loss tells which images lent theirs."""
    images = 2.0 ** np.arange(6, dtype="float32").reshape(6, 1, 1, 1) * np.ones((1, 8, 6, 3), "float32")
    adding = keras.models.clone_model(linear)
    adding.set_weights([np.ones((144, 3)), np.zeros(3)])
    for seed in range(8):
        maps = perturbation.feature_permutation(adding, images, np.zeros(6, int), groups=np.zeros((8, 6, 3), int),
                                                permutations=permutations, seed=seed)
        lent = (images - maps / 144)[:, 0, 0, 0] * permutations
        for i, total in enumerate(np.round(lent).astype(int)):
            assert total.bit_count() == permutations, "different images each time"
            assert not total >> i & 1, "never its own"


@pytest.mark.parametrize("method,samples", [("kernel_shap", 12), ("lime", 8)])
def test_the_fewest_samples_give_the_values_of_a_linear_net_or_an_error(case, linear, method, samples):
    """Whether the draws determine the values hangs on the seed; a map that they do not determine is never given."""
    _, images, targets, groups = case
    kernel, refused, seeds = linear.get_weights()[0].reshape(8, 6, 3, 3), 0, 20
    expected = [(images[0] * kernel[..., targets[0]])[groups == group].sum() for group in range(groups.max() + 1)]
    for seed in range(seeds):
        try:
            maps = getattr(perturbation, method)(linear, images[:1], targets[:1], groups=groups, samples=samples,
                                                 seed=seed)
        except ValueError as error:
            assert f"{method}: {samples} samples happen to determine" in str(error)
            refused += 1
        else:
            np.testing.assert_allclose(of_groups(maps[0], groups), expected, rtol=1e-3, atol=1e-3)
    assert 0 < refused < seeds


@pytest.mark.parametrize("method", IN_GROUPS)
def test_an_image_with_fewer_groups_than_others_knows_only_its_own(case, method):
    """Its map is that of the image alone, adds up where the method is complete, and numbers may have gaps."""
    model, images, targets, groups = case
    few = np.where(groups >= 0, groups % 2, -1)
    gaps = np.where(few > 0, 5, few)
    explain, more = getattr(perturbation, method), IN_GROUPS[method]
    together = explain(model, images, targets, groups=np.stack([groups, gaps]), **more)
    np.testing.assert_allclose(together[:1], explain(model, images[:1], targets[:1], groups=groups, **more), atol=1e-5)
    np.testing.assert_allclose(together[1:], explain(model, images[1:], targets[1:], groups=few, **more), atol=1e-5)
    if method in ("kernel_shap", "shapley_sampling"):
        nothing = with_only(images[1], np.zeros_like(images[1]), few, ())
        owed = score(model, images[1], targets[1]) - score(model, nothing, targets[1])
        assert of_groups(together[1], few).sum() == pytest.approx(owed, rel=1e-4)


def test_an_image_without_any_group_gets_nothing(case):
    model, images, targets, groups = case
    maps = perturbation.kernel_shap(model, images, targets, groups=np.stack([groups, np.full_like(groups, -1)]))
    assert (maps[1] == 0).all() and (maps[0] != 0).any()


def test_superpixels_keep_modalities_apart():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 1, (2, 40, 36, 3)).astype("float32")
    images[:, :4] = 0
    groups = superpixels(images, segments=12)
    assert groups.shape == images.shape and (groups[:, :4] == -1).all() and (groups[:, 4:] >= 0).all()
    for image in groups:
        sets = [set(np.unique(image[4:, :, m])) for m in range(3)]
        assert not sets[0] & sets[1] and not sets[1] & sets[2]
        assert sorted(set.union(*sets)) == list(range(image.max() + 1))
        assert all(6 <= len(one) <= 24 for one in sets)
    masked = superpixels(images, 6, mask=np.arange(40)[:, None] > np.zeros(36) + 20)
    assert (masked[:, :21] == -1).all() and (masked[:, 21:] >= 0).all()


@pytest.fixture(scope="module")
def brain():
    y, x = np.mgrid[:64, :56]
    return ((y - 32) / 26) ** 2 + ((x - 28) / 20) ** 2 < 1


def test_superpixels_of_a_uniform_brain_do_not_follow_its_rim(brain):
    """Without differences of intensity SLIC divides the place alone: every pixel goes to the nearest centre."""
    groups = superpixels(np.where(brain, 0.7, 0)[None, ..., None], 20)[0, ..., 0]
    places, numbers = np.argwhere(brain), groups[brain]
    centres = np.array([places[numbers == number].mean(0) for number in range(numbers.max() + 1)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(1)
    assert len(centres) >= 15 and np.mean(nearest == numbers) > 0.95


def test_superpixels_do_not_see_what_is_outside_the_mask(brain):
    rng = np.random.default_rng(3)
    images = rng.uniform(0.2, 1, (1, *brain.shape, 2)).astype("float32")
    others = np.where(brain[..., None], images, rng.normal(0, 50, images.shape)).astype("float32")
    np.testing.assert_array_equal(superpixels(images, 20, mask=brain), superpixels(others, 20, mask=brain))


def test_superpixels_of_a_whole_image_are_those_of_scikit_image():
    """Where nothing lies outside, smoothing inside the mask is smoothing."""
    image = gaussian_filter(np.random.default_rng(4).normal(3, 1, (40, 36)), 2).astype("float32")
    everywhere = np.ones(image.shape, bool)
    peer = slic(image, 12, 0.1, sigma=2, mask=everywhere, start_label=0, channel_axis=None)
    assert np.mean(superpixels(image[None, ..., None], 12)[0, ..., 0] == peer) > 0.99


def test_superpixels_of_volumes(brain):
    volume = np.where(brain[None, ::4, ::4], np.random.default_rng(5).uniform(0.1, 1, (6, 16, 14)), 0)[None, ..., None]
    groups = superpixels(volume, 8)
    np.testing.assert_array_equal(groups >= 0, volume > 0)
    assert 5 <= groups.max() + 1 <= 12
    depths = [len(np.unique(np.argwhere(groups[0, ..., 0] == number)[:, 0])) for number in range(groups.max() + 1)]
    assert max(depths) > 1, "they reach over slices"


def test_windows():
    signals = np.zeros((2, 10, 3))
    windows = window_groups(signals, 4)
    assert windows[0, :, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 2 and windows[1, 0].tolist() == [0, 3, 6]
    assert number_groups(windows[0], signals)[1].tolist() == [9, 9]
    for length, windows in ((40, 40), (50, 50), (99, 50), (3000, 50)):
        assert default_groups(np.zeros((1, length, 3))).max() + 1 == 3 * windows


@pytest.mark.parametrize("call,message", [
    (lambda x: number_groups(np.zeros((2, 2), int), x), "groups: must have the shape of the images"),
    (lambda x: number_groups(np.zeros(x.shape), x), "groups: must be integers from -1"),
    (lambda x: number_groups(np.full(x.shape, -1), x), "with one group at least"),
    (lambda x: superpixels(x[0]), "superpixels: needs images (N, H, W, M)"),
    (lambda x: superpixels(x, mask=np.ones((3, 3))), "mask: must be (2, 8, 6) or (8, 6)"),
    (lambda x: superpixels(x, mask=np.zeros((8, 6))), "mask: nothing inside it in image 0"),
    (lambda x: window_groups(x, 4), "window_groups: needs signals (N, T, M)"),
    (lambda x: perturbation.kernel_shap(None, x, [0, 1], groups=np.arange(288).reshape(x.shape) % 7, samples=11),
     "kernel_shap: samples must be 12 at least for 7 groups (got 11)"),
    (lambda x: perturbation.lime(None, x, [0, 1], groups=np.arange(288).reshape(x.shape) % 7, samples=7),
     "lime: samples must be 8 at least for 7 groups (got 7)"),
    (lambda x: perturbation.feature_permutation(None, x[:1], [0], groups=np.zeros(x.shape[1:], int)),
     "two images at least"),
    (lambda x: perturbation.feature_permutation(None, x, [0, 1], groups=np.zeros(x.shape, int)),
     "groups must be the same for all images")])
def test_unfit_groups_are_refused_in_one_line(call, message):
    with refused(message):
        call(np.ones((2, 8, 6, 3), "float32"))


def smoothed(line, sigma):
    """A line under a sampled Gaussian of four SD, mirrored at its ends."""
    reach, n = int(4 * sigma + 0.5), len(line)
    weights = [exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
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


@pytest.mark.parametrize("call,given,message", [
    (postprocess, {"maps": np.zeros((4, 4))}, "maps: must be finite, (N, H, W, M), (N, T, M) or (N, D, H, W, M)"),
    (postprocess, {"maps": np.zeros((0, 4, 4, 3))}, "not empty"),
    (postprocess, {"maps": np.full((1, 4, 4, 3), np.nan)}, "48 values not finite"),
    (postprocess, {"sigma": -1}, "sigma must be from 0 on"),
    (postprocess, {"quantile_share": 1.01}, "quantile_share above 0, at most 1"),
    (replace_removed, {"removed": np.zeros((1, 4, 4), bool)}, "removed: must be bool of the shape of the images"),
    (replace_removed, {"images": np.full((1, 4, 4, 3), np.nan)}, "images: hold NaN"),
    (replace_removed, {"baseline": "painted"}, "one of zero, mean, blurred, noise, inpainted (got 'painted')"),
    (replace_removed, {"baseline": np.nan}, "baseline: holds NaN"),
    (replace_removed, {}, "baseline: nothing of modality 0 of image 0 stays to in-paint from")])
def test_unfit_maps_and_replacements_are_refused_in_one_line(call, given, message):
    ones = np.ones((1, 4, 4, 3))
    fit = {postprocess: {"maps": ones, "sigma": 1},
           replace_removed: {"images": ones, "removed": ones > 0, "baseline": "inpainted"}}
    with refused(message):
        call(**fit[call] | given)
