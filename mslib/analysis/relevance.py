"""Relevance of the sequences by LRP: their shares, beside intensity, lesions, known decision rules and importance.

Parameters that functions share: ``table`` from `score_relevance` with ``subject`` and, where networks differ,
``backbone``; ``images`` float32 (N, H, W, M), ``brain`` bool (N, H, W); ``rule``: as of `relevance_maps`;
``sequences``: names of the M channels; ``importance``: a table of exact Shapley values, ``backbone, worth, baseline,
modality, value``, of which those of the cross-entropy are used; ``**draws``: n, confidence, seed of the bootstrap over
subjects.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mslib.explain import batches_of, logits_of, lrp, relevance_flow, relevance_shares
from mslib.measure import adjust_p_values, mean_interval, mixed_effects, share_inside
from mslib.nets.known_rule import ROLES, roles

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

    `rule`: one of `mslib.explain.LRP_COMPOSITES`, also with `CENTRED` behind it. Images are positive everywhere, so
    that relevance from 0 on goes to what is bright; from the mean on it goes to what differs from it.
    """
    return lrp(model, images, targets, rule.removesuffix(CENTRED), baseline=_baseline(images, brain, rule))


def score_relevance(relevance, logits, images, targets, sequences: Sequence[str], rule: str, brain,
                    lesions=None) -> pd.DataFrame:
    """Shares of the sequences in the relevance of every slice, and the share inside lesions.

    Parameters
    ----------
    relevance : ndarray, (N, H, W, M)
        Of the predicted class, from `relevance_maps` by this rule.
    logits : ndarray, (N, classes)
    targets : array-like of int, (N,)
        True classes.
    lesions : ndarray of bool, (N, H, W), optional
        Of slices whose lesions are known.

    Returns
    -------
    pandas.DataFrame
        ``target, predicted, correct, logit``; ``kept``: sum of the relevance over the logit (1: nothing went to
        biases); ``blank``; ``intensity_<sequence>``: share of the summed intensity (of a centred rule: of the summed
        distance from the mean), ``absolute_<sequence>`` and ``positive_<sequence>``: shares of the relevance, all in
        percent. With lesions ``lesion_<sequence>`` and
        ``lesion_all``: share of positive relevance inside them; ``lesion_area``: of the brain;
        ``lesion_intensity_<sequence>, lesion_intensity_all``: of the summed intensity. NaN where there is nothing to
        share, or no lesion.
    """
    predicted = logits.argmax(1)
    logit = logits[np.arange(len(logits)), predicted]
    table = pd.DataFrame({"target": targets, "predicted": predicted, "correct": predicted == targets, "logit": logit,
                          "kept": relevance.sum((1, 2, 3), dtype=np.float64) / logit,
                          "blank": ~relevance.any((1, 2, 3))})
    intensity = np.abs(images - _baseline(images, brain, rule))
    shares = {"intensity": relevance_shares(intensity)["absolute"], **relevance_shares(relevance)}
    if lesions is not None:
        inside, positive = lesions & brain, np.maximum(relevance, 0)
        shares |= {"lesion": share_inside(positive, inside), "lesion_intensity": share_inside(intensity, inside)}
        wholes = {"lesion_all": positive, "lesion_intensity_all": intensity, "lesion_area": brain[..., None]}
        table = table.assign(**{name: share_inside(maps.sum(-1, keepdims=True, dtype=np.float64), inside)[:, 0]
                                for name, maps in wholes.items()})
    columns = {f"{kind}_{name}": values[:, m] for kind, values in shares.items() for m, name in enumerate(sequences)}
    return table.assign(**columns)


def slice_shares(model: keras.Model, images, targets, sequences: Sequence[str], rule: str, brain,
                 lesions=None) -> pd.DataFrame:
    """Relevance of every slice for the class that the network predicts, as shares: see `score_relevance`."""
    logits = logits_of(model, batches_of(images, 16))
    relevance = relevance_maps(model, images, logits.argmax(1), rule, brain)
    return score_relevance(relevance, logits, images, targets, sequences, rule, brain, lesions)


def flow_table(model: keras.Model, images, rule: str, brain) -> pd.DataFrame:
    """Relevance of the predicted classes that reaches every layer, as a share of the logits' sum over all images.

    ``layer`` (deep to shallow), ``sum`` (signed), ``absolute``, ``images`` (their number).
    """
    flow = relevance_flow(model, images, None, rule.removesuffix(CENTRED), baseline=_baseline(images, brain, rule))
    table = pd.DataFrame([{"layer": layer, **{key: float(values.sum()) for key, values in one.items()}}
                          for layer, one in reversed(flow.items())])
    return table.assign(**{key: table[key] / table["sum"].iloc[0] for key in ("sum", "absolute")}, images=len(images))


