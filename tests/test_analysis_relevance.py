"""Tables of notebook 05: known shares come back, marks are found, and orders and effects are those that were put in."""

import keras
import numpy as np
import pandas as pd
import pytest

from mslib.analysis import relevance

SEQUENCES, GROUPS = ("T1w", "T2w", "FLAIR"), ("control", "RRMS", "SPMS")
DRAWS = {"n": 200, "confidence": 0.95, "seed": 1}


def linear(*weights):
    """Mean of each sequence times a weight: relevance is what each sequence adds to the logit."""
    inputs = keras.Input((6, 4, 3))
    same = keras.layers.Conv2D(3, 1, use_bias=False, name="same")(inputs)
    logits = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(same))
    model = keras.Model(inputs, logits)
    model.get_layer("same").set_weights([np.eye(3, dtype=np.float32)[None, None]])
    kernel = np.array([[weight, 0] for weight in weights], np.float32)
    model.get_layer("logits").set_weights([kernel, np.zeros(2, np.float32)])
    return model


def test_shares_of_a_linear_network_are_its_terms():
    images = np.full((2, 6, 4, 3), [0.4, 0.2, 0.24], np.float32)  # terms 0.4, 0.4, 1.2
    brain = np.ones((2, 6, 4), bool)
    table = relevance.slice_shares(linear(1, 2, 5), images, np.array([0, 1]), SEQUENCES, "epsilon_plus", brain)
    for kind in relevance.KINDS:
        np.testing.assert_allclose(table[[f"{kind}_{name}" for name in SEQUENCES]], [[20, 20, 60]] * 2, rtol=1e-4)
    np.testing.assert_allclose(table["kept"], 1, rtol=1e-4)
    np.testing.assert_allclose(table[[f"intensity_{name}" for name in SEQUENCES]],
                               [[100 * value / 84 for value in (40, 20, 24)]] * 2, rtol=1e-4)
    assert table["correct"].tolist() == [True, False]


def test_flow_of_a_network_without_biases_is_all_of_the_logit():
    images = np.ones((3, 6, 4, 3), np.float32)
    table = relevance.flow_table(linear(1, 2, 5), images, "epsilon", np.ones((3, 6, 4), bool))
    assert table["layer"].iloc[0] == "logits" and (table["images"] == 3).all()
    np.testing.assert_allclose(table[["sum", "absolute"]], 1, rtol=1e-4)


def made_table(subjects=12, seed=0, **shares):
    """Slices with given mean shares of the sequences, the second slice of each subject misclassified."""
    rng, mean, rows = np.random.default_rng(seed), {"T1w": 50, "T2w": 30, "FLAIR": 20} | shares, []
    for subject in range(subjects):
        for number in range(4):
            row = {"subject": f"{subject:02d}", "group": GROUPS[subject % 3], "slice": number, "correct": number != 1,
                   "backbone": "vgg16", "rule": "epsilon_plus", "seed": 1}
            for name, intensity in zip(SEQUENCES, (50, 15, 35)):
                row[f"absolute_{name}"] = row[f"positive_{name}"] = mean[name] + rng.normal(0, 2)
                row[f"intensity_{name}"] = intensity
            rows.append(row)
    return pd.DataFrame(rows)


def test_shares_by_class_come_back_with_their_numbers():
    table = made_table(subjects=18)
    table.loc[0, [f"{kind}_T1w" for kind in relevance.KINDS]] = np.nan
    shares = relevance.mean_shares(table, ["backbone", "correct", "group"], SEQUENCES, **DRAWS)
    assert len(shares) == 2 * 3 * 3 * 3
    lift = shares[shares["kind"] == relevance.LIFT].groupby("modality")["value"].mean()
    np.testing.assert_allclose(lift[list(SEQUENCES)], [1, 2, 20 / 35], atol=0.1)
    assert shares.loc[shares["modality"] == "T2w", "chance"].isin((15, 1)).all()
    control = shares.query("group == 'control' and modality == 'T1w' and kind == 'absolute'").set_index("correct")
    assert control.loc[True, "slices"] == 6 * 3 - 1 and control.loc[False, "slices"] == 6
    assert (control["low"] < control["value"]).all() and control["value"].between(48, 52).all()


def shapley(**values):
    return pd.DataFrame([{"backbone": "vgg16", "baseline": "zero", "worth": worth, "modality": name, "value": value}
                         for name, value in values.items() for worth in ("cross-entropy", "accuracy")])


def test_shapley_values_stand_beside_the_rules():
    shares = relevance.rule_shares(made_table(), shapley(T1w=3, T2w=1, FLAIR=-4), SEQUENCES, **DRAWS)
    scaled = shares[(shares["source"] == "Shapley, zero") & (shares["kind"] == "absolute")]
    np.testing.assert_allclose(scaled["value"], [75, 25, 0])
    none = relevance.rule_shares(made_table(), shapley(T1w=-1, T2w=0, FLAIR=-4), SEQUENCES, **DRAWS)
    assert none.loc[none["source"] == "Shapley, zero", "value"].isna().all(), "nothing to scale"


