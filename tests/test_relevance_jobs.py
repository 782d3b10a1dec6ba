"""Jobs of notebook 05 on made-up nets and tables: known shares come back, and sentences say what tables say."""

import json
from types import SimpleNamespace

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mslib.jobs import attribution_claims, relevance_scores, relevance_tables, report, second_net, volumes
from mslib.jobs import relevance_words as words
from mslib.jobs.relevance_scores import lesion_shares, scored_relevance, spread_slices
from mslib.jobs.words import interval_sentence
from mslib.nets import gather, protocols, train_protocol
from mslib.nets.repeats import train_repeat
from mslib.study import StudyConfig, write_table

SEQUENCES = ("T1w", "T2w", "FLAIR")
CONFIG = StudyConfig(study="test", statistics={"bootstrap": 200}, model={"backbones": ["vgg16"]})


@pytest.fixture(scope="module")
def linear():
    """Mean of each sequence times a weight: relevance is what each sequence adds to the logit."""
    inputs = keras.Input((6, 4, 3))
    logits = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, logits)
    model.get_layer("logits").set_weights([np.array([[1, 0], [2, 0], [5, 0]], np.float32), np.zeros(2, np.float32)])
    return model


def test_slices_are_spread_evenly_without_the_ends():
    assert spread_slices({"images": np.zeros(135)}, 2).tolist() == [45, 89]
    assert spread_slices({"images": np.zeros(135)}, 1).tolist() == [67]
    assert spread_slices({"images": np.zeros(3)}, 8).size <= 3


def test_shares_of_a_linear_net_are_its_terms(linear):
    images = np.full((2, 6, 4, 3), [0.4, 0.2, 0.24], np.float32)  # terms 0.4, 0.4, 1.2
    table, _ = scored_relevance(linear, images, np.array([0, 1]), SEQUENCES, "epsilon_plus")
    for kind in relevance_scores.KINDS:
        np.testing.assert_allclose(table[[f"{kind}_{name}" for name in SEQUENCES]], [[20, 20, 60]] * 2, rtol=1e-4)
    np.testing.assert_allclose(table["kept"], 1, rtol=1e-4)
    np.testing.assert_allclose(table[[f"bright_{name}" for name in SEQUENCES]],
                               [[100 * value / 84 for value in (40, 20, 24)]] * 2, rtol=1e-4)
    assert table["right"].tolist() == [True, False] and not table["blank"].any() and "lesion_all" not in table


def test_relevance_inside_lesions_is_counted_of_positive_relevance_alone():
    relevance = np.zeros((3, 4, 4, 3))
    relevance[0, 0, 0] = [3, 1, -9]
    relevance[0, 2, 2] = [1, 1, -9]
    relevance[2, 1, 1] = 1
    lesion = np.zeros((3, 4, 4), bool)
    lesion[:2, 0, 0] = True
    found = lesion_shares(relevance, lesion)
    np.testing.assert_allclose(found["each"][0], [0.75, 0.5, np.nan])
    np.testing.assert_allclose(found["all"], [4 / 6, np.nan, np.nan], err_msg="no relevance; no lesion")


def test_even_relevance_has_the_lesions_share_of_the_brain(linear):
    images = np.ones((1, 6, 4, 3), np.float32)
    lesion = np.zeros((1, 6, 4), bool)
    lesion[0, :3, :2] = True
    table, _ = scored_relevance(linear, images, np.array([0]), SEQUENCES, "epsilon", lesion, np.ones_like(lesion))
    assert table["lesion_all"][0] == pytest.approx(table["lesion_area"][0]) == pytest.approx(0.25)
    assert table["lesion_bright_all"][0] == pytest.approx(0.25)
    images[lesion] = 3  # bright lesions: half of the brightness (3 of 6 parts) on a quarter of the brain
    table, _ = scored_relevance(linear, images, np.array([0]), SEQUENCES, "epsilon", lesion, np.ones_like(lesion))
    assert table["lesion_bright_all"][0] == table["lesion_bright_T2w"][0] == pytest.approx(0.5)
    assert table["lesion_area"][0] == pytest.approx(0.25)