def _values(table, kind, name) -> tuple[pd.Series, float]:
    """Shares of a sequence by kind, and what relevance that follows intensity alone would give."""
    intensity = table[f"intensity_{name}"]
    if kind == LIFT:
        return table[f"absolute_{name}"] / intensity.where(intensity > 0), 1.0
    return table[f"{kind}_{name}"], float(intensity.mean())


def mean_shares(table: pd.DataFrame, by: Sequence[str], sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Mean share of every sequence by the columns `by`, beside its share of the summed intensity.

    A rule that spreads relevance over all that is bright gives a bright sequence much of it, whatever decides. So the
    share is also given over the share of the intensity (`LIFT`): 1 is what intensity alone would give. Blank relevance
    (NaN) does not count. Columns: `by`, ``kind`` (of `KINDS` in percent, or `LIFT`), ``modality, chance`` (what
    intensity alone would give), ``value, low, high, slices, subjects``.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False, observed=True):
        for kind in (*KINDS, LIFT):
            for sequence in sequences:
                values, chance = _values(part, kind, sequence)
                rows.append({**dict(zip(by, key)), "kind": kind, "modality": sequence, "chance": chance,
                             **mean_interval(values, part["subject"], **draws), "slices": int(values.notna().sum()),
                             "subjects": part.loc[values.notna(), "subject"].nunique()})
    return pd.DataFrame(rows)


