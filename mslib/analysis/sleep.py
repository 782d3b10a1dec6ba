"""Sleep staging (notebook 06): relevance and ablation of EEG, EOG and EMG, effects of age, sex and drug.

`predictions` are those of `mslib.sleep.staging.prediction_table`; tables of `fold_relevance`, `fold_ablation` and
`fold_methods` are taken from all folds, with ``fold``. There stages are indices into `STAGES`, elsewhere names.
``value, low, high`` are means over subjects with bootstrap intervals (``**draws``: n, confidence, seed). `sizes` are
those of `mslib.sleep.Effects`; empty for real nights.
"""

from __future__ import annotations

from itertools import permutations

import keras
import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import nct
from scipy.stats import t as student

from mslib import measure
from mslib.explain import attribute, lrp, relevance_shares
from mslib.sleep import MODALITIES, STAGES, EpochSet, band_features, modality_information

#: Published variants of the rule (Ellis et al. 2021) that the study's own is compared with: composite, parameters.
VARIANTS = {"epsilon_0.01": ("epsilon", {"epsilon": 0.01}), "epsilon_100": ("epsilon", {"epsilon": 100.0}),
            "alpha1_beta0": ("alpha1_beta0", {})}
#: Attribution methods that are compared with relevance.
METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "deeplift")
#: Shares of all relevance by its size, and of positive relevance alone.
KINDS = ("absolute", "positive")
#: All epochs together, each stage as often as it occurs, beside the five.
OVERALL = "overall"
#: Baseline and modality of an epoch that keeps all its signals.
PRESENT = "none"
#: Effects and their units.
EFFECTS = {"decade": "per ten years of age", "woman": "women less men", "drug": "drug less placebo"}
ALPHA = 0.05
#: Columns of `fit_effects`.
FITTED = ["stage", "modality", "term", "value", "low", "high", "p", "p_fdr", "df", "n", "subjects", "singular",
          "detectable", "why"]
#: Simulated effects on the signals: component, stage, modality, bands of `mslib.sleep.band_features`, bands without
#: effect (theta; noise of the EOG above the eye movements), fields of `mslib.sleep.Effects`. Spindles add to sigma.
COMPONENTS = (
    ("slow waves (0.5 to 2 Hz)", "N3", "EEG", (1, 2), (4,),
     {"decade": "delta_per_decade", "woman": "delta_women", "drug": "delta_drug"}),
    ("beta (16 to 30 Hz)", "N2", "EEG", (8, 9), (4,), {"drug": "beta_drug"}),
    ("sigma (11 to 16 Hz)", "N2", "EEG", (6, 7), (4,), {"drug": "sigma_drug"}),
    ("eye movements (0.5 to 4 Hz)", "REM", "EOG", (1, 2, 3), (8, 9), {"decade": "eye_movement_per_decade"}))
#: Where every simulated effect should be seen in the relevance: the modality whose sign of the stage it makes stronger
#: or weaker. All effects of `mslib.sleep.Effects` are here, none is chosen.
EXPECTED = (
    ("N2", "EEG", {"decade": ("spindle_per_decade",), "woman": ("spindle_women",),
                   "drug": ("spindle_rate_drug", "sigma_drug", "beta_drug")}),
    ("N3", "EEG", {"decade": ("delta_per_decade",), "woman": ("delta_women",), "drug": ("delta_drug",)}),
    ("REM", "EOG", {"decade": ("eye_movement_per_decade",), "drug": ("eye_movement_rate_drug",)}))


# --- one fold ----------------------------------------------------------------------------------------------------


def draw_by_stage(table: pd.DataFrame, per_stage: int, seed: int) -> pd.DataFrame:
    """At most so many epochs of every recording and stage, in order; ``weight``: for how many a drawn one stands."""
    rng, groups = np.random.default_rng([seed, 17]), table.groupby(["recording", "stage"])
    rows = np.sort(np.concatenate([rng.permutation(rows)[:per_stage] for rows in groups.indices.values()]))
    size = groups["stage"].transform("size")
    return table.assign(weight=size / size.clip(upper=per_stage) * table.get("weight", 1.0)).iloc[rows]


