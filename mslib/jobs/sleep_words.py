"""Sentences, captions and recorded numbers of notebook 06, all of them made from its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.sleep import MODALITIES, STAGES, EpochSet, stage_shares
from mslib.sleep.folds import CrossValidation
from mslib.study import StudyConfig

from .record import interval_text
from .sleep import settings
from .sleep_effects import ALPHA, EFFECTS
from .sleep_tables import OVERALL

KINDS = {"simulated": "Simulated nights",
         "telemetry": "Real nights of Sleep-EDF telemetry (Kemp et al. 2000; ODC-BY 1.0)",
         "folder": "Nights of the study's own recordings"}


def nights_kind(config: StudyConfig) -> str:
    """Whose nights a figure shows."""
    return KINDS[settings(config).source]


def interval_kind(config: StudyConfig) -> str:
    """What the intervals of most figures are."""
    return f"{config.statistics.confidence * 100:g} % intervals: bootstrap over subjects, none below 5"


def cohort_sentence(epochs: EpochSet, config: StudyConfig) -> str:
    """Who slept, how long, and what was left out."""
    table = epochs.table
    known = table.drop_duplicates("subject")
    ages = known["age"].dropna()
    told = [f"{nights_kind(config)}: {table['recording'].nunique()} recordings of {len(known)} subjects, "
            f"{len(table)} epochs of 30 s"]
    if len(ages):
        told.append(f"ages {ages.min():g} to {ages.max():g}")
    if known["sex"].notna().any():
        told.append(f"{(known['sex'] == 'F').sum()} women")
    told.append(f"recordings left out as faulty: {len(epochs.faults)}")
    return "; ".join(told) + "."


def stage_table(epochs: EpochSet) -> pd.DataFrame:
    """Epochs of every stage: all, and per recording (median, smallest, largest)."""
    counts = stage_shares(epochs)
    return pd.DataFrame({"epochs": counts.sum(), "share": counts.sum() / counts.to_numpy().sum(),
                         "median per recording": counts.median(), "least": counts.min(), "most": counts.max()})


def nights_table(epochs: EpochSet) -> pd.DataFrame:
    """One row per recording: who, when, under what, epochs by stage, trimmed and dropped."""
    known = epochs.table.drop_duplicates("recording")[["recording", "subject", "night", "drug", "age", "sex"]]
    facts = pd.DataFrame({name: {"trimmed": one["trimmed"], "dropped": sum(one["dropped"].values())}
                          for name, one in epochs.facts.items()}).T
    return known.join(stage_shares(epochs), on="recording").join(facts, on="recording")


def score_sentence(found: CrossValidation, config: StudyConfig) -> str:
    """Kappa and accuracy over folds."""
    told = []
    for measure, name in (("kappa", "Cohen's kappa"), ("accuracy", "accuracy"), ("macro_f1", "mean F1 of the stages")):
        row = found.summary[found.summary["measure"] == measure].iloc[0]
        told.append(f"{name} {interval_text(row['mean'], row['low'], row['high'])}")
    return (f"{'; '.join(told)} (mean and Student's {config.statistics.confidence * 100:g} % interval over "
            f"{len(found.folds)} folds; every subject is tested once, by a net that has never seen it).")


def night_title(found: CrossValidation, recording: str, config: StudyConfig) -> str:
    """Which night is drawn, and how well it is staged."""
    night = found.predictions[found.predictions["recording"] == recording]
    right = (night["stage"] == night["predicted"]).mean()
    kind = {"simulated": "Simulated night"}.get(settings(config).source, "Real night")
    return f"{kind} {recording}, {right:.0%} of {len(night)} epochs right"


def example_titles(examples: dict) -> dict:
    """Examples with what each panel says above its traces."""
    return {stage: one | {"title": f"{one['recording']}, {one['hour']:.2f} h after the start, named with a "
                                   f"probability of {one['probability']:.2f}"} for stage, one in examples.items()}


def share_panels(summary: pd.DataFrame, rule: str, kind: str = "absolute") -> dict[str, pd.DataFrame]:
    """Panels of `mslib.show.plot_stage_shares`: right epochs above wrong ones."""
    part = summary[(summary["rule"] == rule) & (summary["kind"] == kind)]
    return {f"{name} epochs, n = {part.loc[(part['right'] == right) & (part['stage'] == OVERALL), 'n'].max()}":
            part[part["right"] == right] for right, name in ((True, "right"), (False, "wrong"))
            if (part["right"] == right).any()}


def consistency_sentence(found: dict) -> str:
    """How far folds agree."""
    if np.isnan(found["right"]):
        return "Too few folds have right and wrong epochs of a stage to say whether they agree."
    return ("From fold to fold the share of a modality in a stage varies by "
            f"{found['right']:.1f} percentage points (SD) "
            f"where the net is right and by {found['wrong']:.1f} where it is wrong, on as many epochs of the same "
            f"subjects and stages ({found['epochs']} of each kind, {found['subjects']} subjects); difference "
            f"{interval_text(found['difference'], found['low'], found['high'], 1)}.")


def rule_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Share of every modality by rule, kind and stage, right epochs (one row per rule, kind and stage)."""
    part = summary[summary["right"]]
    wide = part.pivot_table(index=["rule", "kind", "stage"], columns="modality", values="value", sort=False)
    return wide[list(MODALITIES)].reset_index()


