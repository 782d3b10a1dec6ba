"""From measures of single slices to curves over depth, group comparisons and paired differences, with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.measure import Interval, adjust_p_values, bootstrap_subjects, compare_groups, proportion_interval
from mslib.study import StudyConfig

from .lobes import LOBES

#: Measures of the curves over depth and how figures label them.
MEASURES = {"auprc": "AUPRC", "pointing": "pointing game", "mass_share": "heat inside lesions", "iou": "IoU",
            "half_heat_share": "brain share with half of the heat"}
#: Likeness of maps under randomisation and how figures label it.
LIKENESS = {"spearman": "rank correlation (Spearman)", "ssim": "structural similarity (SSIM)"}


def layers_of(table: pd.DataFrame) -> list[str]:
    """Layer names, shallow to deep (pools after the convolutions of their block)."""
    def depth(name):
        block, kind = name.split("_")
        return block, kind == "pool", kind
    return sorted(table["layer"].unique(), key=depth)


def _interval(values, subjects, config):
    return bootstrap_subjects(values, subjects, n=config.statistics.bootstrap, confidence=config.statistics.confidence,
                              seed=config.seed)


def depth_table(measures: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Mean of every measure per backbone, method and layer with its subject-bootstrap interval and chance.

    Parameters
    ----------
    measures : pandas.DataFrame
        From `mslib.jobs.maps.make_maps`, with a column ``backbone``.

    Returns
    -------
    pandas.DataFrame
        ``backbone, method, layer, measure, value, low, high, chance, slices, subjects, blank, mostly_blank``: blank
        maps have no measure and are counted; where they are more than half of the slices the mean is of the others.
    """
    rows = []
    for (backbone, method, layer), part in measures.groupby(["backbone", "method", "layer"], sort=True):
        for measure in MEASURES:
            found = _interval(part[measure].to_numpy(), part["subject"].to_numpy(), config)
            rows.append({"backbone": backbone, "method": method, "layer": layer, "measure": measure,
                         "value": found.estimate, "low": found.low, "high": found.high,
                         "chance": part[f"{measure}_chance"].mean(), "slices": len(part),
                         "subjects": part["subject"].nunique(), "blank": int(part["blank"].sum()),
                         "mostly_blank": bool(part["blank"].mean() > 0.5)})
    return pd.DataFrame(rows)


def layer_difference(measures: pd.DataFrame, backbone: str, measure: str, first: str, second: str,
                     config: StudyConfig, method: str = "gradcam"):
    """Mean over slices of (measure at `first` - measure at `second`), paired, with its subject-bootstrap interval."""
    part = measures[(measures["backbone"] == backbone) & (measures["method"] == method)]
    wide = part.pivot_table(index=["subject", "slice"], columns="layer", values=measure)
    return _interval((wide[first] - wide[second]).to_numpy(), wide.index.get_level_values("subject").to_numpy(), config)


def patient_means(measures: pd.DataFrame, backbone: str, measure: str, method: str = "gradcam") -> pd.DataFrame:
    """Mean over a patient's slices, one row per patient, one column per layer, shallow to deep."""
    part = measures[(measures["backbone"] == backbone) & (measures["method"] == method)]
    means = part.pivot_table(index="subject", columns="layer", values=measure)
    return means.reindex(columns=layers_of(part))


def patient_interval(values: pd.Series, config: StudyConfig) -> tuple[Interval, Interval]:
    """Mean of one value a patient with its bootstrap interval, and the share of patients above 0 with Wilson's.

    The share decides where all patients have the same value, which leaves the bootstrap without a width.
    """
    values = values.dropna()
    return (_interval(values.to_numpy(), values.index.to_numpy(), config),
            proportion_interval(int((values > 0).sum()), len(values), config.statistics.confidence))


def layer_trend(measures: pd.DataFrame, backbone: str, measure: str) -> pd.Series:
    """Each patient's rank correlation (Spearman) of layer depth with a measure over all layers.

    Above 0: the measure grows with depth.
    """
    means = patient_means(measures, backbone, measure)
    depth = pd.Series(range(means.shape[1]), index=means.columns, dtype=float)
    return means.apply(lambda row: row.corr(depth, method="spearman"), axis=1)


def rank_sums(measures: pd.DataFrame, backbone: str) -> pd.DataFrame:
    """Each patient's sum of two ranks per layer: of AUPRC (1 = highest) and of the heat's spread (1 = least).

    A small sum is a good compromise: heat that meets the lesions and does not cover the brain. A layer whose maps of
    the patient are all blank has the last rank in both.
    """
    auprc, spread = (patient_means(measures, backbone, name) for name in ("auprc", "half_heat_share"))
    return auprc.rank(axis=1, ascending=False, na_option="bottom") + spread.rank(axis=1, na_option="bottom")


def compromise(measures: pd.DataFrame, backbone: str) -> tuple[str, pd.Series]:
    """Is the last convolution a better compromise than its strongest rival, which other patients have chosen?

    Patients are divided in halves (every second of each group): the rival is the other layer with the smallest mean
    rank sum in the first half; the difference is tested on the second.

    Returns
    -------
    rival : str
    gain : pandas.Series
        Rank sum of the rival minus that of the last convolution for every patient of the second half; above 0 the
        last convolution is better.
    """
    last, sums = last_convolution(backbone), rank_sums(measures, backbone)
    groups = measures.groupby("subject")["group"].first()[sums.index]
    second = groups.groupby(groups).cumcount() % 2 == 1
    rival = str(sums[~second].mean().drop(last).idxmin())
    return rival, sums.loc[second, rival] - sums.loc[second, last]