def lesion_table(table: pd.DataFrame, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Share of positive relevance inside lesions by backbone and sequence, beside what would be there anyway.

    ``backbone, where`` (sequence or ``all``), ``value, low, high``, ``brain`` and ``intensity`` (the lesions' share of
    the brain and of the summed intensity), ``slices, subjects``, and ``left``: slices with lesions but without positive
    relevance, which have no share; empty where no lesion is known.
    """
    rows = []
    for backbone, part in table.groupby("backbone", sort=False) if "lesion_all" in table else ():
        shown = part[part["lesion_all"].notna()]
        left = int((part["lesion_area"].notna() & part["lesion_all"].isna()).sum())
        rows += [{"backbone": backbone, "where": where,
                  **mean_interval(shown[f"lesion_{where}"], shown["subject"], **draws),
                  "brain": shown["lesion_area"].mean(), "intensity": shown[f"lesion_intensity_{where}"].mean(),
                  "slices": len(shown), "subjects": shown["subject"].nunique(), "left": left}
                 for where in (*sequences, "all") if len(shown)]
    return pd.DataFrame(rows)


def rule_shares(rules: pd.DataFrame, importance: pd.DataFrame, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Shares by LRP rule, and exact Shapley values by replacement baseline scaled to 100 (negative ones count as 0).

    Like `mean_shares` by ``backbone, source`` (rule, or ``Shapley, <baseline>``). Shapley values are under both
    `KINDS`, without interval; NaN where none is positive.
    """
    found = mean_shares(rules, ["backbone", "rule"], sequences, **draws).rename(columns={"rule": "source"})
    rows = []
    for (backbone, baseline), values in _shapley(importance, sequences):
        positive = values.clip(lower=0)
        scaled = 100 * positive / positive.sum() if positive.sum() > 0 else positive * np.nan
        common = {"backbone": backbone, "source": f"Shapley, {baseline}"}
        rows += [{**common, "kind": kind, "modality": sequence, "value": value}
                 for kind in KINDS for sequence, value in scaled.items()]
    return pd.concat([found, pd.DataFrame(rows)], ignore_index=True)


def _shapley(importance, sequences) -> list:
    """((backbone, baseline), values by sequence) of the exact Shapley values of the cross-entropy."""
    chosen = importance[importance["worth"] == "cross-entropy"]
    return [(key, part.set_index("modality")["value"].reindex(list(sequences)))
            for key, part in chosen.groupby(["backbone", "baseline"], sort=False)]


def margin(shares: np.ndarray, decisive: int) -> np.ndarray:
    """Share of the decisive sequence minus that of the next one (the largest other mean), slice by slice.

    `shares`: (N, M), percent or not; the result, (N,), is above 0 on average where the decisive one comes first.
    """
    others = np.delete(shares, decisive, 1)
    means = np.where(np.isnan(others).all(0), -np.inf, np.nansum(others, 0) / (~np.isnan(others)).sum(0).clip(1))
    return shares[:, decisive] - others[:, means.argmax()]


def known_rule_shares(model: keras.Model, explained, decisive: int, sequences: Sequence[str], rules: Sequence[str],
                      **draws) -> pd.DataFrame:
    """Shares and aim of every LRP rule on a network with a known decision rule.

    `explained`: marked slices (`mslib.analysis.attribution.Explained`); `decisive`: index of the sequence that decides.
    ``role`` (of `mslib.nets.known_rule.ROLES`), ``modality, rule``, and ``kind, chance, value, low, high`` as of
    `mean_shares`; besides, for ``kind`` `INSIDE`, the share (percent) of a sequence's positive relevance inside its own
    mark, and by chance the mark's share of the brain. Of the decisive sequence also ``margin, margin_low, margin_high``
    (see `margin`).
    """
    role_of, rows = dict(zip(roles(decisive, len(sequences)), ROLES)), []
    images, brain, marks = explained.images, explained.brain, explained.features
    # Sequences count by place: in a study of one sequence they share a name.
    places = [str(m) for m in range(len(sequences))]
    uniform = share_inside(np.repeat(brain[..., None], len(sequences), -1), marks, brain)
    logits = logits_of(model, batches_of(images, 16))
    for rule in rules:
        relevance = relevance_maps(model, images, logits.argmax(1), rule, brain)
        table = score_relevance(relevance, logits, images, explained.targets, places, rule, brain)
        found = {kind: [_values(table, kind, place) for place in places] for kind in (*KINDS, LIFT)}
        found[INSIDE] = [(100 * share, 100 * float(np.nanmean(chance)))
                         for share, chance in zip(share_inside(relevance, marks, brain).T, uniform.T)]
        for kind, of_places in found.items():
            margins = margin(np.stack([values for values, _ in of_places], 1), decisive)
            for m, (values, chance) in enumerate(of_places):
                row = {"role": role_of[m], "modality": sequences[m], "rule": rule, "kind": kind, "chance": chance,
                       **mean_interval(values, explained.subjects, **draws)}
                if m == decisive and kind != INSIDE:
                    limits = mean_interval(margins, explained.subjects, **draws).values()
                    row |= dict(zip(("margin", "margin_low", "margin_high"), limits))
                rows.append(row)
    return pd.DataFrame(rows)


def decisive_margins(shares: pd.DataFrame) -> pd.DataFrame:
    """How far the decisive sequence stands above the next one in `known_rule_shares`, by LRP rule and kind of share.

    ``rule, kind, experiment, value, low, high`` (the margin), ``decisive`` (its share).
    """
    first = shares[shares["margin"].notna()]
    names = {"value": "decisive", "margin": "value", "margin_low": "low", "margin_high": "high"}
    return first[["rule", "kind", "experiment", *names]].rename(columns=names).reset_index(drop=True)


def effects_table(table: pd.DataFrame, properties: pd.DataFrame, sequences: Sequence[str],
                  confidence: float = 0.95) -> pd.DataFrame:
    """Relation of patients' shares to age, sex, lesion load and EDSS: a mixed model per backbone and sequence.

    Effects are in percentage points per standard deviation over patients (male sex: against female). The false
    discovery rate is controlled over all rows (Benjamini and Yekutieli 2001: the shares of a slice add up to 100 and so
    depend on each other). `properties`: ``subject`` and what is known of ``sex, age, lesion_load_ml, edss``. Rows of
    `mslib.measure.mixed_effects` with ``backbone, modality, q, label``; empty where no property is known of every
    patient, or patients are too few.
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

    A row per ``backbone``, ``seed`` other than the first, and ``modality``: ``first, second`` (mean shares, percent),
    ``apart`` (mean distance of a slice's two shares, percentage points), ``rho`` (Spearman over slices), ``slices,
    correct_first, correct_second``. Empty with one seed.
    """
    rows, first = [], table[table["seed"] == 1]
    pairs = first.merge(table[table["seed"] != 1], on=["backbone", "subject", "slice"], suffixes=("", "_again"))
    for (backbone, seed), part in pairs.groupby(["backbone", "seed_again"], sort=False):
        for sequence in sequences:
            one, two = part[f"absolute_{sequence}"], part[f"absolute_{sequence}_again"]
            kept = one.notna() & two.notna()
            rows.append({"backbone": backbone, "seed": seed, "modality": sequence, "first": one.mean(),
                         "second": two.mean(), "apart": (one - two).abs().mean(),
                         "rho": spearmanr(one[kept], two[kept]).statistic if kept.sum() > 1 else np.nan,
                         "slices": int(kept.sum()),
                         "correct_first": part["correct"].mean(), "correct_second": part["correct_again"].mean()})
    return pd.DataFrame(rows)
