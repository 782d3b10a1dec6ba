"""Jobs of notebook 06 on a tiny cohort and on tables made by hand: planted answers come back, bad nights are named."""

import shutil

import numpy as np
import pandas as pd
import pytest
from repository import ROOT
from statsmodels.stats.power import TTestPower

from mslib.__main__ import main
from mslib.jobs import sleep, sleep_ablation, sleep_claims, sleep_effects, sleep_relevance, sleep_report, sleep_tables
from mslib.jobs import sleep_words as words
from mslib.jobs.publish import executed_notebooks
from mslib.jobs.verdicts import FAILS, HOLDS
from mslib.show import plot_confusions
from mslib.sleep import MODALITIES, STAGES, Effects, EpochSet, write_hypnogram
from mslib.sleep.folds import load_stager
from mslib.sleep.staging import build_stager
from mslib.study import StudyConfig, StudyError

TINY = {"subjects": 3, "hours": 0.5, "folds": 3, "epochs_per_recording": 8, "passes": 1, "explained_per_stage": 3,
        "compared_per_stage": 1, "steps": 2, "simulations": 1}
CONFIG = StudyConfig(study="test", sleep=TINY, statistics={"bootstrap": 200})
RULE = CONFIG.sleep.rule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    epochs = sleep.read_nights(CONFIG, folder)
    for number in range(3):
        sleep.fit_fold(CONFIG, folder, number)
    return {"folder": folder, "epochs": epochs, "found": sleep.validate(CONFIG, folder, epochs)}


