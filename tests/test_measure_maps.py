"""Localisation, modality importance, faithfulness: hand examples, peers, chance, games and curves of known answer."""

from itertools import permutations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from shared_cases import refused
from sklearn.metrics import average_precision_score, jaccard_score

from mslib import measure
from mslib.measure import faithfulness, modality

HEAT = np.array([[[4.0, 3.0, 2.0], [1.0, 0.0, 0.0], [9.0, 9.0, 9.0]]])
LESION = np.array([[[1, 0, 1], [0, 0, 0], [1, 1, 1]]], bool)
BRAIN = np.array([[[1, 1, 1], [1, 1, 1], [0, 0, 0]]], bool)


@pytest.fixture(scope="module")
def maps():
    """Smooth, half-blank maps with ties, an elliptic brain, blob lesions that may stick out of it."""
    rng = np.random.default_rng(0)
    shape = (24, 64, 56)
    heat = np.maximum(gaussian_filter(rng.normal(size=shape), (0, 5, 5)), 0).astype(np.float32)
    heat[::3] = np.round(heat[::3] * 40) / 40
    y, x = np.mgrid[:64, :56]
    brain = np.broadcast_to(((y - 32) / 29) ** 2 + ((x - 28) / 22) ** 2 < 1, shape)
    lesion = gaussian_filter(rng.normal(size=shape), (0, 2, 2)) > 0.2
    return heat, lesion, brain


def test_hand_example():
    """Six brain voxels 4 3 2 1 0 0, lesion at 4 and 2; what lies outside the brain does not count."""
    row = measure.measure_maps(HEAT, LESION, BRAIN).iloc[0]
    assert row["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    for name in ("auprc", "pointing", "precision", "mass_share"):
        assert row[f"{name}_chance"] == pytest.approx(2 / 6)
    assert row["pointing"] == 1
    assert row["precision"] == 1 / 2  # of 4 and 3
    assert row["mass_share"] == pytest.approx(6 / 10)
    # Non-zero median 2.5: hot are 4 and 3, one of them lesion; by chance 2 * 2 / 6 would be.
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["iou_chance"] == pytest.approx((2 / 3) / (4 - 2 / 3))
    assert row["half_heat_share"] == pytest.approx(2 / 6)
    assert row["q95"] == pytest.approx(3.75)
    assert (row["lesion_voxels"], row["brain_voxels"], row["blank"]) == (2, 6, False)


def test_measures_equal_scikit_learn_and_their_slow_definition(maps):
    heat, lesion, brain = maps
    table = measure.measure_maps(heat, lesion, brain)
    for index, (of_map, of_lesion, inside) in enumerate(zip(heat, lesion, brain)):
        row, values, hit = table.iloc[index], of_map[inside].astype(float), of_lesion[inside]
        assert row["auprc"] == pytest.approx(average_precision_score(hit, values), abs=1e-7)
        hot = values >= np.median(values[values > 0])
        assert row["iou"] == pytest.approx(jaccard_score(hit, hot))
        assert row["mass_share"] == pytest.approx(values[hit].sum() / values.sum())
        assert row["q95"] == pytest.approx(np.quantile(values, 0.95))
        assert row["pointing"] == pytest.approx(hit[values == values.max()].mean())
        assert row["precision"] == pytest.approx(precision_over_orders(values, hit))
        descending = np.sort(values)[::-1]
        k = next(k for k in range(len(values) + 1) if descending[:k].sum() >= values.sum() / 2)
        assert row["half_heat_share"] == pytest.approx(k / len(values), abs=1.01 / len(values))


def precision_over_orders(values, hit):
    """Expected share of lesion among the p hottest: each voxel by its chance to be taken, ties in random order."""
    of_lesions = values[hit][:, None]
    hotter, tied = (values > of_lesions).sum(1), (values == of_lesions).sum(1)
    return np.clip((hit.sum() - hotter) / tied, 0, 1).mean()


def test_ties_count_by_their_share():
    """Random orders of tied voxels, drawn one by one, have the same hits on average."""
    heat, lesion = np.array([[5.0, 5.0, 5.0, 1.0, 1.0, 0.0]]), np.array([[1, 0, 0, 1, 0, 1]], bool)
    row = measure.measure_maps(heat, lesion).iloc[0]
    assert row["pointing"] == pytest.approx(1 / 3) and row["precision"] == pytest.approx(1 / 3)
    rng, lesion = np.random.default_rng(1), np.array([[1, 0, 1, 1, 0, 1]], bool)
    hits = [lesion[0][np.lexsort((rng.random(6), -heat[0]))[:4]].mean() for _ in range(4000)]
    exact = measure.measure_maps(heat, lesion)["precision"].item()
    assert exact == pytest.approx((2 + 1 / 2) / 4)
    assert abs(np.mean(hits) - exact) < 4 * np.std(hits) / np.sqrt(4000)


def test_perfect_and_flat_maps():
    lesion = np.zeros((1, 10, 10), bool)
    lesion[0, 2:4, 2:7] = True
    perfect = measure.measure_maps(lesion.astype(float), lesion).iloc[0]
    assert perfect[["auprc", "pointing", "precision", "mass_share", "iou"]].tolist() == [1] * 5
    flat = measure.measure_maps(np.ones((1, 10, 10)), lesion).iloc[0]
    for name in ("auprc", "pointing", "precision", "mass_share", "iou", "half_heat_share"):
        assert flat[name] == pytest.approx(flat[f"{name}_chance"])


def test_random_heat_gives_chance():
    rng = np.random.default_rng(4)
    heat, lesion = rng.random((300, 40, 40)), rng.random((300, 40, 40)) < 0.1
    table = measure.measure_maps(heat, lesion)
    for name in ("auprc", "pointing", "precision", "mass_share", "iou"):
        difference = table[name] - table[f"{name}_chance"]
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(table)) + 0.005, name


