"""Depth: what is put into maps and tables of maps (means, trends, groups, blank maps) comes out of the analysis."""

from types import SimpleNamespace

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from mslib.analysis import depth
from mslib.analysis.cross_fitting import cross_fitted
from mslib.analysis.lobes import LOBES, brain_top, lobe_labels, lobe_shares
from mslib.explain import average_cells, explain_layers, layer_cams, randomised_copy, upsample_maps
from mslib.measure import mean_by, measure_maps
from mslib.nets import build_classifier
from mslib.nets.vgg import CONVOLUTIONS
from mslib.prep import SliceStack, write_volume

DRAWS = {"n": 300, "confidence": 0.95, "seed": 3275}
LAYERS = ["block4_conv4", "block4_pool", "block5_conv1", "block5_conv4", "block5_pool"]
#: Known means per layer of LAYERS.
MEANS = {"auprc": [0.10, 0.30, 0.60, 0.40, 0.35], "half_heat_share": [0.05, 0.08, 0.10, 0.20, 0.30]}
PRIOR, ORACLE = 0.1, 0.9


def make_maps(means=MEANS, q95=(1.0, 2.0), noise=0.01, seed=0, trainings=(0.0,)):
    """Measures of 16 patients x 5 slices by trainings that each add a number to every measure.

    Every slice has an offset that all its layers share (0 on average); the n-th patients of both groups have the same
    deviation of the 95th percentile, so that equal means are equal distributions.
    """
    rng, tables = np.random.default_rng(seed), []
    number, index = np.repeat(np.arange(16), 5), np.tile(np.arange(5), 16)
    offsets, deviations = rng.normal(0, 0.1, 80), rng.normal(0, 0.1, 8)
    offsets -= offsets.mean()
    for training, shift in enumerate(trainings, start=1):
        unit = pd.DataFrame({
            "kind": "honest", "backbone": "vgg19", "seed": training, "draw": 0, "source": "network",
            "method": "gradcam", "subject": [f"{one:03d}" for one in number], "slice": index, "blank": False,
            "group": np.array(["RRMS", "SPMS"])[number % 2], "correct": True, "area_mm2": 200.0,
            "chance": 0.02,
            "q95": np.array(q95)[number % 2] + deviations[number // 2]})
        for position, layer in enumerate(LAYERS):
            measures = {name: means.get(name, MEANS["auprc"])[position] + shift + offsets + rng.normal(0, noise, 80)
                        for name in depth.MEASURES}
            lobes = {f"lobe {lobe}": 0.1 + rng.normal(0, 0.005, 80) for lobe in LOBES}
            lobes |= {f"brain {lobe}": 1 / 6 for lobe in LOBES} | {"lobe frontal": 0.5 + rng.normal(0, 0.02, 80)}
            oracle = dict.fromkeys(depth.MEASURES, ORACLE) | {"source": "comparator", "method": "oracle"}
            tables += [unit.assign(layer=layer, **measures, **lobes), unit.assign(layer=layer, **oracle)]
        prior = dict.fromkeys(depth.MEASURES, PRIOR) | {"source": "comparator", "method": "prior"}
        tables.append(unit.assign(layer="image", **prior))
    return pd.concat(tables, ignore_index=True)


def own(maps):
    """Rows of the network's own maps."""
    return maps["source"] == "network"


def results(maps):
    """What every test of depth decides: above its border, below it, or neither."""
    table = depth.depth_tests(maps, **DRAWS).set_index("test")
    return {test: "above" if row["low"] > row["border"] else "below" if row["high"] < row["border"] else "open"
            for test, row in table.iterrows()}


# Slices, maps and comparators


@pytest.fixture(scope="module")
def cases():
    """Three patients with lesions at places of their own, on slices that overlap in height."""
    rng, made = np.random.default_rng(3), []
    for number in range(3):
        lesions, brain = np.zeros((4, 64, 64), bool), np.zeros((4, 64, 64), bool)
        brain[:, 8:56, 12:52] = True
        lesions[:, 12 + 14 * number:18 + 14 * number, 20:26] = True
        lesions[3, 40:52, 30:50] = True
        images = (0.2 * rng.random((4, 64, 64, 3)) + lesions[..., None]).astype(np.float32) / 2
        made.append(SimpleNamespace(subject=f"{number}", group="SPMS", cohort="study", images=images, target=1,
                                    slices=np.array([10, 11, 12, 13]) + number, lesions=lesions, brain=brain))
    return made


@pytest.fixture(scope="module")
def slices(cases):
    return depth.gather_slices(cases, 2, 1.0)


@pytest.fixture(scope="module")
def explained(slices):
    keras.utils.set_random_seed(2)
    with pytest.MonkeyPatch.context() as patch:  # one convolution a block, as of the fixture `shallow`
        patch.setitem(CONVOLUTIONS, "vgg16", (1, 1, 1, 1, 1))
        network = build_classifier("vgg16", 3, (64, 64, 3), narrow=4)
    found = explain_layers(network, slices.images, slices.table["target"], depth.explained_layers(network),
                           ["gradcam", "layercam", "activation"])
    return network, found, slices._replace(table=slices.table.assign(correct=True))


def test_slices_are_middles_of_equal_parts_and_know_their_lesions(slices, cases):
    table, three = slices.table, depth.gather_slices(cases, 3, 1.0).table
    assert three["slice"].tolist() == [10, 12, 13, 11, 13, 14, 12, 14, 15]
    assert table["slice"].tolist() == [11, 13, 12, 14, 13, 15] and table["subject"].tolist() == list("001122")
    assert table["area_mm2"].tolist() == [36, 276] * 3
    assert table["size"].tolist() == ["small", "medium"] * 3
    assert slices.images.shape == (6, 64, 64, 3) and slices.edge.sum(axis=(1, 2)).tolist() == [48 * 40 - 38 * 30] * 6
    assert (slices.edge <= slices.brain).all()


def test_the_location_prior_is_that_of_the_other_patients(slices):
    for row, prior in enumerate(slices.prior):
        number = int(slices.table["subject"][row])
        of = [prior[15 + 14 * other, 23] for other in range(3)]
        assert of[number] < 0.1 * min(of[other] for other in range(3) if other != number)
    above, below = slices.prior[3, 46, 40], slices.prior[0, 46, 40]  # slice 14 is nearer to the others' full slices
    assert above > below > 0


def test_another_patient_is_nearest_in_height_and_of_the_same_class():
    table = pd.DataFrame({"subject": list("aabbc"), "slice": [10, 30, 12, 29, 28], "target": 1})
    assert depth.another_patient(table).tolist() == [2, 3, 0, 1, 3]
    assert depth.another_patient(table.assign(target=[1, 1, 2, 2, 1])).tolist() == [4, 4, 0, 1, 1]
    assert depth.another_patient(table[:2]) is None


def test_maps_are_measured_beside_their_comparators(explained):
    network, found, slices = explained
    lobes = np.where(slices.brain, np.arange(64) // 32, -1)
    table = depth.measure_layers(found, slices, 2, lobes)
    layers, n = depth.explained_layers(network), len(slices.table)
    assert layers == [f"block{block}_{kind}" for block in (3, 4, 5) for kind in ("conv1", "pool")]
    counts = table.groupby("source").size()
    assert counts.to_dict() == {"network": 3 * 6 * n, "another patient": 2 * 6 * n, "comparator": (6 + 3) * n}

    def rows(**names):
        chosen = np.logical_and.reduce([table[key] == value for key, value in names.items()])
        return table[chosen].reset_index(drop=True)

    raw = found.cams["layercam"]["block4_pool"]
    heat = upsample_maps(raw, (64, 64))
    columns = ["auprc", "pointing", "precision", "mass_share", "half_heat_share", "q95", "blank"]
    for source, maps in (("network", heat), ("another patient", heat[depth.another_patient(slices.table)])):
        ours = rows(source=source, method="layercam", layer="block4_pool")
        alone = measure_maps(maps, slices.lesions, slices.brain)
        pd.testing.assert_frame_equal(ours[columns], alone[columns])
        assert ours["chance"].equals(alone["auprc_chance"])
    inside = (heat * slices.brain).sum((1, 2))
    share = rows(source="network", method="layercam", layer="block4_pool")["edge_share"]
    np.testing.assert_allclose(share, (heat * slices.edge).sum((1, 2)) / inside, rtol=1e-5)
    oracle = upsample_maps(average_cells(slices.lesions, (4, 4)), (64, 64))
    np.testing.assert_allclose(rows(method="oracle", layer="block4_pool")["auprc"],
                               measure_maps(oracle, slices.lesions, slices.brain)["auprc"])
    assert (rows(method="intensity")["auprc"] == 1).all(), "lesions are brighter than all else"
    assert (rows(method="prior")["auprc"] < rows(method="oracle", layer="block3_conv1")["auprc"]).all()
    gradcam = rows(source="network", method="gradcam", layer="block5_conv1")
    shares = gradcam.loc[~gradcam["blank"], [f"lobe {lobe}" for lobe in LOBES]].sum(axis=1)
    assert len(shares) and shares.to_numpy() == pytest.approx(1)
    assert gradcam["brain frontal"].to_numpy() == pytest.approx(0.5)
    assert gradcam["kept"].to_numpy() == pytest.approx(found.kept["block5_conv1"])
    bare = depth.measure_layers(found, slices._replace(lesions=np.zeros_like(slices.lesions)), 2)
    assert bare["auprc"].isna().all() and (bare["half_heat_share"].notna() | bare["blank"]).all()


def test_rank_correlation_is_scipys_over_the_cells_of_the_brain():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 8, 8))
    brain = np.zeros((3, 64, 64), bool)
    brain[:, 8:56, 12:52] = True
    inside = depth.brain_cells(brain, (8, 8))
    assert inside[0].sum() == 6 * 6, "the outer columns are half brain"
    expected = [spearmanr(one[cells], other[cells]).statistic for one, other, cells in zip(a, b, inside)]
    np.testing.assert_allclose(depth.rank_correlation(a, b, inside), expected)
    np.testing.assert_allclose(depth.rank_correlation(a, np.exp(a), inside), 1)
    assert np.isnan(depth.rank_correlation(a, np.ones_like(b), inside)).all()


def test_random_networks_are_compared_with_the_trained_one(explained):
    network, found, slices = explained
    likeness, untrained = depth.randomise_layers(network, found, slices, draws=2, seed=5)
    assert list(likeness["step"].unique()) == ["another patient", *depth.STEPS.values()]
    drawn = likeness[likeness["draw"] > 0].drop_duplicates(["draw", "subject", "slice"])
    assert drawn["draw"].tolist() == [1, 1, 1, 2, 2, 2], "every slice is explained once"
    assert not drawn.duplicated(["subject", "slice"]).any()
    assert untrained.groupby("method").size().tolist() == [6 * 6] * 2
    assert set(untrained["source"]) == {"untrained"} and set(untrained["method"]) == {"gradcam", "layercam"}
    # The lower blocks of the first step are the trained ones: as a copy whose block 5 alone is random.
    first = likeness.query("step == 'block 5' and draw == 1 and method == 'layercam' and layer == 'block3_conv1'")
    rows = [int(slices.table.index[(slices.table["subject"] == row.subject) & (slices.table["slice"] == row.slice)][0])
            for row in first.itertuples()]
    copy = randomised_copy(network, "block5_conv1", seed=[5, 1])
    cams = layer_cams(copy, slices.images[rows], [1] * 3, ["block3_conv1"], ["layercam"], upsample=False)["layercam"]
    trained = found.cams["layercam"]["block3_conv1"][rows]
    inside = depth.brain_cells(slices.brain[rows], trained.shape[1:])
    expected = depth.rank_correlation(trained, cams["block3_conv1"], inside)
    np.testing.assert_allclose(first["spearman"], expected, atol=1e-5)


def test_dead_channels_are_found_and_dated(shallow):
    start, tuned = (build_classifier("vgg16", 3, (32, 32, 3)) for _ in range(2))
    images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    for network, silent in ((start, slice(0, 64)), (tuned, slice(48, 80))):
        kernel, bias = network.get_layer("block5_conv1").get_weights()
        kernel, bias = np.abs(kernel), bias + 0.1
        kernel[..., silent], bias[silent] = -1, -1
        network.get_layer("block5_conv1").set_weights([kernel, bias])
    peaks = [depth.channel_peaks(network, images, ["block5_conv1", "block5_pool"]) for network in (tuned, start)]
    found = explain_layers(tuned, images, [0, 0, 0], ["block5_conv1"])
    np.testing.assert_allclose(peaks[0]["block5_conv1"], found.peaks["block5_conv1"], rtol=1e-5)
    table = depth.dead_channels(*peaks).set_index("layer")
    assert table.loc["block5_conv1", ["dead", "dead_at_start", "died"]].tolist() == [32 / 512, 64 / 512, 16 / 512]
    assert table.loc["block5_pool", "dead"] == 32 / 512 and table["slices"].tolist() == [3, 3]


# Curves over depth


def test_layers_are_ordered_by_depth():
    shuffled = ["block5_pool", "image", "block4_pool", "block5_conv1", "block4_conv4", "block5_conv4"]
    assert depth.layers_of(pd.DataFrame({"layer": shuffled * 2})) == LAYERS


def test_known_means_are_found():
    table = depth.depth_table(make_maps(), **DRAWS)
    curve = table[(table["measure"] == "auprc") & (table["source"] == "network")].set_index("layer")
    way = table[table["measure"] == "auprc_way"].set_index("layer")
    for layer, mean in zip(LAYERS, MEANS["auprc"]):
        row = curve.loc[layer]
        assert row["low"] < mean < row["high"] and abs(row["value"] - mean) < 0.005
        assert (row["slices"], row["subjects"], row["trainings"], row["blank"]) == (80, 16, 1, 0)
        for name in ("value", "low", "high"):
            assert way.loc[layer, name] == pytest.approx((row[name] - PRIOR) / (ORACLE - PRIOR))
    coarse = make_maps()
    coarse.loc[(coarse["method"] == "oracle") & (coarse["layer"] == "block5_pool"), "auprc"] = PRIOR
    way = depth.depth_table(coarse, **DRAWS).query("measure == 'auprc_way'").set_index("layer")["value"]
    assert way.isna().tolist() == [layer == "block5_pool" for layer in way.index], "the grid cannot beat the prior"
    oracle = table.query("measure == 'auprc' and method == 'oracle'")
    assert len(oracle) == 5 and (oracle["value"] == ORACLE).all()


def test_trainings_that_disagree_widen_the_interval():
    alike, apart = (depth.depth_table(make_maps(trainings=shifts), **DRAWS).query(
        "measure == 'auprc' and source == 'network'").set_index("layer") for shifts in ((0, 0, 0), (-0.3, 0, 0.3)))
    np.testing.assert_allclose(alike["value"], apart["value"], atol=1e-9)
    assert (apart["high"] - apart["low"] > 3 * (alike["high"] - alike["low"])).all()
    assert (apart["trainings"] == 3).all() and (apart["subjects"] == 16).all() and (apart["slices"] == 80).all()


def test_wrong_slices_untrained_networks_and_blank_maps_are_apart():
    maps = make_maps()
    wrong, blank = (maps["slice"] == 4) & own(maps), (maps["layer"] == "block5_pool") & (maps["slice"] == 0) & own(maps)
    maps.loc[maps["slice"] == 4, "correct"] = False
    maps.loc[wrong, "auprc"] = 0.01
    maps.loc[blank, "blank"] = True
    maps.loc[blank, list(depth.MEASURES)] = np.nan
    drawn = maps[own(maps)].assign(source="untrained", draw=maps["slice"] % 3 + 1)
    drawn["auprc"] = 0.2 + 0.1 * (drawn["subject"].rank(method="dense") % 2 - 0.5)  # 0.15 and 0.25 in turn
    table = depth.depth_table(pd.concat([maps, drawn]), **DRAWS).query("measure == 'auprc'")
    low, right = (table[(table["classified"] == side) & (table["source"] == "network")].set_index("layer")
                  for side in ("wrongly", "correctly"))
    assert (low["value"].round(9) == 0.01).all() and (low["slices"] == 16).all()
    assert (right["slices"] == 64).all() and abs(right.loc["block5_conv1", "value"] - 0.6) < 0.05
    pool = right.loc["block5_pool"]
    assert pool["blank"] == pytest.approx(16 / 64) and pool["low"] < 0.35 < pool["high"], "counted, not averaged"
    random = table[(table["source"] == "untrained") & (table["classified"] == "correctly")]
    assert (random["trainings"] == 3).all() and random["value"].to_numpy() == pytest.approx(0.2)
    assert (random["high"] - random["low"]).to_numpy() == pytest.approx(2 * 1.96 * 0.05 / 16**0.5, rel=0.15)


def test_blank_maps_leave_the_comparators_too_and_a_blank_layer_stays_in_the_table():
    maps = make_maps()
    first, blank = maps["slice"] == 0, own(maps) & (maps["layer"] == "block5_conv1")
    blank |= own(maps) & (maps["layer"] == "block5_pool") & first
    maps.loc[blank, ["blank", *depth.MEASURES]] = [True] + [np.nan] * len(depth.MEASURES)
    maps.loc[(maps["method"] == "oracle") & first, "auprc"] = 1.0
    table = depth.depth_table(maps, **DRAWS).query("source == 'network'").set_index(["measure", "layer"])
    value, way = (table.loc[(name, "block5_pool"), "value"] for name in ("auprc", "auprc_way"))
    assert way == pytest.approx((value - PRIOR) / (ORACLE - PRIOR)), "of the slices whose map is not blank"
    empty = table.loc[("auprc", "block5_conv1")]
    assert np.isnan(empty["value"]) and empty["blank"] == 1


def test_figures_ask_for_correctly_classified_slices():
    """Correct by both networks first, then lesions that can be seen, then the group, then the published slices."""
    units = [("a", "SPMS", 58, 300, (True, False)), ("b", "RRMS", 60, 300, (True, True)),
             ("c", "SPMS", 90, 300, (True, True)), ("d", "SPMS", 70, 300, (True, True)),
             ("e", "SPMS", 58, 30, (True, True))]
    maps = pd.DataFrame([{"subject": subject, "group": group, "slice": number, "area_mm2": area, "correct": correct,
                          "source": "network", "method": "gradcam", "layer": layer, "backbone": backbone}
                         for subject, group, number, area, right in units
                         for backbone, correct in zip(("vgg16", "vgg19"), right) for layer in LAYERS])
    found = depth.example_candidates(maps)
    assert found["subject"].tolist() == ["d", "c", "b", "e", "a"] and found["errors"].tolist() == [0, 0, 0, 0, 1]


# Tests of depth


def test_the_example_is_the_first_place_where_all_networks_are_right():
    """Networks that see a slice's number in its first pixel: of "a" one neighbour is misclassified, of "b" none is."""
    stacks = {name: (np.arange(10, dtype=float).reshape(10, 1, 1, 1) + start, 1) for name, start in
              (("a", 0), ("b", 20))}
    def network(border):
        return SimpleNamespace(predict=lambda images, verbose: np.stack(
            [images[:, 0, 0, 0] < border, images[:, 0, 0, 0] >= border], 1).astype(float))
    networks, places = {"one": network(3), "other": network(1)}, pd.DataFrame({"subject": ["a", "b"], "slice": [3, 9]})
    errors, subject, index, classes = depth.choose_example(places, networks, stacks.get)
    assert (errors, subject, index.tolist()) == (0, "b", [7, 8, 9]), "inside the stack, and none twice"
    assert {name: found.tolist() for name, found in classes.items()} == {"one": [1, 1, 1], "other": [1, 1, 1]}
    errors, subject, index, classes = depth.choose_example(places[:1], networks, stacks.get)
    assert (errors, subject, index.tolist(), classes["one"].tolist()) == (1, "a", [2, 3, 4], [0, 1, 1])


def test_one_slice_of_every_size_is_shown(cases, slices):
    table = slices.table.assign(source="network", method="gradcam", layer="block5_pool", correct=True)
    table = table.assign(size=np.where(table["area_mm2"] > table["area_mm2"].median(), "large", "small"))
    images, lesions, brain = depth.size_examples(table, iter(cases))
    assert len(images) == len(lesions) == len(brain) == table["size"].nunique()
    assert (np.diff(lesions.sum((1, 2))) >= 0).all()
    for image, lesion in zip(images, lesions):
        assert any((image == case.images[i]).all() and (lesion == case.lesions[i]).all()
                   for case in cases for i in range(len(case.images)))


def test_best_layers_are_those_that_go_furthest():
    table = depth.best_layers(depth.depth_table(make_maps(), **DRAWS).query("source == 'network'"))
    found = table.set_index("pick")[["method", "layer"]].apply(tuple, axis=1).to_dict()
    assert found == {"last convolution": ("gradcam", "block5_conv4"), "best of Grad-CAM": ("gradcam", "block5_conv1"),
                     "best of all": ("gradcam", "block5_conv1")}
    best = table.set_index("pick").loc["best of all"]
    assert best["value"] == pytest.approx((0.6 - PRIOR) / (ORACLE - PRIOR), abs=0.02)
    assert best["auprc"] == pytest.approx(0.6, abs=0.02)
    assert depth.best_layers(depth.depth_table(make_maps().assign(blank=True), **DRAWS)).empty


def test_the_best_of_one_half_is_measured_in_the_other():
    """One layer is best in the halves' own noise: the people who did not choose it tell what it is worth."""
    maps = make_maps()
    found = cross_fitted(maps, ["gradcam"], **DRAWS)
    assert found[["tested", "layer"]].to_numpy().tolist() == [["b", "block5_conv1"], ["a", "block5_conv1"]]
    assert (found["subjects"] == 8).all()
    names = np.sort(maps["subject"].unique())
    for row in found.to_dict("records"):
        part = maps[maps["subject"].isin(names[0 if row["tested"] == "a" else 1::2])]
        mean = part[own(part) & (part["layer"] == "block5_conv1")]["auprc"].mean()
        assert row["value"] == pytest.approx((mean - PRIOR) / (ORACLE - PRIOR), abs=1e-9)
        assert row["low"] < row["value"] < row["high"]
    even = maps["subject"].isin(names[::2]) & own(maps) & (maps["layer"] == "block4_conv4")
    lucky = cross_fitted(maps.assign(auprc=maps["auprc"].where(~even, 0.85)), ["gradcam"], **DRAWS)
    elsewhere = lucky.set_index("tested").loc["b"]
    assert elsewhere["layer"] == "block4_conv4" and elsewhere["value"] < 0.1
    assert cross_fitted(maps[maps["subject"] == names[0]], ["gradcam"], **DRAWS).empty


def test_known_trends_are_decided():
    """Shallower is more local, overlaps lesions better; last convolution best compromise; block4_conv4 hard to read."""
    names = ["spread with depth", "auprc with depth", "last convolution over rival", "hard layer minus last"]
    assert results(make_maps()) == dict(zip(names, ["above", "above", "below", "below"]))
    paired = depth.depth_tests(make_maps(), **DRAWS).set_index("test").loc["hard layer minus last"]
    assert paired["low"] < -0.3 < paired["high"] and paired["high"] - paired["low"] < 0.01, "offsets have an SD of 0.1"
    last_best = {"auprc": [0.1, 0.2, 0.3, 0.6, 0.35], "half_heat_share": [0.2, 0.21, 0.22, 0.1, 0.3]}
    assert results(make_maps(last_best))["last convolution over rival"] == "above"
    reverse = {"auprc": [0.7, 0.5, 0.45, 0.4, 0.35], "half_heat_share": [0.3, 0.25, 0.2, 0.1, 0.05]}
    found = results(make_maps(reverse))
    assert [found[name] for name in (names[0], names[1], names[3])] == ["below", "below", "above"]
    maps = make_maps()
    blank = (maps["layer"] == depth.HARD_LAYER) & own(maps) & (maps["slice"] < 3)
    maps.loc[blank, ["auprc", "chance"]] = np.nan
    less = depth.depth_tests(maps.assign(blank=blank), **DRAWS).set_index("test").loc["hard layer minus last"]
    assert less["value"] < paired["value"] - 0.02 and less["subjects"] == 16, "blank maps count as chance"
    alike = [verdict for seed in range(3) for verdict in results(
        make_maps({name: [0.3] * 5 for name in MEANS}, noise=0.2, seed=seed)).values()]
    assert alike.count("open") >= 9, "of 12 tests at 5 %"


def test_trend_over_depth_uses_every_layer():
    """The outer layers rise, all of them fall (ranks 2 5 4 1 3: Spearman -0.2): two layers would say the opposite."""
    maps = make_maps({"half_heat_share": [0.4, 0.9, 0.7, 0.3, 0.5]}, noise=0.001)
    shallow = maps[maps["layer"] == "block5_pool"].assign(layer="block3_pool", half_heat_share=9.0)
    for table in (maps, pd.concat([maps, shallow])):  # block 3 is none of the published layers
        trend = depth.depth_tests(table, **DRAWS).set_index("test").loc["spread with depth"]
        assert (trend["subjects"], trend["above"]) == (16, 0) and trend["mean"] == pytest.approx(-0.2, abs=1e-12)


def test_spread_that_the_grids_alone_give_is_no_trend_of_the_network():
    """Untrained networks spread alike, less and not at all with depth: nothing, little and everything is left."""
    trained = make_maps({"half_heat_share": [0.1, 0.2, 0.3, 0.4, 0.5]}, noise=0.001)
    left = []
    for means in ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.2, 0.5, 0.4], [0.5, 0.4, 0.3, 0.2, 0.1]):
        untrained = make_maps({"half_heat_share": means}, noise=0.001, seed=1)
        untrained = untrained[own(untrained)].assign(source="untrained", correct=False)
        table = depth.depth_tests(pd.concat([trained, untrained], ignore_index=True), **DRAWS).set_index("test")
        left.append(table.loc["spread with depth, beyond untrained", ["mean", "low", "border"]])
    assert [row["mean"] for row in left] == pytest.approx([0, 0.2, 2])
    assert [row["low"] > row["border"] for row in left] == [False, True, True]


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
    maps = maps[own(maps)]
    second = (maps["subject"].astype(int).to_numpy() // 2) % 2 == 1
    lucky = (maps["layer"] == "block4_conv4").to_numpy()
    for name, good, poor in (("auprc", 5.0, 0.0), ("half_heat_share", 0.0, 5.0)):
        maps.loc[lucky & ~second, name] = good
        maps.loc[lucky & second, name] = poor
    rival, gain = depth.compromise(maps, "block5_conv4")
    assert (rival, len(gain)) == ("block4_conv4", 8) and (gain > 0).all()


def test_without_lesion_masks_or_people_little_is_tested():
    maps = make_maps()
    few = maps[maps["subject"].isin(["000", "001"])]
    table = depth.depth_table(few, **DRAWS)
    assert table["value"].notna().all() and table["low"].isna().all()
    assert depth.depth_tests(few, **DRAWS)["low"].isna().all()
    maps[["auprc", "pointing", "mass_share", "precision"]] = np.nan
    assert results(maps) == {"spread with depth": "above"}
    assert set(depth.depth_table(maps, **DRAWS)["measure"]) == {"half_heat_share", "edge_share"}


# Groups, lobes, other networks, random weights


@pytest.mark.parametrize("q95,auc", [((1.0, 2.0), 1), ((2.0, 1.0), 0), ((1.0, 1.0), 0.5)])
def test_direction_of_the_percentile_comparison(q95, auc):
    maps = make_maps(q95=q95, seed=3)
    table = depth.percentile_comparison(maps, **DRAWS)
    row = table[table["layer"] == "block5_conv4"].iloc[0]
    assert (row["kind"], row["n_a"], row["n_b"], row["value"]) == ("honest", 8, 8, auc)
    assert (table["p_holm"] >= table["p"]).all()
    if auc == 0.5:
        assert row["low"] < 0.5 < row["high"]
    else:
        assert (row["p"] < 0.001) == (auc == 1) and np.isnan(row["low"]), "groups wholly apart have no interval"


def test_a_blank_map_has_a_percentile_of_0_and_an_absent_group_is_not_compared():
    """The lower group's maps are blank: the other exceeds it although no value is left of it."""
    maps = make_maps(q95=(2.0, 1.0)).assign(blank=lambda rows: rows["group"] == "RRMS")
    maps.loc[maps["blank"], "q95"] = np.nan
    assert (depth.percentile_comparison(maps, **DRAWS)["value"] == 1).all()
    alone = depth.percentile_comparison(maps[maps["blank"]], **DRAWS)
    assert alone.empty and {"value", "p_holm"} <= set(alone)


def test_lobes_of_one_group_beside_the_other():
    maps = make_maps()
    table = depth.lobe_table(maps, **DRAWS).set_index(["group", "lobe"])
    frontal = table.loc[("SPMS", "frontal")]
    assert frontal["low"] < 0.5 < frontal["high"] and frontal["brain"] == pytest.approx(1 / 6)
    assert not table["exceeds_others"].any(), "both groups alike"
    less = maps.assign(**{"lobe frontal": maps["lobe frontal"].where(maps["group"] == "SPMS", 0.3)})
    table = depth.lobe_table(less, **DRAWS).set_index(["group", "lobe"])["exceeds_others"]
    assert not table["RRMS", "frontal"], "lower"
    assert not table["SPMS", "frontal"], "a group without an interval is no group that is surely exceeded"
    less["lobe frontal"] += 0.01 * np.sin(np.arange(len(less)))
    assert not depth.lobe_table(less[less["group"] == "SPMS"], **DRAWS)["exceeds_others"].any(), "nobody to exceed"
    table = depth.lobe_table(less, **DRAWS).set_index(["group", "lobe"])["exceeds_others"]
    assert table["SPMS", "frontal"] and table.sum() == 1
    assert depth.lobe_table(maps.drop(columns=[name for name in maps if name.startswith(("lobe", "brain"))]),
                            **DRAWS).empty


def test_maps_of_two_kinds_are_compared_slice_by_slice():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 8, 8))
    common = {"subject": np.array(list("aabbcc")), "slice": np.arange(6), "brain": np.ones((6, 64, 64), bool)}
    name = "gradcam|block4_conv1"
    stored = {("published", 1): common | {name: a}, ("published", 2): common | {name: a**2},
              ("honest", 1): common | {name: b}}
    table = depth.kind_similarity(stored)
    assert table.groupby("pair").size().to_dict() == {"published and published": 6, "honest and published": 12}
    same = table[table["pair"] == "published and published"]
    assert same["spearman"].to_numpy() == pytest.approx(1) and same["trainings"].unique().tolist() == ["1/2"]
    means = mean_by(table, ["pair", "layer"], ["spearman"], **DRAWS).set_index("pair")["value"]
    assert means["published and published"] == pytest.approx(1) and abs(means["honest and published"]) < 0.2


