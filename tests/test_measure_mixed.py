"""Mixed model: exact against simpler analyses where these are right, against statsmodels, and by simulation."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy.stats import binom, ttest_rel
from scipy.stats import t as student
from shared_cases import refused
from statsmodels.stats.power import TTestPower

from mslib.measure import mixed_effects

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
    found = mixed_effects(balanced, "y", EFFECTS)
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
    row = of_term(mixed_effects(balanced, "y", EFFECTS), "drug")
    paired = ttest_rel(balanced.loc[balanced["drug"] == 1, "y"], balanced.loc[balanced["drug"] == 0, "y"])
    interval = paired.confidence_interval(0.95)
    assert np.allclose(row[["t", "p", "low", "high"]].astype(float), [paired.statistic, paired.pvalue, *interval],
                       rtol=1e-5)
    assert row["df"] == paired.df


def test_same_estimates_as_statsmodels_where_rows_are_missing(balanced):
    part = balanced.drop(index=[0, 7, 8, 15, 30])
    found = mixed_effects(part, "y", EFFECTS)
    other = smf.mixedlm("y ~ age + woman + drug", part, groups=part["subject"]).fit(reml=True, method="powell")
    assert np.allclose(found["estimate"], other.fe_params, rtol=1e-4)
    assert np.isclose(found["subject_sd"][0] ** 2, other.cov_re.iloc[0, 0], rtol=1e-3)
    assert np.isclose(found["residual_sd"][0] ** 2, other.scale, rtol=1e-3)
    design = sm.add_constant(part[EFFECTS]).to_numpy()
    same = part["subject"].to_numpy()[:, None] == part["subject"].to_numpy()
    dense = other.cov_re.iloc[0, 0] * same + other.scale * np.eye(len(part))
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ np.linalg.solve(dense, design))))
    half = student.ppf(0.975, [22 - 3, 22 - 3, 22 - 3, 39 - 22 - 1]) * error
    assert np.allclose((found["high"] - found["low"]) / 2, half, rtol=1e-3)
    assert found["n"].eq(39).all() and found["subjects"].eq(22).all()


def test_no_variance_between_subjects_is_said_and_is_the_common_regression():
    rng = np.random.default_rng(5)
    table = two_visits(rng, subject_sd=0.0)
    table["y"] -= 0.9 * (table.groupby("subject")["y"].transform("mean") - table["y"].mean())  # less than none
    found = mixed_effects(table, "y", EFFECTS)
    common = sm.OLS(table["y"], sm.add_constant(table[EFFECTS])).fit()
    assert found["singular"].all() and found["subject_sd"].eq(0).all()
    assert np.allclose(found["estimate"], common.params) and np.allclose(found["t"], common.tvalues)


def test_units_do_not_matter(balanced):
    found = mixed_effects(balanced, "y", EFFECTS)
    other = mixed_effects(balanced.assign(y=1e-6 * balanced["y"] + 5, age=1000 * balanced["age"]), "y", EFFECTS)
    assert np.allclose(other["p"][1:], found["p"][1:], rtol=1e-4)
    assert np.isclose(of_term(other, "age")["estimate"], of_term(found, "age")["estimate"] * 1e-9, rtol=1e-5)


def test_error_rate_of_absent_effects():
    rng, runs = np.random.default_rng(11), 120
    found = [mixed_effects(two_visits(rng, 12), "y", EFFECTS).set_index("term")["p"] for _ in range(runs)]
    wrong = (pd.DataFrame(found)[EFFECTS] < 0.05).sum()
    low, high = binom.ppf([0.0005, 0.9995], runs, 0.05)
    assert wrong.between(low, high).all(), wrong


def test_power_of_a_simulated_effect():
    rng, runs = np.random.default_rng(12), 100
    found = [of_term(mixed_effects(two_visits(rng, drug=1.0), "y", EFFECTS), "drug")["p"] for _ in range(runs)]
    expected = TTestPower().power(1 / np.sqrt(2), 22, 0.05)
    low, high = binom.ppf([0.0005, 0.9995], runs, expected)
    assert 0.85 < expected < 0.95
    assert low <= np.sum(np.array(found) < 0.05) <= high


def test_more_than_two_visits_and_intervals_that_hold_the_truth():
    rng, inside = np.random.default_rng(13), []
    for _ in range(80):
        who = np.repeat(np.arange(10), 4)
        table = pd.DataFrame({"subject": who, "dose": np.tile([0.0, 1.0, 2.0, 3.0], 10)})
        table["y"] = 0.5 * table["dose"] + rng.normal(0, 2, 10)[who] + rng.normal(0, 1, 40)
        row = of_term(mixed_effects(table, "y", ["dose"], confidence=0.8), "dose")
        inside.append(row["low"] <= 0.5 <= row["high"])
        assert row["df"] == 40 - 10 - 1
    low, high = binom.ppf([0.0005, 0.9995], 80, 0.8)
    assert low <= sum(inside) <= high


def test_a_fit_without_error_has_no_p_value(balanced):
    found = mixed_effects(balanced.assign(y=2 + 0.5 * balanced["drug"]), "y", EFFECTS)
    assert np.allclose(found["estimate"], [2, 0, 0, 0.5]) and found[["t", "p", "low", "high"]].isna().all(axis=None)


def test_incomplete_rows_are_left_out_and_counted(balanced):
    holes = balanced.astype({"woman": float})
    holes.loc[3, "y"], holes.loc[10, "age"], holes.loc[20, "woman"] = np.nan, np.nan, np.nan
    found = mixed_effects(holes, "y", EFFECTS)
    pd.testing.assert_frame_equal(found, mixed_effects(balanced.drop(index=[3, 10, 20]), "y", EFFECTS))
    assert found["n"].eq(41).all()


def test_one_row_per_subject_is_a_regression(balanced):
    once = balanced[balanced["drug"] == 0]
    found = mixed_effects(once, "y", ["age", "woman"])
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
def test_unfit_input_is_refused_in_one_line(balanced, change, effects, message):
    with refused(message):
        mixed_effects(change(balanced), "y", effects)
