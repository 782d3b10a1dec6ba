"""Subject bootstrap, group comparison, classification, mixed models: hand examples, peers, coverage, simulation."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from shared_cases import refused
from sklearn import metrics
from statsmodels.stats.power import TTestPower

from mslib import measure
from mslib.measure.classification import bootstrap_classification


def clustered(rng, n_subjects=15, n_values=8, between=1.0, within=0.5):
    subjects = np.repeat(np.arange(n_subjects), n_values)
    values = rng.normal(0, between, n_subjects)[subjects] + rng.normal(0, within, len(subjects))
    return values, subjects


def interval(values, subjects, **draws):
    return tuple(measure.mean_interval(values, subjects, **draws).values())


def test_no_width_is_no_interval():
    """All subjects alike: resamples cannot differ, which is not certainty."""
    np.testing.assert_array_equal(interval(np.full(12, 0.25), np.arange(12) // 2), [0.25, np.nan, np.nan])
    assert np.isnan(interval(np.full(12, 0.1), np.arange(12) // 2)[1])
    assert np.isnan(interval([np.nan, np.nan], [0, 1])).all(), "nothing to average"


@pytest.mark.parametrize("n_subjects,given", [(2, False), (4, False), (5, True)])
def test_no_interval_below_five_subjects(n_subjects, given):
    values, subjects = clustered(np.random.default_rng(4), n_subjects)
    estimate, low, high = interval(values, subjects)
    assert estimate == values.mean() and (low < estimate < high) == given and np.isnan(low) == (not given)
    known = interval(np.append(values, [np.nan] * 5), np.append(subjects, np.arange(90, 95)))
    assert np.isnan(known[1]) == (not given), "subjects without a value do not count"


def test_whole_subjects_are_drawn():
    """Five subjects, one all 1: resampled means are multiples of 1/5, and none between."""
    values, subjects = np.repeat([1.0, 0.0, 0.0, 0.0, 0.0], 50), np.repeat(list("abcde"), 50)
    assert interval(values, subjects, n=500) == (0.2, 0.0, 0.6)


def test_means_of_one_training_are_those_of_the_subject_bootstrap():
    values, subjects = clustered(np.random.default_rng(2))
    means, resampled = measure.bootstrap_means(np.stack([values, 2 * values + 1], 1), subjects, n=300, seed=5)
    one = measure.percentile_interval(means[0], resampled[:, 0], 0.95)
    assert one == pytest.approx(measure.mean_interval(values, subjects, n=300, seed=5))
    np.testing.assert_allclose(resampled[:, 1], 2 * resampled[:, 0] + 1, err_msg="columns are resampled together")


def test_subjects_and_trainings_are_drawn_independently():
    """Five subjects by two trainings, one cell of which is 1: a mean is the product of two shares."""
    subjects, trainings = np.repeat(list("abcde"), 2), np.tile([1, 2], 5)
    values = ((subjects == "a") & (trainings == 1)).astype(float)
    means, resampled = measure.bootstrap_means(values[:, None], subjects, trainings, n=2000)
    products = {round(i * j / 10, 9) for i in range(6) for j in range(3)}
    assert means[0] == 0.1 and set(np.round(resampled[:, 0], 9)) <= products
    assert np.mean(resampled == 0) == pytest.approx(1 - (1 - 0.8**5) * 0.75, abs=0.03)
    values[2:] = np.nan
    assert np.isnan(measure.bootstrap_means(values[:, None], subjects, trainings)[1]).all(), "one subject has a value"


@pytest.mark.parametrize("right,total,low,high", [(9, 10, 0.5958, 0.9821), (10, 10, 0.7225, 1.0), (0, 3, 0.0, 0.5615)])
def test_wilson_interval(right, total, low, high):
    """Against the formula's known values (z = 1.96)."""
    found = measure.proportion_interval(right, total)
    assert found == pytest.approx({"value": right / total, "low": low, "high": high}, abs=2e-4)
    assert np.isnan(list(measure.proportion_interval(0, 0).values())).all(), "no subject, no proportion"


def test_the_interval_is_that_of_slow_resampling():
    values, subjects = clustered(np.random.default_rng(1))
    values[3] = np.nan
    counts = measure.resample_counts(np.zeros(15), 300, 5)
    slow = [np.nanmean(np.repeat(values, of_subject[subjects])) for of_subject in counts]
    found = interval(values, subjects, n=300, confidence=0.8, seed=5)
    np.testing.assert_allclose(found, [np.nanmean(values), *np.quantile(slow, [0.1, 0.9])], rtol=1e-12)
    assert found == interval(values, subjects, n=300, confidence=0.8, seed=5) != interval(
        values, subjects, n=300, confidence=0.8, seed=6)