def made_table(subjects=12, slices=4, seed=0, **shares):
    """Slices with given mean shares per sequence, the second slice of each subject named wrongly."""
    rng = np.random.default_rng(seed)
    mean = {"T1w": 50, "T2w": 30, "FLAIR": 20} | shares
    rows = []
    for subject in range(subjects):
        for number in range(slices):
            row = {"subject": f"{subject:02d}", "group": CONFIG.groups[subject % 3], "slice": number,
                   "right": number != 1, "blank": False, "kept": 0.9, "backbone": "vgg16", "rule": "epsilon_plus"}
            for name in SEQUENCES:
                row[f"absolute_{name}"] = row[f"positive_{name}"] = mean[name] + rng.normal(0, 2)
                row[f"bright_{name}"] = {"T1w": 50, "T2w": 15, "FLAIR": 35}[name]
            rows.append(row)
    return pd.DataFrame(rows)


def test_shares_by_class_and_answer_come_back_with_their_numbers():
    table = made_table(subjects=18)
    table.loc[0, [f"{kind}_T1w" for kind in relevance_scores.KINDS]] = np.nan
    shares = relevance_tables.class_shares(table, CONFIG)
    assert len(shares) == 2 * 3 * 3 * 3
    lift = shares[shares["kind"] == relevance_tables.LIFT].groupby("modality")["value"].mean()
    np.testing.assert_allclose(lift[list(SEQUENCES)], [1, 2, 20 / 35], atol=0.1)
    assert (shares.loc[shares["modality"] == "T2w", "chance"].isin((15, 1))).all()
    control = shares[(shares["group"] == "control") & (shares["modality"] == "T1w") & (shares["kind"] == "absolute")]
    control = control.set_index("answer")
    assert control.loc["right", "slices"] == 6 * 3 - 1 and control.loc["wrong", "slices"] == 6
    assert (control["low"] < control["value"]).all() and control["value"].between(48, 52).all()
    assert "control 18 slices" in words.numbers_sentence(shares[shares["modality"] == "T2w"])
    order = words.order_sentence(table, relevance_tables.mean_shares(table, ["backbone"], CONFIG), "vgg16")
    assert order.index("T1w") < order.index("T2w") < order.index("FLAIR")
    assert order.split("over brightness: ")[1].startswith("T2w 2.0"), "dark, and still with much relevance"


def test_relevance_against_the_named_class_is_told():
    table = made_table()
    table.loc[:9, "kept"] = -0.5
    told = words.biases_sentence(table)
    assert f"below 0 in 10 of {len(table)} slices" in told and "speaks against the class" in told


def test_slices_without_positive_relevance_are_counted():
    """Of 32 slices of patients two show a lesion and no positive relevance, three no lesion: all four of the first."""
    table = made_table().assign(lesion_area=0.02, lesion_all=0.1, **{f"lesion_{name}": 0.1 for name in SEQUENCES},
                                **{f"lesion_bright_{name}": 0.03 for name in (*SEQUENCES, "all")})
    patients = table.index[table["group"] != "control"]
    shares = ["lesion_all", *(f"lesion_{name}" for name in SEQUENCES)]
    table.loc[patients[:2], shares] = np.nan
    table.loc[patients[2:5], [*shares, "lesion_area"]] = np.nan
    found = relevance_tables.lesion_table(table, CONFIG)
    assert set(found["left"]) == {2} and set(found["slices"]) == {32 - 5}
    assert "(27 slices of 7 patients; 2 more without positive relevance left out)" in words.lesion_sentence(found)


def worths(**values):
    return pd.DataFrame([{"net": "vgg16", "fill": "zero", "worth": "cross-entropy", "modality": name, "value": value}
                         for name, value in values.items()])


def test_agreement_with_shapley_values():
    shares = relevance_tables.rule_shares(made_table(), worths(T1w=3, T2w=1, FLAIR=-4), CONFIG)
    shapley = shares[(shares["source"] == "Shapley, zero") & (shares["kind"] == "absolute")]
    np.testing.assert_allclose(shapley["value"], [75, 25, 0])
    same = relevance_tables.agreement(shares, worths(T1w=3, T2w=1, FLAIR=-4), CONFIG)
    of_shares = same["kind"].isin(relevance_scores.KINDS)
    assert (same.loc[of_shares, "tau"] == 1).all() and same.loc[of_shares, "same_first"].all()
    assert not same.loc[~of_shares, "same_first"].any(), "over brightness T2w comes first"
    other = relevance_tables.agreement(shares, worths(T1w=-1, T2w=1, FLAIR=4), CONFIG)
    assert (other.loc[of_shares, "tau"] == -1).all() and not other["same_first"].any()


