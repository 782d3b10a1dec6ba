"""Depth: what is put into a table of maps (means, trends, groups, blank maps) comes out of the analysis."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mslib.analysis import depth
from mslib.analysis.lobes import LOBES, brain_top, lobe_labels, lobe_shares
from mslib.explain import layer_cams, upsample_maps
from mslib.measure import measure_maps
from mslib.nets import build_classifier
from mslib.prep import SliceStack, write_volume

DRAWS = {"n": 300, "confidence": 0.95, "seed": 3275}
LAYERS = ["block4_conv4", "block4_pool", "block5_conv1", "block5_conv4", "block5_pool"]
LAST = {"vgg19": "block5_conv4"}
#: Known means per layer of LAYERS.
MEANS = {"auprc": [0.10, 0.30, 0.60, 0.40, 0.35], "half_heat_share": [0.05, 0.08, 0.10, 0.20, 0.30]}


def make_maps(means=MEANS, q95=(1.0, 2.0), noise=0.01, seed=0):
    """Measures of 16 patients x 5 slices.

    Every slice has an offset that all its layers share (0 on average); the n-th patients of both groups have the same
    deviation of the 95th percentile, so that equal means are equal distributions.
    """
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, 0.1, (16, 5))
    offsets -= offsets.mean()
    deviations = rng.normal(0, 0.1, 8)
    rows = []
    for number in range(16):
        for index in range(5):
            for position, layer in enumerate(LAYERS):
                row = {"backbone": "vgg19", "method": "gradcam", "layer": layer, "subject": f"{number:03d}",
                       "group": ["RRMS", "SPMS"][number % 2], "slice": index, "blank": False,
                       "q95": q95[number % 2] + deviations[number // 2]}
                for name in depth.MEASURES:
                    mean = means.get(name, MEANS["auprc"])[position]
                    row |= {name: mean + offsets[number, index] + rng.normal(0, noise), f"{name}_chance": 0.05}
                for lobe in LOBES:
                    row |= {f"lobe {lobe}": 0.1 + rng.normal(0, 0.005), f"brain {lobe}": 1 / 6}
                rows.append(row | {"lobe frontal": 0.5 + rng.normal(0, 0.02)})
    return pd.DataFrame(rows)


def results(maps):
    """What every test of depth decides: above its border, below it, or neither."""
    table = depth.depth_tests(maps, **DRAWS).set_index("test")
    return {test: "above" if row["low"] > row["border"] else "below" if row["high"] < row["border"] else "open"
            for test, row in table.iterrows()}


# Curves over depth


def test_layers_are_ordered_by_depth():
    shuffled = ["block5_pool", "block4_pool", "block5_conv1", "block4_conv4", "block5_conv4"]
    assert depth.layers_of(pd.DataFrame({"layer": shuffled * 2})) == LAYERS


def test_known_means_are_found():
    table = depth.depth_table(make_maps(), **DRAWS)
    assert len(table) == len(LAYERS) * len(depth.MEASURES)
    curve = table[table["measure"] == "auprc"].set_index("layer")
    for layer, mean in zip(LAYERS, MEANS["auprc"]):
        row = curve.loc[layer]
        assert row["low"] < mean < row["high"] and abs(row["value"] - mean) < 0.005
        assert (row["slices"], row["subjects"], row["blank"]) == (80, 16, 0) and row["chance"] == pytest.approx(0.05)
    assert depth.best_layer(table, "vgg19") == "block5_conv1"


def test_a_layer_that_is_mostly_blank_is_not_the_best():
    maps = make_maps()
    table = depth.depth_table(maps, **DRAWS)
    others = table[(table["measure"] == "auprc") & (table["layer"] != "block5_conv1")]
    second = others.loc[others["value"].idxmax(), "layer"]
    rows = maps.index[maps["layer"] == "block5_conv1"]
    for blank, best in ((40, "block5_conv1"), (41, second)):
        lost = maps.assign(blank=maps["blank"] | maps.index.isin(rows[:blank]))
        assert depth.best_layer(depth.depth_table(lost, **DRAWS), "vgg19") == best
    assert depth.best_layer(table.assign(mostly_blank=True), "vgg19") == "block5_conv1", "all alike: the highest of all"


def test_blank_maps_are_counted_not_averaged():
    maps = make_maps()
    blank = (maps["layer"] == "block5_pool") & (maps["slice"] == 0)
    maps.loc[blank, "blank"] = True
    maps.loc[blank, list(depth.MEASURES)] = np.nan
    row = depth.depth_table(maps, **DRAWS).query("layer == 'block5_pool' and measure == 'auprc'").iloc[0]
    assert row["blank"] == 16 and row["low"] < 0.35 < row["high"]


def test_maps_of_a_subject_are_measured_layer_by_layer(shallow):
    """Every row is `measure_maps` of that layer's map; without lesions only spread and percentile are left."""
    rng = np.random.default_rng(3)
    network = build_classifier("vgg16", 3, (32, 32, 3))
    images, brain = rng.random((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32), bool)
    brain[:, 4:28, 6:26] = True
    lesions = brain & (rng.random(brain.shape) < 0.1)
    lobes = np.where(brain, np.arange(32) // 16, -1)
    table = depth.measure_layers(network, images, 2, lesions, brain, ["gradcam", "layercam"], lobes)
    assert len(table) == 2 * 4 * 2 and table["slice"].tolist() == [0, 1] * 8
    cams = layer_cams(network, images, [2, 2], methods=["layercam"], upsample=False)["layercam"]
    alone = measure_maps(upsample_maps(cams["block4_pool"], (32, 32)), lesions, brain)
    part = table.query("method == 'layercam' and layer == 'block4_pool'").reset_index(drop=True)
    pd.testing.assert_frame_equal(part[alone.columns], alone)
    assert part["lobe frontal"].isna().all(), "lobes are those of Grad-CAM"
    gradcam = table.query("method == 'gradcam' and not blank")
    assert gradcam[[f"lobe {lobe}" for lobe in LOBES]].sum(axis=1).to_numpy() == pytest.approx(1)
    assert gradcam["brain frontal"].to_numpy() == pytest.approx(0.5)
    bare = depth.measure_layers(network, images, 2, np.zeros_like(lesions), brain, ["gradcam"])
    assert bare["auprc"].isna().all() and (bare["half_heat_share"].notna() | bare["blank"]).all()
    assert depth.measure_layers(network, images[:0], 2, lesions[:0], brain[:0], ["gradcam"]).empty


@pytest.mark.parametrize("n,expected", [(135, [56, 57, 58]), (20, [8, 8, 9]), (2, [1, 1, 1])])
def test_published_slices_of_any_stack(n, expected):
    lesions = np.zeros((n, 2, 2), bool)
    lesions[n - 1] = True
    assert depth.published_slices(lesions).tolist() == expected
    assert depth.published_slices(lesions, fullest=True).tolist() == [n - 2, n - 1, n - 1]


@pytest.mark.parametrize("best,chosen", [
    ("block4_conv1", [1, 3, 5, 6, 8]), ("block4_conv2", [1, 2, 5, 6, 8]), (None, [1, 3, 5, 6, 8]),
    ("block4_pool", [1, 3, "block4_pool", 6, 8])])
def test_the_headline_goes_from_shallow_to_deep_with_the_best_layer(best, chosen):
    layers = [f"block{block}_{kind}" for block in (4, 5) for kind in ("conv1", "conv2", "conv3", "conv4", "pool")]
    convolutions = [layer for layer in layers if "pool" not in layer]
    assert depth.headline_layers(layers, best) == [convolutions[one - 1] if isinstance(one, int) else one
                                                   for one in chosen]


# Tests of depth


def test_known_trends_are_decided():
    """Shallower is more local, overlaps lesions better; last convolution best compromise; block4_conv4 hard to read."""
    names = ["spread with depth", "auprc with depth", "last convolution over rival", "hard layer minus last"]
    assert results(make_maps()) == dict(zip(names, ["above", "above", "below", "below"]))
    last_best = {"auprc": [0.1, 0.2, 0.3, 0.6, 0.35], "half_heat_share": [0.2, 0.21, 0.22, 0.1, 0.3]}
    assert results(make_maps(last_best))["last convolution over rival"] == "above"
    reverse = {"auprc": [0.7, 0.5, 0.45, 0.4, 0.35], "half_heat_share": [0.3, 0.25, 0.2, 0.1, 0.05]}
    found = results(make_maps(reverse))
    assert [found[name] for name in (names[0], names[1], names[3])] == ["below", "below", "above"]
    assert set(results(make_maps({name: [0.3] * 5 for name in MEANS}, noise=0.2)).values()) == {"open"}


def test_differences_are_paired():
    """The slices' common offset (SD 0.1) cancels: the interval is that of the noise (SD 0.01)."""
    found = depth.depth_tests(make_maps(), **DRAWS).set_index("test").loc["hard layer minus last"]
    assert found["low"] < -0.3 < found["high"] and found["high"] - found["low"] < 0.01


def test_trend_over_depth_uses_every_layer():
    """The outer layers rise, all of them fall (ranks 2 5 4 1 3: Spearman -0.2): two layers would say the opposite."""
    maps = make_maps({"half_heat_share": [0.4, 0.9, 0.7, 0.3, 0.5]}, noise=0.001)
    trend = depth.depth_tests(maps, **DRAWS).set_index("test").loc["spread with depth"]
    assert (trend["subjects"], trend["above"]) == (16, 0) and trend["mean"] == pytest.approx(-0.2, abs=1e-12)


def test_where_all_subjects_agree_their_share_decides():
    alike = depth.sign_test(pd.Series(1.0, index=range(16)), **DRAWS)
    assert (alike["statistic"], alike["value"], alike["border"], alike["mean"]) == ("share above 0", 1, 0.5, 1)
    assert 0.75 < alike["low"] < 1 and (alike["above"], alike["subjects"]) == (16, 16)
    spread = depth.sign_test(pd.Series(np.arange(16) - 4.0, index=range(16)), **DRAWS)
    assert (spread["statistic"], spread["value"], spread["border"], spread["above"]) == ("mean", 3.5, 0, 11)
    assert spread["low"] < 3.5 < spread["high"]
    for none in (pd.Series(0.0, index=range(16)), pd.Series(1.0, index=range(4))):
        assert np.isnan(depth.sign_test(none, **DRAWS)["low"])


def test_the_rival_is_chosen_by_other_patients():
    """A layer that is best in the half that chooses only, and poor in the half that tests, does not win."""
    maps = make_maps(MEANS | {"half_heat_share": [0.2] * 5}, noise=0.001)
    second = (maps["subject"].astype(int).to_numpy() // 2) % 2 == 1
    lucky = (maps["layer"] == "block4_conv4").to_numpy()
    for name, good, poor in (("auprc", 5.0, 0.0), ("half_heat_share", 0.0, 5.0)):
        maps.loc[lucky & ~second, name] = good
        maps.loc[lucky & second, name] = poor
    rival, gain = depth.compromise(maps, "vgg19")
    assert (rival, len(gain)) == ("block4_conv4", 8) and (gain > 0).all()


def test_without_lesion_masks_only_the_spread_is_tested():
    maps = make_maps()
    maps[["auprc", "auprc_chance", "pointing", "mass_share", "iou", "precision"]] = np.nan
    assert results(maps) == {"spread with depth": "above"}
    assert depth.best_layer(depth.depth_table(maps, **DRAWS), "vgg19") is None


def test_two_patients_decide_nothing():
    maps = make_maps().query("subject in ['000', '001']")
    table = depth.depth_table(maps, **DRAWS)
    assert table["value"].notna().all() and table["low"].isna().all()
    assert depth.depth_tests(maps, **DRAWS)["low"].isna().all()


# Groups, lobes, random weights


@pytest.mark.parametrize("q95,auc", [((1.0, 2.0), 1), ((2.0, 1.0), 0), ((1.0, 1.0), 0.5)])
def test_direction_of_the_percentile_comparison(q95, auc):
    maps = make_maps(q95=q95, seed=3)
    table = depth.percentile_comparison(maps, **DRAWS)
    row = table[table["layer"] == "block5_conv4"].iloc[0]
    assert (row["n_more"], row["n_less"], row["value"]) == (8, 8, auc)
    assert (table["p_holm"] >= table["p"]).all()
    if auc == 0.5:
        assert row["low"] < 0.5 < row["high"]
    else:
        assert (row["p"] < 0.001) == (auc == 1) and np.isnan(row["low"]), "groups wholly apart have no interval"
    values = depth.percentile_values(maps, LAST)
    assert values.groupby("group")["value"].mean().to_dict() == pytest.approx({"RRMS": q95[0], "SPMS": q95[1]}, abs=0.1)


def test_a_blank_map_has_a_percentile_of_0():
    maps = make_maps().assign(blank=lambda rows: rows["slice"] == 0)
    maps.loc[maps["blank"], "q95"] = np.nan
    values = depth.percentile_values(maps, LAST)
    whole = depth.percentile_values(make_maps(), LAST)
    np.testing.assert_allclose(values["value"], 0.8 * whole["value"])


def test_no_comparison_without_the_second_group():
    table = depth.percentile_comparison(make_maps().query("group == 'RRMS'"), **DRAWS)
    assert table.empty and {"value", "p_holm"} <= set(table)


def test_lobes_of_one_group_beside_the_other():
    maps = make_maps()
    table = depth.lobe_table(maps, LAST, **DRAWS).set_index(["group", "lobe"])
    frontal = table.loc[("SPMS", "frontal")]
    assert frontal["low"] < 0.5 < frontal["high"] and frontal["brain"] == pytest.approx(1 / 6)
    assert not table["exceeds_others"].any(), "both groups alike"
    less = maps.assign(**{"lobe frontal": maps["lobe frontal"].where(maps["group"] == "SPMS", 0.3)})
    table = depth.lobe_table(less, LAST, **DRAWS).set_index(["group", "lobe"])["exceeds_others"]
    assert not table["RRMS", "frontal"], "lower"
    assert not table["SPMS", "frontal"], "a group without an interval is no group that is surely exceeded"
    less["lobe frontal"] += 0.01 * np.sin(np.arange(len(less)))
    table = depth.lobe_table(less, LAST, **DRAWS).set_index(["group", "lobe"])["exceeds_others"]
    assert table["SPMS", "frontal"] and table.sum() == 1


def test_randomisation_summary():
    rows = [{"backbone": "vgg19", "layer": layer, "step": step, "randomised": name, "subject": f"{i:02d}",
             "spearman": value + 0.01 * (i % 3 - 1), "ssim": value, "blank": False}
            for layer, kept in (("block5_conv4", 0.0), ("block4_conv1", 0.3))
            for step, (name, value) in enumerate([("none", 1.0), ("logits", 0.2), ("block4_conv1", kept)])
            for i in range(9)]
    table = depth.randomisation_summary(pd.DataFrame(rows), **DRAWS)
    found = table.query("measure == 'spearman' and layer == 'block5_conv4'")
    assert found["step"].tolist() == ["none", "logits", "block4_conv1"] and found["number"].tolist() == [0, 1, 2]
    assert found["all_random"].tolist() == [False, False, True]
    np.testing.assert_allclose(found["value"], [1.0, 0.2, 0.0], atol=1e-9)
    kept = table.query("measure == 'spearman' and all_random and low > 0")  # as in notebook 03
    assert kept["layer"].tolist() == ["block4_conv1"]


# Lobes of the brain, volumes


def ellipsoid(mm=4.0, shift=(0.0, 0.0, 0.0)):
    """A brain-sized ellipsoid as slice stack: column 0 is right, row 0 anterior, slices upwards; RAS mm."""
    n, height, width = 44, 54, 44
    affine = np.diag([-mm, -mm, mm, 1.0])
    affine[:3, 3] = [mm * (width - 1) / 2, mm * (height - 1) / 2 - 17, 82 - mm * (n - 1) + 2 * mm]
    z, y, x = np.indices((n, height, width))
    place = np.stack([x, y, z, np.ones_like(x)], -1) @ affine.T[:, :3]
    brain = (((place - [0, -17, 7]) / [70, 88, 75]) ** 2).sum(-1) <= 1
    affine[:3, 3] += shift
    return brain, affine, place


def test_a_blob_lies_in_its_lobe():
    brain, affine, place = ellipsoid()
    labels = lobe_labels(brain, affine)
    assert ((labels >= 0) == brain).all()
    for lobe, point in (("frontal", [10, 55, 10]), ("occipital", [10, -95, 5]), ("temporal", [-58, -30, -15]),
                        ("parietal", [-40, -55, 50]), ("cerebellum", [20, -65, -38]),
                        ("insula and deep grey", [10, -15, 8])):
        blob = (np.linalg.norm(place - point, axis=-1) < 7) & brain
        assert blob.any()
        one = slice(*(np.flatnonzero(blob.any((1, 2)))[[0, -1]] + [0, 1]))  # its slices
        shares = lobe_shares(blob[one].astype(float), labels[one])
        np.testing.assert_allclose(shares[lobe], 1, err_msg=lobe)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert lobe_shares(np.zeros(brain.shape), labels).isna().all(axis=None), "blank"


def test_lobes_follow_the_head_wherever_it_lies():
    np.testing.assert_array_equal(lobe_labels(*ellipsoid()[:2]), lobe_labels(*ellipsoid(shift=(30.0, -12.0, 55.0))[:2]))


def test_a_stack_that_does_not_reach_the_top_is_put_in_place_by_the_mask():
    brain, affine, _ = ellipsoid()
    whole = lobe_labels(brain, affine)
    top = brain_top(nib.Nifti1Image(np.transpose(brain, (2, 1, 0)).astype("uint8"), affine))
    kept = slice(0, np.flatnonzero(brain.any((1, 2)))[-1] - 4)
    np.testing.assert_array_equal(lobe_labels(brain[kept], affine, top), whole[kept])
    assert (lobe_labels(brain[kept], affine) != whole[kept]).any()


def test_volumes_hold_the_maps_at_their_place_and_name_them(tmp_path):
    brain, affine, _ = ellipsoid(8.0)
    stack = SliceStack(np.zeros((*brain.shape, 3), "float16"), brain, ~brain, np.zeros(len(brain)), affine)
    grid = np.diag([8.0, 8.0, 8.0, 1.0])
    grid[:3, 3] = [affine[0, 3] - 8 * (brain.shape[2] - 1), affine[1, 3] - 8 * (brain.shape[1] - 1), affine[2, 3]]
    reference = tmp_path / "sub-001_space-T1w_desc-preproc_T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(brain.shape[::-1], np.float32), grid), reference)
    maps = {"block4_conv1": brain.astype(np.float32), "block5_pool": np.arange(brain.size).reshape(brain.shape) / 1e4}
    path = write_volume(tmp_path / "cam.nii.gz", maps, stack, reference, "Layers", {"Class": "SPMS"}, np.int16)
    volume = nib.load(path)
    assert volume.get_data_dtype() == np.int16
    for number, one in enumerate(maps.values()):
        expected = np.transpose(one, (2, 1, 0))[::-1, ::-1]
        np.testing.assert_allclose(np.asarray(volume.dataobj[..., number]), expected, atol=1e-3)
    assert (tmp_path / "cam.json").read_text() == (
        '{\n  "Class": "SPMS",\n  "Layers": [\n    "block4_conv1",\n    "block5_pool"\n  ],\n'
        f'  "Sources": [\n    "{reference.name}"\n  ]\n}}\n')
