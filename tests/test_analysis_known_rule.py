"""What methods say of networks with a known decision rule: the cue, the layer and the shortcut come back."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest
from test_known_rule import head

from mslib.analysis import known_rule
from mslib.analysis.attribution import Explained
from mslib.analysis.relevance import INSIDE, LIFT
from mslib.nets.known_rule import Experiment, experiments, shortcut_mask

SEQUENCES, MM = ("T1w", "T2w", "FLAIR"), 2.0
SHAPE = (96, 84, 3)
DRAWS = {"n": 200, "confidence": 0.95, "seed": 3275}
LAYERS = ("block3_conv3", "block5_conv3")


def people(n=24):
    """Slices of six subjects."""
    return head(n, SHAPE[:2], "abcdef")


def reader(score):
    """A network that computes its second logit by a function of the images."""
    inputs = keras.Input(SHAPE)
    value = keras.layers.Lambda(score, output_shape=(1,))(inputs)
    return keras.Model(inputs, keras.layers.Concatenate()([0 * value, value]))


def stripes(images):
    """Stripes of the second class run along rows in FLAIR: their grey values differ between columns."""
    flair = images[..., 2]
    across, along = flair[:, :, 1:] - flair[:, :, :-1], flair[:, 1:] - flair[:, :-1]
    ops = keras.ops
    return ops.expand_dims(ops.mean(across**2, (1, 2)) - ops.mean(along**2, (1, 2)), -1)


def corner(images):
    return keras.ops.mean(images[:, 1:9, 1:9, 2], (1, 2))[:, None] - 0.1


def test_the_cue_that_a_network_uses_comes_back():
    def use(score, name):
        experiment = next(one for one in experiments(SEQUENCES) if one.name == name)
        answers = known_rule.answers_to_cues(reader(score), experiment, people(), SEQUENCES, MM, 7)
        return known_rule.accuracy_by_cue(answers.assign(training=1), **DRAWS)

    flair = use(stripes, "FLAIR").set_index("cue")["value"]
    assert flair["FLAIR"] == 1 and flair[["T1w", "T2w"]].between(0.2, 0.8).all()
    own, other = (use(score, "shortcut") for score in (corner, stripes))
    assert own["value"].tolist() == [1, 0] and own["subjects"].tolist() == [6, 6]
    assert known_rule.learnt_shortcut(own) and not known_rule.learnt_shortcut(other)


def test_marks_are_what_a_map_should_show():
    marked = Experiment("FLAIR", 2).marked(people(), MM, 0)
    explained = known_rule.explained_marks(marked, MM)
    assert explained.images.dtype == np.float32 and explained.features is marked.marks
    assert explained.targets.tolist() == marked.slices.table["target"].tolist()
    assert explained.at([3]).subjects.tolist() == ["a"]


def test_networks_that_follow_their_rule_and_the_sequence_that_a_method_finds():
    use = pd.DataFrame([("T1w", "T1w", 0.97, 0.95), ("T1w", "T2w", 0.97, 0.95), ("T2w", "T2w", 0.95, 0.85),
                        ("FLAIR", "FLAIR", 1.0, np.nan), ("shortcut", "corner", 1.0, 0.9)],
                       columns=["experiment", "cue", "value", "low"])
    use = pd.concat([use.assign(training=1), use.query("experiment == 'T2w'").assign(training=2, low=0.94)])
    assert [known_rule.learnt_rules(use), known_rule.learnt_rules(use, training=2)] == [["T1w", "FLAIR"], ["T2w"]]
    rng, rows = np.random.default_rng(0), []
    for experiment, decisive in (("T1w", 0.5), ("T2w", 0.2), ("FLAIR", 0.1)):
        for subject in "aabbccddeeff":
            shares = dict(zip(SEQUENCES, (0.3, 0.25, 0.2))) | {experiment: decisive}
            common = {"experiment": experiment, "subject": subject}
            rows.append({"method": "lime"} | common | {
                f"share_{name}": value + rng.normal(0, 0.01) for name, value in shares.items()})
            rows.append({"method": "gradcam"} | common)
    found = known_rule.decisive_margins(pd.DataFrame(rows), "method", "share", SEQUENCES, **DRAWS)
    assert found["experiment"].tolist() == list(SEQUENCES) and set(found["method"]) == {"lime"}
    np.testing.assert_allclose(found[["decisive", "value"]], [[0.5, 0.25], [0.2, -0.1], [0.1, -0.2]], atol=0.01)
    assert found["low"][0] > 0.2 and found["high"][2] < -0.15


def test_the_margin_is_that_to_the_next_sequence_and_paired():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 40)[:, None]
    shares = np.array([40, 30, 35.0]) + [1, 0, 1] * common + rng.normal(0, 0.1, (40, 3))
    np.testing.assert_allclose(known_rule.margin(shares, 0), 5, atol=0.6)
    np.testing.assert_allclose(known_rule.margin(shares, 2), -5, atol=0.6)
    shares[:, 2] = np.nan
    assert known_rule.margin(shares, 0).mean() == pytest.approx(10 + common.mean(), abs=0.1)


def test_relevance_of_the_decisive_sequence_stands_beside_intensity_and_mark():
    rows = pd.DataFrame([{
        "experiment": "T2w", "rule": rule, "subject": subject, "intensity_T1w": 60.0, "intensity_T2w": 20.0,
        "intensity_FLAIR": 20.0, "absolute_T1w": 50.0, "absolute_T2w": 40.0, "absolute_FLAIR": 10.0,
        **{f"positive_{name}": 1.0 for name in SEQUENCES}, **{f"inside_{name}": 30.0 for name in SEQUENCES},
        **{f"uniform_{name}": 5.0 for name in SEQUENCES}} for rule in ("epsilon", "gamma") for subject in "abcdef"])
    table = known_rule.known_rule_shares(rows, SEQUENCES, **DRAWS)
    assert table.drop_duplicates("modality").set_index("modality")["role"].to_dict() == {
        "T2w": "decisive", "FLAIR": "correlated", "T1w": "irrelevant"}, "cyclically"
    value = table[table["rule"] == "gamma"].set_index(["role", "kind"])[["value", "chance"]]
    for kind, expected in (("absolute", (40, 20)), (LIFT, (2, 1)), (INSIDE, (30, 5))):
        assert value.loc[("decisive", kind)].tolist() == list(expected), kind
    margins = [known_rule.decisive_margins(rows, "rule", kind, SEQUENCES, **DRAWS) for kind in ("absolute", LIFT)]
    assert [one["value"].tolist() for one in margins] == [[-10, -10], [pytest.approx(2 - 5 / 6)] * 2]


def of_layers(values):
    """Per-slice scores of one network by layer, as of `layer_scores`."""
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 0.1, 9)
    return pd.concat([pd.DataFrame({
        "method": method, "layer": layer, "image": range(9), "subject": list("abcdefghi"),
        "msfi": value + hardness + rng.normal(0, 0.005, 9), "chance": 0.1, "blank": False})
        for method in ("gradcam", "guided_gradcam") for layer, value in zip(LAYERS, values)], ignore_index=True)


def test_an_earlier_layer_repairs_grad_cam_beyond_its_interval():
    both = pd.concat([of_layers((0.6, 0.3)).assign(experiment="T1w"), of_layers((0.6, 0.6)).assign(experiment="T2w")])
    gain = known_rule.layer_gain(both, **DRAWS).query("method == 'gradcam'").set_index(["experiment", "compared"])
    assert (gain["layer"] == LAYERS[0]).all() and (gain["last"] == LAYERS[1]).all()
    assert gain.loc[("T1w", "last layer"), "value"] == pytest.approx(0.3, abs=0.02)
    assert gain.loc[("T1w", "last layer"), "low"] > 0.2 and (gain.xs("chance", level=1)["low"] > 0.2).all()
    assert gain.loc[("T2w", "last layer"), "low"] < 0.03 and gain.loc[("T2w", "last layer"), "high"] < 0.1
    worse = known_rule.layer_gain(of_layers((0.3, 0.6)).assign(experiment="T1w"), **DRAWS).iloc[0]
    assert worse["layer"] == LAYERS[0] and worse["high"] < -0.2, "where the last layer is best none repairs it"


def test_a_network_that_needs_no_sequence_is_left_out_of_the_gain():
    lost = of_layers((0.6, 0.3)).assign(experiment="b", msfi=np.nan, chance=np.nan)
    own = of_layers((0.6, 0.3)).assign(experiment="a")
    assert set(known_rule.layer_gain(pd.concat([own, lost]), **DRAWS)["experiment"]) == {"a"}
    assert known_rule.layer_gain(lost, **DRAWS).empty


def shortcut_of(maps, shown):
    images = np.full((8, *SHAPE), 0.2, np.float32)
    images[:, :30] = 0
    slices = Explained(images, np.zeros(8, int), (images > 0).any(-1), np.zeros(images.shape, bool),
                       np.array(list("abcdefgh")), MM, np.arange(7))
    return known_rule.shortcut_table(known_rule.shortcut_shares(maps, slices, shown, 5), **DRAWS).set_index("method")


def test_the_shortcut_is_exposed_by_attribution_on_it():
    square, rng = shortcut_mask(SHAPE[:2], MM), np.random.default_rng(0)
    on = np.zeros((8, *SHAPE), np.float32)
    on[:, square] = rng.uniform(0.5, 1, (8, square.sum(), 3))
    on[:, 50, 40] = np.arange(8)[:, None]
    uniform, every = np.ones_like(on), np.arange(8) > -1
    maps = {"gradient": on, "smoothgrad": uniform, "occlusion": np.zeros_like(on[:7]), "gradcam": 0 * on,
            "lime": uniform[:7], "feature_permutation": uniform[:7], "LRP epsilon": on}
    table = shortcut_of(maps, every)
    assert table.loc["gradient", "exposed"] and not table.loc["smoothgrad", "exposed"]
    assert table.loc["smoothgrad", "value"] == pytest.approx(square.mean())
    assert table.loc["occlusion", "slices"] == 7 and table.loc["LRP epsilon", "exposed"]
    assert table.loc[["occlusion", "gradcam"], "exposed"].isna().all()
    for name in ("lime", "feature_permutation"):  # superpixels of the brain do not reach the corner
        assert not table.loc[name, "covered"] and table.loc[name, ["value", "exposed"]].isna().all()
    assert table["covered"].drop(["lime", "feature_permutation"]).all()
    few = shortcut_of({"gradient": on}, np.arange(8) < 3)
    assert few.loc["gradient", ["slices", "subjects"]].tolist() == [3, 3], "those that show it, not all"
    assert pd.isna(few.loc["gradient", "exposed"]), "no interval of three subjects"


def test_a_method_that_could_look_and_does_not_has_not_exposed_it():
    off = np.zeros((8, *SHAPE), np.float32)
    off[:, 50, 40] = 1
    table = shortcut_of({"gradient": off}, np.arange(8) > -1)
    assert table["value"].tolist() == [0] and table["exposed"].tolist() == [False]


def test_layer_scores_of_a_real_network(shallow):
    from mslib.nets import build_classifier
    explained = known_rule.explained_marks(Experiment("FLAIR", 2).marked(people(6), MM, 0), MM)
    keras.utils.set_random_seed(0)
    table = known_rule.layer_scores(build_classifier("vgg16", 2, SHAPE, narrow=16), explained, np.array([0, 0, 1.0]))
    assert table["layer"].unique().tolist() == ["block3_conv1", "block4_conv1", "block5_conv1"]
    assert len(table) == 6 * 2 * 3 and table["chance"].between(0.01, 0.5).all()
    assert (table["msfi"].dropna().between(0, 1)).all() and (table["msfi"].isna() == table["blank"]).all()