def test_means_by_group_and_column_with_their_numbers():
    values, subjects = clustered(np.random.default_rng(1))
    table = pd.DataFrame({"kind": np.where(np.arange(len(values)) % 2, "b", "a"), "x": values, "y": 2 * values,
                          "subject": subjects})
    table.loc[table["subject"] == 0, "y"] = np.nan
    found = measure.mean_by(table, ["kind"], ["x", "y"], n=100, seed=3)
    assert found[["kind", "measure"]].to_numpy().tolist() == [["a", "x"], ["a", "y"], ["b", "x"], ["b", "y"]]
    part = table[table["kind"] == "b"]
    assert tuple(found.loc[2, ["value", "low", "high"]]) == interval(part["x"], part["subject"], n=100, seed=3)
    assert found["slices"].tolist() == [60, 56] * 2 and found["subjects"].tolist() == [15, 14] * 2
    assert list(measure.mean_by(table[:0], ["kind"], ["x"])) == list(found), "without rows, the same columns"
    beside = measure.mean_by(table, ["kind"], ["x"], beside=["y"], n=100)["y"]
    assert beside.tolist() == pytest.approx([part["y"].mean() for _, part in table.groupby("kind")])


def test_coverage_with_clustered_values():
    """Subject resampling covers the true mean about 95 of 100 times; resampling values as if independent fails."""
    rng = np.random.default_rng(11)
    hits = np.zeros(2)
    trials = 200
    for trial in range(trials):
        values, subjects = clustered(rng, n_subjects=40)
        for kind, clusters in enumerate((subjects, np.arange(len(values)))):
            _, low, high = interval(values, clusters, n=200, seed=trial)
            hits[kind] += low <= 0 <= high
    assert 0.90 <= hits[0] / trials <= 0.98
    assert hits[1] / trials < 0.75


@pytest.mark.parametrize("arguments, message", [
    (([1.0, 2.0], [0]), "one entry a value"),
    (([1.0, 2.0], [0, 1], 10, 95), "confidence: must lie between 0 and 1"),
])
def test_unfit_bootstrap_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure.mean_interval(*arguments)


def test_compare_groups_equals_scipy():
    rng = np.random.default_rng(2)
    a, b = np.round(rng.normal(1, 1, 9), 1), np.round(rng.normal(0, 1, 12), 1)
    result = measure.compare_groups(np.append(a, np.nan), b)
    peer = stats.mannwhitneyu(a, b, alternative="greater")
    assert (result["p"], result["n_a"], result["n_b"]) == (peer.pvalue, 9, 12)
    assert result["value"] == pytest.approx(peer.statistic / (9 * 12))
    assert result["value"] == pytest.approx(metrics.roc_auc_score([1] * 9 + [0] * 12, np.append(a, b)))
    assert result["low"] < result["value"] < result["high"]


