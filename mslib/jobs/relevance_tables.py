"""Tables and sentences of notebook 05: every number that it prints is taken from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

from mslib.measure import adjust_p_values, bootstrap_subjects, feature_portions, mixed_effects
from mslib.nets.planted import roles
from mslib.study import StudyConfig

from . import planted
from .attribution_tables import study_importance
from .relevance_scores import KINDS, scored_relevance
from .truth import truth_table
from .words import LIFT, patient_groups

#: Facts about patients that relevance is held against, with their unit in the figure.
EFFECTS = {"age": "age", "male": "male sex", "lesion_load_ml": "lesion load", "edss": "EDSS"}
RIGHT, WRONG = "right", "wrong"
#: What a sequence of a planted net is for: its mark shows the class always, in 70 %, or by chance.
ROLES = ("decides", "agrees", "idle")


def _mean(values, subjects, config) -> dict:
    found = bootstrap_subjects(values, subjects, n=config.statistics.bootstrap, seed=config.seed,
                               confidence=config.statistics.confidence)
    return {"value": found.estimate, "low": found.low, "high": found.high}


def _values(table, kind, name) -> tuple[pd.Series, float]:
    """Shares of a sequence (or, as `LIFT`, over those of the intensity), and what brightness alone would give."""
    bright = table[f"bright_{name}"]
    if kind == LIFT:
        return table[f"absolute_{name}"] / bright.where(bright > 0), 1.0
    return table[f"{kind}_{name}"], float(bright.mean())


def mean_shares(table: pd.DataFrame, by: list[str], config: StudyConfig) -> pd.DataFrame:
    """Mean share of every sequence, by what `by` names, beside its share of the intensity.

    A rule that spreads relevance over all that is bright gives a bright sequence much of it, whatever the net goes by.
    So the share is also given over the share of the intensity (`LIFT`): 1 is what brightness alone would give.

    Parameters
    ----------
    table : DataFrame
        From `mslib.jobs.relevance`; blank relevance (NaN) does not count.
    by : list of str
        Columns.
    config : StudyConfig

    Returns
    -------
    pandas.DataFrame
        The columns of `by`, ``kind`` (of `KINDS` in percent, or `LIFT`), ``modality, value, low, high`` (subject
        bootstrap), ``chance`` (what brightness alone would give), ``slices, subjects``.
    """
    rows = []
    for key, part in table.groupby(by, sort=False):
        for kind in (*KINDS, LIFT):
            for sequence in config.sequences:
                values, chance = _values(part, kind, sequence)
                rows.append({**dict(zip(by, key)), "kind": kind, "modality": sequence, "chance": chance,
                             **_mean(values, part["subject"], config), "slices": int(values.notna().sum()),
                             "subjects": part.loc[values.notna(), "subject"].nunique()})
    return pd.DataFrame(rows)


def class_shares(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """`mean_shares` by net, true class and whether the slice was named rightly; ``answer`` says which."""
    table = table.assign(answer=np.where(table["right"], RIGHT, WRONG))
    table["order"] = table["group"].map({group: i for i, group in enumerate(config.groups)})
    ordered = table.sort_values(["backbone", "answer", "order"], kind="stable")
    return mean_shares(ordered, ["backbone", "answer", "group"], config)


def subject_shares(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Mean shares of every subject's slices: ``backbone, subject, group, right`` (share of slices), shares."""
    columns = [f"{kind}_{sequence}" for kind in KINDS for sequence in config.sequences]
    return table.groupby(["backbone", "group", "subject"], sort=False)[[*columns, "right"]].mean().reset_index()