def test_blank_maps_are_nan_and_counted(maps):
    heat, lesion, brain = maps
    heat = heat.copy()
    heat[[2, 5]] = 0
    heat[5][~brain[5]] = 1
    heat[7] = 1e-31
    table = measure.measure_maps(heat, lesion, brain)
    assert table.attrs["n_blank"] == 3 and np.flatnonzero(table["blank"]).tolist() == [2, 5, 7]
    assert table.loc[table["blank"], "auprc":"q95"].isna().all(axis=None)
    assert table.loc[~table["blank"]].notna().all(axis=None)


def test_slice_without_lesion_has_spread_only():
    row = measure.measure_maps(HEAT, np.zeros_like(LESION), BRAIN).iloc[0]
    assert row[["auprc", "auprc_chance", "pointing", "precision", "precision_chance", "mass_share", "iou"]].isna().all()
    assert row["half_heat_share"] > 0 and row["q95"] > 0 and not row["blank"]


@pytest.mark.parametrize("heat, lesion, brain, message", [
    (HEAT, LESION[:, :2], BRAIN, r"lesion: must have the shape of heat, \(1, 3, 3\) \(got \(1, 2, 3\)\)"),
    (HEAT, LESION, np.zeros_like(BRAIN), "brain: slice 0 has no brain voxel"),
    (np.where(BRAIN, np.nan, HEAT), LESION, BRAIN, "heat: map 0 holds NaN"),
    (-HEAT, LESION, BRAIN, r"heat: map 0 is negative in the brain \(minimum -4\)"),
    (HEAT[:0], LESION[:0], BRAIN[:0], "heat: must be a non-empty"),
])
def test_unfit_input_is_refused(heat, lesion, brain, message):
    with pytest.raises(ValueError, match=message):
        measure.measure_maps(heat, lesion, brain)


def by_orders(worth, modalities):
    """Mean gain of every modality over all orders in which they can join."""
    orders = list(permutations(range(modalities)))
    values = np.zeros(modalities)
    for order in orders:
        for place, m in enumerate(order):
            before, after = tuple(sorted(order[:place])), tuple(sorted(order[:place + 1]))
            values[m] += (worth(after) - worth(before)) / len(orders)
    return values


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_shapley_is_the_mean_gain_over_all_orders(modalities):
    table = np.random.default_rng(modalities).uniform(size=2**modalities)

    def worth(subset):
        return table[sum(2**m for m in subset)]

    values = modality.shapley_values(np.stack([table, 2 * table], 1))
    np.testing.assert_allclose(values, by_orders(worth, modalities)[:, None] * [1, 2], atol=1e-12)
    assert values[:, 0].sum() == pytest.approx(table[-1] - table[0])


def test_shapley_of_known_games():
    members = [{m for m in range(3) if subset >> m & 1} for subset in range(8)]
    for worth, expected in ((lambda s: 0 in s, [1, 0, 0]), (lambda s: {0, 1} <= s, [0.5, 0.5, 0]),
                            (lambda s: 0.2 * len(s), [0.2, 0.2, 0.2])):
        np.testing.assert_allclose(modality.shapley_values([float(worth(s)) for s in members]), expected)