def test_planted_nets_are_judged_by_their_deciding_sequence():
    rows = [{"experiment": net, "role": role, "rule": "epsilon_plus", "kind": "absolute", "value": value,
             "low": value - width, "high": value + width}
            for net, width in (("T1w", 2), ("T2w", 9), ("FLAIR", 2))
            for role, value in zip(relevance_tables.ROLES, (50, 40, 10) if net != "FLAIR" else (30, 40, 30))]
    one = relevance_tables.planted_verdict(pd.DataFrame(rows)).iloc[0]
    assert (one["nets"], one["first"], one["surely"]) == (3, 2, 1)
    assert one["deciding"] == pytest.approx(130 / 3)


def test_an_effect_of_age_is_found_and_sex_is_not(monkeypatch):
    rng = np.random.default_rng(5)
    table = made_table(subjects=60)
    facts = pd.DataFrame({"subject": table["subject"].unique(), "age": rng.uniform(20, 60, 60), "edss": np.nan,
                          "sex": rng.choice(["M", "F"], 60), "lesion_load_ml": rng.uniform(1, 20, 60)})
    monkeypatch.setattr(relevance_tables, "truth_table", lambda *_: facts)
    table["absolute_T1w"] += table["subject"].map(facts.set_index("subject")["age"]) * 0.3
    effects = relevance_tables.effects_table(table, CONFIG, "")
    found = effects.set_index(["modality", "term"])
    assert found.loc[("T1w", "age"), "q"] < 0.001
    people = facts[facts["subject"].isin(table.loc[table["group"] != "control", "subject"])]
    assert found.loc[("T1w", "age"), "estimate"] == pytest.approx(0.3 * people["age"].std(), rel=0.15)
    assert (found.drop(("T1w", "age"))["q"] > 0.05).all() and "edss" not in found.index.get_level_values("term")
    assert words.effects_sentence(effects).startswith("1 of 9 effects")
    monkeypatch.setattr(relevance_tables, "truth_table", lambda *_: facts.assign(age=np.nan, lesion_load_ml=np.nan,
                                                                                sex=None))
    none = relevance_tables.effects_table(table, CONFIG, "")
    assert none.empty and words.effects_sentence(none).startswith("No mixed model")


def test_two_seeds_that_agree_and_that_do_not():
    table = made_table()
    same = relevance_tables.stability(table, table.drop(columns="rule"), CONFIG)
    assert (same["apart"] == 0).all() and np.allclose(same["rho"], 1) and (same["slices"] == len(table)).all()
    other = relevance_tables.stability(table, made_table(seed=9, T1w=20, FLAIR=50).drop(columns="rule"), CONFIG)
    assert other.set_index("modality").loc["T1w", "apart"] > 25 and (other["rho"].abs() < 0.5).all()
    assert "vgg16".upper() in words.stability_sentence(other)


@pytest.fixture
def small_nets(monkeypatch):
    """Nets of one convolution in the place of VGG."""
    def build(backbone, n_classes, shape, weights=None):
        inputs = keras.Input(shape)
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
        model = keras.Model(inputs, keras.layers.Dense(n_classes)(pooled), name=backbone)
        if weights is not None and str(weights).endswith(".h5"):
            model.load_weights(str(weights))
        return model

    monkeypatch.setattr(protocols, "build_classifier", build)
    monkeypatch.setattr(protocols, "build_trainable", build)


