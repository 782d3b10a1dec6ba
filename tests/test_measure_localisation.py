"""Measures of localisation: hand examples, scikit-learn and numpy as peers, chance for random heat."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, jaccard_score

from mslib import measure

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
