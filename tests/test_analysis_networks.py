"""Networks: predictions of known accuracy are reported as such, beside a baseline model that knows the truth."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from mslib.analysis import networks
from mslib.nets import permuted_labels

GROUPS = ["control", "RRMS", "SPMS"]
DRAWS = {"n": 200, "confidence": 0.95, "seed": 1}


def predictions(correct, subjects=12, kind="honest", seed=1, part="test"):
    """Logits of which the first `correct` subjects' slices are all correct and the others' all wrong."""
    table = pd.DataFrame({"subject": np.repeat([f"{i:03d}" for i in range(subjects)], 4),
                          "slice": np.tile(np.arange(4), subjects)})
    number = table["subject"].astype(int)
    target = number % 3
    logits = np.eye(3)[np.where(number < correct, target, (target + 1) % 3)]
    return table.assign(target=target, group=target.map(dict(enumerate(GROUPS))), part=part, backbone="vgg16",
                        kind=kind, seed=seed, **{f"logit_{group}": logits[:, i] for i, group in enumerate(GROUPS)})


def test_accuracy_of_every_protocol_and_seed():
    table = pd.concat([predictions(9), predictions(3, seed=2), predictions(12, kind="published"),
                       predictions(0, part="validation"), predictions(6, part="independent"),
                       predictions(3, kind="published", part="independent"), predictions(0, kind="cause")])
    permuted = predictions(0, kind="published_permuted").drop(columns="seed").assign(true=lambda rows: rows["target"])
    folds = predictions(9).drop(columns=["kind", "seed", "part"]).assign(protocol="folds")
    tables = networks.by_protocol(table, permuted, folds)
    assert list(tables) == [("vgg16", "published", 1), ("vgg16", "published_independent", 1), ("vgg16", "honest", 1),
                            ("vgg16", "honest", 2), ("vgg16", "independent", 1), ("vgg16", "folds", 1),
                            ("vgg16", "published_permuted", 1)]
    rows = networks.accuracy_table(tables, GROUPS, **DRAWS)
    found = rows[rows["measure"] == "accuracy"].set_index(["protocol", "seed", "level"])
    for key, value in ((("published", 1), 1), (("honest", 1), 0.75), (("honest", 2), 0.25), (("independent", 1), 0.5),
                       (("published_independent", 1), 0.25), (("folds", 1), 0.75), (("published_permuted", 1), 0)):
        for level in ("slice", "subject"):
            assert found.loc[(*key, level), "value"] == value
    assert found.loc[("honest", 1, "slice"), "n"] == 48 and found.loc[("honest", 1, "subject"), "n"] == 12
    chance = rows[rows["measure"] == "balanced_accuracy"].groupby("protocol")["chance"].first()
    assert chance.pop("published_permuted") == 1 and (chance == 1 / 3).all(), "here labels are the true classes"
    assert rows.loc[~rows["measure"].isin(["accuracy", "balanced_accuracy"]), "chance"].isna().all()
    assert (rows["subjects"] == 12).all()


def test_chance_is_the_share_of_the_largest_tested_class():
    table = predictions(6, subjects=4).query("slice < 1 or target > 0")  # 2 of 8 slices, 2 of 4 subjects are control
    rows = networks.accuracy_table({("vgg16", "independent", 1): table}, GROUPS, **DRAWS).query("measure == 'accuracy'")
    assert rows.set_index("level")["chance"].to_dict() == {"slice": 0.4, "subject": 0.5}


def test_areas_of_a_slice_tell_as_much_as_they_hold():
    """Lesion area alone tells RRMS from control, black holes alone SPMS from RRMS; a third of the slices shows none."""
    parts = [predictions(12, part=part).assign(subject=lambda rows, part=part: part + rows["subject"])
             for part in ("train", "test", "independent")]
    table = pd.concat(parts, ignore_index=True)
    shown, rng = table["slice"] > 0, np.random.default_rng(0)
    table["lesion_mm2"] = 200.0 * shown * (table["target"] > 0) * rng.uniform(0.8, 1.2, len(table))
    table["black_hole_mm2"] = 100.0 * shown * (table["target"] == 2) * rng.uniform(0.8, 1.2, len(table))
    table["ventricle_mm2"] = 500.0
    found = networks.attainable_predictions(table, GROUPS)
    assert list(found) == [("areas", "honest", 1), ("areas", "independent", 1)]
    rows = networks.accuracy_table(found, GROUPS, **DRAWS).query("measure == 'accuracy' and level == 'slice'")
    assert rows["value"].tolist() == pytest.approx([0.75 + 0.25 / 3] * 2, abs=0.01)
    assert networks.attainable_predictions(table.drop(columns="ventricle_mm2"), GROUPS) == {}


def test_accuracy_over_lesion_area():
    """A network that sees lesions of 100 mm2 and more: exact shares, and intervals only where subjects differ."""
    area = np.tile([30.0, 150.0, 500.0], 10)
    one = pd.DataFrame({"subject": np.repeat([f"C{i}" for i in range(10)], 3), "lesion_mm2": area, "part": "test",
                        "backbone": "vgg16", "kind": "cause", "seed": 1})
    sick, free = one.assign(target=1), one.assign(target=0)
    logits = np.where(sick["lesion_mm2"] >= 100, 1.0, -1.0)
    table = pd.concat([sick.assign(**{"logit_lesions": logits}), free.assign(**{"logit_lesions": -1.0})],
                      ignore_index=True).assign(**{"logit_lesion-free": 0.0})
    table.loc[(table["target"] == 0) & (table["subject"] == "C0"), "logit_lesions"] = 1.0
    table = pd.concat([table, table.assign(part="train", logit_lesions=0.0)], ignore_index=True)
    found = networks.psychometric_table(table, **DRAWS).set_index("lesions")
    assert found["value"].to_dict() == {"lesion-free": 0.9, "20-50": 0, "100-200": 1, "400 or more": 1,
                                        "100 or more": 1}
    assert found["n"].tolist() == [30, 10, 10, 10, 20]
    assert found.loc["20-50", "mm2"] == 30 and found.loc["lesion-free", "mm2"] == 0
    assert found.loc["lesion-free", "low"] < 0.9 < found.loc["lesion-free", "high"]


def truth():
    """Subjects whose lesion load alone tells their group."""
    target = np.arange(30) % 3
    load = np.array([0.05, 5.0, 50.0])[target] * np.exp(0.1 * np.sin(np.arange(30)))
    return pd.DataFrame({"subject": [f"{i:03d}" for i in range(30)],
                         "group": [GROUPS[one] for one in target],
                         "lesion_load_ml": load, "ventricle_volume_ml": 30 + 5 * np.cos(np.arange(30))})


def test_the_baseline_model_finds_groups_that_the_lesion_load_tells():
    known = truth()
    parts = pd.Series(np.repeat(["train", "validation", "test", "independent"], [12, 3, 6, 9]), index=known["subject"])
    tables = networks.baseline_predictions(known, parts, GROUPS)
    assert {key: len(table) for key, table in tables.items()} == {
        ("logistic", "honest", 1): 6, ("logistic", "independent", 1): 9}
    rows = networks.accuracy_table(tables, GROUPS, **DRAWS)
    assert set(rows["level"]) == {"subject"} and (rows.loc[rows["measure"] == "accuracy", "value"] == 1).all()
    assert set(rows["title"]) <= set(networks.TITLES.values())


def test_permuted_labels_say_little_of_the_true_class():
    people = pd.DataFrame({"subject": [f"{i:02d}" for i in range(38)], "group": np.repeat(GROUPS, [19, 10, 9])})
    table = people.loc[people.index.repeat(4)].assign(slice=np.tile(range(4), 38))
    table["target"] = table["group"].map(GROUPS.index)
    found = permuted_labels(table, GROUPS, 3275)
    each = found.drop_duplicates("subject")
    assert len(found[["subject", "group", "target", "true"]].drop_duplicates()) == 38, "a subject keeps one label"
    assert each["group"].value_counts().to_dict() == {"control": 19, "RRMS": 10, "SPMS": 9}
    assert (found["target"] == found["group"].map(GROUPS.index)).all() and (found["true"] == table["target"]).all()
    counts = pd.crosstab(each["true"], each["target"]).to_numpy()
    assert np.abs(counts - np.outer(counts.sum(1), counts.sum(0)) / 38).max() < 1, "as near as whole people can be"
    known = networks.class_knowledge(each["true"], each["target"])
    best = max(np.mean([(np.array(guess)[each["true"]] == k)[each["target"] == k].mean() for k in range(3)])
               for guess in product(range(3), repeat=3))
    assert known == pytest.approx(best) and 1 / 3 <= known < 0.4
    assert networks.class_knowledge(each["true"], each["true"]) == 1
    assert found.equals(permuted_labels(table, GROUPS, 3275))
    assert not found.equals(permuted_labels(table, GROUPS, 3276))


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


def test_the_kept_epoch_of_every_network_is_marked():
    history = pd.DataFrame({"backbone": "vgg16", "kind": ["honest"] * 4 + ["published"] * 2, "seed": [1, 1, 2, 2, 1, 1],
                            "epoch": [1, 2] * 3, "val_loss": [0.2, 0.3, 0.5, 0.4, 0.1, 0.2]})
    assert networks.kept_epochs(history)["best"].tolist() == [True, False, False, True, True, False]