def test_compare_groups_known_answers():
    apart = measure.compare_groups([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert apart["value"] == 1 and np.isnan(apart["low"]) and apart["p"] == pytest.approx(1 / 20)
    assert np.isnan(measure.compare_groups([3.0, 0.5, 5.0, 1.0], np.arange(9.0))["low"]), "a group of four"
    assert np.isnan(measure.compare_groups(np.arange(5.0) + 9, np.arange(9.0))["low"]), "groups wholly apart"
    assert measure.compare_groups([1.0, 2.0], [1.0, 2.0])["value"] == 0.5
    with pytest.raises(ValueError, match=r"each group needs a value \(got 0 and 1\)"):
        measure.compare_groups([np.nan], [1.0])


def test_adjusted_p_values_by_hand():
    p_values = [0.01, 0.04, np.nan, 0.03]
    np.testing.assert_allclose(measure.adjust_p_values(p_values), [0.03, 0.06, np.nan, 0.06])
    np.testing.assert_allclose(measure.adjust_p_values(p_values, "fdr_bh"), [0.03, 0.04, np.nan, 0.04])


GROUPS = ["control", "RRMS", "SPMS"]


@pytest.fixture(scope="module")
def slices():
    rng = np.random.default_rng(3)
    subjects = np.repeat([f"sub-{i:02d}" for i in range(12)], 5)
    targets = np.repeat(np.arange(12) % 3, 5)
    logits = rng.normal(size=(60, 3)) + rng.normal(size=(12, 3)).repeat(5, axis=0)
    logits[np.arange(60), targets] += 1.5
    return logits, targets, subjects


def test_classification_report_equals_scikit_learn(slices):
    logits, targets, subjects = slices
    report = measure.classification_report(logits, targets, subjects, GROUPS)
    of_subject = pd.DataFrame(logits).groupby(subjects).mean().to_numpy().argmax(axis=1)
    levels = (("slice", logits.argmax(axis=1), targets), ("subject", of_subject, np.arange(12) % 3))
    for level, predicted, true in levels:
        table = report.measures.query("level == @level").set_index(["measure", "group"])
        assert (table["n"] == len(true)).all()
        assert table.loc[("accuracy", ""), "value"] == pytest.approx(metrics.accuracy_score(true, predicted))
        balanced = metrics.balanced_accuracy_score(true, predicted)
        assert table.loc[("balanced_accuracy", ""), "value"] == pytest.approx(balanced)
        for name, function in (("precision", metrics.precision_score), ("recall", metrics.recall_score),
                               ("f1", metrics.f1_score)):
            ours = [table.loc[(name, group), "value"] for group in GROUPS]
            np.testing.assert_allclose(ours, function(true, predicted, average=None))
        confusion = report.slice_confusion if level == "slice" else report.subject_confusion
        assert (confusion.to_numpy() == metrics.confusion_matrix(true, predicted)).all()
        bounded = table["low"].notna()
        inside = (table["low"] <= table["value"]) & (table["value"] <= table["high"])
        assert (inside == bounded).all()
        whole = table.index == ("accuracy", "")
        wilson = table.index.get_level_values("measure").isin(["accuracy", "recall", "precision"])
        assert (bounded == (whole | (wilson & (level == "subject")))).all(), "every class has four subjects: too few"
    assert report.subjects["subject"].tolist() == [f"sub-{i:02d}" for i in range(12)]
    assert report.subjects["predicted"].tolist() == [GROUPS[i] for i in of_subject]


def accuracy(predicted, targets, subjects, seed=0):
    return bootstrap_classification(predicted, targets, subjects, 3, seed=seed)["accuracy", None]


def test_accuracy_interval_equals_the_bootstrap_of_right_answers(slices):
    logits, targets, subjects = slices
    predicted = logits.argmax(axis=1)
    ours = accuracy(predicted, targets, subjects, seed=9)
    assert ours == pytest.approx(measure.mean_interval(predicted == targets, subjects, seed=9))
    predicted, targets, more = (np.tile(values, 2) for values in (predicted, targets, subjects))
    more[60:] = [f"{subject}b" for subject in subjects]
    ours = accuracy(predicted, targets, more, seed=9)
    table = pd.DataFrame({"right": predicted == targets, "target": targets}).groupby(more, sort=False).mean()
    counts = measure.resample_counts(table["target"].to_numpy(), 2000, 9)
    peer = measure.percentile_interval(table["right"].mean(), counts @ table["right"].to_numpy() / len(table), 0.95)
    assert ours == pytest.approx(peer), "eight subjects a class: resampled within the class"


def test_all_subjects_right_is_no_certainty():
    """Six subjects (3, 2 and 1 of the classes, as in a test part of 38), every slice right."""
    targets = np.repeat([0, 0, 0, 1, 1, 2], 4)
    report = measure.classification_report(np.eye(3)[targets], targets, np.arange(24) // 4, GROUPS)
    table = report.measures.set_index(["level", "measure", "group"])[["value", "low", "high"]]
    for row, count in ((("subject", "accuracy", ""), 6), (("subject", "recall", "SPMS"), 1)):
        assert table.loc[row].to_dict() == pytest.approx(measure.proportion_interval(count, count))
    assert table.loc[("subject", "recall", "SPMS"), "low"] < 0.25
    assert table.loc["slice", "low"].isna().all() and (table["value"] == 1).all()


def test_a_class_of_one_subject_does_not_narrow_the_slices():
    """Right or wrong by whole subjects: drawn within classes of one, nothing could vary; over all, it does."""
    targets, subjects = np.repeat([0, 0, 0, 0, 1, 2], 10), np.repeat(np.arange(6), 10)
    predicted = np.where(subjects == 5, 0, targets)
    found = accuracy(predicted, targets, subjects)
    assert found["low"] < 0.6 and found["high"] == 1


def test_undefined_precision_is_nan():
    values = measure.confusion_measures(np.array([[2, 0], [3, 0]]))
    assert np.isnan(values["precision", 1]) and values["recall", 1] == 0 and values["f1", 1] == 0
    assert values["balanced_accuracy", None] == 0.5
    assert np.isnan(measure.confusion_measures(np.array([[2, 0], [0, 0]]))["recall", 1])


@pytest.mark.parametrize("change, message", [
    ({"logits": np.zeros((60, 2))}, r"logits: must be \(N, 3\)"),
    ({"logits": np.full((60, 3), np.nan)}, "logits: 60 slices hold NaN"),
    ({"targets": np.full(60, 3)}, r"targets: must be class ids in 0..2"),
    ({"targets": np.arange(60) % 3}, "targets: subject sub-00 has several classes"),
])
def test_unfit_report_input_is_refused(slices, change, message):
    arguments = dict(zip(("logits", "targets", "subjects"), slices)) | {"groups": GROUPS} | change
    with pytest.raises(ValueError, match=message):
        measure.classification_report(**arguments)


EFFECTS = ["age", "woman", "drug"]


def two_visits(rng, subjects=22, age=0.0, drug=0.0, subject_sd=1.0, residual_sd=1.0):
    who = np.repeat(np.arange(subjects), 2)
    table = pd.DataFrame({"subject": who, "age": rng.uniform(20, 75, subjects)[who],
                          "woman": (np.arange(subjects) % 3 > 0)[who].astype(int),
                          "drug": np.tile([0, 1], subjects)})
    noise = rng.normal(0, subject_sd, subjects)[who] + rng.normal(0, residual_sd, len(who))
    return table.assign(y=3 + age * table["age"] + drug * table["drug"] + noise)


def of_term(found, term):
    return found.set_index("term").loc[term]


@pytest.fixture
def balanced():
    return two_visits(np.random.default_rng(1), age=0.03, drug=0.4)


def test_between_subjects_it_is_the_regression_of_means(balanced):
    found = measure.mixed_effects(balanced, "y", EFFECTS)
    means = balanced.groupby("subject").mean()
    simple = sm.OLS(means["y"], sm.add_constant(means[["age", "woman"]])).fit()
    low, high = simple.conf_int().T.to_numpy()
    for place, term in enumerate(["age", "woman"], start=1):
        row = of_term(found, term)
        expected = [simple.params[term], low[place], high[place], simple.pvalues[term]]
        assert np.allclose(row[["estimate", "low", "high", "p"]].astype(float), expected, rtol=1e-4)
        assert row["df"] == simple.df_resid == 22 - 3
    assert not found["singular"].any()


def test_within_subjects_it_is_the_paired_test(balanced):
    row = of_term(measure.mixed_effects(balanced, "y", EFFECTS), "drug")
    paired = stats.ttest_rel(balanced.loc[balanced["drug"] == 1, "y"], balanced.loc[balanced["drug"] == 0, "y"])
    interval = paired.confidence_interval(0.95)
    assert np.allclose(row[["t", "p", "low", "high"]].astype(float), [paired.statistic, paired.pvalue, *interval],
                       rtol=1e-5)
    assert row["df"] == paired.df


def test_same_estimates_as_statsmodels_where_rows_are_missing(balanced):
    part = balanced.drop(index=[0, 7, 8, 15, 30])
    found = measure.mixed_effects(part, "y", EFFECTS)
    other = smf.mixedlm("y ~ age + woman + drug", part, groups=part["subject"]).fit(reml=True, method="powell")
    assert np.allclose(found["estimate"], other.fe_params, rtol=1e-4)
    assert np.isclose(found["subject_sd"][0] ** 2, other.cov_re.iloc[0, 0], rtol=1e-3)
    assert np.isclose(found["residual_sd"][0] ** 2, other.scale, rtol=1e-3)
    design = sm.add_constant(part[EFFECTS]).to_numpy()
    same = part["subject"].to_numpy()[:, None] == part["subject"].to_numpy()
    dense = other.cov_re.iloc[0, 0] * same + other.scale * np.eye(len(part))
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ np.linalg.solve(dense, design))))
    half = stats.t.ppf(0.975, [22 - 3, 22 - 3, 22 - 3, 39 - 22 - 1]) * error
    assert np.allclose((found["high"] - found["low"]) / 2, half, rtol=1e-3)
    assert found["n"].eq(39).all() and found["subjects"].eq(22).all()


