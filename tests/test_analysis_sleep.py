"""Analysis of sleep staging on tables made by hand: known answers come back, identities hold, bad nights are named."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from repository import ROOT
from statsmodels.stats.power import TTestPower

from mslib.__main__ import main
from mslib.analysis import sleep
from mslib.sleep import MODALITIES, STAGES, Effects, EpochSet
from mslib.sleep.staging import build_stager, prediction_table

RULE, DRAWS = "epsilon_plus", {"n": 200, "confidence": 0.95, "seed": 0}


# ---- one fold

@pytest.fixture(scope="module")
def eog_alone(tmp_path_factory):
    """Four noisy nights and a network whose first layer sees the EOG alone: (network, epochs, predictions)."""
    folder, rng, tables = tmp_path_factory.mktemp("epochs"), np.random.default_rng(0), []
    for subject in "abcd":
        np.save(folder / f"{subject}1.npy", rng.normal(size=(30, 400, 3)) * rng.uniform(0.2, 2, (30, 1, 3)))
        tables.append(pd.DataFrame({"recording": f"{subject}1", "subject": subject, "onset": 30.0 * np.arange(30),
                                    "stage": np.arange(30) % 3, "row": np.arange(30)}))
    epochs, model = EpochSet(folder, pd.concat(tables, ignore_index=True)), build_stager(400, pool=2)
    weights = [1.5 * weight for weight in model.get_weights()]
    weights[0][:, [0, 2]] = 0
    model.set_weights(weights)
    weights[-1] = -np.median(model.predict(epochs.batch(np.arange(120)), verbose=0), axis=0)  # every stage is predicted
    model.set_weights(weights)
    predictions = prediction_table(model, epochs, list("abcd"))
    wrong = (predictions["predicted"] + 1) % 5
    return model, epochs, predictions.assign(stage=predictions["predicted"].where(predictions.index % 4 > 0, wrong))


def test_draws_stand_for_all_epochs(eog_alone):
    predictions = eog_alone[2]
    drawn = sleep.draw_by_stage(predictions, 3, 0)
    groups = drawn.groupby(["recording", "stage"])
    assert groups.size().max() == 3 and drawn["epoch"].is_monotonic_increasing
    assert groups["weight"].sum().tolist() == predictions.groupby(["recording", "stage"]).size().tolist()


def test_a_network_that_sees_one_modality_has_all_its_relevance_there(eog_alone, monkeypatch):
    monkeypatch.setattr(sleep, "VARIANTS", {"alpha1_beta0": ("alpha1_beta0", {})})
    table = sleep.fold_relevance(*eog_alone, RULE, explained=3, compared=1, seed=0)
    assert set(table["rule"]) == {RULE, *sleep.VARIANTS} and (table["correct"] == (
        table["stage"] == table["predicted"])).all() and 0 < table["correct"].mean() < 1
    assert np.allclose(table[["absolute_EEG", "absolute_EOG", "absolute_EMG"]], [0, 100, 0])
    positive = table[["positive_EEG", "positive_EOG", "positive_EMG"]].dropna()  # a logit below 0 may have none
    assert np.allclose(positive, [0, 100, 0]) and len(positive) > len(table) / 2
    counts = eog_alone[2].groupby(["recording", "stage"]).size().tolist()
    for rule, most in ((RULE, 3), ("alpha1_beta0", 1)):
        groups = table[table["rule"] == rule].groupby(["recording", "stage"])
        assert groups.size().max() == most and np.allclose(groups["weight"].sum(), counts)


def test_only_the_modality_that_is_seen_is_missed_and_attributed(eog_alone, monkeypatch):
    monkeypatch.setattr(sleep, "METHODS", ("gradient", "integrated_gradients"))
    ablated = sleep.fold_ablation(*eog_alone, per_stage=3, seed=0)
    assert set(zip(ablated["baseline"], ablated["modality"])) == {(sleep.PRESENT, sleep.PRESENT)} | {
        (baseline, modality) for baseline in ("zero", "noise") for modality in MODALITIES}
    present = ablated.loc[ablated["baseline"] == sleep.PRESENT, "predicted"].to_numpy()
    changed = {key: (part["predicted"].to_numpy() != present).mean()
               for key, part in ablated.groupby(["baseline", "modality"]) if key[0] != sleep.PRESENT}
    assert {key for key, share in changed.items() if share > 0} == {("zero", "EOG"), ("noise", "EOG")}
    pd.testing.assert_frame_equal(ablated, sleep.fold_ablation(*eog_alone, per_stage=3, seed=0))
    methods = sleep.fold_methods(*eog_alone, per_stage=2, steps=2, seed=0)
    assert set(methods["method"]) == set(sleep.METHODS) and np.allclose(methods["EOG"], 100)
    wrong = eog_alone[2].assign(stage=(eog_alone[2]["predicted"] + 1) % 5)
    assert list(sleep.fold_methods(*eog_alone[:2], wrong, 2, 2, 0)) == list(methods), "without rows, the same columns"


def test_typical_night_and_epochs(eog_alone):
    predictions = eog_alone[2]
    correct = (predictions["stage"] == predictions["predicted"]).groupby(predictions["recording"]).mean()
    recording = sleep.typical_recording(predictions)
    assert (correct < correct[recording]).sum() <= 1 and (correct <= correct[recording]).sum() >= 2
    chosen = sleep.typical_epochs(predictions, recording)
    assert (chosen["stage"] == chosen["predicted"]).all() and chosen["stage"].is_unique
    logits = predictions[[f"logit_{stage}" for stage in STAGES]].to_numpy(float)
    certain = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    for row in chosen.itertuples():
        same = (predictions["predicted"] == row.stage) & (predictions["stage"] == row.stage)
        here = same & (predictions["recording"] == recording)
        values = np.sort(certain[here if here.any() else same])
        assert row.probability == pytest.approx(values[(len(values) - 1) // 2], rel=1e-4)


# ---- all folds

def shares_by_hand(eeg=50.0, eog=30.0, subjects="abcdef", noise=1.0):
    """One row per epoch, as `fold_relevance` gives them: every stage alike, noise between epochs, correct and wrong."""
    rng, rows = np.random.default_rng(0), []
    for fold, subject in enumerate(subjects):
        for stage in range(5):
            for correct in (True, False):
                for _ in range(4):
                    first = eeg + rng.normal(0, noise)
                    rows.append({"recording": f"{subject}1", "subject": subject, "stage": stage, "fold": fold % 3,
                                 "correct": correct, "rule": RULE, "weight": 1.0,
                                 **{f"{kind}_{name}": value for kind in sleep.KINDS for name, value in
                                    zip(MODALITIES, (first, eog, 100 - first - eog))}})
    return pd.DataFrame(rows)


def main_shares(table):
    subjects = sleep.subject_shares(table)
    return subjects[(subjects["kind"] == "absolute") & subjects["correct"]]


def test_shares_are_means_over_epochs_then_subjects():
    table = shares_by_hand(noise=0)
    table.loc[(table["subject"] == "a") & (table["stage"] == 0) & table["correct"], "absolute_EEG"] = [80, 60, 60, 60]
    means = main_shares(table).query("subject == 'a'").set_index("stage")["EEG"]
    assert means["W"] == 65 and means["N1"] == 50 and means["overall"] == pytest.approx(53)
    often = main_shares(table.assign(weight=np.where(table["stage"] == 0, 6.0, 1.0)))
    row = often[(often["stage"] == "overall") & (often["subject"] == "a")].iloc[0]
    assert row["EEG"] == pytest.approx((6 * 65 + 4 * 50) / 10), "W stands for six times as many"
    summary = sleep.share_summary(sleep.subject_shares(table), **DRAWS)
    row = summary.set_index(["kind", "correct", "stage", "modality"]).loc[("absolute", True, "W", "EEG")]
    assert row["value"] == pytest.approx(52.5) and row["low"] < 52.5 < row["high"]
    assert row["n"] == 24 and row["subjects"] == 6


INFORMATION = pd.DataFrame([{"modality": modality, "stage": stage, "auc": auc, "auc_sd": 0.03} for stage in STAGES
                            for modality, auc in (("EEG", 0.8), ("EOG", 0.9), ("EMG", 0.6), ("all", 0.95))] + [
    {"modality": modality, "stage": "overall", "balanced_accuracy": value, "balanced_accuracy_sd": 0.04}
    for modality, value in (("EEG", 0.7), ("EOG", 0.6), ("EMG", 0.4), ("all", 0.8))])


def test_differences_of_shares_stand_beside_those_of_information():
    table = sleep.share_differences(main_shares(shares_by_hand()), INFORMATION, **DRAWS)
    table = table.set_index(["stage", "more", "less"]).sort_index()
    assert len(table) == 6 * 6 and (table["subjects"] == 6).all()
    row, mirror = table.loc[("REM", "EOG", "EEG")], table.loc[("REM", "EEG", "EOG")]
    assert row["high"] < 0 and row["value"] == pytest.approx(-20, abs=1), "EEG has more"
    assert row[["value", "information"]].tolist() == pytest.approx((-mirror[["value", "information"]]).tolist())
    assert row["information"] == pytest.approx(0.1) and row["scatter"] == pytest.approx(0.03 * np.sqrt(2))
    assert table.loc[("overall", "EEG", "EMG"), "information"] == pytest.approx(0.3)
    few = sleep.share_differences(main_shares(shares_by_hand(subjects="ab")), INFORMATION, **DRAWS)
    assert few[["low", "high"]].isna().all(axis=None) and few["value"].notna().all(), "too few for an interval"


def test_folds_that_agree_and_folds_that_do_not():
    table = shares_by_hand(noise=2, subjects="abcdefghi")
    equal = sleep.consistency(table, RULE, **DRAWS).iloc[0]
    assert equal["low"] < 0, "not more than by chance"
    table.loc[~table["correct"], "absolute_EEG"] += 10 * table["fold"]
    apart = sleep.consistency(table, RULE, **DRAWS).iloc[0]
    assert apart["value"] == pytest.approx(apart["wrong"] - apart["correct"] - apart["chance"])
    assert apart["low"] > 0 and apart["epochs"] == 180
    one = sleep.consistency(shares_by_hand(subjects="a"), RULE, **DRAWS).iloc[0]
    assert one[["correct", "wrong", "value", "low", "high"]].isna().all()


def test_people_who_scatter_are_no_folds_that_disagree():
    """Wrong epochs of every person are off in a direction of their own, whatever the fold."""
    held, differences = [], []
    for seed in range(20):
        table = shares_by_hand(noise=2, subjects="abcdefghijkl")
        off = dict(zip("abcdefghijkl", np.random.default_rng(seed).normal(0, 12, 12)))
        table.loc[~table["correct"], "absolute_EEG"] += table["subject"].map(off)
        found = sleep.consistency(table, RULE, **DRAWS).iloc[0]
        held.append(found["low"] > 0)
        differences.append(found["wrong"] - found["correct"])
    assert np.mean(differences) > 1 and sum(held) <= 3, "wrong epochs scatter more, and folds no more than by chance"


def test_as_many_correct_as_wrong_epochs_are_compared():
    table = shares_by_hand()
    few = table.drop(index=table.index[~table["correct"] & (table["subject"] == "b")][1:])
    matched = sleep.matched(few, 0).groupby(["subject", "stage", "correct"]).size()
    assert matched.loc["a"].eq(4).all() and matched.loc["b"].to_dict() == {(0, False): 1, (0, True): 1}


def test_ablation_counts_what_is_lost_and_where_it_goes():
    rows = []
    for subject in "abcdef":
        rows += [("none", "none", subject, stage, stage) for stage in (0, 3) for _ in range(4)]
        rows += [("zero", "EEG", subject, 0, 0)] * 4 + [("zero", "EEG", subject, 3, 0)] * 3 + [
            ("zero", "EEG", subject, 3, 3)]
        rows += [("zero", modality, subject, stage, stage) for modality in ("EOG", "EMG") for stage in (0, 3)
                 for _ in range(4)]
    ablated = pd.DataFrame(rows, columns=["baseline", "modality", "subject", "stage", "predicted"])
    table = sleep.ablation_table(ablated, **DRAWS)
    lost = table.set_index(["modality", "stage"])["value"]
    assert lost["EEG", "N3"] == 0.75 and lost.drop(("EEG", "N3")).eq(0).all() and len(lost) == 6
    assert table["n"].eq(24).all() and table["subjects"].eq(6).all()
    went = sleep.collapse_table(ablated).set_index("modality").loc["EEG"]
    assert went["stage"] == "W" and went["share"] == 7 / 8 and went["present"] == 0.5


def test_agreement_of_orders():
    table = shares_by_hand(50, 30, noise=0)
    other = table.assign(rule="epsilon_100", absolute_EEG=table["absolute_EOG"], absolute_EOG=table["absolute_EEG"])
    none = pd.DataFrame({"subject": [], "stage": [], "method": [], **{name: [] for name in MODALITIES}})
    methods = sleep.method_table(none, pd.concat([table, other], ignore_index=True), **DRAWS)
    lost = pd.DataFrame([{"baseline": "zero", "stage": stage, "modality": name, "value": value} for stage in STAGES
                         for name, value in (("EEG", 0.2), ("EOG", 0.3), ("EMG", 0.1))])
    agreed = sleep.agreement(methods, lost, INFORMATION, RULE).set_index("source")
    assert agreed.loc["ablation, zero", "tau_information"] == 1 and agreed.loc["ablation, zero", "top_information"] == 5
    assert agreed.loc[f"LRP {RULE}", "tau_relevance"] == 1 and agreed.loc[f"LRP {RULE}", "difference"] == 0
    assert agreed.loc[f"LRP {RULE}", "tau_information"] == pytest.approx(1 / 3)
    assert agreed.loc["LRP epsilon_100", "difference"] == pytest.approx(40 / 3)


# ---- age, sex and drug

def nights(subjects=12):
    """Covariates of two nights of every subject."""
    names = [f"s{number:02d}" for number in range(subjects)]
    return pd.DataFrame([{"recording": f"{name}N{night}", "subject": name, "decade": 2 + place % 7 * 0.7,
                          "woman": float(place % 3 > 0), "drug": float(night == 2)}
                         for place, name in enumerate(names) for night in (1, 2)]).set_index("recording")


def night_shares(known, drug=0.0, stages=STAGES):
    """Shares per night with an effect of the drug on the EOG of N2, taken from the EEG."""
    rows, rng = [], np.random.default_rng(0)
    for stage in stages:
        shift = known["drug"] * drug * (stage == "N2") + rng.normal(0, 1, len(known))
        rows.append(pd.DataFrame({"stage": stage, "recording": known.index, "EEG": 50 - shift, "EOG": 30 + shift,
                                  "EMG": 20 + rng.normal(0, 1, len(known))}))
    return pd.concat(rows, ignore_index=True).join(known, on="recording")


def test_a_simulated_effect_of_the_drug_is_found_where_it_is():
    fitted = sleep.fit_effects(night_shares(nights(), drug=4))
    found = fitted[fitted["p_fdr"] <= sleep.ALPHA]
    assert set(zip(found["stage"], found["modality"], found["term"])) == {("N2", "EOG", "drug"), ("N2", "EEG", "drug")}
    row = found[found["modality"] == "EOG"].iloc[0]
    assert row["low"] < 4 < row["high"] and row["detectable"] < 2


def test_corrected_intervals_exclude_0_where_the_corrected_p_is_low_and_there_alone():
    fitted = sleep.fit_effects(night_shares(nights(), drug=2))
    corrected = sleep.corrected_effects(fitted)
    assert ((corrected["low"] > 0) == (fitted["p_fdr"] < sleep.ALPHA)).all()
    assert 0 < (corrected["low"] > 0).sum() < len(corrected)
    width = corrected["high"] - corrected["low"]
    assert (width >= fitted["high"] - fitted["low"] - 1e-9).all(), "never narrower than without correction"
    best = corrected[corrected["strongest"]]
    assert len(best) == 9 and (best["p_fdr"].to_numpy() == best.set_index(["term", "modality"]).index.map(
        corrected.groupby(["term", "modality"])["p_fdr"].min())).all()


def test_effects_that_cannot_be_estimated_say_why():
    fitted = sleep.fit_effects(night_shares(nights().assign(woman=1.0), stages=["N2"]))
    assert fitted[["value", "p", "p_fdr"]].isna().all(axis=None) and "woman is constant" in fitted["why"].iloc[0]
    assert sleep.corrected_effects(fitted).empty
    assert sleep.fit_effects(night_shares(nights()).drop(columns=["decade", "woman", "drug"])).empty


def epoch_table(known):
    """Epochs whose nights have these covariates, one of each stage."""
    table = known.reset_index().assign(age=10 * known["decade"].to_numpy(), night=1,
                                       sex=np.where(known["woman"] > 0, "F", "M"),
                                       drug=np.where(known["drug"] > 0, "temazepam", "placebo"))
    return pd.concat([table.assign(stage=stage) for stage in (2, 3, 4)], ignore_index=True)


def test_unknown_and_constant_covariates_are_left_out():
    table = epoch_table(nights())
    pd.testing.assert_frame_equal(sleep.covariates(EpochSet(None, table)), nights())
    women = EpochSet(None, table.assign(sex="F", drug=np.nan))
    assert list(sleep.covariates(women)) == ["subject", "decade"]


def test_the_detectable_effect_has_a_power_of_four_fifths():
    size = sleep.detectable(error=0.5, df=21)
    assert TTestPower().power(size / (0.5 * np.sqrt(22)), 22, 0.05) == pytest.approx(0.8, abs=1e-3)
    assert np.isnan(sleep.detectable(0, 21)) and np.isnan(sleep.detectable(1, 1))


def test_simulated_effects_come_back_from_signals():
    drawn, rng, sizes = epoch_table(nights(18)), np.random.default_rng(0), asdict(Effects())
    features = rng.normal(0, 0.02, (len(drawn), 3, 13))
    shift = -0.1 * drawn["age"] / 10 + 0.15 * (drawn["sex"] == "F") - 0.15 * (drawn["drug"] == "temazepam")
    features[:, 0, 1:3] += 2 * shift.to_numpy()[:, None]
    features += rng.normal(0, 0.5, (len(drawn), 3, 1))  # gains of channels
    table = sleep.signal_recovery(drawn, features, nights(18), sizes)
    found = table.set_index(["component", "term"])
    waves = found.loc["slow waves (0.5 to 2 Hz)"]
    assert waves["inside"].all() and waves["sign"].all()
    absent = found.drop(index="slow waves (0.5 to 2 Hz)", level=0)
    assert not absent["inside"].any() and not absent["sign"].any(), "not in these features"
    nothing = sleep.signal_recovery(drawn, features, nights(18), {})
    assert nothing.empty and list(nothing) == list(table)


def test_simulated_effects_are_looked_for_in_their_places():
    sizes = asdict(Effects())
    named = {name for _, _, names in sleep.EXPECTED for parts in names.values() for name in parts}
    assert named == set(sizes) - {"subject_sd", "night_sd"}, "every simulated effect has a place"
    table = sleep.relevance_recovery(sleep.fit_effects(night_shares(nights(), drug=-4)), sizes)
    found = table[table["recovered"]]
    assert len(table) == 8 and list(zip(found["stage"], found["modality"], found["term"])) == [("N2", "EEG", "drug")]
    other = sleep.fit_effects(night_shares(nights(), drug=4))
    table = sleep.relevance_recovery(other, sizes)
    assert table["p_fdr"].min() < 0.05 and not table["recovered"].any(), "the wrong sign is no success"
    nothing = sleep.relevance_recovery(other, {})
    assert nothing.empty and set(nothing) == set(table)


# ---- the step

def run(tmp_path, text, *words):
    path = tmp_path / "test.yaml"
    path.write_text(f"study: test\n{text}")
    return main([*words, "--config", str(path), "--run-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("study, message", [("published", "cannot be fetched"), ("open_ms", "has no section 'sleep'")])
def test_nights_that_cannot_be_had_end_with_status_1_and_one_line(tmp_path, capsys, monkeypatch, study, message):
    def offline(*_):
        raise ValueError("Sleep-EDF telemetry cannot be fetched")

    monkeypatch.setattr("mslib.sleep.fetch_telemetry", offline)
    assert main(["nights", "--config", str(ROOT / "config" / f"{study}.yaml"), "--run-dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_bad_recording_is_reported_and_too_few_subjects_are_refused(tmp_path, capsys):
    own = "sleep: {source: folder, root: %s, folds: %d}\n"
    assert run(tmp_path, "sleep: {subjects: 4, hours: 0.5, folds: 3}\n", "nights") == 0
    source = tmp_path / "run" / "sleep" / "nights"
    whole = (source / "SIM02N1-PSG.edf").read_bytes()
    (source / "SIM02N1-PSG.edf").write_bytes(whole[: len(whole) // 2])
    (source / "SIM03N2-PSG.edf").write_bytes(b"")
    assert run(tmp_path, own % (source, 3), "nights") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 2 and "'SIM02N1': SIM02N1-PSG.edf: is truncated" in lines[0] and "is empty" in lines[1]
    table = pd.read_csv(tmp_path / "run" / "sleep" / "epochs" / "epochs.csv")
    assert table["recording"].nunique() == 6 and len(table) == 360
    nights_table = pd.read_csv(source / "nights.tsv", sep="\t")
    nights_table[nights_table["subject"] == "SIM01"].to_csv(source / "nights.tsv", sep="\t", index=False)
    assert run(tmp_path, own % (source, 3), "nights") == 1
    assert "has nights of 1 subject that can be used, fewer than sleep.folds, 3" in capsys.readouterr().err
    assert run(tmp_path, own % (source, 3), "fold", "--number", "3") == 1
    assert "--number: must lie in 0..2 (got 3)" in capsys.readouterr().err
