"""Captions and sentences of notebook 05, made from its tables."""

from __future__ import annotations

import pandas as pd

from mslib.measure import MIN_SUBJECTS
from mslib.study import StudyConfig

from .record import interval_text
from .words import LIFT, subjects_kind

#: False discovery rate below which an effect is called one.
LEVEL = 0.05
#: Every rule in a line.
RULES = {
    "epsilon": "every contribution in proportion, by sign; sums near 0 are kept from exploding",
    "z_plus": "in every layer only what raises the sum, in proportion; what lowers it is left out",
    "alpha1_beta0": "in every layer only what raises the sum, as z+",
    "alpha2_beta1": "in every layer twice what raises the sum, less once what lowers it",
    "gamma": "every contribution, those with the sign of the sum weighted up",
    "epsilon_plus": "z+ in the convolutions, epsilon in the last (dense) layers",
    "epsilon_gamma": "gamma in the convolutions, epsilon in the last (dense) layers",
    "epsilon_alpha2_beta1": "alpha2-beta1 in the convolutions, epsilon in the last (dense) layers"}
#: How rows of figures are called.
KIND_LABELS = {"absolute": "share of relevance [%]", LIFT: "share over that\nof the brightness",
               "in its mark": "positive relevance\nin its mark [%]"}
#: How the two kinds of slices are called in figures.
ANSWERS = {"right": "slices named rightly", "wrong": "slices named wrongly"}


def who(table: pd.DataFrame, config: StudyConfig, intervals: bool = True) -> str:
    """Whose slices a figure is of: kind, numbers, and (where it shows any) what the intervals are."""
    subjects = table["subject"].nunique()
    per_net = len(table) // table["backbone"].nunique()
    interval = f"No interval: n < {MIN_SUBJECTS} subjects" if intervals else "Bars: median"
    dotted = " Dotted: what brightness alone would give." if intervals else ""
    if intervals and subjects >= MIN_SUBJECTS:
        interval = f"{config.statistics.confidence * 100:g} % interval (bootstrap over subjects)"
    return (f"{subjects_kind(config)} that the nets have not learnt from: n = {subjects}, {per_net} slices per net. "
            f"{interval}. Relevance of the class that the net names.{dotted}")


def rule_table(config: StudyConfig) -> pd.DataFrame:
    """What the compared rules do with the contributions of a layer's inputs."""
    return pd.DataFrame([{"rule": rule, "how relevance is handed down": RULES[rule]}
                         for rule in config.relevance.compared])


def rules_caption(rules: pd.DataFrame, config: StudyConfig) -> str:
    """`who`, and of whom the Shapley values beside the rules are."""
    return (f"{who(rules[rules['rule'] == rules['rule'].iloc[0]], config)} Shapley values: other slices, of patients "
            "alone (notebook 04), without interval; in the upper row only.")


def headline_sentence(backbone: str, shown: dict) -> str:
    """What the wide picture shows, and whether the net is right about the slice."""
    one = shown["example"]
    group, predicted = str(one["group"]), str(one["predicted"][1])
    return (f"Slice {one['slices'][1] + 1} of patient sub-{one['subject']}, {group}. Left: FLAIR. Then Grad-CAM of "
            f"{backbone.upper()} for the class {group}, from shallow to deep, each scaled to its own maximum; right: "
            f"relevance of the three sequences for {group} (LRP), red for it and blue against it, one scale. The net "
            f"takes this slice for {predicted} ({'right' if predicted == group else 'wrong'}). Good: colour on "
            "lesions, none elsewhere.")


def planted_caption(config: StudyConfig) -> str:
    """What the figure of the planted nets shows."""
    return ("Simulated controls with planted marks, three nets. First row: share of a sequence in the relevance [%] "
            "(dotted: its share of the brightness). Second row: the one over the other (dotted: 1). Last row: share "
            "[%] of a sequence's positive relevance inside its own mark (dotted: the mark's share of the brain). "
            f"Lines: {config.statistics.confidence * 100:g} % interval (bootstrap over subjects).")


def numbers_sentence(shares: pd.DataFrame) -> str:
    """How many slices and subjects are behind right and wrong answers, per net."""
    rows = shares[(shares["kind"] == "absolute") & (shares["modality"] == shares["modality"].iloc[0])]
    told = []
    for (backbone, answer), part in rows.groupby(["backbone", "answer"], sort=False):
        told.append(f"{backbone.upper()} {answer}: " + ", ".join(
            f"{row.group} {row.slices} slices of {row.subjects}" for row in part.itertuples()))
    return "; ".join(told) + " subjects."


def order_sentence(table: pd.DataFrame, shares: pd.DataFrame, backbone: str) -> str:
    """Mean shares of a net over all slices, largest first."""
    own = shares[shares["backbone"] == backbone]
    rows = own[own["kind"] == "absolute"].sort_values("value", ascending=False)
    lift = own[own["kind"] == LIFT].set_index("modality")
    told = ", ".join(f"{row.modality} {interval_text(row.value, row.low, row.high, 1)} %, {row.chance:.0f} % of the "
                     f"brightness" for row in rows.itertuples())
    beyond = ", ".join(f"{name} {interval_text(*lift.loc[name, ['value', 'low', 'high']])}"
                       for name in lift["value"].sort_values(ascending=False).index)
    blank = int(table.loc[table["backbone"] == backbone, "blank"].sum())
    left = f" {blank} slices without any relevance left out." if blank else ""
    return f"{backbone.upper()}: {told}. Share over brightness: {beyond}.{left}"