def test_no_variance_between_subjects_is_said_and_is_the_common_regression():
    rng = np.random.default_rng(5)
    table = two_visits(rng, subject_sd=0.0)
    table["y"] -= 0.9 * (table.groupby("subject")["y"].transform("mean") - table["y"].mean())  # less than none
    found = measure.mixed_effects(table, "y", EFFECTS)
    common = sm.OLS(table["y"], sm.add_constant(table[EFFECTS])).fit()
    assert found["singular"].all() and found["subject_sd"].eq(0).all()
    assert np.allclose(found["estimate"], common.params) and np.allclose(found["t"], common.tvalues)


def test_units_do_not_matter(balanced):
    found = measure.mixed_effects(balanced, "y", EFFECTS)
    other = measure.mixed_effects(balanced.assign(y=1e-6 * balanced["y"] + 5, age=1000 * balanced["age"]), "y", EFFECTS)
    assert np.allclose(other["p"][1:], found["p"][1:], rtol=1e-4)
    assert np.isclose(of_term(other, "age")["estimate"], of_term(found, "age")["estimate"] * 1e-9, rtol=1e-5)


def test_error_rate_of_absent_effects():
    rng, runs = np.random.default_rng(11), 120
    found = [measure.mixed_effects(two_visits(rng, 12), "y", EFFECTS).set_index("term")["p"] for _ in range(runs)]
    wrong = (pd.DataFrame(found)[EFFECTS] < 0.05).sum()
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.05)
    assert wrong.between(low, high).all(), wrong


