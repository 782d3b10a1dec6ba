"""Evaluation of attribution methods on made-up networks: known importance comes back, good and blind maps differ."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest

from mslib.analysis import attribution
from mslib.analysis.attribution import FAILS, LRP, PASSES, UNDECIDED, UNTESTABLE, Explained
from mslib.explain import METHODS, attribute

SHAPE, SEQUENCES = (16, 12, 3), ("T1w", "T2w", "FLAIR")
SETTINGS = {"superpixels": 3, "samples": 24, "permutations": 1, "steps": 2, "seed": 3275, "precision": "float32"}
DRAWS = {"n": 200, "confidence": 0.95, "seed": 3275}


@pytest.fixture(scope="module")
def model():
    """Two logits that differ by how bright a patch of the third sequence is, and nothing else."""
    kernel = np.zeros((*SHAPE, 2), np.float32)
    kernel[4:8, 3:7, 2] = [-1, 1]
    inputs = keras.Input(SHAPE)
    network = keras.Model(inputs, keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(inputs)))
    network.get_layer("logits").set_weights([kernel.reshape(-1, 2), np.array([4.0, -4.0], np.float32)])
    return network


@pytest.fixture(scope="module")
def slices():
    images = np.random.default_rng(0).uniform(0.3, 1, (8, *SHAPE)).astype(np.float32)
    images[::2, 4:8, 3:7, 2] *= 0.05
    features = np.zeros(images.shape, bool)
    features[:, 4:8, 3:7] = True
    subjects = np.array(list("aabbccdd"))
    return Explained(images, np.arange(8) % 2, np.ones((8, *SHAPE[:2]), bool), features, subjects, 2.0)


def but(slices, **changed):
    return Explained(**vars(slices) | changed)


def scored(maps, slices, model, importance=(0, 0, 1.0)):
    return attribution.score_maps(maps, slices, np.array(importance), model, SEQUENCES)


def test_importance_finds_the_decisive_sequence_on_correctly_classified_slices(model, slices):
    def table_of(explained):
        rows = attribution.slice_importance(model, explained, SEQUENCES, 0)
        return rows, attribution.importance_table(rows.assign(network="net"), "network", SEQUENCES, **DRAWS)

    rows, table = table_of(slices)
    found = table.pivot_table("value", ["baseline", "worth"], "modality")
    assert (found[["T1w", "T2w"]] == 0).all(axis=None) and (found["FLAIR"] > 0).all()
    assert found.loc[("zero", "accuracy"), "FLAIR"] == 0.5, "all correct with it, one class of two without"
    np.testing.assert_array_equal(np.sign(attribution.importance_of(rows, SEQUENCES)), [0, 0, 1])
    assert table[["low", "high"]].isna().all(axis=None), "four subjects have no interval"
    _, more = table_of(but(slices, subjects=np.array(list("abcdefgh"))))
    assert more.loc[more["modality"] == "FLAIR", "low"].notna().any()
    rows, partly = table_of(but(slices, targets=np.where(np.arange(8) < 3, 1 - slices.targets, slices.targets)))
    alone, right = table_of(slices.at(np.arange(3, 8)))
    pd.testing.assert_frame_equal(partly.drop(columns="asked"), right.drop(columns="asked"))
    np.testing.assert_array_equal(*(attribution.importance_of(one, SEQUENCES) for one in (rows, alone)))
    assert set(partly["slices"]) == {5} and set(partly["asked"]) == {8}
    rows, none = table_of(but(slices.at([0]), targets=np.array([1])))
    assert none["value"].isna().all() and set(none["slices"]) == {0} and len(none) == len(table)
    assert np.isnan(attribution.importance_of(rows, SEQUENCES)).all()


def test_slices_gain_from_all_sequences_what_these_add():
    """Of a network that multiplies sequences: the values add up to the gain, slice by slice."""
    inputs = keras.Input(SHAPE)
    product = keras.layers.Lambda(lambda x: 20 * keras.ops.mean(x[..., 0] * x[..., 1] + x[..., 2], (1, 2))[:, None],
                                  output_shape=(1,))(inputs)
    network = keras.Model(inputs, keras.layers.Concatenate()([0 * product, product - 5]))
    images = np.random.default_rng(1).uniform(0, 1, (5, *SHAPE)).astype(np.float32)
    many = Explained(images, np.ones(5, int), np.ones((5, *SHAPE[:2]), bool), images > 0, np.array(list("abcde")), 1.0)
    rows = attribution.slice_importance(network, many, SEQUENCES, 0)
    rows = rows[(rows["baseline"] == "zero") & (rows["worth"] == "cross-entropy")]
    logits = np.stack([network.predict(one, verbose=0)[:, 1] for one in (np.zeros_like(images), images)])
    gain = -np.log1p(np.exp(-logits[1])) + np.log1p(np.exp(-logits[0]))
    np.testing.assert_allclose(rows[list(SEQUENCES)].sum(axis=1), gain, rtol=1e-4)


def test_a_perfect_map_lies_in_the_feature_and_a_uniform_one_has_what_chance_has(model, slices):
    perfect = (slices.features * [0.0, 0.0, 1.0]).astype(np.float32)
    maps = {"gradient": perfect, "occlusion": np.ones_like(perfect), "lime": np.zeros_like(perfect)}
    table = scored(maps, slices, model).groupby("method")
    mean = table[["msfi", "portion", "tau", "share_FLAIR", "msfi_chance", "portion_chance"]].mean()
    left = 0.80  # of a box of 4 pixels along an axis, blurred by one with SD 1
    assert mean.loc["gradient", "msfi"] == mean.loc["gradient", "portion"] == pytest.approx(left**2, abs=0.05)
    assert mean.loc["gradient", "share_FLAIR"] == 1 and mean.loc["gradient", "tau"] > 0.8
    assert mean.loc["occlusion", "msfi"] == pytest.approx(mean.loc["occlusion", "msfi_chance"]) == pytest.approx(1 / 12)
    assert np.isnan(mean.loc["lime", "msfi"])
    assert table["blank"].sum().to_dict() == {"gradient": 0, "lime": 8, "occlusion": 0}
    one_map = scored({"gradcam": np.ones_like(slices.images)}, slices, model)
    assert "tau" not in one_map and "share_FLAIR" not in one_map


def test_where_nothing_is_to_be_marked_no_share_is_defined(model, slices):
    features = slices.features.copy()
    features[:3] = False
    table = scored({"gradient": np.ones_like(slices.images)}, but(slices, features=features), model)
    for name in ("msfi", "portion", "iou", "msfi_chance", "portion_chance"):
        assert table[name].isna().tolist() == [True] * 3 + [False] * 5, name


def test_perturbation_methods_explain_fewer_slices_and_every_table_knows_which(model, slices):
    few = but(slices, few=np.array([1, 3, 6]))
    chosen = ["gradient", "deeplift", "lime", "feature_permutation", LRP + "epsilon_centred"]
    inputs = keras.Input(SHAPE)  # relevance needs a convolution or dense layer at the input
    first = keras.layers.Conv2D(3, 1, use_bias=False)(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(first)))
    network.set_weights([np.eye(3, dtype=np.float32)[None, None], *model.get_weights()])
    maps, seconds = attribution.attribute_all(network, few, chosen, **SETTINGS)
    assert list(seconds) == chosen and [len(raw) for raw in maps.values()] == [8, 8, 3, 3, 8]
    alone, _ = attribution.attribute_all(network, few.at(few.rows()), chosen, **SETTINGS)
    both, part = attribution.of_few(maps, few)
    assert part.subjects.tolist() == ["a", "b", "d"]
    for name in chosen:
        np.testing.assert_allclose(both[name], alone[name], atol=1e-5, err_msg=name)
        assert np.abs(maps[name][..., 2]).max() > 0 and np.abs(maps[name][..., :2]).max() < 1e-4, name
    scores = scored(maps, few, network)
    assert scores.loc[scores["method"] == "lime", "image"].tolist() == [1, 3, 6] and scores["correct"].all()
    local = attribution.localise(maps | {"prior": slices.features.mean(-1)}, few, source="network")
    assert local.groupby("method")["image"].apply(list)["lime"] == [1, 3, 6]
    assert (local.loc[local["method"] == "prior", "auprc"] == 1).all()
    removal = attribution.removal_table(maps, few, network, ["zero", "mean"], 2, 0)
    assert removal["image"].unique().tolist() == [1, 3, 6] and len(removal) == 5 * 2 * 3


def test_localisation_is_held_against_the_location_prior():
    rng = np.random.default_rng(0)
    rows = [{"backbone": net, "source": source, "method": method, "subject": f"{i % 8}", "image": i, "chance": 0.02,
             "auprc": 0.1 + 0.3 * (i % 2) + more + rng.normal(0, 0.01), "precision": 0.2, "blank": False}
            for net in ("vgg16", "vgg19") for i in range(16)
            for source, method, more in (("comparator", "prior", 0), ("network", "deeplift", 0.1),
                                         ("network", "lime", {"vgg16": 0.1, "vgg19": -0.1}[net]),
                                         ("network", "gradcam", 0))
            if method != "lime" or i < 8]
    found = attribution.localisation_table(pd.DataFrame(rows), **DRAWS).set_index(["backbone", "method", "measure"])
    gain = found.xs("gain", level="measure")
    assert gain.loc[("vgg16", "deeplift"), "value"] == pytest.approx(0.1, abs=0.01)
    assert gain.loc[("vgg16", "deeplift"), "low"] > 0.08, "what slices have in common is no uncertainty"
    assert found.loc[("vgg19", "lime", "auprc"), ["slices", "chance", "blank"]].tolist() == [8, 0.02, 0]
    blank = pd.DataFrame(rows)
    half = (blank["method"] == "deeplift") & (blank["image"] % 4 < 2)
    blank.loc[half, ["auprc", "precision", "chance"]] = np.nan
    other = attribution.localisation_table(blank.assign(blank=half), **DRAWS).set_index(list(found.index.names))
    assert other.loc[("vgg16", "deeplift", "auprc"), ["slices", "blank"]].tolist() == [16, 0.5]
    assert other.loc[("vgg16", "deeplift", "gain"), "value"] < gain.loc[("vgg16", "deeplift"), "value"] - 0.1
    checked = attribution.checks(made_up(), NOTHING, found.reset_index())
    assert checked["localises above prior"][["deeplift", "lime", "gradcam", "gradient"]].tolist() == [
        PASSES, FAILS, UNDECIDED, UNTESTABLE]


def test_removal_rewards_the_map_that_the_network_needs(model, slices):
    bright = slices.at(np.arange(1, 8, 2))
    patch = (bright.features * [0.0, 0.0, 1.0]).astype(np.float32)
    elsewhere = (~bright.features * [0.0, 1.0, 0.0]).astype(np.float32)
    table = attribution.removal_table({"gradient": patch, "lime": elsewhere}, bright, model, ["zero", "mean"], 3, 0)
    mean = table.groupby(["method", "baseline"])["delta"].mean()
    assert mean["gradient", "zero"] > 0.2 and mean["lime"].max() < 0.05


def test_parameters_of_the_study_are_those_of_the_methods():
    given = {name: value for name, value in SETTINGS.items() if name != "superpixels"}
    for name in METHODS:
        chosen = attribution.method_parameters(name, **given, pixel_mm=1.0)
        assert set(chosen) - {"precision"} <= set(METHODS[name].parameters)
        assert "precision" not in chosen or METHODS[name].family == "perturbation"
    assert attribution.method_parameters("occlusion", **given, pixel_mm=2.0)["window"] == 11
    assert attribution.method_overview(**SETTINGS, pixel_mm=1.0)["method"].tolist() == list(METHODS)


def test_a_map_that_follows_the_network_does_not_survive_random_weights(model, slices):
    maps = {"gradient": attribute("gradient", model, slices.images, slices.targets)}
    maps["lime"] = maps["gradient"][[0, 3, 5]]
    few = but(slices, few=np.array([0, 3, 5]))
    found = attribution.randomised_similarity(model, maps, few, lowest={"output": "logits"}, **SETTINGS)
    assert found["method"].tolist() == ["gradient"] * 3 + ["lime"] * 3
    found = found[found["method"] == "gradient"]
    assert set(found["random"]) == {"output"} and found["subject"].tolist() == ["a", "b", "c"]
    assert found["similarity"].abs().max() < 0.3


def test_repeated_maps_are_alike_but_for_their_size_and_sign(slices):
    maps, others = ({name: np.random.default_rng(seed).normal(size=slices.images.shape) for seed, name in seeds}
                    for seeds in (((0, "gradient"), (1, "lime")), ((0, "gradient"), (2, "lime"))))
    found = attribution.repeat_similarity(maps, others | {"gradient": -2 * others["gradient"]}, slices)
    found = found.groupby("method")["similarity"]
    assert found.min()["gradient"] == pytest.approx(1) and found.mean().abs()["lime"] < 0.1


def test_the_last_step_of_the_randomisation_counts_with_its_interval():
    rows = pd.DataFrame([{"method": name, "step": step, "subject": f"{i:02d}",
                          "similarity": 0.9 if step == 1 else 0.2 + 0.01 * i, **dict.fromkeys(attribution.SCORES, 0.5),
                          "blank": i > 6, "baseline": "zero", "delta": 0.1}
                         for name in METHODS for step in (1, 2) for i in range(9)])
    table = attribution.method_table(rows[rows["step"] == 1], rows[rows["step"] == 1], rows, rows, **DRAWS)
    assert list(table.index) == list(METHODS) and (table["blank"] == 2).all() and (table["slices"] == 9).all()
    np.testing.assert_allclose(table[["random", "msfi", "delta_zero"]], [[0.24, 0.5, 0.1]] * len(METHODS))
    assert table["random_low"].between(0.2, 0.24).all() and table["random_high"].between(0.24, 0.28).all()
    repeat = rows[rows["step"] == 2].assign(similarity=lambda rows: rows["similarity"] + 0.1)
    paired = attribution.method_table(rows[rows["step"] == 1], rows[rows["step"] == 1], rows, repeat, **DRAWS)
    np.testing.assert_allclose(paired["repeat_gain"], 0.1)


def test_a_network_that_needs_no_sequence_is_left_out(model, slices):
    maps = {name: np.ones_like(slices.images) for name in ("gradient", "gradcam", "lime")}
    useless, useful = (scored(maps, slices, model, weights) for weights in ((-1.0, 0, -2), (0, 0, 1.0)))
    assert useless[["msfi", "portion", "msfi_chance"]].isna().all(axis=None) and useless["iou"].notna().all()
    removal, random = useless.assign(baseline="zero", delta=0.1), useless.assign(step=1, similarity=0.1)
    both, alone = (attribution.method_table(table, removal, random, random, **DRAWS)
                   for table in (pd.concat([useful, useless]), useless))
    np.testing.assert_allclose(both["msfi"], useful["msfi_chance"].iloc[0])
    assert alone["msfi"].isna().all() and "msfi" not in attribution.shown_measures(alone)


def test_the_advantage_over_the_best_other_method_is_paired():
    rng = np.random.default_rng(0)
    hardness, levels = rng.uniform(0, 10, 9), {"guided_backprop": 1, "guided_gradcam": -1, "lime": 0, "gradcam": -3}
    rows = pd.concat([pd.DataFrame({"method": name, "experiment": "T1w", "image": range(9),
                                    "subject": list("abcdefghi"), "msfi": hardness + level + rng.normal(0, 0.01, 9)})
                      for name, level in levels.items()])
    few = rows[(rows["method"] == "lime") & (hardness[rows["image"]] > np.median(hardness))]
    rows = pd.concat([rows, few.assign(method="occlusion", msfi=few["msfi"] - 0.5)])
    assert rows.groupby("method")["msfi"].mean().drop("guided_backprop").idxmax() == "occlusion", "of easy slices alone"
    found = attribution.advantage(rows, ["guided_backprop", "guided_gradcam"], **DRAWS).set_index("method")
    assert (found["other"] == "lime").all() and (found["subjects"] == 9).all()
    np.testing.assert_allclose(found["value"], [1, -1], atol=0.02)
    assert (found["high"] - found["low"] < 0.1).all(), "what slices have in common is no uncertainty"


NOTHING = pd.DataFrame({"method": [], "low": [], "high": []})


def made_up(**columns):
    """A table of methods that pass every check, but for what is set below."""
    return pd.DataFrame({
        "random_low": 0.0, "random_high": 0.2, "repeat_gain_low": 0.3, "repeat_gain_high": 0.6, "delta_zero": 0.1,
        "delta_zero_low": 0.05, "delta_zero_high": 0.2, "delta_mean": 1e-5, "delta_mean_low": -1e-5,
        "delta_mean_high": 1e-5} | columns,
        index=pd.Index(list(METHODS), name="method"))


def test_checks_tell_failure_from_what_is_open_and_what_cannot_be_tested():
    table = made_up()
    ends = ["random_low", "random_high", "repeat_gain_low", "repeat_gain_high"]
    table.loc["guided_backprop", ends], table.loc["gradcam", ends] = [0.7, 0.9, -0.4, -0.2], np.nan
    table.loc["lime", ends] = [-0.6, -0.5, -0.1, 0.2]
    table.loc["smoothgrad", "random_high"] = 0.6
    table.loc["occlusion", "delta_zero_low"] = table.loc["gradient", "delta_zero_low"] = -0.1
    table.loc["occlusion", "delta_zero_high"] = 0.0
    lows = {"gradient": (0.1, 0.2), "deeplift": (0.1, -0.2), "lime": (0.1, np.nan), "kernel_shap": (np.nan, -0.2),
            "smoothgrad": (0.1, -0.05)}
    margins = pd.DataFrame([{"method": name, "low": low, "high": low + 0.1} for name, values in lows.items()
                            for low in values])
    exposed = pd.DataFrame(
        {"value": [0.3, 0.01, 0.3, 0.02], "low": [0.2, 0.0, np.nan, 0.01], "high": [0.4, 0.02, np.nan, 0.05],
         "chance": 0.01, "exposed": pd.array([True, False, pd.NA, False], "boolean")},
        index=["deeplift", "occlusion", "lime", "gradient"])
    found = attribution.checks(table, margins, pd.DataFrame(), exposed)
    assert attribution.cannot_order(table) == ["delta_mean"], "a silent baseline fails nobody"
    expected = {"randomisation": {"guided_backprop": FAILS, "gradcam": UNTESTABLE, "smoothgrad": UNDECIDED},
                "repeat": {"guided_backprop": FAILS, "gradcam": UNTESTABLE, "lime": UNDECIDED},
                "removal": {"occlusion": FAILS, "gradient": UNDECIDED}}
    for check, others in expected.items():
        assert found[check].to_dict() == {name: others.get(name, PASSES) for name in METHODS}, check
    assert found["sequence found"][list(lows)].tolist() == [PASSES, FAILS, UNTESTABLE, FAILS, UNDECIDED]
    assert (found["sequence found"].drop(list(lows)) == UNTESTABLE).all()
    assert found["shortcut exposed"][list(exposed.index)].tolist() == [PASSES, FAILS, UNTESTABLE, UNDECIDED]
    assert (found["localises above prior"] == UNTESTABLE).all(), "no network that lesions alone can decide"
    assert (attribution.checks(table, margins, pd.DataFrame())["shortcut exposed"] == UNTESTABLE).all()


def test_a_missing_interval_does_not_hide_a_failure():
    table = made_up(delta_mean=0.1, delta_mean_low=np.nan)
    table.loc["lime", ["delta_zero_low", "delta_zero_high"]] = -0.1
    found = attribution.checks(table, NOTHING, pd.DataFrame())["removal"]
    assert found["lime"] == FAILS and (found.drop("lime") == UNTESTABLE).all()
    silent = attribution.checks(made_up(delta_zero=0.0), NOTHING, pd.DataFrame())
    assert (silent["removal"] == UNTESTABLE).all()
