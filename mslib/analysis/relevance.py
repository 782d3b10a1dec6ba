"""Relevance of the sequences by LRP: their shares, beside intensity, Shapley values and properties of patients.

Parameters that functions share: ``table`` from `slice_shares` with ``subject`` and, where networks differ,
``backbone``; ``images`` float32 (N, H, W, M), ``brain`` bool (N, H, W); ``rule``: as of `relevance_maps`;
``sequences``: names of the M channels; ``**draws``: n, confidence, seed of the bootstrap over subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import keras
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mslib.explain import lrp, relevance_flow, relevance_shares
from mslib.measure import adjust_p_values, mean_interval, mixed_effects, share_inside

#: After the name of a rule: values are counted from the sequence's mean over the brain, not from 0.
CENTRED = "_centred"
#: Kinds of shares: of all relevance without its sign, and of the relevance that speaks for the class (percent).
KINDS = ("absolute", "positive")
#: Share of the relevance over share of the intensity: 1 where relevance follows intensity and nothing else.
LIFT = "over intensity"
#: Share of a sequence's positive relevance inside its own mark (percent).
INSIDE = "in its mark"
#: Properties of patients that relevance is held against, with their names in the figure.
EFFECTS = {"age": "age", "male": "male sex", "lesion_load_ml": "lesion load", "edss": "EDSS"}


def brain_means(images, brain) -> np.ndarray:
    """Images that hold each sequence's mean over the brain inside it, and 0 outside."""
    inside = np.asarray(brain, bool)[..., None]
    total = np.sum(images * inside, (1, 2), keepdims=True) / inside.sum((1, 2), keepdims=True)
    return (total * inside).astype(np.float32)


def _baseline(images, brain, rule):
    return brain_means(images, brain) if rule.endswith(CENTRED) else np.zeros_like(images)


def relevance_maps(model: keras.Model, images, targets, rule: str, brain) -> np.ndarray:
    """Relevance of every value, (N, H, W, M), for `targets` (None: the predicted classes).

    `rule`: of `LRP_COMPOSITES`, also with `CENTRED` behind it: relevance then goes to what differs from the mean, not
    to what is bright.
    """
    return lrp(model, images, targets, rule.removesuffix(CENTRED), baseline=_baseline(images, brain, rule))


def slice_shares(model: keras.Model, images, targets, sequences: Sequence[str], rule: str, brain,
                 marks=None) -> pd.DataFrame:
    """Shares, in percent, of the sequences in the relevance of every slice for the class that the network predicts.

    `targets`: true classes, (N,); `marks`, bool (N, H, W, M): what each sequence's relevance should lie in. One row per
    slice: ``predicted, correct``; ``kept``, the sum of the relevance over the logit (1: nothing went to biases);
    ``intensity_<sequence>``: share of the summed intensity (of a centred rule: of the summed distance from the mean),
    ``absolute_<sequence>, positive_<sequence>``: of the relevance; with marks ``inside_<sequence>``: share of the
    sequence's positive relevance inside its mark, ``uniform_<sequence>``: the mark's share of the brain.
    """
    baseline, last = _baseline(images, brain, rule), model.layers[-1].name
    relevance, at = lrp(model, images, None, rule.removesuffix(CENTRED), baseline=baseline, layers=[last])
    predicted, logits = np.abs(at[last]).argmax(1), at[last].sum(1, dtype=np.float64)  # 0 but for the class predicted
    shares = {"intensity": relevance_shares(images - baseline)["absolute"], **relevance_shares(relevance)}
    if marks is not None:
        uniform = np.repeat(brain[..., None], len(sequences), -1)
        shares |= {name: 100 * share_inside(maps, marks, brain)
                   for name, maps in (("inside", relevance), ("uniform", uniform))}
    columns = {f"{kind}_{name}": values[:, m] for kind, values in shares.items() for m, name in enumerate(sequences)}
    kept = relevance.sum((1, 2, 3), dtype=np.float64) / logits
    return pd.DataFrame({"predicted": predicted, "correct": predicted == targets, "kept": kept, **columns})


def flow_table(model: keras.Model, images, rule: str, brain) -> pd.DataFrame:
    """Share of the logits' sum that reaches every ``layer``, deep to shallow: ``sum, absolute, images`` (number)."""
    flow = relevance_flow(model, images, None, rule.removesuffix(CENTRED), baseline=_baseline(images, brain, rule))
    table = pd.DataFrame([{"layer": layer, **{key: float(values.sum()) for key, values in one.items()}}
                          for layer, one in reversed(flow.items())])
    return table.assign(**{key: table[key] / table["sum"].iloc[0] for key in ("sum", "absolute")}, images=len(images))


def shares_of(table: pd.DataFrame, kind: str, name: str) -> pd.Series:
    """Shares of a sequence by kind: `LIFT`, `INSIDE`, or what its column is called before the sequence."""
    if kind == LIFT:
        intensity = table[f"intensity_{name}"]
        return table[f"absolute_{name}"] / intensity.where(intensity > 0)
    return table[f"{'inside' if kind == INSIDE else kind}_{name}"]


