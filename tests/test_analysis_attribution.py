"""Evaluation of attribution methods on made-up networks: known importance comes back, good and blind maps differ."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from mslib.analysis import attribution
from mslib.analysis.attribution import FAILS, PASSES, UNTESTABLE, Explained
from mslib.explain import METHODS, attribute

SHAPE, SEQUENCES = (16, 12, 3), ("T1w", "T2w", "FLAIR")
SUBJECTS = np.array(list("aabbccdd"))
SETTINGS = {"superpixels": 3, "samples": 24, "permutations": 1, "steps": 2, "seed": 3275}
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
    return Explained(images, np.arange(8) % 2, np.ones((8, *SHAPE[:2]), bool), features, SUBJECTS)


def scored(maps, slices, model, importance=(0, 0, 1.0)):
    return attribution.score_maps(maps, slices, np.array(importance), model, SEQUENCES, 3)


def asked(model, slices):
    return model, slices.images, slices.targets


def test_importance_finds_the_decisive_sequence(model, slices):
    table = attribution.importance_table(*asked(model, slices), slices.brain, SUBJECTS, SEQUENCES, **DRAWS)
    for (_, worth), part in table.groupby(["baseline", "worth"]):
        values = part.set_index("modality")["value"]
        assert values["T1w"] == values["T2w"] == 0, worth
        assert values.sum() == pytest.approx((part["all"] - part["nothing"]).iloc[0])
    known = table[(table["baseline"] == "zero") & (table["worth"] == "accuracy")].set_index("modality")
    assert known.loc["FLAIR", "value"] == pytest.approx(0.5), "all correct with it, one class of two without"
    np.testing.assert_array_equal(np.sign(attribution.importance_of(table, SEQUENCES)), [0, 0, 1])
    assert table[["low", "high"]].isna().all(axis=None), "four subjects have no interval"
    more = attribution.importance_table(*asked(model, slices), slices.brain, list("abcdefgh"), SEQUENCES, **DRAWS)
    assert more.loc[more["modality"] == "FLAIR", "low"].notna().any()


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


def test_grad_cam_has_no_shares_of_sequences(model, slices):
    table = scored({"gradcam": np.ones_like(slices.images)}, slices, model)
    assert "tau" not in table and "share_FLAIR" not in table


def test_where_nothing_is_to_be_marked_no_share_is_defined(model, slices):
    features = slices.features.copy()
    features[:3] = False
    bare = Explained(slices.images, slices.targets, slices.brain, features, SUBJECTS)
    table = scored({"gradient": np.ones_like(slices.images)}, bare, model)
    for name in ("msfi", "portion", "iou", "msfi_chance", "portion_chance"):
        assert table[name].isna().tolist() == [True] * 3 + [False] * 5, name


def test_superpixels_of_the_shapley_methods_add_up(model, slices):
    groups, _ = attribution.feature_groups(slices.images, slices.brain, 3)
    maps = {name: attribute(name, *asked(model, slices), groups=groups, **more)
            for name, more in (("shapley_sampling", {}), ("kernel_shap", {"samples": 200}))}
    maps |= {"lime": maps["kernel_shap"], "kernel_shap": 2 * maps["kernel_shap"]}
    gap = scored(maps, slices, model).groupby("method")["gap"].mean()
    assert gap["shapley_sampling"] < 1e-3 and gap["kernel_shap"] == pytest.approx(1, abs=1e-3)
    assert np.isnan(gap["lime"])


def test_removal_rewards_the_map_that_the_network_needs(model, slices):
    bright = slices.at(slice(1, None, 2))
    patch = (bright.features * [0.0, 0.0, 1.0]).astype(np.float32)
    elsewhere = (~bright.features * [0.0, 1.0, 0.0]).astype(np.float32)
    table = attribution.removal_table({"gradient": patch, "lime": elsewhere}, bright, model, ["zero", "mean"], 3, 0)
    mean = table.groupby(["method", "baseline"])["delta"].mean()
    assert mean["gradient", "zero"] > 0.2 and mean["lime"].max() < 0.05


def test_a_silent_baseline_orders_no_methods():
    delta = {"zero": [0.3, 0.2, 0.1], "mean": [0.03, 0.02, 0.04], "noise": [3e-4, -2e-4, 1e-4]}
    table = pd.DataFrame([{"method": f"m{i}", "baseline": name, "delta": value}
                          for name, values in delta.items() for i, value in enumerate(values)])
    found = attribution.baseline_agreement(table).set_index(["baseline", "other baseline"])["tau"]
    assert found["mean", "zero"] == pytest.approx(-1 / 3) and found.drop(("mean", "zero")).isna().all()


def test_every_method_runs_with_the_parameters_of_the_study(model, slices):
    given = {name: value for name, value in SETTINGS.items() if name != "superpixels"}
    for name in METHODS:
        assert set(attribution.method_parameters(name, **given)) <= set(METHODS[name].parameters)
    assert attribution.method_overview(**SETTINGS)["method"].tolist() == list(METHODS)
    small = ["feature_ablation", "feature_permutation", "lime", "kernel_shap", "shapley_sampling", "deeplift"]
    maps, seconds = attribution.attribute_all(*asked(model, slices), slices.brain, small, **SETTINGS)
    assert list(maps) == list(seconds) == small and min(seconds.values()) > 0
    for name, values in maps.items():
        assert np.abs(values[..., 2]).max() > 0, name
        if name not in ("feature_permutation", "lime"):
            assert np.abs(values[..., :2]).max() < 1e-4 * np.abs(values[..., 2]).max(), f"{name}: without effect"


def test_a_map_that_follows_the_network_does_not_survive_random_weights(model, slices, monkeypatch):
    monkeypatch.setattr(attribution, "STEPS", {"nothing": "none", "logits": "logits"})
    maps = {"gradient": attribute("gradient", *asked(model, slices))}
    found = attribution.randomised_similarity(model, maps, slices, ["logits"], **SETTINGS)
    assert set(found["step"]) == {2} and found["subject"].tolist() == SUBJECTS.tolist()
    assert found["similarity"].abs().max() < 0.3
    with pytest.raises(ValueError, match="lowest: must be a layer of the model"):
        attribution.randomised_similarity(model, maps, slices, ["nothing"], **SETTINGS)
    for wrong in (["logit"], "logits"):
        with pytest.raises(ValueError, match=r"cascade: must be a collection of some of \['nothing', 'logits'\] "):
            attribution.randomised_similarity(model, maps, slices, wrong, **SETTINGS)


def test_maps_that_depend_on_each_other_are_compared_for_the_same_images(model, slices, monkeypatch):
    """The weights stay as they are: the similarity is 1 if nothing else differs."""
    monkeypatch.setattr(attribution, "STEPS", {"logits": "logits"})
    monkeypatch.setattr(attribution, "RANDOMISED", 4)
    monkeypatch.setattr(attribution, "randomised_copy", lambda network, *_: network)
    maps, _ = attribution.attribute_all(*asked(model, slices), slices.brain, ["feature_permutation"], **SETTINGS)
    found = attribution.randomised_similarity(model, maps, slices, ["logits"], **SETTINGS)
    assert len(found) == 4
    np.testing.assert_allclose(found["similarity"], 1)


def test_repeated_maps_are_alike_but_for_their_size_and_sign(slices):
    rng = np.random.default_rng(0)
    maps = {"gradient": rng.normal(size=slices.images.shape), "lime": rng.normal(size=slices.images.shape)}
    others = {"gradient": -2 * maps["gradient"], "lime": rng.normal(size=slices.images.shape)}
    found = attribution.repeat_similarity(maps, others, slices.brain, SUBJECTS).groupby("method")["similarity"]
    assert found.min()["gradient"] == pytest.approx(1) and found.mean().abs()["lime"] < 0.1


def test_informative_maps_are_better_where_the_network_is_correct():
    correct = np.arange(12) % 2 == 0
    table = pd.DataFrame({"method": "gradient", "msfi": np.where(correct, 0.9, 0.1) + np.arange(12) / 100,
                          "correct": correct, "probability": np.where(correct, 0.8, 0.2) + np.arange(12) / 100})
    found = attribution.informativeness(pd.concat([table, table.assign(method="lime", msfi=0.5)])).round(3)
    assert found.loc["gradient", "rho"] == 1 and found.loc["gradient", "p_correct"] < 0.01
    assert np.isnan(found.loc["lime", "rho"]) and found.loc["lime", "p_correct"] > 0.4
    assert np.isnan(attribution.informativeness(table.assign(correct=True)).loc["gradient", "p_correct"])
    assert np.isnan(attribution.informativeness(table[:2]).loc["gradient", "rho"]), "two maps have no correlation"


def test_the_last_step_of_the_randomisation_counts_with_its_interval():
    rows = [{"method": name, "step": step, "random": f"step {step}", "subject": f"{i:02d}", "image": i,
             "similarity": 0.9 if step == 1 else 0.2 + 0.01 * i, **dict.fromkeys(attribution.SCORES, 0.5),
             "blank": False, "correct": i % 2 == 0, "probability": 0.5 + 0.01 * i, "baseline": "zero", "delta": 0.1}
            for name in METHODS for step in (1, 2) for i in range(9)]
    rows = pd.DataFrame(rows)
    table = attribution.method_table(rows[rows["step"] == 1], rows[rows["step"] == 1], rows, **DRAWS)
    np.testing.assert_allclose(table["random"], 0.24)
    assert table["random_low"].between(0.2, 0.24).all() and table["random_high"].between(0.24, 0.28).all()
    steps = attribution.by_step(rows, **DRAWS)
    np.testing.assert_allclose(steps["value"].to_numpy().reshape(-1, 2), [[0.9, 0.24]] * len(METHODS))


def test_a_network_that_needs_no_sequence_is_left_out(model, slices):
    maps = {name: np.ones_like(slices.images) for name in METHODS}
    useless, useful = (scored(maps, slices, model, weights) for weights in ((-1.0, 0, -2), (0, 0, 1.0)))
    assert useless[["msfi", "portion", "msfi_chance"]].isna().all(axis=None) and useless["iou"].notna().all()
    removal = useless.assign(baseline="zero", delta=0.1)
    random = useless.assign(step=1, similarity=0.1)
    both, alone = (attribution.method_table(table, removal, random, **DRAWS)
                   for table in (pd.concat([useful, useless]), useless))
    np.testing.assert_allclose(both["msfi"], useful["msfi_chance"].iloc[0])
    assert alone["msfi"].isna().all() and "msfi" not in attribution.shown_measures(alone)
    assert (attribution.checks(alone)["marks the features more than chance"] == UNTESTABLE).all()


def test_the_advantage_over_the_best_other_method_is_paired():
    rng = np.random.default_rng(0)
    hardness, levels = rng.uniform(0, 10, 9), {"guided_backprop": 1, "guided_gradcam": -1, "lime": 0, "gradcam": -3}
    rows = pd.concat([pd.DataFrame({"method": name, "image": range(9), "subject": list("abcdefghi"),
                                    "msfi": hardness + level + rng.normal(0, 0.01, 9)})
                      for name, level in levels.items()])
    found = attribution.advantage(rows, ["guided_backprop", "guided_gradcam"], **DRAWS).set_index("method")
    assert (found["other"] == "lime").all()
    np.testing.assert_allclose(found["value"], [1, -1], atol=0.02)
    assert (found["high"] - found["low"] < 0.1).all(), "what slices have in common is no uncertainty"


def test_networks_that_order_the_methods_alike_agree():
    order = np.arange(16.0)
    one = pd.DataFrame({"msfi": order, "random": 0.1, "tau": np.nan, "portion": order, "delta_zero": order * 1e-6,
                        "delta_mean": np.where(order < 8, order * 1e-6, order), "slices": 8}, index=list(METHODS))
    other = one.assign(msfi=-order)
    found = attribution.network_agreement({"vgg16": one, "vgg19": one + 1, "third": other})
    msfi = found[found["measure"] == "MSFI"]
    assert msfi["tau"].tolist() == [1, -1, -1] and (msfi["methods"] == 16).all()
    assert set(found["measure"]) == {"MSFI", "ΔAUPC mean"}, "all alike, noise or not of one sequence: no order"
    shuffled = one.assign(delta_mean=np.where(order < 8, order[::-1] * 1e-6, order))
    agreement = attribution.network_agreement({"a": one, "b": shuffled}).set_index("measure")["tau"]
    assert agreement["ΔAUPC mean"] == 1
    signs = attribution.network_agreement({"a": one.assign(random=order / 20), "b": one.assign(random=-order / 20)})
    assert signs.set_index("measure").loc["randomised", "tau"] == 1, "the distance from 0 counts"
    by_chance = [kendalltau(order, np.random.default_rng(i).permutation(16)).statistic for i in range(400)]
    assert np.mean(np.abs(by_chance) <= msfi["chance"].iloc[0]) == pytest.approx(0.95, abs=0.03)
    assert attribution.network_agreement({"vgg16": one}).empty
    assert attribution.network_agreement({"vgg16": one, "few": one.assign(slices=4)}).empty


def test_importance_comes_over_all_settings_and_not_of_a_handful():
    rows = pd.DataFrame([
        {"worth": worth, "baseline": baseline, "modality": modality, "value": value, "low": 0.0, "nothing": 0,
         "all": sum(values)}
        for worth, baseline, values in (("accuracy", "zero", (1, 2, 0)), ("accuracy", "mean", (2, 1, 0)),
                                        ("cross-entropy", "zero", (2, 1, 0)), ("cross-entropy", "mean", (1, 1, 0)),
                                        ("accuracy", "noise", (-1, -2, -3)), ("cross-entropy", "noise", (1, 0, -4)))
        for modality, value in zip(SEQUENCES, values)])
    assert attribution.first_by_importance(rows) == {"T1w": 2, "T2w": 1, "a tie": 1, "none": 2}
    assert attribution.first_by_importance(rows.assign(low=np.nan)) == {}


@pytest.mark.parametrize(("low", "values", "last"), [
    (0.1, (3, 1, 0), [0.75, 0.25, 0]), (np.nan, (3, 1, 0), None), (0.1, (-3, -1, 0), None)])
def test_no_importance_of_a_handful_beside_the_maps_shares(low, values, last):
    shares = pd.DataFrame({"method": ["deeplift"], **{f"share_{name}": [1 / 3] for name in SEQUENCES}})
    importance = pd.DataFrame({"baseline": "zero", "worth": "cross-entropy", "modality": list(SEQUENCES),
                               "value": values, "low": low})
    table = attribution.share_table(shares, importance, SEQUENCES).set_index("method")
    assert list(table.index) == ["deeplift"] + ["exact Shapley value of the sequence"] * (last is not None)
    if last is not None:
        np.testing.assert_allclose(table.iloc[-1].astype(float), last)


def made_up():
    """A table of methods that pass every check, but for what is set below."""
    return pd.DataFrame({"msfi": 0.3, "msfi_low": 0.2, "msfi_chance": 0.1, "random": 0.1, "gap": np.nan,
                         "delta_zero": 0.1, "delta_zero_low": 0.05, "delta_mean": 1e-5, "delta_mean_low": -1e-5},
                        index=pd.Index(list(METHODS), name="method"))


def test_checks_tell_failure_from_what_cannot_be_tested():
    table = made_up()
    table.loc["smoothgrad", "msfi_low"], table.loc["lime", "msfi_low"] = 0.05, np.nan
    table.loc["guided_backprop", "random"], table.loc["gradcam", "random"] = 0.8, np.nan
    table.loc["occlusion", "delta_zero_low"] = -0.1
    table.loc["deeplift", "gap"], table.loc["gradient_shap", "gap"] = 0.01, 0.3
    exposed = pd.DataFrame({"exposed": pd.array([True, False, pd.NA], "boolean")},
                           index=["deeplift", "occlusion", "lime"])
    found = attribution.checks(table, exposed)
    assert attribution.cannot_order(table) == ["delta_mean"], "a silent baseline fails nobody"
    expected = {"map of its own per sequence": {"gradcam": FAILS},
                "marks the features more than chance": {"smoothgrad": FAILS, "lime": UNTESTABLE},
                "changes with the network's weights": {"guided_backprop": FAILS, "gradcam": UNTESTABLE},
                "marks what the network needs": {"occlusion": FAILS}}
    for check, others in expected.items():
        assert found[check].to_dict() == {name: others.get(name, PASSES) for name in METHODS}, check
    assert found["adds up"].drop(["deeplift", "gradient_shap"]).eq(UNTESTABLE).all()
    assert found["adds up"][["deeplift", "gradient_shap"]].tolist() == [PASSES, FAILS]
    assert found["exposes the shortcut"][["deeplift", "occlusion", "lime"]].tolist() == [PASSES, FAILS, UNTESTABLE]
    assert "exposes the shortcut" not in attribution.checks(table)


def test_a_missing_interval_does_not_hide_a_failure():
    table = made_up().assign(delta_mean=0.1, delta_mean_low=np.nan)
    table.loc["lime", "delta_zero_low"] = -0.1
    found = attribution.checks(table)["marks what the network needs"]
    assert found["lime"] == FAILS and (found.drop("lime") == UNTESTABLE).all()
    silent = made_up().assign(delta_zero=0.0)
    assert (attribution.checks(silent)["marks what the network needs"] == UNTESTABLE).all()