def fold_relevance(model: keras.Model, epochs: EpochSet, predictions: pd.DataFrame, rule: str, explained: int,
                   compared: int, seed: int) -> pd.DataFrame:
    """Shares of the modalities in the relevance for the predicted stage, by the study's rule and its variants.

    Of every recording and stage `explained` epochs for the rule, `compared` of these for every variant. One row per
    epoch and rule: ``recording, subject, epoch, stage, predicted, correct, weight`` (see `draw_by_stage`), ``rule,
    absolute_EEG ... positive_EMG`` in percent.
    """
    described = predictions[["recording", "subject", "epoch", "stage", "predicted"]]
    drawn = draw_by_stage(described.assign(correct=described["stage"] == described["predicted"]), explained, seed)
    few, tables = draw_by_stage(drawn, compared, seed), []
    for name, (composite, parameters) in ({rule: (rule, {})} | VARIANTS).items():
        chosen = drawn if name == rule else few
        relevance = lrp(model, epochs.batch(chosen["epoch"]), chosen["predicted"].to_numpy(), composite, batch_size=64,
                        **parameters)
        tables.append(chosen.assign(rule=name, **{
            f"{kind}_{modality}": share for kind, of_kind in relevance_shares(relevance).items()
            for modality, share in zip(MODALITIES, of_kind.T)}))
    return pd.concat(tables, ignore_index=True)


def fold_ablation(model: keras.Model, epochs: EpochSet, predictions: pd.DataFrame, per_stage: int,
                  seed: int) -> pd.DataFrame:
    """Stages predicted of a fold's test epochs with each modality replaced in turn, by zero or white noise of SD 1.

    ``recording, subject, epoch, stage, baseline, modality`` (both `PRESENT`: nothing is replaced), ``predicted``.
    """
    drawn, rng = draw_by_stage(predictions, per_stage, seed), np.random.default_rng([seed, 31])
    signals = epochs.batch(drawn["epoch"])
    described = drawn[["recording", "subject", "epoch", "stage"]]
    tables = [described.assign(baseline=PRESENT, modality=PRESENT, predicted=drawn["predicted"])]
    for baseline in ("zero", "noise"):
        for column, modality in enumerate(MODALITIES):
            changed = signals.copy()
            changed[..., column] = 0 if baseline == "zero" else rng.standard_normal(signals.shape[:2])
            predicted = model.predict(changed, batch_size=128, verbose=0).argmax(axis=1)
            tables.append(described.assign(baseline=baseline, modality=modality, predicted=predicted))
    return pd.concat(tables, ignore_index=True)


def fold_methods(model: keras.Model, epochs: EpochSet, predictions: pd.DataFrame, per_stage: int, steps: int,
                 seed: int) -> pd.DataFrame:
    """Shares of the modalities in the maps of attribution methods, of so many correct epochs of every stage.

    ``recording, subject, epoch, stage, method, EEG, EOG, EMG`` (percent); `steps` are those of integrated gradients.
    """
    few = predictions.loc[predictions["stage"] == predictions["predicted"], ["recording", "subject", "epoch", "stage"]]
    rng, stages = np.random.default_rng([seed, 37]), few.groupby("stage").indices.values()
    few = few.iloc[sorted(row for rows in stages for row in rng.permutation(rows)[:per_stage])]
    tables = [few[:0].assign(method="", **dict.fromkeys(MODALITIES, 0.0))]
    for method in METHODS if len(few) else ():
        more = {"steps": steps} if method == "integrated_gradients" else {}
        maps = attribute(method, model, epochs.batch(few["epoch"]), few["stage"].to_numpy(), **more)
        tables.append(few.assign(method=method, **dict(zip(MODALITIES, relevance_shares(maps)["absolute"].T))))
    return pd.concat(tables[len(few) > 0:], ignore_index=True)


# --- all folds ---------------------------------------------------------------------------------------------------


def _by_name(table: pd.DataFrame, kind: str = "absolute") -> pd.DataFrame:
    """A table of one fold or all with stages by name, and the shares of one kind under the modality alone."""
    return table.assign(stage=table["stage"].map(dict(enumerate(STAGES)))).rename(
        columns={f"{kind}_{modality}": modality for modality in MODALITIES})


