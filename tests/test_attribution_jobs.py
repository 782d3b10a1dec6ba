"""Jobs of notebook 04 on made-up nets: planted importance comes back, perfect and blind maps are told apart."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from mslib.explain import METHODS, attribute
from mslib.jobs import (
    attribution_advice,
    attribution_checks,
    attribution_claims,
    attribution_patients,
    attributions,
    explained,
    planted_results,
)
from mslib.jobs import attribution_scores as scores
from mslib.jobs import attribution_tables as judged
from mslib.jobs.verdicts import FAILS, HOLDS
from mslib.study import StudyConfig, StudyError

CONFIG = StudyConfig(study="test", statistics={"bootstrap": 200}, attribution={
    "patients": 2, "superpixels": 3, "samples": 24, "permutations": 1, "steps": 2, "levels": 3,
    "fills": ["zero", "mean"]})
SHAPE = (16, 12, 3)
SUBJECTS = list("aabbccdd")


@pytest.fixture(scope="module")
def linear():
    """Two logits that differ by how bright a patch of the third sequence is, and nothing else."""
    kernel = np.zeros((*SHAPE, 2), np.float32)
    kernel[4:8, 3:7, 2] = [-1, 1]
    inputs = keras.Input(SHAPE)
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(flat))
    model.get_layer("logits").set_weights([kernel.reshape(-1, 2), np.array([4.0, -4.0], np.float32)])
    rng = np.random.default_rng(0)
    images = rng.uniform(0.3, 1, (8, *SHAPE)).astype(np.float32)
    images[::2, 4:8, 3:7, 2] *= 0.05
    features = np.zeros(images.shape, bool)
    features[:, 4:8, 3:7] = True
    return {"model": model, "images": images, "targets": np.arange(8) % 2, "brain": np.ones((8, *SHAPE[:2]), bool),
            "features": features, "subjects": SUBJECTS}


def arguments(one):
    return one["model"], one["images"], one["targets"]


def test_importance_finds_the_sequence_that_decides(linear):
    table = scores.importance_table(*arguments(linear), linear["brain"], SUBJECTS, CONFIG, "net")
    for (_, worth), part in table.groupby(["fill", "worth"]):
        values = part.set_index("modality")["value"]
        assert values["T1w"] == values["T2w"] == 0, worth
        assert values.sum() == pytest.approx((part["all"] - part["nothing"]).iloc[0])
    known = table[(table["fill"] == "zero") & (table["worth"] == "accuracy")].set_index("modality")
    assert known.loc["FLAIR", "value"] == pytest.approx(0.5), "all right with it, one class of two without"
    np.testing.assert_array_equal(np.sign(scores.importance_of(table, CONFIG)), [0, 0, 1])
    assert table[["low", "high"]].isna().all(axis=None), "four subjects have no interval"
    more = scores.importance_table(*arguments(linear), linear["brain"], list("abcdefgh"), CONFIG, "net")
    assert more.loc[more["modality"] == "FLAIR", "low"].notna().any()


def test_a_perfect_map_has_all_its_heat_in_the_feature_and_an_even_one_what_chance_has(linear):
    perfect = (linear["features"] * [0.0, 0.0, 1.0]).astype(np.float32)
    maps = {"gradient": perfect, "occlusion": np.ones_like(perfect), "lime": np.zeros_like(perfect)}
    settings = {"config": CONFIG, "importance": np.array([0, 0, 1.0])}
    table = scores.score_maps(maps, linear["features"], linear["brain"], model=linear["model"], images=linear["images"],
                              targets=linear["targets"], subjects=SUBJECTS, **settings).groupby("method")
    mean = table[["msfi", "portion", "tau", "share_FLAIR", "msfi_chance", "portion_chance"]].mean()
    assert mean.loc["gradient", "msfi"] == mean.loc["gradient", "portion"]
    left = 0.80  # of a box of 4 pixels along an axis, blurred by one with SD 1
    assert mean.loc["gradient", "msfi"] == pytest.approx(left**2, abs=0.05)
    assert mean.loc["gradient", "share_FLAIR"] == 1 and mean.loc["gradient", "tau"] > 0.8
    assert mean.loc["occlusion", "msfi"] == pytest.approx(mean.loc["occlusion", "msfi_chance"]) == pytest.approx(1 / 12)
    assert np.isnan(mean.loc["lime", "msfi"]) and table["blank"].sum().to_dict() == {"gradient": 0, "lime": 8,
                                                                                     "occlusion": 0}


def test_grad_cam_is_not_asked_about_sequences(linear):
    table = scores.score_maps({"gradcam": np.ones_like(linear["images"])}, linear["features"], linear["brain"],
                              np.array([0, 0, 1.0]), *arguments(linear), SUBJECTS, CONFIG)
    assert "tau" not in table and "share_FLAIR" not in table


def test_removal_rewards_the_map_that_the_net_needs(linear):
    patch = (linear["features"] * [0.0, 0.0, 1.0]).astype(np.float32)
    elsewhere = (~linear["features"] * [0.0, 1.0, 0.0]).astype(np.float32)
    bright = {key: value[1::2] if isinstance(value, np.ndarray) else value for key, value in linear.items()}
    table = scores.removal_table({"gradient": patch[1::2], "lime": elsewhere[1::2]}, bright["brain"],
                                 *arguments(bright), SUBJECTS[1::2], CONFIG, "net")
    mean = table.groupby(["method", "fill"])["delta"].mean()
    assert mean["gradient", "zero"] > 0.2 and mean["lime"].max() < 0.05
    assert scores.rank_agreement(table)["tau"].tolist() == [1.0]


def test_likeness_of_maps():
    rng = np.random.default_rng(0)
    maps, brain = rng.normal(size=(3, *SHAPE)), np.ones((3, *SHAPE[:2]), bool)
    np.testing.assert_allclose(scores.likeness(maps, -2 * maps, brain), 1, err_msg="magnitudes count")
    assert np.abs(scores.likeness(maps, rng.normal(size=maps.shape), brain)).max() < 0.2
    assert np.isnan(scores.likeness(maps, np.zeros_like(maps), brain)).all()


def explained_by(linear, folder, name="gradient"):
    maps = {name: attribute(name, *arguments(linear))}
    return linear | {"maps": maps, "folder": folder, "facts": {"weights": "a"}}


def test_a_map_that_follows_the_net_does_not_survive_random_weights(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(attribution_checks, "METHODS", {"gradient": METHODS["gradient"]})
    monkeypatch.setattr(attribution_checks, "STEPS", {"nothing": "none", "logits": "logits"})
    one = explained_by(linear, tmp_path)
    found = attribution_checks.randomisation_scores(one, CONFIG, ["logits"])
    assert set(found["step"]) == {2} and found["subject"].tolist() == SUBJECTS and found["likeness"].max() < 0.3
    assert (tmp_path / "random2" / "gradient.npz").is_file()
    made = (tmp_path / "random2" / "gradient.npz").stat().st_mtime_ns
    attribution_checks.randomisation_scores(one, CONFIG, ["logits"])
    assert (tmp_path / "random2" / "gradient.npz").stat().st_mtime_ns == made
    monkeypatch.setattr(attribution_checks, "made_by", lambda _: "other code")
    attribution_checks.randomisation_scores(one, CONFIG, ["logits"])
    assert (tmp_path / "random2" / "gradient.npz").stat().st_mtime_ns > made, "weights are drawn by other code"
    with pytest.raises(ValueError, match="lowest: must be a layer of the model"):
        attribution_checks.randomisation_scores(one, CONFIG, ["nothing"])
    for wrong in (["logit"], "logits"):
        with pytest.raises(ValueError, match=r"steps: must be a collection of some of \['nothing', 'logits'\] "):
            attribution_checks.randomisation_scores(one, CONFIG, wrong)


def test_maps_that_depend_on_each_other_are_compared_for_the_same_images(linear, tmp_path, monkeypatch):
    """The weights stay as they are: the likeness is 1 if nothing else differs."""
    monkeypatch.setattr(attribution_checks, "METHODS", {"feature_permutation": METHODS["feature_permutation"]})
    monkeypatch.setattr(attribution_checks, "STEPS", {"logits": "logits"})
    monkeypatch.setattr(attribution_checks, "RANDOMISED", 4)
    monkeypatch.setattr(attribution_checks, "randomised_copy", lambda model, *_: model)
    groups, shared = attributions.groups_of(linear["images"], linear["brain"], CONFIG)
    given = attributions.method_parameters("feature_permutation", CONFIG, groups, shared)
    one = linear | {"maps": {"feature_permutation": attribute("feature_permutation", *arguments(linear), **given)},
                    "folder": tmp_path, "facts": {"weights": "a"}}
    found = attribution_checks.randomisation_scores(one, CONFIG, ["logits"])
    assert len(found) == 4
    np.testing.assert_allclose(found["likeness"], 1)


def test_patients_are_repeated_with_the_second_net(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(attribution_patients, "METHODS", {"gradient": METHODS["gradient"]})
    weights = tmp_path / "second.weights.h5"
    weights.write_bytes(b"second")
    second = keras.models.clone_model(linear["model"])
    second.set_weights([2 * linear["model"].get_weights()[0], linear["model"].get_weights()[1]])
    monkeypatch.setattr(attribution_patients, "second_net", lambda *_: (second, weights))
    one = explained_by(linear, tmp_path / "maps")
    found = attribution_patients.repeated_patients(one, CONFIG, tmp_path, "vgg16")
    np.testing.assert_allclose(found["likeness"], 1)
    other = second.get_weights()[0][::-1]
    second.set_weights([other, second.get_weights()[1]])
    weights.write_bytes(b"another second")
    found = attribution_patients.repeated_patients(one, CONFIG, tmp_path, "vgg16")
    assert found["likeness"].max() < 0.3, "made anew for other weights"
    real = CONFIG.model_copy(update={"cohort": CONFIG.cohort.model_copy(update={"source": "open_ms"})})
    assert attribution_patients.repeated_patients(one, real, tmp_path, "vgg16") is None


def test_the_job_of_the_checks_leaves_no_maps_to_the_notebook(linear, tmp_path, monkeypatch):
    for module in (attribution_checks, attribution_patients):
        monkeypatch.setattr(module, "METHODS", {"gradient": METHODS["gradient"]})
    monkeypatch.setattr(attribution_checks, "STEPS", {"top": "logits", "all layers": "logits"})
    weights = tmp_path / "second.weights.h5"
    weights.write_bytes(b"second")
    monkeypatch.setattr(attribution_patients, "second_net", lambda *_: (linear["model"], weights))
    one = explained_by(linear, tmp_path / "vgg16")
    monkeypatch.setattr(attribution_patients, "all_patient_maps", lambda *_: one)
    attribution_patients.check_patients(CONFIG, tmp_path, "vgg16")
    assert json.loads((tmp_path / "vgg16" / "checks.json").read_text(encoding="utf-8")) == ["random", "repeat"]
    made = sorted(path.relative_to(tmp_path / "vgg16").as_posix() for path in tmp_path.rglob("*.npz"))
    assert made == ["random2/gradient.npz", "repeat/gradient.npz"], "all layers at once, no other step"
    monkeypatch.setattr(attributions, "attribute", None)
    importance = scores.importance_table(*arguments(linear), linear["brain"], SUBJECTS, CONFIG, "vgg16")
    judged_one = attribution_patients.judge_patients(one | {"lesion": linear["features"][..., 0]}, importance, CONFIG,
                                                     tmp_path, "vgg16")
    assert judged_one["table"].loc["gradient", "repeat"] == pytest.approx(1), "the same net, taken up"
    assert attribution_patients.checked_sentence(judged_one["random"]) == "Randomised (all layers): 8 of them."
    real = CONFIG.model_copy(update={"cohort": CONFIG.cohort.model_copy(update={"source": "open_ms"})})
    attribution_patients.check_patients(real, tmp_path, "vgg16")
    assert json.loads((tmp_path / "vgg16" / "checks.json").read_text(encoding="utf-8")) == ["random"]


def test_nets_that_order_the_methods_alike_agree():
    order = np.arange(16.0)
    one = pd.DataFrame({"msfi": order, "random": 0.1, "tau": np.nan, "portion": order, "delta_zero": order * 1e-6,
                        "delta_mean": np.where(order < 8, order * 1e-6, order), "slices": 8}, index=list(METHODS))
    other = one.assign(msfi=-order)
    found = attribution_patients.nets_agree({"vgg16": one, "vgg19": one + 1, "third": other})
    msfi = found[found["measure"] == "MSFI"]
    assert msfi["tau"].tolist() == [1, -1, -1] and (msfi["methods"] == 16).all()
    assert set(found["measure"]) == {"MSFI", "ΔAUPC mean"}, "all alike, noise or not of one sequence: no order"
    shuffled = one.assign(delta_mean=np.where(order < 8, order[::-1] * 1e-6, order))
    assert attribution_patients.nets_agree({"a": one, "b": shuffled}).set_index("measure").loc["ΔAUPC mean", "tau"] == 1
    by_chance = [kendalltau(order, np.random.default_rng(i).permutation(16)).statistic for i in range(2000)]
    assert np.mean(np.abs(by_chance) <= msfi["chance"].iloc[0]) == pytest.approx(0.95, abs=0.02)
    assert attribution_patients.nets_agree({"vgg16": one}).empty
    assert attribution_patients.nets_agree({"vgg16": one, "few": one.assign(slices=4)}).empty
    joined = attribution_patients.of_nets({"vgg16": one, "vgg19": other})
    assert list(joined) == ["net", *one] and joined["net"].value_counts().to_dict() == {"vgg16": 16, "vgg19": 16}


def test_informative_maps_are_better_where_the_net_is_right():
    right = np.arange(12) % 2 == 0
    table = pd.DataFrame({"method": "gradient", "msfi": np.where(right, 0.9, 0.1) + np.arange(12) / 100, "right": right,
                          "probability": np.where(right, 0.8, 0.2) + np.arange(12) / 100})
    found = scores.informativeness(pd.concat([table, table.assign(method="lime", msfi=0.5)])).round(3)
    assert found.loc["gradient", "rho"] == 1 and found.loc["gradient", "p_right"] < 0.01
    assert np.isnan(found.loc["lime", "rho"]) and found.loc["lime", "p_right"] > 0.4
    assert np.isnan(scores.informativeness(table.assign(right=True)).loc["gradient", "p_right"])
    assert np.isnan(scores.informativeness(table[:2]).loc["gradient", "rho"]), "two maps have no correlation"


def keep(folder, linear, methods, monkeypatch=None, seen=None, config=CONFIG):
    if monkeypatch is not None:
        def counted(name, *_, **__):
            seen.append(name)
            return np.ones((8, *SHAPE), np.float32)
        monkeypatch.setattr(attributions, "attribute", counted)
    return attributions.kept_maps(*arguments(linear), linear["brain"], config, folder, {"weights": "a"}, methods, "net")


def test_maps_are_made_once_and_taken_up_method_by_method(linear, tmp_path, monkeypatch):
    seen = []
    keep(tmp_path, linear, ["gradient", "smoothgrad"], monkeypatch, seen)
    maps, seconds = keep(tmp_path, linear, ["gradient", "smoothgrad", "deeplift"], monkeypatch, seen)
    assert seen == ["gradient", "smoothgrad", "deeplift"] and set(maps) == set(seconds.index) == set(seen)
    finer = CONFIG.model_copy(update={"attribution": CONFIG.attribution.model_copy(update={"superpixels": 5})})
    keep(tmp_path, linear, ["gradient"], monkeypatch, seen, finer)
    assert seen[3:] == ["gradient"], "other settings, other maps"
    fewer = finer.model_copy(update={"attribution": finer.attribution.model_copy(update={"patients": 3})})
    keep(tmp_path, linear, ["gradient"], monkeypatch, seen, fewer)
    assert len(seen) == 4, "how many patients are explained does not decide the map of one"


def test_every_method_runs_with_the_settings_of_the_study(linear, tmp_path):
    names = [name for name in METHODS if name not in ("gradcam", "guided_gradcam")]
    given = {name: attributions.method_parameters(name, CONFIG, None, None) for name in METHODS}
    assert all(set(given[name]) <= set(METHODS[name].parameters) for name in METHODS)
    small = ["feature_ablation", "feature_permutation", "lime", "kernel_shap", "shapley_sampling", "deeplift"]
    maps, _ = keep(tmp_path, linear, [name for name in names if name in small])
    for name, heat in maps.items():
        assert np.abs(heat[..., 2]).max() > 0, name
        if name in ("feature_ablation", "shapley_sampling", "kernel_shap", "deeplift"):
            assert np.abs(heat[..., :2]).max() < 1e-4 * np.abs(heat[..., 2]).max(), f"{name}: sequences without effect"


def test_only_patients_of_the_notebook_can_be_asked_for(monkeypatch):
    class Person:
        id = "001"

    monkeypatch.setattr(attributions, "attributed_subjects", lambda *_: [Person()])
    with pytest.raises(StudyError, match="--subject: must be a patient of notebook 04, one of 001 "):
        attributions.attribute_subject(CONFIG, "run", "vgg16", "../002")


def test_groups_take_turns(monkeypatch):
    people = [type("Person", (), {"id": f"{group}{i}", "group": group})
              for group in ("RRMS", "SPMS") for i in range(3)]
    monkeypatch.setattr(explained, "explained_subjects", lambda *_: people)
    found = [person.id for person in explained.attributed_subjects(
        CONFIG.model_copy(update={"attribution": CONFIG.attribution.model_copy(update={"patients": 4})}), "run")]
    assert found == ["RRMS0", "SPMS0", "RRMS1", "SPMS1"]


@pytest.mark.parametrize("groups, made", [
    (["control", "RRMS", "SPMS"], ["T1w_1", "T2w_1", "FLAIR_1", "FLAIR_2", "shortcut_1"]), (["RRMS", "SPMS"], [])])
def test_the_job_of_the_planted_nets_leaves_none_to_the_notebook(groups, made, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(planted_results, "control_slices", lambda *_: {"test": "slices"})
    monkeypatch.setattr(planted_results, "planted_maps",
                        lambda experiment, *_: seen.append(f"{experiment.name}_{_[-1] + 1}") or seen[-1])
    randomised = []
    monkeypatch.setattr(planted_results, "randomisation_scores", lambda one, _: randomised.append(one))
    planted_results.make_planted(CONFIG.model_copy(update={"groups": groups}), tmp_path)
    assert seen == made == json.loads((tmp_path / "planted" / "nets.json").read_text(encoding="utf-8"))
    assert randomised == [name for name in made if name == "FLAIR_1"], "what notebook 04 randomises"


def made_up(best="deeplift", failing="guided_backprop"):
    names = list(METHODS)
    table = pd.DataFrame({"msfi": np.linspace(0.1, 0.4, 16), "random": 0.1, "repeat": 0.7, "slices": 8.0,
                          "delta_zero": 0.1, "delta_zero_low": 0.05, "gap": np.nan, "msfi_low": 0.2,
                          "msfi_chance": 0.1},
                         index=pd.Index(names, name="method"))
    table.loc[best, "msfi"], table.loc[failing, "random"] = 0.9, 0.8
    table.loc["lime", "delta_zero_low"] = -0.1
    return table


def used(right=1.0, wrong=0.0):
    value = np.array([right, wrong])
    return pd.DataFrame({"experiment": "shortcut", "tells": ["corner", "corner, reversed"], "value": value,
                         "low": value - 0.1, "high": value + 0.1})


def of_vgg16():
    return {"vgg16": made_up()}


def test_advice_follows_the_numbers():
    exposed = pd.DataFrame({"exposed": [True, False]}, index=["deeplift", "lime"])
    told = attribution_advice.advice(made_up(), of_vgg16(), exposed, used())
    assert told[0].startswith("Nearest to the planted truth (MSFI): deeplift 0.9, ")
    assert told[1].endswith("more than the net: guided_backprop.")
    assert "deeplift 0.9" in told[2] and "lime" not in told[2] and "guided_backprop" not in told[2]
    assert told[3] == "Share on the shortcut surely above that of an even map: deeplift. Not so: lime."
    assert "gradcam" in told[4]
    assert told[5] == "On patients, with all weights of VGG16 random, likeness above 0.5: guided_backprop."
    blank = made_up()
    blank.loc["gradcam", "random"] = np.nan
    told_of = attribution_advice.advice(made_up(), {"vgg19": blank}, exposed, used())[5]
    assert "VGG19" in told_of and told_of.endswith("for blank maps: gradcam.")
    assert attribution_advice.advice(None, of_vgg16(), None, pd.DataFrame())[0] == told[4]
    mute = made_up()
    mute.loc[["lime", "gradient"], "delta_zero"] = 1e-5
    assert attribution_advice.advice(mute, of_vgg16(), exposed, used())[3].startswith(
        "Of the planted nets, under the fill zero, 2 of 16 methods")
    both = {"vgg16": made_up().assign(gap=0.1), "vgg19": mute.assign(gap=0.01)}
    of_both = attribution_advice.advice(None, both, None, pd.DataFrame())
    assert [line[:40] for line in of_both[1:]] == [
        "On patients, with all weights of VGG16 r", "On patients, with all weights of VGG19 r",
        "Of VGG19 on patients, under the fill zer", "Values should add up to the score's diff"]
    first, second = of_both[-1].split(" VGG19 on patients")
    assert "VGG16 on patients" in first and first.endswith("gradcam, guided_gradcam, occlusion, feature_ablation, "
                                                           "feature_permutation, lime, shapley_sampling, kernel_shap.")
    assert second.endswith("may be read: none.")
    ignored = attribution_advice.advice(made_up(), of_vgg16(), exposed, used(0.5, 0.6))
    assert "did NOT learn" in ignored[3] and "Share on the shortcut" not in " ".join(ignored)


def test_methods_are_sorted_by_the_checks_that_they_pass():
    table = made_up().assign(msfi_low=0.2, gap=np.nan)
    table.loc["smoothgrad", "msfi_low"], table.loc["gradient_shap", "gap"] = 0.05, 0.3
    exposed = pd.DataFrame({"exposed": True}, index=table.index).drop("lime")
    exposed.loc["occlusion", "exposed"] = False
    told = attribution_advice.trust(table, exposed)
    every, one, more = told[1], told[2], told[3]
    assert every.startswith("Pass all of them (in brackets: MSFI): deeplift (0.90); ") and "occlusion" not in every
    for name, what in (("occlusion", "exposes the shortcut"), ("guided_backprop", "changes with the net's weights"),
                       ("smoothgrad", "marks the planted signs more than chance"), ("gradient_shap", "adds up"),
                       ("gradcam", "tells the sequences apart")):
        assert f"{name} ({table.loc[name, 'msfi']:.2f}), not: {what}" in one and f" {name} (" not in every
    assert more == "Fail more: lime."
    assert "gradient" in told[4] and "less than half" in told[4]
    assert "exposes the shortcut" not in attribution_advice.trust(table, None)[0]


def test_superpixels_of_the_shapley_methods_add_up(linear):
    groups, _ = attributions.groups_of(linear["images"], linear["brain"], CONFIG)
    drawn = {"shapley_sampling": {}, "kernel_shap": {"samples": 200}}
    maps = {name: attribute(name, *arguments(linear), groups=groups, **more) for name, more in drawn.items()}
    maps["lime"] = maps["kernel_shap"]
    table = scores.score_maps(maps | {"kernel_shap": 2 * maps["kernel_shap"]}, linear["features"], linear["brain"],
                              np.array([0, 0, 1.0]), linear["model"], linear["images"], linear["targets"], SUBJECTS,
                              CONFIG).groupby("method")["gap"].mean()
    assert table["shapley_sampling"] < 1e-3 and table["kernel_shap"] == pytest.approx(1, abs=1e-3)
    assert np.isnan(table["lime"])


def test_the_last_step_of_the_randomisation_is_judged_with_its_interval():
    rows = [{"method": name, "step": step, "random": f"step {step}", "subject": f"{i:02d}", "image": i,
             "likeness": 0.9 if step == 1 else 0.2 + 0.01 * i, **dict.fromkeys(judged.SCORES, 0.5), "blank": False,
             "right": i % 2 == 0, "probability": 0.5 + 0.01 * i, "fill": "zero", "delta": 0.1}
            for name in METHODS for step in (1, 2) for i in range(9)]
    table = pd.DataFrame(rows)
    scores = table[table["step"] == 1]
    found = judged.judgement(scores, scores, CONFIG, random=table)
    np.testing.assert_allclose(found["random"], 0.24)
    assert found["passes"].astype(bool).all() and found["random_low"].between(0.2, 0.24).all()
    assert found["random_high"].between(0.24, 0.28).all()
    flat = table.assign(likeness=table["likeness"].where(table["method"] != "gradcam"))
    found = judged.judgement(scores, scores, CONFIG, random=flat)
    assert pd.isna(found.loc["gradcam", "passes"]) and found.drop("gradcam")["passes"].astype(bool).all()


def test_importance_is_told_over_all_settings_and_not_of_a_handful():
    rows = [{"net": net, "worth": worth, "fill": fill, "modality": modality, "value": value, "low": low, "nothing": 0,
             "all": sum(values)}
            for net, low in (("vgg16", 0.0), ("few", np.nan))
            for worth, fill, values in (("accuracy", "zero", (1, 2, 0)), ("accuracy", "mean", (2, 1, 0)),
                                        ("cross-entropy", "zero", (2, 1, 0)), ("cross-entropy", "mean", (1, 1, 0)),
                                        ("accuracy", "noise", (-1, -2, -3)), ("cross-entropy", "noise", (1, 0, -4)))
            for modality, value in zip(("T1w", "T2w", "FLAIR"), values)]
    assert judged.first_by_importance(pd.DataFrame(rows)) == {"vgg16": {"T1w": 2, "T2w": 1, "a tie": 1, "none": 2}}


@pytest.mark.parametrize(("low", "values", "last"), [
    (0.1, (3, 1, 0), [0.75, 0.25, 0]), (np.nan, (3, 1, 0), None), (0.1, (-3, -1, 0), None)])
def test_no_importance_of_a_handful_beside_the_maps_shares(low, values, last):
    shares = pd.DataFrame({"method": ["deeplift"], **{f"share_{name}": [1 / 3] for name in CONFIG.sequences}})
    importance = pd.DataFrame({"fill": "zero", "worth": "cross-entropy", "modality": list(CONFIG.sequences),
                               "value": values, "low": low})
    table = judged.share_table(shares, importance, CONFIG).set_index("method")
    assert list(table.index) == ["deeplift"] + ["exact Shapley value of the sequence"] * (last is not None)
    if last is not None:
        np.testing.assert_allclose(table.iloc[-1].astype(float), last)


def test_a_layer_repairs_grad_cam_only_beyond_its_intervals():
    layers = {"block3_conv3": 0.6, "block5_conv3": 0.2}
    rows = [{"method": method, "layer": layer, "value": value, "low": value - 0.05, "high": value + 0.05, "chance": 0.1}
            for method in ("gradcam", "guided_gradcam") for layer, value in layers.items()]
    sweep = pd.DataFrame(rows)
    assert judged.sweep_sentence(sweep).count("An earlier layer repairs it") == 2
    close = sweep.assign(value=sweep["value"] / 3 + 0.1, low=0.0, high=1.0)
    assert judged.sweep_sentence(close).count("does not clearly repair it") == 2
    verdicts = [attribution_claims._repaired(pd.concat([one.assign(backbone="a"), other.assign(backbone="b")]))[1]
                for one, other in ((sweep, sweep), (sweep, close), (close, close))]
    assert verdicts == [HOLDS, "undecided: not surely in every net", FAILS]


def test_a_net_that_needs_no_sequence_is_left_out_and_told(linear):
    common = linear["features"], linear["brain"]
    settings = {name: linear[name] for name in ("model", "images", "targets", "subjects")} | {"config": CONFIG}
    maps = {name: np.ones_like(linear["images"]) for name in METHODS}
    useless, useful = (scores.score_maps(maps, *common, importance=np.array(weights), **settings)
                       for weights in ((-1.0, 0, -2), (0, 0, 1.0)))
    assert useless[["msfi", "portion", "msfi_chance"]].isna().all(axis=None) and useless["iou"].notna().all()
    removal = useless.assign(fill="zero", delta=0.1)
    both, alone = (judged.judgement(table, removal, CONFIG) for table in (pd.concat([useful, useless]), useless))
    np.testing.assert_allclose(both["msfi"], useful["msfi_chance"].iloc[0])
    assert "leave out 8 slices" in judged.score_caption(pd.concat([useful, useless]), "")
    assert "leave out" not in judged.score_caption(useful, "")
    assert alone["msfi"].isna().all() and "msfi" not in judged.better(alone)
    exposed = pd.DataFrame({"exposed": [False] * len(METHODS)}, index=list(METHODS))
    agreement = pd.DataFrame({"tau": [1.0]})
    nets = pd.DataFrame({"net": "vgg16", "fill": "zero", "worth": "cross-entropy", "modality": list(CONFIG.sequences),
                         "value": 1.0, "low": np.nan, "all": 1.0, "nothing": 0.0})
    alone = alone.assign(random=0.1)
    both = {"vgg16": alone, "vgg19": alone.assign(random=0.9, slices=9)}
    found = judged.recorded(alone, both, nets, agreement, exposed, used(), CONFIG)
    assert found["planted_best"] is None
    assert found["patient_randomisation_fails"] == {"vgg16": [], "vgg19": sorted(METHODS)} and found["patients"] == 9
    assert "(MSFI): none" in attribution_advice.advice(alone, {"vgg16": alone}, exposed, used())[0]


def test_layers_are_judged_by_nets_that_need_a_sequence():
    rows = [{"backbone": "a", "method": method, "layer": layer, "value": value, "low": value - 0.05,
             "high": value + 0.05, "chance": 0.1}
            for method in ("gradcam", "guided_gradcam")
            for layer, value in (("block3_conv3", 0.6), ("block5_conv3", 0))]
    sweep = pd.DataFrame(rows)
    lost = sweep.assign(backbone="b", value=np.nan, low=np.nan, high=np.nan, chance=np.nan)
    for claim, holds in ((attribution_claims._repaired, HOLDS), (attribution_claims._useless, HOLDS)):
        assert claim(pd.concat([sweep, lost]))[1] == holds
        assert claim(lost) == attribution_claims.NO_TEST
    assert judged.sweep_sentence(lost).count("not defined") == 2
    table = pd.DataFrame({"msfi": np.nan, "msfi_low": np.nan, "msfi_high": np.nan}, index=list(METHODS))
    assert attribution_claims._best(table) == attribution_claims.NO_TEST


def test_where_nothing_is_to_be_marked_no_share_is_right(linear):
    features = linear["features"].copy()
    features[:3] = False
    table = scores.score_maps({"gradient": np.ones_like(linear["images"])}, features, linear["brain"],
                              np.array([0, 0, 1.0]), *arguments(linear), SUBJECTS, CONFIG)
    for name in ("msfi", "portion", "iou", "msfi_chance", "portion_chance"):
        assert table[name].isna().tolist() == [True] * 3 + [False] * 5, name
    assert "leave out 3 slices: nothing is to be marked there" in judged.score_caption(table, "")


def test_seconds_are_told_for_every_net():
    one = {"seconds": pd.Series({"gradient": 1.0, "lime": 2.0})}
    two = {"seconds": pd.Series({"gradient": 3.0, "lime": 4.0})}
    table = judged.seconds_table({"vgg16": one, "vgg19": two}, {"FLAIR": one})
    assert table.to_dict("list") == {"method": ["gradient", "lime"], "patients_vgg16": [1, 2],
                                     "patients_vgg19": [3, 4], "planted": [1, 2]}


def test_the_shortcut_is_exposed_by_heat_on_it(linear):
    images = np.zeros((8, 96, 84, 3), np.float32)
    square = planted_results.shortcut_mask((96, 84), CONFIG.model.pixel_mm)
    on = np.zeros_like(images)
    on[:, square] = np.random.default_rng(0).uniform(0.5, 1, (8, square.sum(), 3))
    on[:, 50, 40] = np.arange(8)[:, None]
    one = {"images": images, "corner": np.arange(8) > -1, "subjects": list("abcdefgh"),
           "maps": {"gradient": on, "lime": np.ones_like(images), "occlusion": np.zeros_like(images)}}
    table = planted_results.shortcut_table(one, CONFIG)
    assert table["exposed"].to_dict() == {"gradient": True, "lime": False, "occlusion": False}
    assert table.loc["lime", "value"] == pytest.approx(square.mean()) and table.loc["occlusion", "blank"] == 8
    seen = planted_results.shortcut_table(one | {"corner": np.arange(8) < 3}, CONFIG)
    assert (seen["slices"] == 3).all() and (seen["subjects"] == 3).all(), "those that show it, not all"