def test_correlation_with_importance():
    totals = [[3, 2, 1], [1, 2, 3], [1, 3, 2], [2, 2, 2]]
    found = modality.importance_correlation(totals, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(found[:3], [1, -1, -1 / 3])
    assert np.isnan(found[3])
    assert np.isnan(modality.importance_correlation([[3, 2, np.nan]], [0.6, 0.3, 0.1])).all()
    assert np.isnan(modality.importance_correlation(totals, [0.5, 0.5, 0.5])).all()
    assert sorted(np.round(modality.correlation_by_chance(3), 6)) == [-1, -0.333333, -0.333333, 0.333333, 0.333333, 1]


def test_portions_and_their_weighted_mean():
    maps, features = np.zeros((2, 2, 2, 3)), np.zeros((2, 2, 2, 3), bool)
    maps[0, ..., 0] = [[3, 1], [-5, 0]]
    maps[0, ..., 1] = [[1, 1], [1, 1]]
    features[0, 0, 0] = True
    np.testing.assert_array_equal(modality.modality_totals(maps), [[4, 4, 0], [0, 0, 0]])
    portions = modality.share_inside(maps, features)
    np.testing.assert_allclose(portions[0], [0.75, 0.25, np.nan])
    assert np.isnan(portions[1]).all()
    inside = np.array([[[True, False], [True, True]]] * 2)
    np.testing.assert_allclose(modality.share_inside(maps, features, inside)[0], [1, 1 / 3, np.nan])
    np.testing.assert_allclose(modality.share_inside(maps, features[..., 0])[0], [0.75, 0.25, np.nan])
    together = modality.share_inside(np.maximum(maps, 0).sum(-1, keepdims=True), features[..., 0])
    np.testing.assert_allclose(together, [[0.5], [np.nan]])
    scores = modality.feature_importance_score(portions, [0.6, 0.2, -0.3])
    assert scores[0] == pytest.approx((0.6 * 0.75 + 0.2 * 0.25) / 0.8) and np.isnan(scores[1])
    assert modality.feature_importance_score(portions, [0, 0, 1])[0] == 0, "the modality that matters got nothing"
    assert np.isnan(modality.feature_importance_score(portions, [0, -1, 0])).all(), "no modality matters: not defined"


def test_similarity_ranks_magnitudes_inside_the_mask():
    rng = np.random.default_rng(5)
    maps, inside = np.round(rng.normal(size=(3, 6, 5, 2)), 1), rng.random((3, 6, 5)) < 0.6
    others = np.round(maps + rng.normal(0, 0.5, maps.shape), 1)
    maps[2] = -0.5
    similar = modality.map_similarity(maps, others, inside)
    for index in (0, 1):
        a, b = (np.abs(array[index][inside[index]]).ravel() for array in (maps, others))
        ranks = [[np.sum(each < x) + np.sum(each == x) / 2 for x in each] for each in (a, b)]
        assert similar[index] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert np.isnan(similar[2]), "constant"
    changed = np.where(inside[..., None], maps, 99)
    np.testing.assert_allclose(modality.map_similarity(changed, -maps, inside)[:2], 1)


def test_area_of_known_curves():
    assert faithfulness.area_under_removal(np.ones(11)) == pytest.approx(1)
    assert faithfulness.area_under_removal(np.linspace(1, 0, 11)) == pytest.approx(0.5)
    assert faithfulness.area_under_removal([1] + [0] * 10) == pytest.approx(0.05)
    assert faithfulness.area_under_removal([1, 0.5], [1, 0]) == pytest.approx(0.75)


@pytest.fixture
def ranked():
    """One image of 100 ones; the map ranks its places."""
    heat = np.arange(1.0, 101).reshape(1, 10, 10, 1)
    return np.ones(heat.shape), heat, np.zeros(heat.shape)


def test_removal_takes_the_hottest_first(ranked):
    images, heat, base = ranked
    curve = faithfulness.removal_curve(np.mean, images, heat, base)
    np.testing.assert_allclose(curve, np.linspace(1, 0, 11), atol=0.011)
    assert curve[0] == 1 and curve[-1] == 0
    gone = faithfulness.removed_at(heat, 0.9, heat > 0)
    assert gone.sum() == 10 and gone.ravel()[-10:].all()
    assert not faithfulness.removed_at(-heat, 0.0, heat > 0).any(), "what is not positive stays"


def test_only_what_is_inside_is_removed(ranked):
    images, heat, base = ranked
    inside = np.zeros(heat.shape, bool)
    inside[:, :5] = True
    curve = faithfulness.removal_curve(np.mean, images, heat, base, inside)
    assert curve[-1] == pytest.approx(0.5)
    shuffled = faithfulness.shuffled_maps(heat, inside)
    np.testing.assert_array_equal(shuffled[~inside], heat[~inside])
    assert sorted(shuffled[inside]) == sorted(heat[inside]) and (shuffled != heat).any()
    np.testing.assert_array_equal(heat, np.arange(1.0, 101).reshape(heat.shape))


@pytest.mark.parametrize("place,area,delta", [(-1, 0.05, 0.45), (0, 0.95, -0.45)])
def test_a_map_that_finds_the_deciding_place_beats_shuffled_ones(ranked, place, area, delta):
    """The net is one place of the image, which a shuffled map removes at a random level: area 0.5."""
    def area_of(heat):
        return faithfulness.area_under_removal(
            faithfulness.removal_curve(lambda x: x[0, place, place, 0], images, heat, base))

    images, heat, base = ranked
    random = [area_of(faithfulness.shuffled_maps(heat, seed=draw)) for draw in range(100)]
    assert area_of(heat) == pytest.approx(area)
    assert np.mean(random) - area_of(heat) == pytest.approx(delta, abs=0.09)


def test_a_baseline_may_be_made_from_what_stays(ranked):
    images, heat, base = ranked
    images = images * np.arange(10.0)[:, None, None]
    seen = []

    def mean_of_the_rest(pictures, removed):
        seen.append(removed.sum())
        return np.full(pictures.shape, pictures[~removed].mean()) if removed.any() else np.full(pictures.shape, 99.0)

    curve = faithfulness.removal_curve(np.mean, images, heat, mean_of_the_rest, levels=[1, 0.9, 0.5])
    assert seen == [0, 10, 50]
    np.testing.assert_allclose(curve, [4.5, 4.0, 2.0])
    np.testing.assert_array_equal(faithfulness.removal_curve(np.mean, images, heat, base),
                                  faithfulness.removal_curve(np.mean, images, heat, lambda x, _: np.zeros(x.shape)))


@pytest.mark.parametrize("change,message", [
    ({"maps": np.ones((1, 10, 9, 1))}, "maps: must have the shape of the images"),
    ({"images": np.full((1, 10, 10, 1), np.inf)}, "images: 100 values are NaN or infinite"),
    ({"baseline": np.zeros(3)}, "baseline: must have the shape of the images (1, 10, 10, 1) (got (3,))"),
    ({"baseline": lambda x, gone: x * np.nan}, "baseline: 100 values are NaN"),
    ({"inside": np.ones((1, 10, 10), bool)}, "inside: must have the shape of the images"),
    ({"inside": np.zeros((1, 10, 10, 1), bool)}, "inside: must hold something of every image (image 0 has nothing)"),
    ({"levels": [0.9, 0.5]}, "levels: must fall from 1, to 0 at most, two at least (got [0.9, 0.5])"),
    *(({"levels": wrong}, "levels: must fall from 1") for wrong in ([1, 0.5, 0.5], [1, 0.5, -0.1], [1], [1, np.nan]))])
def test_unfit_removal_is_refused_in_one_line(ranked, change, message):
    given = dict(zip(("images", "maps", "baseline"), ranked)) | change
    with refused(message):
        faithfulness.removal_curve(np.mean, **given)


@pytest.mark.parametrize("call,message", [
    *((lambda _, worths=worths: modality.shapley_values(worths), "worths: ")
      for worths in (np.zeros(6), np.zeros(1), 3.0, [0, np.nan])),
    (lambda maps: modality.importance_correlation(maps[0], [1, 2]), "importance: must have one value for each"),
    (lambda maps: modality.share_inside(maps[None], maps[None, ..., :2] > 0), "shape of the maps"),
    (lambda maps: modality.map_similarity(maps[None], maps[None, ..., :1], maps[None, ..., 0] > 0), "mask: must be"),
    (lambda maps: faithfulness.shuffled_maps(maps, maps[0] > 0), "inside: must have the shape of the maps"),
    (lambda maps: faithfulness.area_under_removal([1, 0.5]), "curve: must have one value for each of 11 levels")])
def test_unfit_parts_are_refused_in_one_line(call, message):
    with refused(message):
        call(np.ones((10, 10, 10)))