def typical_recording(predictions: pd.DataFrame) -> str:
    """The night whose share of correctly classified epochs is the (lower) median: neither the best nor the worst."""
    correct = (predictions["stage"] == predictions["predicted"]).groupby(predictions["recording"]).mean()
    return str(correct.sort_values(kind="stable").index[(len(correct) - 1) // 2])


def typical_epochs(predictions: pd.DataFrame, recording: str) -> pd.DataFrame:
    """One correctly classified epoch of every stage, of median certainty: rows of `predictions` with ``probability``.

    Of one night, or where it has none, of all; a stage that is never predicted correctly has no row.
    """
    certainty = softmax(predictions[[f"logit_{stage}" for stage in STAGES]].to_numpy(), axis=1).max(axis=1)
    correct = predictions.assign(probability=certainty).query("stage == predicted")
    correct = correct.sort_values("probability", kind="stable")
    here = correct["recording"] == recording
    ranked = correct[here | ~correct["stage"].isin(correct.loc[here, "stage"])]
    stages = ranked.groupby("stage")["stage"]
    return ranked[stages.cumcount() == (stages.transform("size") - 1) // 2].sort_values("stage", ignore_index=True)


def subject_shares(relevance: pd.DataFrame) -> pd.DataFrame:
    """Mean shares of every subject, by stage and over all its epochs (``overall``), correct and wrong ones apart.

    ``rule, kind, correct, subject, fold, stage, EEG, EOG, EMG`` (percent), ``n`` (epochs). Overall, epochs count by
    their weight, so that stages of which few were drawn count as often as they occur.
    """
    keys, columns, tables = ["rule", "correct", "subject", "fold", "stage"], list(MODALITIES), []
    for kind in KINDS:
        named = _by_name(relevance, kind)
        groups = named.groupby(keys)
        weighted = named.assign(**named[columns].mul(named["weight"], axis=0)).groupby(keys[:-1])
        merged = weighted[columns].sum().div(weighted["weight"].sum(), axis=0).assign(stage=OVERALL, n=weighted.size())
        tables += [part.reset_index().assign(kind=kind)
                   for part in (groups[columns].mean().assign(n=groups.size()), merged)]
    return pd.concat(tables, ignore_index=True)[["rule", "kind", *keys[1:], *columns, "n"]]


def share_summary(table: pd.DataFrame, keys=("rule", "kind", "correct", "stage"), **draws) -> pd.DataFrame:
    """Mean over subjects of their mean share: `keys`, ``modality, value, low, high, subjects, n`` (epochs)."""
    by, names = table.assign(n=table.get("n", 1)).groupby([*keys, "subject"], sort=False), list(MODALITIES)
    sizes = by["n"].sum().groupby(list(keys)).sum()
    means = measure.mean_by(by[names].mean().reset_index(), keys, names, **draws).drop(columns="slices")
    return means.rename(columns={"measure": "modality"}).join(sizes, on=list(keys))


def share_differences(subjects: pd.DataFrame, information: pd.DataFrame, **draws) -> pd.DataFrame:
    """By how much one modality has more relevance than another, beside how much more information it carries alone.

    From `subject_shares` of one rule, kind and side: ``stage, more, less, value, low, high`` (percentage points),
    ``subjects, information`` (difference of the AUC, overall of the balanced accuracy), ``scatter`` (SD over folds).
    """
    worth, rows = information.set_index(["stage", "modality"]), []
    mean, sd = (worth[f"auc{end}"].fillna(worth[f"balanced_accuracy{end}"]) for end in ("", "_sd"))
    for stage, part in subjects.groupby("stage", sort=False):
        for more, less in permutations(MODALITIES, 2):
            rows.append({"stage": stage, "more": more, "less": less,
                         **measure.mean_interval(part[more] - part[less], part["subject"], **draws),
                         "subjects": part["subject"].nunique(), "information": mean[stage, more] - mean[stage, less],
                         "scatter": np.hypot(sd[stage, more], sd[stage, less])})
    return pd.DataFrame(rows)


def matched(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many correct as wrong epochs of every subject and stage, drawn; without those that have only one kind."""
    rng, chosen, correct = np.random.default_rng([seed, 23]), [], table["correct"].to_numpy()
    for rows in table.groupby(["subject", "stage"]).indices.values():
        sides = [rng.permutation(rows[side]) for side in (correct[rows], ~correct[rows])]
        chosen += [side[:min(map(len, sides))] for side in sides]
    return table.iloc[np.sort(np.concatenate(chosen))] if chosen else table


def consistency(relevance: pd.DataFrame, rule: str, n: int = 2000, confidence: float = 0.95,
                seed: int = 0) -> pd.DataFrame:
    """How much more the shares differ from fold to fold where the network is wrong than where it is correct.

    Correct and wrong epochs are `matched`, because means of fewer epochs scatter more. Wrong ones also scatter more
    within people, and with them the means of any few people: the difference is held against that of `n` deals of the
    same people to folds at random. One row: ``correct, wrong`` (SD over folds in percentage points, mean over stages
    and modalities), ``chance`` (mean difference of random deals), ``value`` (wrong less correct less chance), ``low,
    high`` (the difference less those of random deals), ``epochs`` of each kind, ``subjects``. NaN below two folds.
    """
    shares = subject_shares(matched(relevance[relevance["rule"] == rule], seed))
    shares = shares[(shares["kind"] == "absolute") & (shares["stage"] != OVERALL)]
    fold = shares.groupby("subject")["fold"].first()
    rng, number = np.random.default_rng([seed, 41]), pd.factorize(fold)[0]
    deals = np.stack([number, *(rng.permutation(number) for _ in range(n))])  # first: the data
    inside = (deals[:, None] == np.unique(number)[:, None]).astype(float)  # deal, fold, subject

    def spread(side):
        wide = shares[shares["correct"] == side].pivot_table(list(MODALITIES), "subject", "stage").reindex(fold.index)
        with np.errstate(invalid="ignore"):
            means = (inside @ wide.fillna(0).to_numpy()) / (inside @ wide.notna().to_numpy(float))
        return np.ma.masked_invalid(means).std(axis=1, ddof=1).mean(axis=1).filled(np.nan)

    correct, wrong = spread(True), spread(False)
    more = wrong - correct
    chance = float(more[1:].mean())
    return pd.DataFrame([{"correct": correct[0], "wrong": wrong[0], "chance": chance,
                          **measure.percentile_interval(more[0] - chance, more[0] - more[1:], confidence),
                          "epochs": int(shares.loc[shares["correct"], "n"].sum()), "subjects": len(fold)}])


def information(epochs: EpochSet, rate: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """How well each stage is recognised from one modality alone, on at most ten epochs of every recording and stage.

    The table of `mslib.sleep.modality_information`, the epochs, and their `mslib.sleep.band_features`, (N, M, F).
    """
    drawn = draw_by_stage(epochs.table.assign(epoch=np.arange(len(epochs))), 10, seed + 1)
    rows, people = drawn["epoch"].to_numpy(), drawn["subject"].to_numpy()
    features = np.concatenate([band_features(epochs.batch(rows[start:start + 256]), rate)
                               for start in range(0, len(rows), 256)])
    table = modality_information(features, drawn["stage"].to_numpy(), people, min(5, len(set(people))), seed)
    return table, drawn, features


def ablation_table(ablated: pd.DataFrame, **draws) -> pd.DataFrame:
    """Accuracy lost without a modality, gains counted against: ``baseline, modality, stage, value, low, high, subjects,
    n``."""
    keys, correct = ["baseline", "modality", "stage"], _by_name(ablated)
    correct = correct.assign(correct=ablated["stage"] == ablated["predicted"]).sort_values("subject", kind="stable")
    present = correct["baseline"] == PRESENT
    kept = correct[present].groupby(["stage", "subject"])["correct"].mean().rename("present")
    means = correct[~present].groupby([*keys, "subject"], sort=False)["correct"].mean().reset_index()
    means = means.join(kept, on=["stage", "subject"]).eval("lost = present - correct")
    table = measure.mean_by(means, keys, ["lost"], **draws).drop(columns=["measure", "slices"])
    return table.assign(n=table["stage"].map(correct.loc[present, "stage"].value_counts()))


def collapse_table(ablated: pd.DataFrame) -> pd.DataFrame:
    """Where epochs go: ``baseline, modality, stage`` that is then predicted most often, ``share, present`` (before)."""
    present, rows = ablated["baseline"] == PRESENT, []
    before = ablated.loc[present, "predicted"].value_counts(normalize=True)
    for key, predicted in ablated[~present].groupby(["baseline", "modality"], sort=False)["predicted"]:
        most = predicted.value_counts(normalize=True).head(1)
        rows.append({**dict(zip(("baseline", "modality"), key)), "stage": STAGES[most.index[0]], "share": most.iloc[0],
                     "present": before.get(most.index[0], 0.0), "n": len(predicted)})
    return pd.DataFrame(rows)


def method_table(methods: pd.DataFrame, relevance: pd.DataFrame, **draws) -> pd.DataFrame:
    """`share_summary` by ``method`` and ``stage``, of attribution methods and rules of relevance; correct epochs."""
    rules = relevance[relevance["correct"]].assign(method="LRP " + relevance["rule"])
    table = pd.concat([_by_name(methods), _by_name(rules)], ignore_index=True)
    return share_summary(table, ["method", "stage"], **draws)


def agreement(methods: pd.DataFrame, ablated: pd.DataFrame, information: pd.DataFrame, rule: str) -> pd.DataFrame:
    """How far every method, rule and ablation orders the modalities as relevance does, and as their information does.

    From `method_table`, `ablation_table`, `information`: ``source, tau_relevance, tau_information`` (Kendall's tau over
    the modalities, mean over stages), ``top_information`` (stages whose first modality is the most informative one),
    ``stages``, and, for shares, ``difference`` to relevance (mean, percentage points).
    """
    def wide(table, values="value"):
        return table.pivot_table(index="stage", columns="modality", values=values)[list(MODALITIES)]

    sources = {name: wide(part) for name, part in methods.groupby("method", sort=False)}
    sources |= {f"ablation, {name}": wide(part) for name, part in ablated.groupby("baseline", sort=False)}
    relevance, truth, rows = sources[f"LRP {rule}"], wide(information, "auc"), []
    for name, values in sources.items():
        stages = values.index.intersection(relevance.index).intersection(truth.index)
        own, like, best = values.loc[stages], relevance.loc[stages], truth.loc[stages]
        rows.append({"source": name, "tau_relevance": own.corrwith(like, axis=1, method="kendall").mean(),
                     "tau_information": own.corrwith(best, axis=1, method="kendall").mean(),
                     "top_information": int((own.idxmax(axis=1) == best.idxmax(axis=1)).sum()), "stages": len(stages),
                     "difference": (own - like).abs().mean(axis=None)})
    table = pd.DataFrame(rows)
    return table.assign(difference=table["difference"].where(~table["source"].str.startswith("ablation")))


# --- age, sex and drug -------------------------------------------------------------------------------------------


def covariates(epochs: EpochSet) -> pd.DataFrame:
    """``subject`` and those of `EFFECTS` that are known and differ, as numbers, of every ``recording`` (the index)."""
    nights = epochs.table.drop_duplicates("recording").set_index("recording")
    drug = nights["drug"].map(lambda name: float(name.casefold() != "placebo"), na_action="ignore")
    table = pd.DataFrame({"subject": nights["subject"], "decade": nights["age"] / 10,
                          "woman": nights["sex"].map({"F": 1.0, "M": 0.0}), "drug": drug.astype(float)})
    return table[["subject", *[name for name in EFFECTS if table[name].dropna().min() < table[name].dropna().max()]]]


def recording_shares(relevance: pd.DataFrame, nights: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Mean share (sizes) of every recording and stage over correct epochs, beside its `covariates`: one row each."""
    part = _by_name(relevance[(relevance["rule"] == rule) & relevance["correct"]])
    return part.groupby(["stage", "recording"])[list(MODALITIES)].mean().reset_index().join(nights, on="recording")


def detectable(error: float, df: float) -> float:
    """Smallest effect that a two-sided t test (5 %, this standard error) finds with a power of 80 %."""
    if not error > 0 or not df >= 2:
        return float("nan")
    limit = student.ppf(1 - ALPHA / 2, df)
    return error * brentq(lambda shift: nct.sf(limit, df, shift) - 0.8, 0, 3 * limit)  # the other tail is nothing


def _model(part, outcome, effects) -> pd.DataFrame:
    """Rows of the effects on one outcome; where no model can be fitted, rows that say why."""
    try:
        fitted = measure.mixed_effects(part, outcome, effects).iloc[1:].assign(why="")
        fitted = fitted.rename(columns={"estimate": "value"})
        error = (fitted["high"] - fitted["low"]) / 2 / student.ppf(0.975, fitted["df"])
        fitted["detectable"] = [detectable(*pair) for pair in zip(error, fitted["df"])]
    except ValueError as error:
        fitted = pd.DataFrame({"term": effects, "n": len(part), "subjects": part["subject"].nunique(),
                               "singular": False, "why": str(error).removeprefix("mixed_effects: ")})
    return fitted.reindex(columns=FITTED)


def fit_effects(shares: pd.DataFrame) -> pd.DataFrame:
    """Effects of age, sex and drug on the share of every modality in every stage, by mixed models.

    Of `recording_shares`: `FITTED`, ``p_fdr`` (Benjamini and Hochberg) over all rows, ``why`` where there is no model.
    """
    effects = [name for name in EFFECTS if name in shares]
    rows = [_model(part, modality, effects).assign(stage=stage, modality=modality)
            for stage in STAGES if len(part := shares[shares["stage"] == stage]) and effects for modality in MODALITIES]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=FITTED)
    return table.assign(p_fdr=measure.adjust_p_values(table["p"], "fdr_bh"))


def corrected_effects(fitted: pd.DataFrame) -> pd.DataFrame:
    """Sizes of the tested `fit_effects` with intervals that exclude 0 where the corrected p is below 5 %, there alone.

    At the level that Benjamini and Hochberg leave each test; ``strongest``: the stage with the lowest corrected p.
    """
    tested = fitted.dropna(subset=["p_fdr"])
    size, tail = tested["value"].abs(), ALPHA * (tested["p"] / tested["p_fdr"]).fillna(1.0) / 2
    half = (tested["high"] - tested["low"]) / 2 * student.ppf(1 - tail, tested["df"]) / student.ppf(
        0.975, tested["df"])
    strongest = tested.groupby(["term", "modality"])["p_fdr"].idxmin()
    return tested.assign(value=size, low=size - half, high=size + half, strongest=tested.index.isin(strongest))


def relevance_recovery(fitted: pd.DataFrame, sizes: dict[str, float]) -> pd.DataFrame:
    """Do the simulated effects come back in the relevance? A stronger sign should have a larger share.

    Rows of `fit_effects` at the places of `EXPECTED`, with ``simulated`` (sum of the logarithms of amplitude or rate),
    ``p_fdr`` (corrected for these rows alone), ``recovered`` (corrected p at most 5 % and the simulated sign).
    """
    place = ["stage", "modality", "term"]
    places = pd.DataFrame([(stage, modality, term, sum(sizes[part] for part in parts))
                           for stage, modality, names in EXPECTED if sizes for term, parts in names.items()],
                          columns=[*place, "simulated"])
    table = places.merge(fitted, on=place)[[*place, "value", "low", "high", "detectable", "p", "simulated"]]
    table["p_fdr"] = measure.adjust_p_values(table["p"], "fdr_bh")
    return table.assign(recovered=(table["p_fdr"] <= ALPHA) & (table["value"] * table["simulated"] > 0))


def signal_recovery(drawn: pd.DataFrame, features: np.ndarray, nights: pd.DataFrame,
                    sizes: dict[str, float]) -> pd.DataFrame:
    """Do the simulated effects come back from the recordings themselves?

    From `information` and `covariates`: ``component, stage, modality, term, simulated, value, low, high, p, subjects,
    n, detectable`` (change of the logarithm of the amplitude relative to bands without effect), ``inside`` (the
    simulated size lies in the interval), ``sign`` (the interval excludes 0 on its side).
    """
    numbers, rows = ["value", "low", "high", "p", "subjects", "n", "detectable"], []
    for component, stage, modality, bands, beside, names in COMPONENTS if sizes else ():
        here = drawn["stage"].to_numpy() == STAGES.index(stage)
        part = np.exp(features[here, MODALITIES.index(modality)])
        ratio = np.log(part[:, list(bands)].mean(axis=1) / part[:, list(beside)].mean(axis=1)) / 2
        table = nights.assign(level=pd.Series(ratio).groupby(drawn.loc[here, "recording"].to_numpy()).mean())
        fitted = _model(table.reset_index(), "level", [name for name in EFFECTS if name in nights]).set_index("term")
        for term in [name for name in names if name in fitted.index]:
            size, row = sizes[names[term]], fitted.loc[term]
            side = row["low"] if size > 0 else -row["high"]
            rows.append({"component": component, "stage": stage, "modality": modality, "term": term, "simulated": size,
                         **row[numbers], "inside": bool(row["low"] <= size <= row["high"]), "sign": bool(side > 0)})
    return pd.DataFrame(rows, columns=["component", "stage", "modality", "term", "simulated", *numbers, "inside",
                                       "sign"])
