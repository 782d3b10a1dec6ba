"""Comparisons of notebook 06: modalities taken away, other attribution methods, and who agrees with whom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mslib.explain import attribute
from mslib.sleep import MODALITIES, STAGES, EpochSet
from mslib.sleep.folds import CrossValidation
from mslib.study import StudyConfig, progress

from .sleep import draw_by_stage, nets, settings
from .sleep_tables import interval_of

#: Attribution methods that are held against relevance, with parameters that the settings do not give.
METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "deeplift")
ALL_PRESENT = "none"


def line_noise(n: int, n_samples: int, frequency: float, rate: float, rng: np.random.Generator) -> np.ndarray:
    """What a loose electrode picks up: the mains, as they look at this sampling rate.

    Parameters
    ----------
    n, n_samples : int
        Epochs, and samples of each.
    frequency, rate : float
        Of the mains and of sampling, in Hz. Above half the rate the mains are folded down (60 Hz sampled at 100 Hz
        is a wave of 40 Hz); at exactly half of it their amplitude is that of the phase.
    rng : numpy.random.Generator
        Of the phase of every epoch.

    Returns
    -------
    ndarray of float32, (n, n_samples)
        A cosine of random phase with the standard deviation (over phases) of the signals, which is 1.
    """
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    return (np.sqrt(2) * np.cos(2 * np.pi * frequency * np.arange(n_samples) / rate + phase)).astype(np.float32)


def fills(config: StudyConfig, rng: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What takes a modality's place, by name: each takes its epochs (N, T) and gives others of that shape."""
    own = settings(config)
    return {"zero": np.zeros_like,
            f"mains {own.mains_hz} Hz": lambda signals: line_noise(*signals.shape, own.mains_hz, own.rate, rng)}