def test_power_of_a_simulated_effect():
    rng, runs = np.random.default_rng(12), 100
    found = [of_term(measure.mixed_effects(two_visits(rng, drug=1.0), "y", EFFECTS), "drug")["p"] for _ in range(runs)]
    expected = TTestPower().power(1 / np.sqrt(2), 22, 0.05)
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, expected)
    assert 0.85 < expected < 0.95
    assert low <= np.sum(np.array(found) < 0.05) <= high


def test_more_than_two_visits_and_intervals_that_hold_the_truth():
    rng, inside = np.random.default_rng(13), []
    for _ in range(80):
        who = np.repeat(np.arange(10), 4)
        table = pd.DataFrame({"subject": who, "dose": np.tile([0.0, 1.0, 2.0, 3.0], 10)})
        table["y"] = 0.5 * table["dose"] + rng.normal(0, 2, 10)[who] + rng.normal(0, 1, 40)
        row = of_term(measure.mixed_effects(table, "y", ["dose"], confidence=0.8), "dose")
        inside.append(row["low"] <= 0.5 <= row["high"])
        assert row["df"] == 40 - 10 - 1
    low, high = stats.binom.ppf([0.0005, 0.9995], 80, 0.8)
    assert low <= sum(inside) <= high


def test_a_fit_without_error_has_no_p_value(balanced):
    found = measure.mixed_effects(balanced.assign(y=2 + 0.5 * balanced["drug"]), "y", EFFECTS)
    assert np.allclose(found["estimate"], [2, 0, 0, 0.5]) and found[["t", "p", "low", "high"]].isna().all(axis=None)


def test_incomplete_rows_are_left_out_and_counted(balanced):
    holes = balanced.astype({"woman": float})
    holes.loc[3, "y"], holes.loc[10, "age"], holes.loc[20, "woman"] = np.nan, np.nan, np.nan
    found = measure.mixed_effects(holes, "y", EFFECTS)
    pd.testing.assert_frame_equal(found, measure.mixed_effects(balanced.drop(index=[3, 10, 20]), "y", EFFECTS))
    assert found["n"].eq(41).all()


def test_one_row_per_subject_is_a_regression(balanced):
    once = balanced[balanced["drug"] == 0]
    found = measure.mixed_effects(once, "y", ["age", "woman"])
    simple = sm.OLS(once["y"], sm.add_constant(once[["age", "woman"]])).fit()
    assert np.allclose(found["p"], simple.pvalues) and found["singular"].all()


@pytest.mark.parametrize("change, effects, message", [
    (lambda t: t, ["dose"], "no column 'dose'"),
    (lambda t: t.drop(columns="subject"), EFFECTS, "no column 'subject'"),
    (lambda t: t.assign(woman="F"), EFFECTS, "must be numbers, categories as 0/1"),
    (lambda t: t.assign(y=np.inf), EFFECTS, "must be finite"),
    (lambda t: t.assign(y=np.nan), EFFECTS, "no row has y, subject and every effect"),
    (lambda t: t.assign(woman=1), EFFECTS, "woman is constant"),
    (lambda t: t.assign(drug=100 - t["age"]), EFFECTS, "drug is constant or follows from the other effects"),
    (lambda t: t[t["subject"] < 3], EFFECTS, "6 rows of 3 subjects are too few"),
    (lambda t: t[t["subject"] < 1], ["drug"], "2 rows of 1 subjects are too few"),
])
def test_unfit_tables_are_refused_in_one_line(balanced, change, effects, message):
    with refused(message):
        measure.mixed_effects(change(balanced), "y", effects)