def test_random_maps_are_held_against_those_of_another_patient():
    """At block5_conv4 maps of random networks are as like the original as another patient's, at block4_conv1 more."""
    rng, rows = np.random.default_rng(0), []
    for layer, kept in (("block5_conv4", 0.4), ("block4_conv1", 0.7)):
        common = {"kind": "honest", "backbone": "vgg19", "method": "gradcam", "layer": layer, "slice": 1}
        for number in range(12):
            base, unit = rng.normal(0, 0.2), common | {"subject": f"{number:02d}"}
            rows.append(unit | {"step": "another patient", "draw": 0, "spearman": 0.4 + base})
            rows += [unit | {"step": step, "draw": draw, "spearman": like + base + rng.normal(0, 0.02)}
                     for draw in range(10) for step, like in (("block 5", 0.9), ("blocks 3 to 5", kept))]
    table = depth.randomisation_summary(pd.DataFrame(rows), **DRAWS)
    last = table[table["all_random"]].set_index("layer")
    assert set(last["step"]) == {"blocks 3 to 5"} and len(table) == 4
    assert last["null"].to_numpy() == pytest.approx(0.4, abs=0.15)
    assert last.loc["block4_conv1", "low"] > 0.25 and last.loc["block4_conv1", "high"] < 0.35, "paired"
    assert last.loc["block5_conv4", "low"] < 0 < last.loc["block5_conv4", "high"]


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
    some = np.array([3, 20, 40])
    np.testing.assert_array_equal(lobe_labels(brain, affine, top, some), lobe_labels(brain, affine, top)[some])
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


def test_every_training_is_tested_by_itself():
    maps = make_maps(trainings=(0.0, 0.0))
    for table_of, tests in ((depth.depth_tests, 4), (depth.percentile_comparison, len(LAYERS)),
                            (depth.lobe_table, 2 * len(LOBES))):
        table = table_of(maps, **DRAWS)
        assert table.groupby("seed").size().to_dict() == {1: tests, 2: tests}
    one = depth.percentile_comparison(maps[maps["seed"] == 1], **DRAWS)
    both = depth.percentile_comparison(maps, **DRAWS)
    pd.testing.assert_frame_equal(one, both[both["seed"] == 1].reset_index(drop=True))