def test_a_repeat_differs_from_the_first_net_and_is_taken_up(tmp_path, small_nets, monkeypatch):
    one = {"epochs": 1, "slices_per_subject": 2, "learning_rate": 1e-3}
    study = StudyConfig(study="test", model={"image_size": (32, 32)}, training={
        "batch_size": 3, "precision": "float32", "subject": one, "slice": one, "permuted": one})
    rng = np.random.default_rng(0)
    groups = {f"{group}{i}": group for group in study.groups for i in range(3)}
    slices = gather({name: rng.uniform(0, 1, (4, 32, 32, 3)).astype("float16") for name in groups}, pd.Series(groups),
                    study.groups)
    train_protocol("subject", "vgg16", slices, study, tmp_path)
    images = slices.images[:4].astype("float32")
    net = protocols.load_net(tmp_path, "vgg16", study).predict(images, verbose=0)
    first = train_repeat("vgg16", slices, study, tmp_path).predict(images, verbose=0)
    path = tmp_path / "relevance" / "vgg16" / "repeat1" / "weights.weights.h5"
    stored = path.stat().st_mtime_ns
    np.testing.assert_array_equal(train_repeat("vgg16", slices, study, tmp_path).predict(images, verbose=0), first)
    assert path.stat().st_mtime_ns == stored, "taken up"
    assert not np.allclose(first, net), "another seed"
    second = train_repeat("vgg16", slices, study, tmp_path, repeat=2).predict(images, verbose=0)
    assert not np.allclose(first, second)
    loaded = []
    monkeypatch.setattr(second_net, "load_slices", lambda *_: loaded.append(1) or slices)
    model, weights = second_net.second_net(study, tmp_path, "vgg16")
    np.testing.assert_array_equal(model.predict(images, verbose=0), first)
    assert weights == path and not loaded, "a finished net needs no cohort"
    stamp = tmp_path / "nets" / "vgg16" / "subject" / "stamp.json"
    facts = json.loads(stamp.read_text(encoding="utf-8"))
    for count, doubt in enumerate(({"slices": "others"}, {"code": "other"}, {"schedule": {}}), start=1):
        stamp.write_text(json.dumps(facts | doubt), encoding="utf-8")
        second_net.second_net(study, tmp_path, "vgg16")
        assert len(loaded) == count and path.stat().st_mtime_ns == stored, "in doubt the cohort decides"


def test_what_is_recorded_is_what_the_gallery_says():
    table = made_table()
    table.loc[:4, "kept"] = -0.1
    overall = relevance_tables.mean_shares(table, ["backbone"], CONFIG)
    shapley = worths(T1w=3, T2w=1, FLAIR=-4)
    agreed = relevance_tables.agreement(relevance_tables.rule_shares(table, shapley, CONFIG), shapley, CONFIG)
    empty, shares = pd.DataFrame(), relevance_tables.class_shares(table, CONFIG)
    found = words.recorded(table, overall, shares, None, empty, empty, None, agreed)
    assert found["shares"]["vgg16"]["T1w"][0] == pytest.approx(50, abs=2)
    assert found["over_brightness"]["vgg16"]["T2w"][0] == pytest.approx(2, abs=0.2)
    assert found["agreement"]["epsilon_plus absolute"] == 1
    told = report._relevance_finding(found, "epsilon_plus")
    assert "in sum against the class that the net names in 5 of 48 slices" in told
    beyond = found["over_brightness"]["vgg16"]["T2w"][0]
    assert f"T2w {found['shares']['vgg16']['T2w'][0]:.0f} % ({beyond:.2f})" in told


# Claims about attribution


def write_planted(folder, guided, others, last, random, top=0.8):
    """Tables of notebook 04 with given MSFI of the two guided methods, of the best others, and Grad-CAM's last."""
    names = [*attribution_claims.GUIDED, "deeplift", "gradient"]
    values = [guided, guided, others, others - 0.1]
    table = pd.DataFrame({"method": names, "msfi": values, "msfi_low": np.array(values) - 0.02,
                          "msfi_high": np.array(values) + 0.02, "random": [random, random, 0, 0]})
    table = table.assign(random_low=table["random"] - 0.05, random_high=table["random"] + 0.05)
    write_table(folder / "tables" / "attribution_planted.csv", table)
    sweep = [{"backbone": net, "method": "gradcam", "layer": layer, "value": value, "low": value - 0.02,
              "high": value + 0.02, "chance": 0.1, "measure": "msfi"}
             for net in ("T1w decides", "T2w decides")
             for layer, value in (("block3_conv1", 0.4), ("block5_conv3", last))]
    write_table(folder / "tables" / "gradcam_msfi_by_layer.csv", pd.DataFrame(sweep))
    steps = [{"method": name, "step": step, "random": words, "likeness": value}
             for step, words, value in ((1, "logits", 0.9), (2, "block 5 and logits", top), (3, "all layers", 0.1))
             for name in names]
    write_table(folder / "tables" / "randomisation_methods.csv", pd.DataFrame(steps))