def rule_sentence(summary: pd.DataFrame, rule: str) -> str:
    """How far other rules move the shares, and whether they change the first modality of a stage."""
    part = summary[summary["right"] & (summary["kind"] == "absolute") & (summary["stage"] != OVERALL)]
    wide = part.pivot_table(index=["rule", "stage"], columns="modality", values="value")
    told = []
    for other in [name for name in part["rule"].unique() if name != rule]:
        stages = [stage for stage in STAGES if {stage} <= set(wide.loc[rule].index) & set(wide.loc[other].index)]
        own, theirs = wide.loc[rule].loc[stages], wide.loc[other].loc[stages]
        changed = [stage for stage in stages if own.loc[stage].idxmax() != theirs.loc[stage].idxmax()]
        told.append(f"{other} moves the shares by {(theirs - own).abs().mean(axis=None):.1f} percentage points on "
                    f"average and has another first modality in {', '.join(changed) or 'no stage'}")
    return f"Beside {rule}: {'; '.join(told)}."


def information_sentence(beside: pd.DataFrame) -> str:
    """Where relevance and the information of single modalities put another modality first."""
    part = beside[beside["stage"] != OVERALL].dropna(subset=["share", "auc"])
    told = []
    for stage in [one for one in STAGES if one in set(part["stage"])]:
        rows = part[part["stage"] == stage].set_index("modality")
        relevant, informative = rows["share"].idxmax(), rows["auc"].idxmax()
        if relevant != informative:
            told.append(f"{stage} (relevance {relevant}, {rows.loc[relevant, 'share']:.0f} %; most informative "
                        f"{informative}, AUC {rows.loc[informative, 'auc']:.2f} against "
                        f"{rows.loc[relevant, 'auc']:.2f})")
    return ("The modality with most relevance is not the one that the information of single modalities puts first in: "
            f"{'; '.join(told) or 'none'}.")


def claim_information_sentence(claims: pd.DataFrame) -> str:
    """Which published orderings are not those of what single modalities tell."""
    against = claims[claims[claims.columns[-1]].str.startswith("no ")]
    told = "; ".join(f"{row.iloc[0]} {row.iloc[-1].removeprefix('no ')}" for _, row in against.iterrows())
    return f"Published orderings that are clearly not those of the information of single modalities: {told or 'none'}."


def effect_sentences(fitted: pd.DataFrame, simulated: pd.DataFrame, signals: pd.DataFrame,
                     expected: pd.DataFrame) -> list[str]:
    """What the mixed models found, what they would have found, how often they err."""
    if fitted.empty:
        return ["No mixed model: age, sex and drug are unknown, or the same in all nights."]
    tested, told = fitted.dropna(subset=["p"]), []
    found = tested[tested["p_fdr"] <= ALPHA]
    rows = "; ".join(f"{row.modality} in {row.stage} {interval_text(row.estimate, row.low, row.high, 1)} points "
                     f"{EFFECTS[row.term]}" for row in found.itertuples())
    told.append(f"Corrected p at most {ALPHA:g} in {len(found)} of {len(tested)} tests{': ' if rows else ''}{rows}. "
                f"Fits without variance between subjects: {int(tested['singular'].sum())}; tests that could not be "
                f"made: {len(fitted) - len(tested)}.")
    for term, name in EFFECTS.items():
        sizes = tested.loc[tested["term"] == term, "detectable"].dropna()
        if len(sizes):
            told.append(f"An effect {name} is found with a power of 80 % (single test, 5 %) from "
                        f"{sizes.min():.1f} to {sizes.max():.1f} percentage points on, median {sizes.median():.1f}.")
    if len(simulated):
        row = simulated.set_index("effect").loc["all"]
        told.append(f"With covariates shuffled (no effect left; {int(row['runs'])} runs of {int(row['tests'])} tests) "
                    f"{row['false_positive']:.1%} of the tests have p up to 5 % "
                    f"({row['false_low']:.1%} to {row['false_high']:.1%}), and {row['fdr_any']:.0%} of the runs any "
                    f"finding after correction. Of effects of the detectable size, planted into the same tables, "
                    f"{row['power']:.0%} are found ({row['power_low']:.0%} to {row['power_high']:.0%}); whatever "
                    "effects there are besides count as noise in this trial.")
    if len(signals):
        told.append(f"Planted effects on the signals themselves: {int(signals['inside'].sum())} of {len(signals)} "
                    f"intervals hold the planted size, {int(signals['sign'].sum())} exclude 0 on its side.")
    if len(expected):
        seen = "; ".join(f"{row.modality} in {row.stage} {interval_text(row.estimate, row.low, row.high, 1)} points "
                         f"{EFFECTS[row.term]}" for row in expected[expected["found"]].itertuples())
        told.append(f"Planted effects in the relevance, asked for in their own places only ({len(expected)} tests, "
                    f"corrected): {int(expected['found'].sum())} found{': ' if seen else ''}{seen}. A stronger sign "
                    "need not have a larger share: signals are standardised within the night, and a sign that is "
                    "there is there.")
    return told