def test_a_network_that_looks_at_one_mark_gives_it_all_relevance():
    """T2w is lit inside its mark alone; the others have no weight, or (over intensity) nothing."""
    marks = np.zeros((10, 6, 4, 3), bool)
    marks[:, :2, :2, 1] = marks[:, 4:, :2, 0] = marks[:, 4:, 2:, 2] = True
    images = np.where(marks, 1, 0).astype(np.float32)
    images[..., 0] = 0.5
    brain = np.ones((10, 6, 4), bool)
    rows = relevance.slice_shares(linear(0, 4, 0), images, np.zeros(10, int), SEQUENCES, "epsilon", brain, marks)
    rows = rows.assign(subject=np.arange(10) // 2, rule="epsilon")
    value = relevance.mean_shares(rows, ["rule"], SEQUENCES, **DRAWS).set_index(["modality", "kind"])
    assert value.loc[("T2w", "absolute"), ["value", "chance"]].tolist() == pytest.approx([100, 20], rel=1e-4)
    assert value.loc[("T2w", relevance.LIFT), ["value", "chance"]].tolist() == pytest.approx([5, 1], rel=1e-4)
    assert value.loc[("T2w", relevance.INSIDE), ["value", "chance"]].tolist() == pytest.approx([100, 100 / 6], rel=1e-4)
    assert value.loc[("T1w", "absolute"), "value"] == 0 and np.isnan(value.loc[("T1w", relevance.INSIDE), "value"])


def test_only_positive_relevance_counts_inside_marks():
    marks, brain, images = np.zeros((1, 6, 4, 3), bool), np.ones((1, 6, 4), bool), np.ones((1, 6, 4, 3), np.float32)
    marks[0, 0, :2] = True
    images[0, 0, :2] = [3, 1, 9]  # relevance inside 6, 2 and -18, outside 22, 22 and -22
    found = relevance.slice_shares(linear(1, 1, -1), images, [0], SEQUENCES, "epsilon", brain, marks).iloc[0]
    assert found["inside_T1w"] == pytest.approx(600 / 28) and found["inside_T2w"] == pytest.approx(200 / 24)
    assert np.isnan(found["inside_FLAIR"]) and found["uniform_FLAIR"] == pytest.approx(200 / 24)


def test_a_centred_rule_gives_nothing_to_an_even_sequence_however_bright():
    brain = np.zeros((2, 6, 4), bool)
    brain[:, 1:5] = True
    images = brain[..., None] * np.full(3, [0.9, 0.2, 0.4], np.float32)
    images[:, 2, :2, 1] += 0.1
    model, zeros = linear(1, 2, 5), np.zeros(2, int)
    plain, centred = (relevance.slice_shares(model, images, zeros, SEQUENCES, rule, brain)
                      for rule in ("epsilon", "epsilon_centred"))
    assert plain["absolute_T1w"].min() > 20
    np.testing.assert_allclose(plain["kept"], 1, rtol=1e-4)
    shares = centred[[f"absolute_{name}" for name in SEQUENCES]]
    np.testing.assert_allclose(shares, [[0, 100, 0]] * 2, atol=1e-3)
    np.testing.assert_allclose(centred["intensity_T2w"], 100, atol=1e-3)
    maps = relevance.relevance_maps(model, images, 0, "epsilon_centred", brain)
    assert not maps[~brain].any() and maps[:, 2, :2, 1].min() > 0 > maps[:, 1, :, 1].max()
    means = relevance.brain_means(images, brain)
    assert not means[~brain].any()
    np.testing.assert_allclose(means[brain][:, 0], 0.9, rtol=1e-6)


def test_an_effect_of_age_is_found_and_others_are_not():
    rng = np.random.default_rng(5)
    table = made_table(subjects=60)
    facts = pd.DataFrame({"subject": table["subject"].unique(), "age": rng.uniform(20, 60, 60), "edss": np.nan,
                          "sex": rng.choice(["M", "F"], 60), "lesion_load_ml": rng.uniform(1, 20, 60)})
    table["absolute_T1w"] += table["subject"].map(facts.set_index("subject")["age"]) * 0.3
    patients = table[table["group"] != "control"]
    found = relevance.effects_table(patients, facts, SEQUENCES).set_index(["modality", "term"])
    assert found.loc[("T1w", "age"), "q"] < 0.001
    people = facts[facts["subject"].isin(patients["subject"])]
    assert found.loc[("T1w", "age"), "estimate"] == pytest.approx(0.3 * people["age"].std(), rel=0.15)
    assert (found.drop(("T1w", "age"))["q"] > 0.05).all() and len(found) == 9, "EDSS is not known"
    assert relevance.effects_table(patients, facts[["subject"]], SEQUENCES).empty
    assert relevance.effects_table(patients[patients["subject"] < "06"], facts, SEQUENCES).empty, "too few patients"


def test_seeds_that_agree_and_that_do_not():
    table = made_table()
    same = relevance.seed_stability(pd.concat([table, table.assign(seed=2)]), SEQUENCES)
    assert (same["apart"] == 0).all() and np.allclose(same["rho"], 1) and (same["slices"] == len(table)).all()
    other = made_table(seed=9, T1w=20, FLAIR=50).assign(seed=2, correct=False)
    found = relevance.seed_stability(pd.concat([table, other, table.assign(seed=3)]), SEQUENCES)
    found = found.set_index(["seed", "modality"])
    assert found.loc[(2, "T1w"), "apart"] > 25 and (found.loc[2, "rho"].abs() < 0.5).all()
    assert (found.loc[3, "rho"] > 0.99).all()
    assert found.loc[(2, "T1w"), ["correct_first", "correct_second"]].tolist() == [0.75, 0]
    assert relevance.seed_stability(table, SEQUENCES).empty
