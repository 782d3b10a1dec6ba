"""Mixed models of notebook 06: does relevance go with age, sex or drug, and would it be seen if it did?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from mslib.measure import adjust_p_values, mixed_effects
from mslib.sleep import MODALITIES, STAGES, EpochSet
from mslib.study import StudyConfig, progress

#: Effects and their units.
EFFECTS = {"decade": "per ten years of age", "woman": "women less men", "drug": "drug less placebo"}
ALPHA, POWER = 0.05, 0.8
#: Planted effects on the signals: component, stage, modality, bands of `mslib.sleep.band_features`, bands that no
#: effect is planted on (theta; noise of the EOG above the eye movements), planted names. Spindles come on top of sigma.
COMPONENTS = (
    ("slow waves (0.5 to 2 Hz)", "N3", "EEG", (1, 2), (4,),
     {"decade": "delta_per_decade", "woman": "delta_women", "drug": "delta_drug"}),
    ("beta (16 to 30 Hz)", "N2", "EEG", (8, 9), (4,), {"drug": "beta_drug"}),
    ("sigma (11 to 16 Hz)", "N2", "EEG", (6, 7), (4,), {"drug": "sigma_drug"}),
    ("eye movements (0.5 to 4 Hz)", "REM", "EOG", (1, 2, 3), (8, 9), {"decade": "eye_movement_per_decade"}))


#: Where every planted effect should be seen in the relevance: the modality whose sign of the stage it makes stronger
#: or weaker. All effects of `mslib.sleep.Effects` are here, none is chosen.
EXPECTED = (
    ("N2", "EEG", {"decade": ("spindle_per_decade",), "woman": ("spindle_women",),
                   "drug": ("spindle_rate_drug", "sigma_drug", "beta_drug")}),
    ("N3", "EEG", {"decade": ("delta_per_decade",), "woman": ("delta_women",), "drug": ("delta_drug",)}),
    ("REM", "EOG", {"decade": ("eye_movement_per_decade",), "drug": ("eye_movement_rate_drug",)}))


def covariates(epochs: EpochSet) -> pd.DataFrame:
    """Subject and effects of every recording, as numbers.

    Returns
    -------
    pandas.DataFrame
        Index ``recording``; ``subject`` and those of `EFFECTS` that are known and differ: ``decade`` (age / 10),
        ``woman`` and ``drug`` (0 or 1; 0 is placebo).
    """
    known = epochs.table.drop_duplicates("recording").set_index("recording")
    drug = known["drug"].where(known["drug"].isna(), (known["drug"] != "placebo").astype(float))
    table = pd.DataFrame({"subject": known["subject"], "decade": known["age"] / 10,
                          "woman": known["sex"].map({"F": 1.0, "M": 0.0}), "drug": drug.astype(float)})
    return table[["subject", *[name for name in EFFECTS if table[name].dropna().min() < table[name].dropna().max()]]]


def recording_shares(table: pd.DataFrame, known: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Mean share (sizes) of every recording and stage over right epochs, beside its covariates: one row each."""
    part = table[(table["rule"] == rule) & table["right"]]
    part = part.assign(stage=part["stage"].map(dict(enumerate(STAGES))))
    columns = {f"absolute_{modality}": modality for modality in MODALITIES}
    means = part.groupby(["stage", "recording"])[list(columns)].mean().rename(columns=columns).reset_index()
    return means.join(known, on="recording")


