"""Networks: predictions of known accuracy are reported as such, beside a baseline model that knows the truth."""

import numpy as np
import pandas as pd
import pytest

from mslib.analysis import networks

GROUPS = ["control", "RRMS", "SPMS"]
DRAWS = {"n": 200, "confidence": 0.95, "seed": 1}


def predictions(correct, subjects=12, slices=4, backbone="vgg16", kind="honest", seed=1, part="test"):
    """Logits of which the first `correct` subjects' slices are all correct and the others' all wrong."""
    table = pd.DataFrame({"subject": np.repeat([f"{i:03d}" for i in range(subjects)], slices),
                          "slice": np.tile(np.arange(slices), subjects)})
    number = table["subject"].astype(int)
    target = number % 3
    logits = np.eye(3)[np.where(number < correct, target, (target + 1) % 3)]
    return table.assign(target=target, group=target.map(dict(enumerate(GROUPS))), part=part, backbone=backbone,
                        kind=kind, seed=seed, **{f"logit_{group}": logits[:, i] for i, group in enumerate(GROUPS)})


def test_accuracy_of_every_protocol_and_seed():
    table = pd.concat([predictions(9), predictions(3, seed=2), predictions(12, kind="published"),
                       predictions(0, part="validation")])
    independent = predictions(6).drop(columns="part")
    tables = networks.by_protocol(table, independent)
    assert list(tables) == [("vgg16", "published", 1), ("vgg16", "honest", 1), ("vgg16", "honest", 2),
                            ("vgg16", "independent", 1)]
    rows = networks.accuracy_table(tables, GROUPS, **DRAWS)
    found = rows[rows["measure"] == "accuracy"].set_index(["protocol", "seed", "level"])
    for key, value in ((("published", 1), 1), (("honest", 1), 0.75), (("honest", 2), 0.25), (("independent", 1), 0.5)):
        for level in ("slice", "subject"):
            assert found.loc[(*key, level), "value"] == value
    assert found.loc[("honest", 1, "slice"), "n"] == 48 and found.loc[("honest", 1, "subject"), "n"] == 12
    assert found["low"].drop(("published", 1, "slice")).notna().all()
    assert rows.loc[rows["measure"] != "accuracy", "chance"].isna().all()


def test_chance_is_the_share_of_the_largest_tested_class():
    table = predictions(6, subjects=4).query("slice < 1 or target > 0")  # 2 of 8 slices, 2 of 4 subjects are control
    rows = networks.accuracy_table({("vgg16", "independent", 1): table}, GROUPS, **DRAWS).query("measure == 'accuracy'")
    assert rows.set_index("level")["chance"].to_dict() == {"slice": 0.4, "subject": 0.5}


def test_a_cohort_that_is_absent_has_no_row():
    absent = pd.DataFrame(columns=["subject", "slice", "group", "target", "backbone", "kind", "seed"])
    table = networks.by_protocol(predictions(9), absent)
    assert list(table) == [("vgg16", "honest", 1)]
    assert (networks.accuracy_table(table, GROUPS, **DRAWS)["protocol"] == "honest").all()


def truth(n=30, pretraining=False):
    """Subjects whose lesion load alone tells their group."""
    target = np.arange(n) % 3
    load = np.array([0.05, 5.0, 50.0])[target] * np.exp(0.1 * np.sin(np.arange(n)))
    return pd.DataFrame({"subject": [f"{'P' * pretraining}{i:03d}" for i in range(n)],
                         "group": [GROUPS[one] for one in target],
                         "lesion_load_ml": load, "ventricle_volume_ml": 30 + 5 * np.cos(np.arange(n))})


def test_the_baseline_model_finds_groups_that_the_lesion_load_tells():
    known = truth()
    parts = pd.Series(np.repeat(["train", "validation", "test", "independent"], [12, 3, 6, 9]), index=known["subject"])
    tables = networks.baseline_predictions(known, parts, GROUPS, truth(60, pretraining=True))
    assert {key: len(table) for key, table in tables.items()} == {
        ("logistic", "honest", 1): 6, ("logistic", "independent", 1): 9, ("logistic", "independent_pretraining", 1): 9}
    rows = networks.accuracy_table(tables, GROUPS, **DRAWS)
    assert set(rows["level"]) == {"subject"} and (rows.loc[rows["measure"] == "accuracy", "value"] == 1).all()
    assert set(rows["title"]) <= set(networks.TITLES.values())


@pytest.mark.parametrize("columns", [["lesion_load_ml"], ["ventricle_volume_ml", "lesion_load_ml"]])
def test_without_known_volumes_there_is_no_baseline_model(columns):
    assert networks.baseline_predictions(truth().drop(columns=columns), pd.Series(dtype=str), GROUPS) == {}


def test_the_baseline_model_is_not_fitted_to_whom_it_is_tested_on():
    """Labels of tested subjects that contradict those of training are all missed."""
    known = truth()
    parts = pd.Series(np.repeat(["train", "test"], [15, 15]), index=known["subject"])
    wrong = known["group"].map({"control": "RRMS", "RRMS": "SPMS", "SPMS": "control"})
    known["group"] = known["group"].where(known["subject"].map(parts) == "train", wrong)
    table = networks.baseline_predictions(known, parts, GROUPS)["logistic", "honest", 1]
    named = table[[f"logit_{group}" for group in GROUPS]].to_numpy().argmax(axis=1)
    assert (named != table["target"]).all() and len(table) == 15


def test_epochs_are_numbered_through_stages_and_the_kept_ones_marked():
    stages = pd.DataFrame({"backbone": "vgg16", "kind": "pre-training", "stage": [1, 1, 2, 2], "epoch": [1, 2, 1, 2],
                           "val_loss": [3.0, 2.0, 1.0, 1.5]})
    fitted = pd.DataFrame({"backbone": "vgg16", "kind": ["honest"] * 2 + ["published"] * 2, "epoch": [1, 2] * 2,
                           "val_loss": [0.2, 0.3, 0.5, 0.4]})
    curves = networks.learning_curves(pd.concat([fitted, stages], ignore_index=True))
    assert curves["kind"].unique().tolist() == ["pre-training", "published", "honest"]
    assert curves["epoch"].tolist() == [1, 2, 3, 4, 1, 2, 1, 2]
    assert curves["best"].tolist() == [False, True, True, False, False, True, True, False]