def ablation_sentences(ablated: pd.DataFrame, collapsed: pd.DataFrame, agreed: pd.DataFrame,
                       beside: pd.DataFrame) -> list[str]:
    """Where taking a modality away and relevance part, and what unusual input does to the net."""
    told = []
    fills = list(dict.fromkeys(ablated["fill"]))
    wide = ablated.pivot_table(index="stage", columns=["fill", "modality"], values="value")
    parted = [stage for stage in STAGES if stage in wide.index and len(
        {wide.loc[stage, fill].idxmax() for fill in fills}) > 1]
    told.append(f"The fills ({' and '.join(fills)}) name another modality as the most needed one in: "
                f"{', '.join(parted) or 'no stage'}.")
    row = (collapsed.assign(more=collapsed["share"] - collapsed["present"])).sort_values("more").iloc[-1]
    told.append(f"Farthest from the familiar: with {row['modality']} replaced ({row['fill']}) the net calls "
                f"{row['share']:.0%} of the epochs {row['stage']}, {row['present']:.0%} with all modalities. What is "
                "lost then says as much about the strange input as about the modality.")
    gained = ablated[ablated["high"] < 0]
    first = {stage: part.set_index("modality")["auc"].idxmax()
             for stage, part in beside.dropna(subset=["auc"]).groupby("stage")}
    if len(gained):
        told.append("Named rightly more often without a modality (interval below 0): " + "; ".join(
            f"{row.stage} without {row.modality} ({row.fill})"
            f"{', though it alone tells this stage best' if first.get(row.stage) == row.modality else ''}"
            for row in gained.itertuples()) + ". By its loss such a modality would seem to do harm.")
    order = agreed.sort_values("tau_information", ascending=False)
    told.append("Agreement with the information of single modalities (Kendall's tau, mean over stages): " + ", ".join(
        f"{row.source} {row.tau_information:.2f}" for row in order.itertuples()) + ".")
    return told


def recorded(found: CrossValidation, epochs: EpochSet, summary: pd.DataFrame, consistent: dict, fitted: pd.DataFrame,
             simulated: pd.DataFrame, signals: pd.DataFrame, expected: pd.DataFrame, claims: pd.DataFrame,
             config: StudyConfig) -> dict:
    """Numbers of the notebook for the summary, the report and the gallery."""
    rule = settings(config).rule
    part = summary[(summary["rule"] == rule) & (summary["kind"] == "absolute") & summary["right"]]
    shares = {stage: {row.modality: [row.value, row.low, row.high] for row in rows.itertuples()}
              for stage, rows in part.groupby("stage", sort=False)}
    scores = {f"{row.measure}{f' {row.stage}' if row.stage else ''}": [row.mean, row.low, row.high]
              for row in found.summary.itertuples()}
    numbers = {"source": settings(config).source, "recordings": int(epochs.table["recording"].nunique()),
               "subjects": int(epochs.table["subject"].nunique()), "epochs": len(epochs),
               "faults": list(epochs.faults), "folds": len(found.folds), "scores": scores, "rule": rule,
               "shares": shares, "consistency": consistent,
               "claims": dict(zip(claims["published claim"], claims["holds?"]))}
    if len(fitted):
        numbers["effects_found"] = int((fitted["p_fdr"] <= ALPHA).sum())
    if len(simulated):
        row = simulated.set_index("effect").loc["all"]
        numbers["simulation"] = {name: row[name] for name in ("runs", "tests", "false_positive", "power", "fdr_any")}
    if len(signals):
        numbers["planted_inside"] = [int(signals["inside"].sum()), len(signals)]
    if len(expected):
        numbers["planted_found"] = [int(expected["found"].sum()), len(expected)]
    return numbers