def spoil(folder):
    """One night cut short, one with a label that nobody knows, one empty."""
    nights = sorted(folder.glob("*-PSG.edf"))
    whole = nights[0].read_bytes()
    nights[0].write_bytes(whole[: len(whole) // 2])
    nights[2].write_bytes(b"")
    hypnogram = folder / nights[4].name.replace("PSG", "Hypnogram")
    hypnogram.write_bytes(hypnogram.read_bytes().replace(b"Sleep stage W", b"Sleep stage X"))
    return [path.name.split("-")[0] for path in (nights[0], nights[2], nights[4])]


def own_recordings(run, tmp_path, **changes):
    nights = tmp_path / "own"
    shutil.copytree(run["folder"] / "sleep" / "nights", nights)
    return nights, StudyConfig(study="test", sleep=TINY | {"source": "folder", "root": str(nights)} | changes)


def test_a_bad_recording_is_reported_and_the_others_go_on(run, tmp_path, capsys):
    nights, config = own_recordings(run, tmp_path)
    bad = spoil(nights)
    epochs = sleep.read_nights(config, tmp_path / "run")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert [name for line, name in zip(told, bad) if name in line] == bad and len(told) == 3
    assert all(word in line for line, word in zip(told, ("truncated", "is empty", "unknown label")))
    assert set(epochs.table["recording"]) == {f"SIM0{who}N{night}" for who in (1, 2, 3) for night in (1, 2)} - set(bad)
    recorded = sleep.read_json(tmp_path / "run" / "sleep" / "nights.json")
    assert len(recorded["faults"]) == 3 and recorded["recordings"] == 3
    assert "recordings left out as faulty: 3" in words.cohort_sentence(epochs, config)


def test_hypnograms_of_another_length_are_reported_or_cut(run, tmp_path, capsys):
    nights, config = own_recordings(run, tmp_path)
    stages = np.tile([0, 1, 2, 3, 4], 20)
    write_hypnogram(nights / "SIM01N1-Hypnogram.edf", stages[:70])
    write_hypnogram(nights / "SIM02N1-Hypnogram.edf", stages[:50])
    epochs = sleep.read_nights(config, tmp_path / "run")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(told) == 2 and "longer than the signal's 1800 s" in told[0] and "shorter than the signal" in told[1]
    cut = config.model_copy(update={"sleep": config.sleep.model_copy(update={"mismatch": "cut"})})
    whole = sleep.read_nights(cut, tmp_path / "run").table
    assert set(whole["recording"]) - set(epochs.table["recording"]) == {"SIM01N1", "SIM02N1"}
    assert (whole["recording"] == "SIM02N1").sum() == 50 and (whole["recording"] == "SIM01N1").sum() == 60


@pytest.mark.parametrize("changes, message", [
    ({"channels": {"EOG": "EOG vertical"}}, "has no channel EOG 'EOG vertical'; allowed: EEG Fpz-Cz"),
    ({"rate": 128.0}, "has 100 samples per second; allowed: 128, nothing is resampled")])
def test_settings_that_fit_no_recording_are_told_once_a_recording(run, tmp_path, changes, message):
    _, config = own_recordings(run, tmp_path, **changes)
    with pytest.raises(StudyError) as told:
        sleep.read_nights(config, tmp_path / "run")
    lines = str(told.value).splitlines()
    assert lines[0].endswith("no recording can be used") and len(lines) == 7
    assert all(message in line for line in lines[1:])


def test_one_subject_is_too_few(run, tmp_path):
    nights, config = own_recordings(run, tmp_path)
    table = pd.read_csv(nights / "nights.tsv", sep="\t")
    table[table["subject"] == "SIM01"].to_csv(nights / "nights.tsv", sep="\t", index=False)
    with pytest.raises(StudyError, match=r"own: has nights of 1 subject that can be used, fewer than sleep.folds, 3"):
        sleep.read_nights(config, tmp_path / "run")


def test_a_folder_without_a_table_and_a_study_without_nights(tmp_path):
    (tmp_path / "own").mkdir()
    config = StudyConfig(study="test", sleep=TINY | {"source": "folder", "root": str(tmp_path / "own")})
    with pytest.raises(StudyError, match=r"nights\.tsv: is absent; allowed: a table with the columns recording"):
        sleep.read_nights(config, tmp_path)
    with pytest.raises(StudyError, match="study test: has no section 'sleep'"):
        sleep.read_nights(StudyConfig(study="test"), tmp_path)
    with pytest.raises(StudyError, match=r"fold: must lie in 0\.\.2 \(got 3\)"):
        sleep.fit_fold(CONFIG, tmp_path / "run", 3)


def test_finished_folds_are_taken_up_and_their_input_file_is_left_alone(run, monkeypatch):
    monkeypatch.setattr("mslib.sleep.folds.fit_stager", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(sleep_relevance, "lrp", lambda *_, **__: pytest.fail("explained again"))
    nights = run["folder"] / "sleep" / "nights.json"
    before = nights.stat().st_mtime_ns
    sleep.fit_fold(CONFIG, run["folder"], 1)
    assert nights.stat().st_mtime_ns == before
    assert (run["folder"] / "sleep" / "fold-01.json").is_file()


def test_only_people_whom_the_net_has_not_seen_are_explained(run):
    table = sleep_relevance.all_relevance(CONFIG, run["folder"], run["epochs"], run["found"])
    for number, fold in enumerate(run["found"].folds):
        assert set(table.loc[table["fold"] == number, "subject"]) == set(fold.test)
    assert set(table["rule"]) == {RULE, *sleep_relevance.VARIANTS}
    for kind in sleep_relevance.KINDS:
        assert np.allclose(table[[f"{kind}_{name}" for name in MODALITIES]].sum(axis=1), 100, atol=0.01)
    own = table[table["rule"] == RULE].groupby(["recording", "stage"])
    assert own.size().max() == 3 and (table["right"] == (table["stage"] == table["predicted"])).all()
    counts = run["found"].predictions.groupby(["recording", "stage"]).size()
    assert np.allclose(own["weight"].sum(), counts.loc[own.size().index], rtol=1e-3)


def test_a_net_that_sees_one_modality_has_all_its_relevance_there(run):
    model = build_stager(pool=4)
    kernel, bias = model.get_layer("block1_conv1").get_weights()
    kernel[:, [0, 2]] = 0
    model.get_layer("block1_conv1").set_weights([kernel, bias])
    chosen = run["found"].predictions.iloc[:6].assign(weight=1.0)
    for rule, parameters in ((RULE, {}), *sleep_relevance.VARIANTS.values()):
        table = sleep_relevance._shares(model, run["epochs"], chosen, "x", rule, parameters)
        assert np.allclose(table["absolute_EOG"], 100) and np.allclose(table[["absolute_EEG", "absolute_EMG"]], 0)


def test_exchanged_weights_give_the_relevance_of_a_net_of_its_own(run):
    rows, targets = np.arange(4), np.array([0, 1, 2, 3])
    found = []
    for place in run["found"].folders[:2]:
        shared = sleep_relevance.relevance_of(sleep.net_of(place), run["epochs"], rows, targets, RULE)
        alone = sleep_relevance.relevance_of(load_stager(place), run["epochs"], rows, targets, RULE)
        np.testing.assert_allclose(shared, alone, atol=1e-6)
        found.append(shared)
    assert sleep.net_of(run["found"].folders[0]) is sleep.net_of(run["found"].folders[1])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    with pytest.raises(StudyError, match="holds no finished fold"):
        sleep.net_of(run["folder"])


def test_a_whole_night_and_examples_come_from_the_fold_that_tests_it(run):
    found = run["found"]
    recording = sleep_relevance.typical_recording(found)
    rows = found.predictions
    right = (rows["stage"] == rows["predicted"]).groupby(rows["recording"]).mean()
    first = right[sorted(set(rows.loc[rows["fold"] == 0, "recording"]))]
    assert right[recording] == first.min(), "two nights: the lower median"
    night = sleep_relevance.night_shares(CONFIG, run["epochs"], found, recording)
    assert night["onset"].is_monotonic_increasing and set(night["recording"]) == {recording}
    examples = sleep_relevance.example_epochs(CONFIG, run["epochs"], found, recording)
    assert examples and set(examples) <= set(STAGES)
    for stage, one in words.example_titles(examples).items():
        assert one["signal"].shape == one["relevance"].shape == (3000, 3)
        assert f"{one['probability']:.2f}" in one["title"]
        row = rows[(rows["recording"] == one["recording"]) & np.isclose(rows["onset"] / 3600, one["hour"])].iloc[0]
        assert STAGES[row["stage"]] == STAGES[row["predicted"]] == stage


def test_line_noise_is_the_mains_as_sampled():
    rng = np.random.default_rng(0)
    for mains, seen in ((50, 50), (60, 40)):
        noise = sleep_ablation.line_noise(400, 3000, mains, 100, rng)
        spectrum = np.abs(np.fft.rfft(noise.astype(float))).mean(axis=0)
        assert np.fft.rfftfreq(3000, 0.01)[spectrum.argmax()] == seen
        assert noise.std() == pytest.approx(1, abs=0.05) and noise.dtype == np.float32
    epochs = rng.normal(size=(4, 3000, 3)).astype(np.float32)
    before = epochs.copy()
    for name, fill in sleep_ablation.fills(CONFIG, rng).items():
        changed = sleep_ablation.ablate(epochs, 1, fill)
        assert (changed[..., [0, 2]] == epochs[..., [0, 2]]).all() and (epochs == before).all()
        assert (changed[..., 1] == 0).all() if name == "zero" else np.ptp(changed[..., 1]) > 0


def named(rows):
    return pd.DataFrame(rows, columns=["fill", "modality", "subject", "stage", "named"])


def test_ablation_counts_what_is_lost_and_where_it_goes():
    rows = []
    for subject in "abcdef":
        rows += [("none", "none", subject, stage, stage) for stage in (0, 3) for _ in range(4)]
        rows += [("zero", "EEG", subject, 0, 0)] * 4 + [("zero", "EEG", subject, 3, 0)] * 3 + [
            ("zero", "EEG", subject, 3, 3)]
        rows += [("zero", "EMG", subject, stage, stage) for stage in (0, 3) for _ in range(4)]
    lost = sleep_ablation.ablation_table(named(rows), CONFIG).set_index(["modality", "stage"])["value"]
    assert lost.to_dict() == {("EEG", "W"): 0, ("EEG", "N3"): 0.75, ("EMG", "W"): 0, ("EMG", "N3"): 0}
    went = sleep_ablation.collapse_table(named(rows)).set_index("modality").loc["EEG"]
    assert went["stage"] == "W" and went["share"] == 7 / 8 and went["present"] == 0.5
    panels = sleep_ablation.ablation_panels(summary_of(shares_by_hand()),
                                            sleep_ablation.ablation_table(named(rows), CONFIG), RULE)
    assert list(panels) == [f"relevance ({RULE})", "ablation: replaced by zero"]
    assert panels["ablation: replaced by zero"]["value"].max() == 75


def test_confusion_counts_every_tested_epoch(run):
    panel = sleep_tables.confusion_panel(run["found"], "Simulated nights")
    assert panel["matrices"].sum() == len(run["epochs"]) == 360 and panel["sizes"] == ["360 epochs, 3 subjects"]
    accuracy = run["found"].summary.set_index("measure").loc["accuracy", "mean"]
    assert panel["accuracies"][0][0] == accuracy
    assert "Simulated nights" in plot_confusions(**panel).axes[0].get_title(loc="left")


def test_attribution_and_ablation_of_the_tiny_run(run):
    relevance = sleep_relevance.all_relevance(CONFIG, run["folder"], run["epochs"], run["found"])
    methods = sleep_ablation.method_shares(run["epochs"], run["found"], relevance, CONFIG)
    assert set(sleep_ablation.METHODS) < set(methods["method"])
    assert np.allclose(methods.groupby(["method", "stage"])["value"].sum(), 100, atol=0.01)
    without = sleep_ablation.ablation_predictions(run["epochs"], run["found"], CONFIG)
    assert set(without["modality"]) == {"none", *MODALITIES}
    drawn = without[without["fill"] == "none"]
    model = load_stager(run["found"].folders[0])
    rows = drawn.loc[drawn["fold"] == 0, "epoch"]
    again = model.predict_on_batch(run["epochs"].batch(rows)).argmax(axis=1)
    assert (again == drawn.loc[drawn["fold"] == 0, "named"]).all()


def shares_by_hand(eeg=50.0, eog=30.0, subjects="abcdef", wrong_shift=0.0, noise=1.0, seed=0):
    """One row per epoch, as `all_relevance` gives them: every stage alike, noise between epochs, right and wrong."""
    rng, rows = np.random.default_rng(seed), []
    for fold, subject in enumerate(subjects):
        for stage in range(5):
            for right in (True, False):
                for _ in range(4):
                    first = eeg + rng.normal(0, noise) + (0 if right else wrong_shift * (-1) ** fold)
                    rows.append({"recording": f"{subject}1", "subject": subject, "stage": stage, "fold": fold % 3,
                                 "predicted": stage if right else (stage + 1) % 5, "right": right, "rule": RULE,
                                 "weight": 1.0,
                                 **{f"{kind}_{name}": value for kind in ("absolute", "positive") for name, value in
                                    zip(MODALITIES, (first, eog, 100 - first - eog))}})
    return pd.DataFrame(rows)


def summary_of(table):
    return sleep_tables.share_summary(sleep_tables.subject_shares(table), CONFIG)


def test_shares_are_means_over_epochs_then_subjects():
    table = shares_by_hand(noise=0)
    table.loc[(table["subject"] == "a") & (table["stage"] == 0) & table["right"], "absolute_EEG"] = [80, 60, 60, 60]
    subjects = sleep_tables.subject_shares(table)
    part = subjects[(subjects["kind"] == "absolute") & subjects["right"] & (subjects["subject"] == "a")]
    means = part.set_index("stage")["EEG"]
    assert means["W"] == 65 and means["N1"] == 50 and means["overall"] == pytest.approx(53)
    often = sleep_tables.subject_shares(table.assign(weight=np.where(table["stage"] == 0, 6.0, 1.0)))
    row = often[(often["stage"] == "overall") & often["right"] & (often["subject"] == "a")].iloc[0]
    assert row["EEG"] == pytest.approx((6 * 65 + 4 * 50) / 10), "W stands for six times as many"
    summary = summary_of(table).set_index(["kind", "right", "stage", "modality"])
    row = summary.loc[("absolute", True, "W", "EEG")]
    assert row["value"] == pytest.approx(52.5) and row["low"] < 52.5 < row["high"] and row["n"] == 24
    folds = sleep_tables.fold_shares(table, RULE).set_index(["right", "fold", "stage"])
    assert folds.loc[(True, 0, "W"), "EEG"] == pytest.approx((65 + 50) / 2) and folds["n"].eq(8).all()


def test_consistency_tells_folds_that_agree_from_folds_that_do_not():
    equal = sleep_tables.consistency(shares_by_hand(noise=2, subjects="abcdefghi"), CONFIG, RULE)
    assert equal["low"] < 0 < equal["high"]
    table = shares_by_hand(noise=2, subjects="abcdefghi")
    table.loc[~table["right"], "absolute_EEG"] += 10 * table["fold"]
    apart = sleep_tables.consistency(table, CONFIG, RULE)
    assert apart["low"] > 0 and apart["wrong"] > apart["right"] > 0
    assert sleep_claims.consistency_claim(apart)["holds?"] == HOLDS
    assert sleep_claims.consistency_claim(equal)["holds?"].startswith("undecided")
    one = sleep_tables.consistency(shares_by_hand(subjects="a"), CONFIG, RULE)
    assert np.isnan(one["right"]) and sleep_claims.consistency_claim(one)["holds?"].startswith("not testable")


def test_as_many_right_as_wrong_epochs_are_compared():
    table = shares_by_hand()
    few = table.drop(index=table.index[~table["right"] & (table["subject"] == "b")][1:])
    matched = sleep_tables.matched(few, 0).groupby(["subject", "stage", "right"]).size()
    assert matched.loc["a"].eq(4).all() and matched.loc["b"].to_dict() == {(0, False): 1, (0, True): 1}


INFORMATION = pd.DataFrame([{"modality": modality, "stage": stage, "auc": auc, "auc_sd": 0.01} for stage in STAGES
                            for modality, auc in (("EEG", 0.8), ("EOG", 0.9), ("EMG", 0.6), ("all", 0.95))] + [
    {"modality": modality, "stage": "overall", "balanced_accuracy": value, "balanced_accuracy_sd": 0.01}
    for modality, value in (("EEG", 0.7), ("EOG", 0.6), ("EMG", 0.4), ("all", 0.8))])


def test_orderings_are_decided_by_intervals_and_held_against_the_truth():
    rows = {row["published claim"]: row for row in sleep_claims.ordering_claims(
        sleep_tables.subject_shares(shares_by_hand(50, 30)), INFORMATION, CONFIG)}
    verdicts = {claim: row["holds?"] for claim, row in rows.items()}
    assert verdicts["Overall relevance EEG > EOG > EMG"] == HOLDS and verdicts["NREM2: EEG highest"] == HOLDS
    assert verdicts["REM: EOG highest"] == FAILS, "EEG has more"
    assert rows["NREM2: EEG highest"][sleep_claims.INFORMATION] == "no (AUC EEG 0.80, EOG 0.90, EMG 0.60)"
    assert rows["REM: EOG highest"][sleep_claims.INFORMATION].startswith("yes")
    overall = rows["Overall relevance EEG > EOG > EMG"][sleep_claims.INFORMATION]
    assert overall == "yes (balanced accuracy EEG 0.70, EOG 0.60, EMG 0.40)"
    assert "EOG minus EEG -20" in rows["REM: EOG highest"]["our evidence"]
    close = INFORMATION.assign(auc_sd=0.1)
    order = sleep_claims.information_order(close, "N2", (("EEG", "EOG"), ("EEG", "EMG")))
    assert order == "not separable (AUC EEG 0.80, EOG 0.90, EMG 0.60)"
    equal = sleep_claims.ordering_claims(sleep_tables.subject_shares(shares_by_hand(40, 40)), INFORMATION, CONFIG)
    assert equal[3]["holds?"].startswith("undecided")
    few = sleep_claims.ordering_claims(sleep_tables.subject_shares(shares_by_hand(subjects="ab")), INFORMATION, CONFIG)
    assert all(row["holds?"].startswith("not testable") for row in few)


@pytest.mark.parametrize("verdicts, expected", [
    ([HOLDS, HOLDS], HOLDS), ([HOLDS, FAILS], FAILS), (["undecided: x", FAILS], FAILS),
    ([HOLDS, "undecided: x"], "undecided: x"), (["not testable: y", HOLDS], "not testable: y")])
def test_a_claim_of_parts_holds_only_if_all_do(verdicts, expected):
    assert sleep_claims.together(verdicts) == expected


def covariates(subjects=12):
    names = [f"s{number:02d}" for number in range(subjects)]
    return pd.DataFrame([{"recording": f"{name}N{night}", "subject": name, "decade": 2 + place % 7 * 0.7,
                          "woman": float(place % 3 > 0), "drug": float(night == 2)}
                         for place, name in enumerate(names) for night in (1, 2)]).set_index("recording")


def night_shares(known, rng, drug=0.0, stages=STAGES):
    """Shares per night with an effect of the drug on the EOG of N2, taken from the EEG."""
    rows = []
    for stage in stages:
        shift = known["drug"] * drug * (stage == "N2") + rng.normal(0, 1, len(known))
        rows.append(pd.DataFrame({"stage": stage, "recording": known.index, "EEG": 50 - shift, "EOG": 30 + shift,
                                  "EMG": 20 + rng.normal(0, 1, len(known))}))
    return pd.concat(rows, ignore_index=True).join(known, on="recording")


def test_a_planted_effect_of_the_drug_is_found_where_it_is():
    fitted = sleep_effects.fit_effects(night_shares(covariates(), np.random.default_rng(0), drug=4))
    found = fitted[fitted["p_fdr"] <= 0.05]
    assert set(zip(found["stage"], found["modality"], found["term"])) == {("N2", "EOG", "drug"), ("N2", "EEG", "drug")}
    row = found[found["modality"] == "EOG"].iloc[0]
    assert row["low"] < 4 < row["high"] and row["detectable"] < 2
    claims = sleep_claims.effect_claims(fitted, simulated=True)
    assert ["planted in these simulated nights" in row["our evidence"] for row in claims] == [True, False, True]
    assert not any("planted" in row["our evidence"] for row in sleep_claims.effect_claims(fitted, simulated=False))
    assert claims[0]["holds?"] == HOLDS and "EOG in N2" in claims[0]["our evidence"]
    assert claims[1]["holds?"].startswith("undecided: corrected p above 5 % for EEG")


def test_effects_that_cannot_be_told_are_said_to_be_so():
    known = covariates().assign(woman=1.0)
    fitted = sleep_effects.fit_effects(night_shares(known, np.random.default_rng(0), stages=["N2"]))
    assert fitted[["estimate", "p", "p_fdr"]].isna().all(axis=None) and "woman is constant" in fitted["why"].iloc[0]
    assert sleep_claims.effect_claims(fitted, True)[0]["holds?"].startswith("not testable")
    assert sleep_effects.fit_effects(night_shares(covariates(), np.random.default_rng(0)).drop(
        columns=["decade", "woman", "drug"])).empty
    assert words.effect_sentences(*[pd.DataFrame()] * 4)[0].startswith("No mixed model")


def test_unknown_and_constant_covariates_are_left_out(run):
    table = run["epochs"].table
    known = sleep_effects.covariates(run["epochs"])
    assert list(known) == ["subject", "decade", "woman", "drug"] and len(known) == 6
    assert known["drug"].groupby(known["subject"]).sum().eq(1).all()
    women = EpochSet(run["epochs"].folder, table.assign(sex="F", drug=np.nan))
    assert list(sleep_effects.covariates(women)) == ["subject", "decade"]


def test_the_detectable_effect_has_a_power_of_four_fifths():
    size = sleep_effects.detectable(error=0.5, df=21)
    assert TTestPower().power(size / (0.5 * np.sqrt(22)), 22, 0.05) == pytest.approx(0.8, abs=1e-3)
    assert np.isnan(sleep_effects.detectable(0, 21)) and np.isnan(sleep_effects.detectable(1, 1))


def test_shuffled_covariates_keep_people_whole():
    known, seen = covariates(), []
    for seed in range(5):
        table = sleep_effects.shuffled(known, np.random.default_rng(seed))
        people = table.groupby("subject")[["decade", "woman"]]
        assert (people.max() == people.min()).all(axis=None)
        assert table.groupby("subject")["drug"].sum().eq(1).all()
        pairs = [set(zip(one["decade"], one["woman"])) for one in (table, known)]
        assert pairs[0] == pairs[1], "age and sex stay together"
        seen.append(tuple(table["decade"]))
    assert len(set(seen)) == 5


def test_error_rate_and_power_by_simulation():
    config = StudyConfig(study="test", sleep=TINY | {"simulations": 60})
    known = covariates()
    shares = night_shares(known, np.random.default_rng(3), stages=["N2", "REM"])
    rates = sleep_effects.simulate_effects(shares, known, sleep_effects.fit_effects(shares), config).set_index("effect")
    assert list(rates.index) == ["decade", "woman", "drug", "all"] and rates["tests"].eq(18).all()
    assert 0.01 < rates.loc["all", "false_positive"] < 0.10 and 0.65 < rates.loc["all", "power"] < 0.95
    assert (rates["false_low"] <= rates["false_positive"]).all() and rates["fdr_any"].max() < 0.2
    told = words.effect_sentences(sleep_effects.fit_effects(shares), rates.reset_index(), *[pd.DataFrame()] * 2)
    assert any(f"{rates.loc['all', 'false_positive']:.1%} of the tests" in line for line in told)


def test_a_stage_of_a_handful_of_nights_is_left_out_of_the_simulation():
    config = StudyConfig(study="test", sleep=TINY | {"simulations": 8})
    known = covariates()
    shares = night_shares(known, np.random.default_rng(3), stages=["N2", "REM"])
    few = shares["subject"].isin(shares["subject"].unique()[:4])
    short = shares[(shares["stage"] == "N2") | few]
    fitted = sleep_effects.fit_effects(short)
    assert fitted.loc[fitted["stage"] == "REM", "detectable"].isna().any()
    rates = sleep_effects.simulate_effects(short, known, fitted, config)
    assert (rates["tests"] == 9).all() and rates["power"].notna().all()
    lone = [table[table["stage"] == "REM"] for table in (short, fitted)]
    nothing = sleep_effects.simulate_effects(lone[0], known, lone[1], config)
    assert nothing.empty and list(nothing) == list(rates), "a table without rows keeps its header"


def test_planted_effects_come_back_from_signals():
    known, planted = covariates(18), {"effects": {
        "delta_per_decade": -0.1, "delta_women": 0.15, "delta_drug": -0.15, "beta_drug": 0.25, "sigma_drug": 0.2,
        "eye_movement_per_decade": -0.1}}
    rng = np.random.default_rng(0)
    table = known.reset_index().assign(age=10 * known["decade"].to_numpy(), night=1,
                                       sex=np.where(known["woman"] > 0, "F", "M"),
                                       drug=np.where(known["drug"] > 0, "temazepam", "placebo"))
    drawn = pd.concat([table.assign(stage=stage) for stage in (2, 3, 4)], ignore_index=True)
    features = rng.normal(0, 0.02, (len(drawn), 3, 13))
    shift = -0.1 * drawn["age"] / 10 + 0.15 * (drawn["sex"] == "F") - 0.15 * (drawn["drug"] == "temazepam")
    features[:, 0, 1:3] += 2 * shift.to_numpy()[:, None]
    features += rng.normal(0, 0.5, (len(drawn), 3, 1))  # gains of channels
    epochs = EpochSet(None, drawn)
    table = sleep_effects.signal_effects(drawn, features, epochs, planted)
    found = table.set_index(["component", "term"])
    waves = found.loc["slow waves (0.5 to 2 Hz)"]
    assert waves["inside"].all() and waves["sign"].all()
    absent = found.drop(index="slow waves (0.5 to 2 Hz)", level=0)
    assert not absent["inside"].any() and not absent["sign"].any(), "planted in name, not in these features"
    nothing = sleep_effects.signal_effects(drawn, features, epochs, {})
    assert nothing.empty and list(nothing) == list(table)


def test_planted_effects_are_asked_for_in_their_places():
    planted = {"effects": Effects().as_dict()}
    named = {name for _, _, names in sleep_effects.EXPECTED for parts in names.values() for name in parts}
    assert named == set(planted["effects"]) - {"subject_sd", "night_sd"}, "every planted effect has a place"
    shares = night_shares(covariates(), np.random.default_rng(0), drug=-4)
    table = sleep_effects.planted_relevance(sleep_effects.fit_effects(shares), planted)
    found = table[table["found"]]
    assert len(table) == 8 and list(zip(found["stage"], found["modality"], found["term"])) == [("N2", "EEG", "drug")]
    other = night_shares(covariates(), np.random.default_rng(0), drug=4)
    table = sleep_effects.planted_relevance(sleep_effects.fit_effects(other), planted)
    assert table["p_fdr"].min() < 0.05 and not table["found"].any(), "the wrong sign is no success"
    assert "0 found." in words.effect_sentences(sleep_effects.fit_effects(other), pd.DataFrame(), pd.DataFrame(),
                                                table)[-1]
    nothing = sleep_effects.planted_relevance(sleep_effects.fit_effects(other), {})
    assert nothing.empty and list(nothing) == list(table)


def test_rules_and_truth_in_words():
    table = shares_by_hand(50, 30, noise=0)
    other = table.assign(rule="epsilon_100", absolute_EEG=table["absolute_EOG"], absolute_EOG=table["absolute_EEG"])
    summary = summary_of(pd.concat([table, other]))
    told = words.rule_sentence(summary, RULE)
    assert "epsilon_100 moves the shares by 13.3" in told and "W, N1, N2, N3, REM" in told
    beside = sleep_tables.beside_information(summary, INFORMATION, RULE)
    assert "N3 (relevance EEG, 50 %; most informative EOG, AUC 0.90 against 0.80)" in words.information_sentence(beside)
    panels = words.share_panels(summary, RULE)
    assert list(panels) == ["right epochs, n = 120", "wrong epochs, n = 120"]
    agreed = sleep_ablation.agreement(
        pd.concat([summary.query("right and kind == 'absolute'").assign(method="LRP " + summary["rule"])]),
        pd.DataFrame([{"fill": "zero", "stage": stage, "modality": name, "value": value} for stage in STAGES
                      for name, value in (("EEG", 0.2), ("EOG", 0.3), ("EMG", 0.1))]), INFORMATION, RULE)
    agreed = agreed.set_index("source")
    assert agreed.loc["ablation, zero", "tau_information"] == 1 and agreed.loc["ablation, zero", "top_information"] == 5
    assert agreed.loc[f"LRP {RULE}", "tau_relevance"] == 1 and agreed.loc[f"LRP {RULE}", "difference"] == 0
    assert agreed.loc[f"LRP {RULE}", "tau_information"] == pytest.approx(1 / 3)


def test_notebook_06_belongs_to_studies_of_sleep():
    assert "06_sleep_staging" in executed_notebooks(CONFIG)
    assert "06_sleep_staging" not in executed_notebooks(StudyConfig(study="test"))


@pytest.mark.parametrize("study, told", [("published", "cannot be fetched"),
                                          ("open_ms", "has no section 'sleep'")])
def test_a_job_that_cannot_be_done_ends_with_status_1_and_one_line(tmp_path, capsys, monkeypatch, study, told):
    def offline(*_):
        raise ValueError("Sleep-EDF telemetry cannot be fetched")

    monkeypatch.setattr(sleep, "fetch_telemetry", offline)
    arguments = ["--config", str(ROOT / "config" / f"{study}.yaml"), "--run-dir", str(tmp_path)]
    for job in (["nights"], ["fold", "--number", "99"]):
        assert main([*job, *arguments]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and told in lines[0]


def test_what_others_take_from_the_notebook(run, tmp_path):
    table = shares_by_hand()
    subjects, summary = sleep_tables.subject_shares(table), summary_of(table)
    consistent = sleep_tables.consistency(table, CONFIG, RULE)
    fitted = sleep_effects.fit_effects(night_shares(covariates(), np.random.default_rng(0), drug=4))
    claims = sleep_claims.sleep_claims(subjects, INFORMATION, consistent, fitted, CONFIG)
    numbers = words.recorded(run["found"], run["epochs"], summary, consistent, fitted, pd.DataFrame(), pd.DataFrame(),
                             pd.DataFrame(), claims, CONFIG)
    assert numbers["recordings"] == 6 and numbers["effects_found"] == 2 and len(numbers["claims"]) == 10
    (tmp_path / "tables").mkdir()
    assert sleep_report.sleep_rows(tmp_path, CONFIG) == []
    claims.to_csv(tmp_path / "tables" / sleep_report.FILE, index=False)
    rows = sleep_report.sleep_rows(tmp_path, CONFIG)
    assert len(rows) == 10 and set(rows[0]) == {"published claim", "net", "our evidence", "holds?"}
    assert rows[3]["our evidence"].endswith(f"order {sleep_claims.INFORMATION}: no (AUC EEG 0.80, EOG 0.90, EMG 0.60)")
    assert sleep_report.sleep_rows(tmp_path, StudyConfig(study="test")) == []
    line = sleep_report.sleep_finding(numbers)
    assert line.startswith("6 simulated nights, kappa") and "EEG 50" in line
    section = sleep_report.sleep_section(tmp_path, CONFIG, numbers | {"faults": ["recording 'x': is empty"]})
    assert "Left out: recording 'x': is empty" in section.intro and len(section.panels) == 2
    assert words.claim_information_sentence(claims).count("AUC") == 2, "N2 and N3"