def ablate(epochs: np.ndarray, column: int, fill: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Epochs (N, T, M) in which one modality is replaced."""
    changed = epochs.copy()
    changed[..., column] = fill(epochs[..., column])
    return changed


def _named(model, epochs, rows, change) -> np.ndarray:
    """Stage that a net names for epochs after a change, batch by batch."""
    return np.concatenate([np.asarray(model.predict_on_batch(change(epochs.batch(rows[start:start + 128])))).argmax(1)
                           for start in range(0, len(rows), 128)])


def ablation_predictions(epochs: EpochSet, found: CrossValidation, config: StudyConfig) -> pd.DataFrame:
    """Stages named for test epochs with all modalities and with each replaced in turn.

    Returns
    -------
    pandas.DataFrame
        ``fold, subject, recording, epoch, stage, fill`` (``none``: all present), ``modality``, ``named``.
    """
    own, rng, tables = settings(config), np.random.default_rng([config.seed, 31]), []
    for number, model, predictions in progress(nets(found), desc="sleep: ablation", unit="fold",
                                               total=len(found.folders)):
        drawn = draw_by_stage(predictions, own.compared_per_stage, config.seed)
        rows = drawn["epoch"].to_numpy()
        known = drawn[["subject", "recording", "epoch", "stage"]].assign(fold=number)
        tables.append(known.assign(fill=ALL_PRESENT, modality=ALL_PRESENT, named=drawn["predicted"]))
        for name, fill in fills(config, rng).items():
            for column, modality in enumerate(MODALITIES):
                named = _named(model, epochs, rows, lambda signals, c=column, f=fill: ablate(signals, c, f))
                tables.append(known.assign(fill=name, modality=modality, named=named))
    return pd.concat(tables, ignore_index=True)


def ablation_table(named: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Loss of right epochs where a modality is replaced, by stage.

    Parameters
    ----------
    named : pandas.DataFrame
        Of `ablation_predictions`.

    Returns
    -------
    pandas.DataFrame
        ``fill, modality, stage``, ``value, low, high``: share of right epochs with all modalities less that without
        (mean over subjects, bootstrap interval), ``subjects, n``.
    """
    right = named.assign(right=(named["stage"] == named["named"]).astype(float))
    means = right.groupby(["fill", "modality", "stage", "subject"])["right"].mean()
    before, rows = means.loc[ALL_PRESENT, ALL_PRESENT], []
    sizes = right[right["fill"] == ALL_PRESENT].groupby("stage").size()
    for (fill, modality, stage), part in means.groupby(level=[0, 1, 2], sort=False):
        if fill == ALL_PRESENT:
            continue
        lost = before.loc[stage] - part.droplevel([0, 1, 2])
        one = interval_of(lost, config)
        rows.append({"fill": fill, "modality": modality, "stage": STAGES[stage], "value": one.estimate, "low": one.low,
                     "high": one.high, "subjects": len(lost), "n": int(sizes[stage])})
    order = {name: place for place, name in enumerate([*MODALITIES, *STAGES])}
    return pd.DataFrame(rows).sort_values(["fill", "modality", "stage"], ignore_index=True,
                                          key=lambda column: column.map(lambda value: order.get(value, value)))


def ablation_panels(summary: pd.DataFrame, ablated: pd.DataFrame, rule: str) -> dict[str, pd.DataFrame]:
    """Panels of `mslib.show.plot_stage_shares`: relevance of right epochs above what every fill loses, in percent."""
    part = summary[(summary["rule"] == rule) & (summary["kind"] == "absolute") & summary["right"]]
    percent = ablated.assign(**{name: 100 * ablated[name] for name in ("value", "low", "high")})
    return {f"relevance ({rule})": part} | {f"ablation: replaced by {name}": rows
                                            for name, rows in percent.groupby("fill", sort=False)}


def collapse_table(named: pd.DataFrame) -> pd.DataFrame:
    """Where the epochs go: the stage that is named most often without a modality, and how often.

    With stages drawn alike, a net that still looks at the others names every stage about as often as it occurs. One
    that calls most epochs by one name has met an input unlike any that it has learnt from.

    Returns
    -------
    pandas.DataFrame
        ``fill, modality, stage`` (most often named), ``share`` (of all epochs), ``present`` (that stage's share with
        all modalities), ``n``.
    """
    before = named.loc[named["fill"] == ALL_PRESENT, "named"].value_counts(normalize=True)
    rows = []
    for (fill, modality), part in named[named["fill"] != ALL_PRESENT].groupby(["fill", "modality"], sort=False):
        counts = part["named"].value_counts(normalize=True)
        rows.append({"fill": fill, "modality": modality, "stage": STAGES[counts.index[0]], "share": counts.iloc[0],
                     "present": before.get(counts.index[0], 0.0), "n": len(part)})
    return pd.DataFrame(rows)


def _few(predictions, config) -> pd.DataFrame:
    """A few right epochs of every stage of a fold's test nights."""
    rng = np.random.default_rng([config.seed, 37])
    right = predictions[predictions["stage"] == predictions["predicted"]]
    groups = right.groupby("stage").indices.values()
    rows = [rng.permutation(group)[:settings(config).compared_per_stage] for group in groups]
    return right.iloc[np.sort(np.concatenate(rows))] if rows else right


def method_shares(epochs: EpochSet, found: CrossValidation, relevance: pd.DataFrame,
                  config: StudyConfig) -> pd.DataFrame:
    """Share of every modality in the maps of attribution methods, right epochs of all folds.

    Parameters
    ----------
    relevance : pandas.DataFrame
        Of `mslib.jobs.sleep_relevance.all_relevance`; its rules are tabled beside the methods.

    Returns
    -------
    pandas.DataFrame
        ``method, stage, modality, value, low, high`` (percent of the summed sizes, mean over subjects), ``subjects,
        n``.
    """
    tables = []
    for _, model, predictions in progress(nets(found), desc="sleep: attribution methods", unit="fold",
                                          total=len(found.folders)):
        few = _few(predictions, config)
        if not len(few):
            continue
        signals, targets = epochs.batch(few["epoch"].to_numpy()), few["stage"].to_numpy()
        for method in METHODS:
            more = {"steps": settings(config).steps} if method == "integrated_gradients" else {}
            sums = np.abs(attribute(method, model, signals, targets, **more)).sum(axis=1, dtype=np.float64)
            with np.errstate(invalid="ignore"):
                shares = 100 * sums / sums.sum(axis=1, keepdims=True)
            tables.append(few[["subject", "stage"]].assign(method=method, **dict(zip(MODALITIES, shares.T))))
    for rule, part in relevance[relevance["right"]].groupby("rule", sort=False):
        columns = {f"absolute_{modality}": modality for modality in MODALITIES}
        tables.append(part[["subject", "stage", *columns]].rename(columns=columns).assign(method=f"LRP {rule}"))
    return _over_subjects(pd.concat(tables, ignore_index=True), config)


def _over_subjects(table, config) -> pd.DataFrame:
    rows = []
    for (method, stage), part in table.groupby(["method", "stage"], sort=False):
        means = part.groupby("subject")[list(MODALITIES)].mean()
        for modality in MODALITIES:
            one = interval_of(means[modality], config)
            rows.append({"method": method, "stage": STAGES[stage], "modality": modality, "value": one.estimate,
                         "low": one.low, "high": one.high, "subjects": len(means), "n": len(part)})
    return pd.DataFrame(rows)


def agreement(methods: pd.DataFrame, ablated: pd.DataFrame, known: pd.DataFrame, rule: str) -> pd.DataFrame:
    """How far every method, rule and ablation orders the modalities as relevance does, and as their information does.

    Parameters
    ----------
    methods, ablated : pandas.DataFrame
        Of `method_shares` and `ablation_table`.
    known : pandas.DataFrame
        Of `mslib.jobs.sleep_tables.information`: ``auc`` by stage and modality.
    rule : str
        The study's rule.

    Returns
    -------
    pandas.DataFrame
        Per source: ``tau_relevance``, ``tau_information`` (Kendall's tau over the three modalities, mean over stages;
        1 same order, 0 chance), ``top_information`` (stages whose first modality is the most informative one),
        ``stages``, and, for shares, ``difference`` to relevance (mean, percentage points).
    """
    sources = {name: part.pivot_table(index="stage", columns="modality", values="value")
               for name, part in methods.groupby("method", sort=False)}
    sources |= {f"ablation, {name}": part.pivot_table(index="stage", columns="modality", values="value")
                for name, part in ablated.groupby("fill", sort=False)}
    auc = known[known["modality"].isin(MODALITIES)].pivot_table(index="stage", columns="modality", values="auc")
    own, rows = sources[f"LRP {rule}"], []
    for name, values in sources.items():
        stages = [stage for stage in STAGES if stage in values.index and stage in own.index and stage in auc.index]
        values, reference, truth = (table.loc[stages, list(MODALITIES)] for table in (values, own, auc))
        taus = {key: [kendalltau(*pair).statistic for pair in zip(values.to_numpy(), other.to_numpy())]
                for key, other in (("tau_relevance", reference), ("tau_information", truth))}
        rows.append({"source": name, **{key: np.nanmean(found) if np.isfinite(found).any() else np.nan
                                        for key, found in taus.items()},
                     "top_information": int((values.idxmax(axis=1) == truth.idxmax(axis=1)).sum()),
                     "stages": len(stages),
                     "difference": np.nan if name.startswith("ablation") else (values - reference).abs().mean(
                         axis=None)})
    return pd.DataFrame(rows)