def biases_sentence(table: pd.DataFrame) -> str:
    """Which part of the logits reaches the input: what biases keep is lost to every sequence alike."""
    told = []
    for backbone, part in table.groupby("backbone", sort=False):
        kept = part["kept"].quantile([0.25, 0.5, 0.75]).to_list()
        told.append(f"{backbone.upper()} median {kept[1]:.2f} (quartiles {kept[0]:.2f} to {kept[2]:.2f}), below 0 in "
                    f"{(part['kept'] < 0).sum()} of {len(part)} slices")
    return (f"Sum of the relevance over the logit, slice by slice (1: nothing was kept by biases): {'; '.join(told)}. "
            "Below 0 the image as a whole speaks against the class that the net names, and biases decide for it: the "
            "shares then say where relevance lies, not what speaks for the class.")


def planted_sentence(verdict: pd.DataFrame) -> str:
    """Which rules give the deciding sequence of the planted nets the largest share."""
    lines = []
    for kind, text in (("absolute", "largest share of the relevance"), (LIFT, "largest share over brightness")):
        told = [f"{row.rule} in {row.first} of {row.nets} nets (intervals apart in {row.surely})"
                for row in verdict[verdict["kind"] == kind].itertuples()]
        lines.append(f"The deciding sequence has the {text} by {', '.join(told)}.")
    return "\n".join(lines)


def lesion_sentence(lesions: pd.DataFrame) -> str:
    """Whether relevance gathers in lesions."""
    if lesions.empty:
        return "No lesion outlines are known here."
    told = [f"{row.backbone.upper()} {interval_text(row.value, row.low, row.high, 3)} against {row.brain:.3f} of the "
            f"brain and {row.bright:.3f} of the brightness ({row.slices} slices of {row.subjects} patients; {row.left} "
            f"more without positive relevance left out{': too few are left to say' if row.left > row.slices else ''})"
            for row in lesions[lesions["where"] == "all"].itertuples()]
    return (f"Share of the positive relevance inside lesions: {'; '.join(told)}. Slices differ between nets where some "
            "are left out, so that nets are not to be compared by these numbers.")


def effects_sentence(effects: pd.DataFrame) -> str:
    """Which effects pass the control of the false discovery rate."""
    if effects.empty:
        return ("No mixed model: age, sex, lesion load or EDSS are not known for every patient, or patients are too "
                "few for it.")
    passed = effects[effects["q"] < LEVEL]
    told = "; ".join(f"{row.backbone.upper()}, {row.modality}: {row.label} {row.estimate:+.1f} points "
                     f"({row.low:+.1f} to {row.high:+.1f})" for row in passed.itertuples())
    return (f"{len(passed)} of {len(effects)} effects pass a false discovery rate of {LEVEL:g}: {told or 'none'}. "
            f"n = {int(effects['subjects'].max())} patients: small effects cannot be seen.")


def stability_sentence(stable: pd.DataFrame) -> str:
    """How far the shares of two nets from different seeds agree."""
    told = []
    for backbone, rows in stable.groupby("backbone", sort=False):
        means = ", ".join(f"{row.modality} {row.first:.0f} and {row.second:.0f}" for row in rows.itertuples())
        told.append(f"{backbone.upper()}: mean shares {means} %, a slice's two {rows['apart'].mean():.1f} points "
                    f"apart, rank correlation {rows['rho'].min():.2f} to {rows['rho'].max():.2f} (right about "
                    f"{rows['right_first'].iloc[0]:.0%} and {rows['right_second'].iloc[0]:.0%} of "
                    f"{rows['slices'].max()} slices)")
    return "Two seeds. " + "; ".join(told) + "."


def agreement_sentence(agreed: pd.DataFrame) -> str:
    """How often the first sequence by relevance is also that of the exact Shapley values."""
    told = []
    for (rule, kind), part in agreed.groupby(["rule", "kind"], sort=False):
        told.append(f"{rule} ({kind}) {part['same_first'].sum()} of {len(part)}")
    return (f"Same sequence first as by the exact Shapley value, over nets and fills: {', '.join(told)}. No test: the "
            "fills of a net are not independent, and the slices are others.")


def recorded(table, overall, shares, verdict, lesions, effects, stable, agreed) -> dict:
    """Numbers of the notebook for the summary, the report and the gallery."""
    found = {"shares": {}, "over_brightness": {}, "right_wrong": {}, "slices": {}, "against": {
        backbone: [int((part["kept"] < 0).sum()), len(part)] for backbone, part in table.groupby("backbone")}}
    for key, kind in (("shares", "absolute"), ("over_brightness", LIFT)):
        for backbone, part in overall[overall["kind"] == kind].groupby("backbone", sort=False):
            found[key][backbone] = {row.modality: [row.value, row.low, row.high] for row in part.itertuples()}
            found["slices"][backbone] = int(part["slices"].max())
    for row in shares[shares["kind"] == "absolute"].itertuples():
        found["right_wrong"].setdefault(row.backbone, {})[f"{row.group}, {row.answer}, {row.modality}"] = row.value
    if verdict is not None:
        found["planted"] = verdict.to_dict("records")
    if not lesions.empty:
        found["lesions"] = {row.backbone: [row.value, row.low, row.high, row.brain, row.bright]
                            for row in lesions[lesions["where"] == "all"].itertuples()}
    if not effects.empty:
        found["effects_passed"] = int((effects["q"] < LEVEL).sum())
        found["effects_tested"] = len(effects)
    if stable is not None:
        found["two_seeds"] = {f"{row.backbone} {row.modality}": [row.first, row.second, row.rho]
                              for row in stable.itertuples()}
    found["agreement"] = {" ".join(key): tau for key, tau in agreed.groupby(["rule", "kind"])["tau"].mean().items()}
    return found