def mean_shares(table: pd.DataFrame, by: Sequence[str], sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Mean share of every sequence by the columns `by`, beside its share of the summed intensity.

    `by`, ``kind`` (of `KINDS` in percent, `LIFT`, or, of marked slices, `INSIDE`), ``modality, chance`` (what intensity
    alone, or a uniform map, would give), ``value, low, high, slices, subjects``. A rule that spreads relevance over all
    that is bright gives a bright sequence much of it, whatever decides: therefore `LIFT`.
    """
    rows, kinds = [], [*KINDS, LIFT, *[INSIDE] * (f"inside_{sequences[0]}" in table)]
    for key, part in table.groupby(list(by), sort=False, observed=True):
        for kind, sequence in product(kinds, sequences):
            values, beside = shares_of(part, kind, sequence), "uniform" if kind == INSIDE else "intensity"
            chance = 1.0 if kind == LIFT else part[f"{beside}_{sequence}"].mean()
            rows.append({**dict(zip(by, key)), "kind": kind, "modality": sequence, "chance": chance,
                         **mean_interval(values, part["subject"], **draws), "slices": int(values.notna().sum()),
                         "subjects": part.loc[values.notna(), "subject"].nunique()})
    return pd.DataFrame(rows)


def rule_shares(rules: pd.DataFrame, importance: pd.DataFrame, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Shares by LRP rule, and exact Shapley values by replacement baseline scaled to 100 (negative ones count as 0).

    Like `mean_shares` by ``backbone, source`` (rule, or ``Shapley, <baseline>``). `importance`: `importance_table` by
    backbone; its cross-entropy stands under both `KINDS`, without interval; NaN where none is positive.
    """
    found = mean_shares(rules, ["backbone", "rule"], sequences, **draws).rename(columns={"rule": "source"})
    shapley = importance[importance["worth"] == "cross-entropy"]
    positive = shapley["value"].clip(lower=0)
    total = positive.groupby([shapley["backbone"], shapley["baseline"]]).transform("sum")
    shapley = shapley[["backbone", "modality"]].assign(value=100 * positive / total.where(total > 0),
                                                       source="Shapley, " + shapley["baseline"])
    return pd.concat([found, *(shapley.assign(kind=kind) for kind in KINDS)], ignore_index=True)


def effects_table(table: pd.DataFrame, properties: pd.DataFrame, sequences: Sequence[str],
                  confidence: float = 0.95) -> pd.DataFrame:
    """Relation of patients' shares to age, sex, lesion load and EDSS: a mixed model per backbone and sequence.

    Rows of `mslib.measure.mixed_effects`, in percentage points per standard deviation over patients (male sex: against
    female), with ``backbone, modality, label`` and ``q``, the false discovery rate over all rows (Benjamini and
    Yekutieli 2001: the shares of a slice depend on each other). `properties`: ``subject`` and what is known of ``sex,
    age, lesion_load_ml, edss``; empty where nothing is known of every patient, or patients are too few.
    """
    people = properties.set_index("subject").reindex(table["subject"].unique())
    people["male"] = people["sex"].map({"M": 1.0, "F": 0.0}) if "sex" in people else np.nan
    known = [name for name in EFFECTS if name in people and people[name].notna().all() and people[name].std() > 0]
    if not known or len(people) < len(known) + 3:
        return pd.DataFrame()
    scaled = people[known].astype(float)
    scaled = (scaled - scaled.mean()) / scaled.std().where(scaled.columns != "male", 1.0)
    rows, table = [], table.drop(columns=known, errors="ignore").join(scaled, on="subject")
    for backbone, part in table.groupby("backbone", sort=False):
        for sequence in sequences:
            outcome = f"absolute_{sequence}"
            found = mixed_effects(part.dropna(subset=[outcome]), outcome, known, confidence=confidence)
            rows.append(found[found["term"].isin(known)].assign(backbone=backbone, modality=sequence))
    found = pd.concat(rows, ignore_index=True)
    return found.assign(q=adjust_p_values(found["p"], "fdr_by"), label=found["term"].map(EFFECTS))


def seed_stability(table: pd.DataFrame, sequences: Sequence[str]) -> pd.DataFrame:
    """How alike the shares of networks from different seeds are, on the same slices (``seed, slice`` of `table`).

    ``backbone, seed`` (other than the first), ``modality, first, second`` (mean shares, percent), ``apart`` (mean
    distance of a slice's two shares), ``rho`` (Spearman over slices), ``slices, correct_first, correct_second``.
    """
    rows, first = [], table["seed"] == 1
    pairs = table[first].merge(table[~first], on=["backbone", "subject", "slice"], suffixes=("", "_again"))
    for (backbone, seed), part in pairs.groupby(["backbone", "seed_again"], sort=False):
        for sequence in sequences:
            both = part[[f"absolute_{sequence}", f"absolute_{sequence}_again"]].dropna()
            one, two = both.to_numpy().T
            rows.append({"backbone": backbone, "seed": seed, "modality": sequence, "first": one.mean(),
                         "second": two.mean(), "apart": np.abs(one - two).mean(),
                         "rho": spearmanr(one, two).statistic if len(both) > 1 else np.nan, "slices": len(both),
                         "correct_first": part["correct"].mean(), "correct_second": part["correct_again"].mean()})
    return pd.DataFrame(rows)