def detectable(error: float, df: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """Smallest effect that a two-sided t test with this standard error finds with the given power (no correction)."""
    if not error > 0 or not df >= 2:
        return float("nan")
    limit = student.ppf(1 - alpha / 2, df)
    return error * brentq(lambda shift: nct.sf(limit, df, shift) - power, 0, 3 * limit)  # the other tail is nothing


def _model(part, outcome, effects) -> pd.DataFrame:
    """Rows of the effects on one outcome; where no model can be fitted, rows that say why."""
    try:
        found = mixed_effects(part, outcome, effects).iloc[1:].assign(why="")
    except ValueError as error:
        return pd.DataFrame({"term": effects, "estimate": np.nan, "low": np.nan, "high": np.nan, "df": np.nan,
                             "p": np.nan, "n": len(part), "subjects": part["subject"].nunique(), "singular": False,
                             "detectable": np.nan, "why": str(error).removeprefix("mixed_effects: ")})
    half = (found["high"] - found["low"]) / 2
    error = half / student.ppf(0.975, found["df"])
    return found.assign(detectable=[detectable(*pair) for pair in zip(error, found["df"])])


def _p_values(part, outcome, effects) -> pd.Series:
    """p of every effect; NaN where shuffled covariates leave no model (two effects alike, in a handful of subjects)."""
    try:
        return mixed_effects(part, outcome, effects).set_index("term")["p"].loc[effects]
    except ValueError:
        return pd.Series(np.nan, index=effects)


def fit_effects(shares: pd.DataFrame) -> pd.DataFrame:
    """Effects of age, sex and drug on the share of every modality in every stage, by mixed models.

    Parameters
    ----------
    shares : pandas.DataFrame
        Of `recording_shares`.

    Returns
    -------
    pandas.DataFrame
        ``stage, modality, term, estimate, low, high`` (percentage points), ``p, p_fdr`` (Benjamini-Hochberg over all
        rows), ``df, n, subjects, singular``, ``detectable`` (effect found with a power of 80 % at 5 %, uncorrected),
        ``why`` (no model could be fitted).
    """
    effects = [name for name in EFFECTS if name in shares]
    rows = []
    for stage in STAGES:
        part = shares[shares["stage"] == stage]
        for modality in MODALITIES:
            if len(part) and effects:
                rows.append(_model(part, modality, effects).assign(stage=stage, modality=modality))
    columns = ["stage", "modality", "term", "estimate", "low", "high", "p", "p_fdr", "df", "n", "subjects", "singular",
               "detectable", "why"]
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.concat(rows, ignore_index=True)
    return table.assign(p_fdr=adjust_p_values(table["p"], "fdr_bh"))[columns]


def planted_relevance(fitted: pd.DataFrame, planted: dict) -> pd.DataFrame:
    """Do the planted effects come back in the relevance? A stronger sign should have a larger share.

    Parameters
    ----------
    fitted : pandas.DataFrame
        Of `fit_effects`.
    planted : dict
        Of `mslib.jobs.sleep.planted`; nothing is tabled without it.

    Returns
    -------
    pandas.DataFrame
        One row per place of `EXPECTED`: ``stage, modality, term, planted`` (sum of the logarithms of amplitude or
        rate), ``estimate, low, high, detectable`` (percentage points), ``p, p_fdr`` (corrected for these rows alone),
        ``found`` (corrected p at most 5 % and the planted sign).
    """
    rows = []
    for stage, modality, names in EXPECTED if planted else ():
        for term, parts in names.items():
            part = fitted[(fitted["stage"] == stage) & (fitted["modality"] == modality) & (fitted["term"] == term)]
            size = sum(planted["effects"][name] for name in parts)
            rows.append(part[["stage", "modality", "term", "estimate", "low", "high", "detectable", "p"]].assign(
                planted=size))
    if not rows:
        return pd.DataFrame(columns=["stage", "modality", "term", "estimate", "low", "high", "detectable", "p",
                                     "planted", "p_fdr", "found"])
    table = pd.concat(rows, ignore_index=True)
    table["p_fdr"] = adjust_p_values(table["p"], "fdr_bh")
    return table.assign(found=(table["p_fdr"] <= ALPHA) & (np.sign(table["estimate"]) == np.sign(table["planted"])))


def shuffled(known: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Covariates that mean nothing: age and sex change places between subjects, nights change drugs within them."""
    table = known.copy()
    people = known["subject"].unique()
    others = dict(zip(people, rng.permutation(people)))
    first = known.drop_duplicates("subject").set_index("subject")
    for name in [name for name in ("decade", "woman") if name in known]:
        table[name] = table["subject"].map(others).map(first[name])
    if "drug" in known:
        table["drug"] = known.groupby("subject")["drug"].transform(lambda values: rng.permutation(values.to_numpy()))
    return table


def simulate_effects(shares: pd.DataFrame, known: pd.DataFrame, fitted: pd.DataFrame,
                     config: StudyConfig) -> pd.DataFrame:
    """Error rate and power by simulation on the study's own table of relevance.

    In every run the covariates are shuffled, so that no effect is left: whatever is found is an error. Then the effect
    that should be found with a power of 80 % is added to the same table, and looked for.

    Returns
    -------
    pandas.DataFrame
        Per effect and over all (``all``): ``false_positive`` (share of tests with p <= 5 %), ``false_low``,
        ``false_high`` (interval over runs), ``power`` (likewise of planted effects), ``power_low``, ``power_high``,
        ``fdr_any`` (share of runs with any finding after correction over all tests), ``runs``, ``tests`` a run.
    """
    effects, rng = [name for name in EFFECTS if name in known], np.random.default_rng([config.seed, 29])
    whole = fitted.groupby(["stage", "modality"], sort=False)["detectable"].apply(lambda sizes: sizes.notna().all())
    sizes = fitted.set_index(["stage", "modality", "term"])["detectable"]
    null, power = [], []
    for run in progress(range(config.sleep.simulations), desc="sleep: error rate and power", unit="run"):
        table = shares.drop(columns=["subject", *effects]).join(shuffled(known, rng), on="recording")
        for stage, modality in whole.index[whole]:
            part = table[table["stage"] == stage]
            null.append(_p_values(part, modality, effects).rename(run))
            size = np.array([sizes[stage, modality, name] for name in effects])
            present = part.assign(**{modality: part[modality] + part[effects].to_numpy() @ size})
            power.append(_p_values(present, modality, effects).rename(run))
    if not null:  # not a single model could be fitted
        return pd.DataFrame(columns=["effect", "runs", "fdr_any", "tests", "false_positive", "false_low", "false_high",
                                     "power", "power_low", "power_high"])
    return _rates(pd.DataFrame(null), pd.DataFrame(power), config)


def _rates(null, power, config) -> pd.DataFrame:
    """Shares of findings with intervals over runs, whose tests are not independent."""
    tests, rows = len(null) // null.index.nunique() * null.shape[1], []
    any_found = null.groupby(level=0).apply(
        lambda run: bool((adjust_p_values(run.to_numpy().ravel(), "fdr_bh") <= ALPHA).any()))
    for name in [*null.columns, "all"]:
        row = {"effect": name, "runs": null.index.nunique(), "fdr_any": any_found.mean(), "tests": tests}
        for label, table in (("false_positive", null), ("power", power)):
            chosen = table if name == "all" else table[[name]]
            of_run = (chosen <= ALPHA).where(chosen.notna()).astype(float).mean(axis=1).groupby(level=0).mean()
            half = student.ppf((1 + config.statistics.confidence) / 2, max(len(of_run) - 1, 1)) * of_run.std(
                ddof=1) / np.sqrt(len(of_run))
            short = label.split("_")[0]
            row |= {label: of_run.mean(), f"{short}_low": of_run.mean() - half, f"{short}_high": of_run.mean() + half}
        rows.append(row)
    return pd.DataFrame(rows)


def signal_effects(drawn: pd.DataFrame, features: np.ndarray, epochs: EpochSet,
                   planted: dict) -> pd.DataFrame:
    """Do the planted effects come back from the recordings themselves?

    Parameters
    ----------
    drawn, features
        Of `mslib.jobs.sleep_tables.information`.
    epochs : EpochSet
    planted : dict
        Of `mslib.jobs.sleep.planted`; nothing is tabled without it.

    Returns
    -------
    pandas.DataFrame
        ``component, stage, modality, term, planted, estimate, low, high, p, subjects, n`` (change of the logarithm of
        the amplitude, relative to bands without effect: gains of channels differ from night to night), ``inside`` (the
        planted size lies in the interval), ``sign`` (the interval excludes 0 on the planted side).
    """
    known, rows = covariates(epochs), []
    for component, stage, modality, bands, beside, names in COMPONENTS if planted else ():
        here = drawn["stage"].to_numpy() == STAGES.index(stage)
        part = np.exp(features[here, MODALITIES.index(modality)])
        ratio = np.log(part[:, list(bands)].mean(axis=1) / part[:, list(beside)].mean(axis=1)) / 2
        table = known.assign(level=pd.Series(ratio).groupby(drawn.loc[here, "recording"].to_numpy()).mean())
        found = _model(table.reset_index(), "level", [name for name in EFFECTS if name in known]).set_index("term")
        for term in [name for name in names if name in found.index]:
            size, row = planted["effects"][names[term]], found.loc[term]
            side = row["low"] if size > 0 else -row["high"]
            rows.append({"component": component, "stage": stage, "modality": modality, "term": term, "planted": size,
                         **row[["estimate", "low", "high", "p", "subjects", "n", "detectable"]],
                         "inside": bool(row["low"] <= size <= row["high"]), "sign": bool(side > 0)})
    return pd.DataFrame(rows, columns=["component", "stage", "modality", "term", "planted", "estimate", "low", "high",
                                       "p", "subjects", "n", "detectable", "inside", "sign"])