@pytest.mark.parametrize(("guided", "others", "last", "random", "verdicts"), [
    (0.5, 0.3, 0.05, 0.9, ["holds", "holds", "holds", "holds", "holds"]),
    (0.2, 0.4, 0.39, 0.1, ["does not hold", "does not hold", "holds", "does not hold", "does not hold"]),
    (0.4, 0.41, 0.11, 0.48, ["undecided", "undecided", "holds", "undecided", "holds"])])
def test_claims_about_attribution(tmp_path, guided, others, last, random, verdicts):
    write_planted(tmp_path, guided, others, last, random)
    rows = attribution_claims.attribution_claims(tmp_path, {"04_multimodal_attribution": {"planted_msfi": {}}}, CONFIG)
    assert [row["holds?"].split(":")[0] for row in rows] == verdicts


def test_guided_methods_with_a_random_top(tmp_path):
    write_planted(tmp_path, 0.5, 0.3, 0.05, 0.1, top=0.2)
    numbers = {"04_multimodal_attribution": {"planted_msfi": {}}}
    row = attribution_claims.attribution_claims(tmp_path, numbers, CONFIG)[2]
    assert row["holds?"] == "does not hold" and "block 5 and logits random: Guided BackProp 0.20" in row["our evidence"]


@pytest.mark.parametrize(("first", "surely", "verdict"), [(3, 3, "holds"), (2, 2, "undecided"), (0, 0, "does not")])
def test_claim_about_lrp(tmp_path, first, surely, verdict):
    write_planted(tmp_path, 0.5, 0.3, 0.05, 0.9)
    row = {"rule": "epsilon_plus", "kind": "absolute", "nets": 3, "first": first, "surely": surely, "deciding": 55.0}
    numbers = {"04_multimodal_attribution": {"planted_msfi": {}}, "05_modality_relevance": {
        "planted": [row, row | {"rule": "epsilon"}, row | {"rule": "gamma", "kind": relevance_tables.LIFT}]}}
    *_, found, beyond = attribution_claims.attribution_claims(tmp_path, numbers, CONFIG)
    assert "LRP (epsilon_plus)" in found["published claim"] and found["holds?"].startswith(verdict)
    assert "LRP (gamma)" in beyond["published claim"] and "share of the brightness" in beyond["published claim"]


def test_no_planted_nets_no_claims_about_them(tmp_path):
    assert attribution_claims.attribution_claims(tmp_path, {"04_multimodal_attribution": {"patients": 2}}, CONFIG) == []


def test_a_volume_is_made_anew_only_where_what_decides_it_has_changed(monkeypatch, tmp_path):
    reference = nib.Nifti1Image(np.zeros((4, 5, 6), "float32"), np.eye(4))
    monkeypatch.setattr(volumes, "load_stack", lambda _: {})
    monkeypatch.setattr(volumes, "plane_to_volume", lambda one, *_: nib.Nifti1Image(one, reference.affine))
    path, calls, person = tmp_path / "sub-001_desc-made_up.nii.gz", [], SimpleNamespace(id="001", group="RRMS")

    def make(stack):
        calls.append(stack)
        return {"first": np.ones((4, 5, 6), "float32"), "second": np.zeros((4, 5, 6), "float32")}

    for weights in ("old", "old", "new"):
        made_of = {"Weights": weights}
        assert volumes.keep_volume(path, person, "", make, "Layers", made_of, {"Backbone": "vgg16"}) == path
    assert len(calls) == 2
    told = json.loads((tmp_path / "sub-001_desc-made_up.json").read_text(encoding="utf-8"))
    assert told == {"Backbone": "vgg16", "Layers": ["first", "second"], "Class": "RRMS", "Weights": "new",
                    "Sources": ["sub-001_space-T1w_desc-preproc_T1w.nii.gz"]}
    assert np.allclose(nib.load(path).get_fdata().mean((0, 1, 2)), [1, 0])


@pytest.mark.parametrize("whose, few, many", [
    (None, "No interval: n < 5 subjects.", "95 % interval (bootstrap over patients)."),
    ("simulated controls", "No interval: n < 5 simulated controls.",
     "95 % interval (bootstrap over 7 simulated controls).")])
def test_intervals_say_whose_they_are(whose, few, many):
    assert [interval_sentence(number, CONFIG, whose) for number in (4, 7)] == [few, many]