def lesion_table(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Share of patients' positive relevance inside lesions by net and sequence, beside what would be there anyway.

    Returns
    -------
    pandas.DataFrame
        ``backbone, where`` (sequence or ``all``), ``value, low, high``, ``brain`` and ``bright`` (the lesions' share of
        the brain and of the intensity), ``slices, subjects``, and ``left``: slices with lesions but without positive
        relevance, which have no share; empty where no lesion is known.
    """
    if "lesion_all" not in table or not table["lesion_all"].notna().any():
        return pd.DataFrame()
    rows, patients = [], table[table["group"].isin(patient_groups(config))]
    without = patients[patients["lesion_area"].notna() & patients["lesion_all"].isna()].groupby("backbone").size()
    for backbone, part in patients[patients["lesion_all"].notna()].groupby("backbone", sort=False):
        for where in (*config.sequences, "all"):
            rows.append({"backbone": backbone, "where": where,
                         **_mean(part[f"lesion_{where}"], part["subject"], config),
                         "brain": part["lesion_area"].mean(), "bright": part[f"lesion_bright_{where}"].mean(),
                         "slices": len(part), "subjects": part["subject"].nunique(),
                         "left": int(without.get(backbone, 0))})
    return pd.DataFrame(rows)


def importance(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Exact Shapley values of the study's nets as notebook 04 left them (computed where it has not run)."""
    path = Path(run_dir) / "tables" / "modality_importance.csv"
    if path.exists() and (Path(run_dir) / "made" / "04_multimodal_attribution.json").exists():
        return pd.read_csv(path)
    return pd.concat([study_importance(config, run_dir, backbone) for backbone in config.model.backbones],
                     ignore_index=True)


def rule_shares(rules: pd.DataFrame, worths: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Shares by rule, and the exact Shapley values by fill scaled to 100 (negative ones count as 0).

    Returns
    -------
    pandas.DataFrame
        ``backbone, kind, source, modality, value, low, high, chance``. Shapley values are under both kinds
        of shares, without limits.
    """
    lrps = mean_shares(rules, ["backbone", "rule"], config).rename(columns={"rule": "source"})
    rows = []
    for backbone in config.model.backbones:
        own = worths[(worths["net"] == backbone) & (worths["worth"] == "cross-entropy")]
        for fill, part in own.groupby("fill", sort=False):
            values = np.clip(part.set_index("modality")["value"].reindex(list(config.sequences)).to_numpy(), 0, None)
            scaled = 100 * values / values.sum() if values.sum() > 0 else np.full(len(values), np.nan)
            rows += [{"backbone": backbone, "source": f"Shapley, {fill}", "kind": kind, "modality": sequence,
                      "value": value}
                     for kind in KINDS for sequence, value in zip(config.sequences, scaled)]
    return pd.concat([lrps, pd.DataFrame(rows)], ignore_index=True)


def agreement(shares: pd.DataFrame, worths: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Whether the shares of every rule order the sequences as the net's exact Shapley values do.

    Returns
    -------
    pandas.DataFrame
        ``backbone, rule, kind, fill, tau, same_first``: Kendall's tau (three sequences: -1, -0.33, 0.33 or 1).
    """
    rows = []
    for (backbone, rule, kind), part in shares[~shares["source"].str.startswith("Shapley")].groupby(
            ["backbone", "source", "kind"], sort=False):
        own = part.set_index("modality")["value"].reindex(list(config.sequences)).to_numpy()
        for fill, other in worths[(worths["net"] == backbone) & (worths["worth"] == "cross-entropy")].groupby(
                "fill", sort=False):
            value = other.set_index("modality")["value"].reindex(list(config.sequences)).to_numpy()
            rows.append({"backbone": backbone, "rule": rule, "kind": kind, "fill": fill,
                         "tau": kendalltau(own, value).statistic, "same_first": bool(own.argmax() == value.argmax())})
    return pd.DataFrame(rows)


def planted_shares(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Shares and aim of every rule on the nets whose reason is planted.

    Returns
    -------
    pandas.DataFrame
        ``experiment, role, modality, rule, kind, value, low, high, chance`` as `mean_shares`; besides, for ``kind``
        "in its mark", the share (percent) of a sequence's positive relevance inside its own mark, and by chance the
        mark's share of the brain.
    """
    slices, rows = planted.control_slices(config, run_dir), []
    for experiment in planted.experiments(config):
        if experiment.shortcut:
            continue
        model, marked = planted.planted_net(experiment, slices, config, run_dir), planted.explained_set(
            experiment, slices, config)
        images, target = marked.slices.images.astype("float32"), marked.slices.table["target"].to_numpy()
        names = [f"role{number}" for number in range(len(config.sequences))]
        role_of = dict(zip(roles(experiment.deciding), ROLES))
        even = feature_portions(np.repeat(marked.brain[..., None], images.shape[-1], -1).astype(float), marked.marks,
                                marked.brain)
        for rule in config.relevance.compared:
            table, relevance = scored_relevance(model, images, target, names, rule)
            inside = 100 * feature_portions(np.maximum(relevance, 0), marked.marks, marked.brain)
            owner = marked.slices.table["subject"]
            for m, sequence in enumerate(config.sequences):
                common = {"experiment": experiment.name, "role": role_of[m], "modality": sequence, "rule": rule}
                for kind in (*KINDS, LIFT):
                    values, chance = _values(table, kind, f"role{m}")
                    rows.append({**common, "kind": kind, **_mean(values, owner, config), "chance": chance})
                rows.append({**common, "kind": "in its mark", **_mean(inside[:, m], owner, config),
                             "chance": 100 * float(np.nanmean(even[:, m]))})
    return pd.DataFrame(rows)


def planted_verdict(shares: pd.DataFrame) -> pd.DataFrame:
    """Per rule and kind: in how many planted nets the deciding sequence has the largest share, surely (intervals)."""
    rows = []
    for (rule, kind), part in shares[shares["kind"].isin((*KINDS, LIFT))].groupby(["rule", "kind"], sort=False):
        first = sure = 0
        nets = part.groupby("experiment", sort=False)
        for _, one in nets:
            deciding, others = one[one["role"] == "decides"].iloc[0], one[one["role"] != "decides"]
            first += bool(deciding["value"] > others["value"].max())
            sure += bool(deciding["low"] > others["high"].max())
        rows.append({"rule": rule, "kind": kind, "nets": len(nets), "first": first, "surely": sure,
                     "deciding": part.loc[part["role"] == "decides", "value"].mean()})
    return pd.DataFrame(rows)


def effects_table(table: pd.DataFrame, config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Relation of patients' shares to age, sex, lesion load and EDSS: a mixed model per net and sequence.

    Effects are in percentage points per standard deviation over patients (male sex: against female). The false
    discovery rate is controlled over all rows (Benjamini and Yekutieli 2001: the shares of a slice add up to 100 and
    so depend on each other).

    Returns
    -------
    pandas.DataFrame
        Rows of `mslib.measure.mixed_effects` with ``backbone, modality, q``; empty where facts are missing for all, or
        patients are too few.
    """
    facts = truth_table(config, run_dir).set_index("subject")
    facts["male"] = facts["sex"].map({"M": 1.0, "F": 0.0}) if "sex" in facts else np.nan
    part = table[table["group"].isin(patient_groups(config))].copy()
    people = facts.reindex(part["subject"].unique())
    known = [name for name in EFFECTS if name in people and people[name].notna().all() and people[name].std() > 0]
    if not known or len(people) < len(known) + 3:
        return pd.DataFrame()
    for name in known:
        scale = people[name].astype(float)
        values = (scale - scale.mean()) / (1 if name == "male" else scale.std())
        part[name] = part["subject"].map(values)
    rows = []
    for backbone, of_net in part.groupby("backbone", sort=False):
        for sequence in config.sequences:
            found = mixed_effects(of_net.dropna(subset=[f"absolute_{sequence}"]), f"absolute_{sequence}", known,
                                  confidence=config.statistics.confidence)
            found = found[found["term"].isin(known)]
            rows.append(found.assign(backbone=backbone, modality=sequence))
    found = pd.concat(rows, ignore_index=True)
    return found.assign(q=adjust_p_values(found["p"], "fdr_by"), label=found["term"].map(EFFECTS))


def stability(rules: pd.DataFrame, repeated: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """How alike the shares of two nets from different seeds are, on the same slices.

    Returns
    -------
    pandas.DataFrame
        ``backbone, modality, first, second`` (mean shares, percent), ``apart`` (mean distance of a slice's two
        shares, percentage points), ``rho`` (Spearman over slices), ``slices, right_first, right_second``.
    """
    rows = []
    keys = ["backbone", "subject", "slice"]
    both = rules[rules["rule"] == config.relevance.rule].merge(repeated, on=keys, suffixes=("", "_again"))
    for backbone, part in both.groupby("backbone", sort=False):
        for sequence in config.sequences:
            one, two = part[f"absolute_{sequence}"], part[f"absolute_{sequence}_again"]
            kept = one.notna() & two.notna()
            rows.append({"backbone": backbone, "modality": sequence, "first": one.mean(), "second": two.mean(),
                         "apart": (one - two).abs().mean(), "rho": spearmanr(one[kept], two[kept]).statistic,
                         "slices": int(kept.sum()), "right_first": part["right"].mean(),
                         "right_second": part["right_again"].mean()})
    return pd.DataFrame(rows)