def _with_blank_heat(measures):
    """Grad-CAM's rows; a blank map has no heat, so its 95th percentile is 0 and not unknown."""
    part = measures[measures["method"] == "gradcam"]
    return part.assign(q95=part["q95"].where(~part["blank"].astype(bool), 0.0))


def percentile_values(measures: pd.DataFrame, layers: dict[str, str]) -> pd.DataFrame:
    """95th percentile of Grad-CAM per patient (mean over slices) at one layer of each backbone.

    Parameters
    ----------
    layers : dict of backbone to layer
    """
    part = _with_blank_heat(measures)
    part = part[part["layer"] == part["backbone"].map(layers)]
    means = part.groupby(["backbone", "layer", "subject", "group"], as_index=False)["q95"].mean()
    return means.rename(columns={"q95": "value"})


def percentile_comparison(measures: pd.DataFrame, config: StudyConfig, more: str = "SPMS",
                          less: str = "RRMS") -> pd.DataFrame:
    """Is the 95th percentile of Grad-CAM higher in SPMS than in RRMS, per backbone and layer?

    Returns
    -------
    pandas.DataFrame
        ``backbone, layer, auc, low, high`` (probability that an SPMS patient exceeds an RRMS one; no limits below five
        patients a group), ``p`` (one-sided Mann-Whitney), ``p_holm`` over all rows, ``n_more``, ``n_less``; empty if a
        group is absent.
    """
    rows = []
    for (backbone, layer), one in _with_blank_heat(measures).groupby(["backbone", "layer"]):
        values = one.groupby(["group", "subject"])["q95"].mean()
        if {more, less} <= set(values.index.get_level_values(0)):
            found = compare_groups(values[more], values[less], config.statistics.bootstrap,
                                   config.statistics.confidence, config.seed)
            rows.append({"backbone": backbone, "layer": layer, "auc": found.auc.estimate, "low": found.auc.low,
                         "high": found.auc.high, "p": found.p_value, "n_more": found.n_a, "n_less": found.n_b})
    table = pd.DataFrame(rows, columns=["backbone", "layer", "auc", "low", "high", "p", "n_more", "n_less"])
    return table.assign(p_holm=adjust_p_values(table["p"]) if len(table) else [])


def lobe_table(measures: pd.DataFrame, layers: dict[str, str], config: StudyConfig) -> pd.DataFrame:
    """Share of Grad-CAM's heat per lobe and group at one layer of each backbone, with intervals."""
    part = measures[(measures["method"] == "gradcam") & (measures["layer"] == measures["backbone"].map(layers))]
    rows = []
    for (backbone, group), one in part.groupby(["backbone", "group"]):
        for lobe in LOBES:
            found = _interval(one[f"lobe {lobe}"].to_numpy(), one["subject"].to_numpy(), config)
            rows.append({"backbone": backbone, "group": group, "lobe": lobe, "value": found.estimate,
                         "low": found.low, "high": found.high, "brain": one[f"brain {lobe}"].mean()})
    return pd.DataFrame(rows)


def randomisation_summary(table: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Mean likeness to the original map per backbone, explained layer and step, with subject-bootstrap intervals.

    Returns
    -------
    pandas.DataFrame
        ``backbone, layer, step`` (name of the layer randomised last), ``measure`` (spearman, ssim), ``value, low, high,
        blank``.
    """
    rows = []
    for (backbone, layer, number, name), part in table.groupby(["backbone", "layer", "step", "randomised"]):
        for measure in ("spearman", "ssim"):
            found = _interval(part[measure].to_numpy(), part["subject"].to_numpy(), config)
            rows.append({"backbone": backbone, "layer": layer, "number": number, "step": name, "measure": measure,
                         "value": found.estimate, "low": found.low, "high": found.high, "blank": part["blank"].mean()})
    return pd.DataFrame(rows)


def last_convolution(backbone: str) -> str:
    """The last convolution of a backbone: the usual place of Grad-CAM."""
    return {"vgg16": "block5_conv3", "vgg19": "block5_conv4"}[backbone]


def headline_layers(layers: list[str], best: str | None, n: int = 5) -> list[str]:
    """Convolutions from the shallowest to the deepest of `layers`, evenly spread, the best layer among them."""
    convolutions = [layer for layer in layers if "pool" not in layer]
    chosen = {convolutions[round(i)] for i in np.linspace(0, len(convolutions) - 1, min(n, len(convolutions)))}
    if best in layers and best not in chosen:
        inner = sorted(chosen, key=layers.index)[1:-1]
        chosen -= {min(inner, key=lambda layer: abs(layers.index(layer) - layers.index(best)))}
        chosen |= {best}
    return [layer for layer in layers if layer in chosen]


def best_layer(depth: pd.DataFrame, backbone: str, measure: str = "auprc", method: str = "gradcam") -> str | None:
    """Layer with the highest mean of a measure; None where it is measured nowhere (no lesion masks).

    Layers that are blank in more than half of the slices are passed over where there are others: their mean is one of
    other, fuller slices.
    """
    part = depth[(depth["backbone"] == backbone) & (depth["measure"] == measure) & (depth["method"] == method)]
    part = part[part["value"].notna()]
    seen = part[~part["mostly_blank"]]
    part = seen if len(seen) else part
    return str(part.loc[part["value"].idxmax(), "layer"]) if len(part) else None
