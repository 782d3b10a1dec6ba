"""Class activation maps of every layer, measured; what follows for depth, groups and lobes, with intervals.

Tables of maps (`measure_layers`) are those of one network per backbone, which the column ``backbone`` names; they have
``subject`` and ``group`` too. ``**draws``: n, confidence, seed of the bootstrap over subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mslib.explain import layer_cams, upsample_maps
from mslib.measure import (
    MIN_SUBJECTS,
    adjust_p_values,
    compare_groups,
    mean_interval,
    measure_maps,
    proportion_interval,
)
from mslib.nets import last_convolution

from .lobes import LOBES, lobe_shares

#: Measures of the curves over depth and how figures label them.
MEASURES = {"auprc": "AUPRC", "pointing": "pointing game", "precision": "precision, hottest pixels",
            "mass_share": "map's sum inside lesions", "iou": "IoU",
            "half_heat_share": "brain share with half of the sum"}
#: Similarity of maps under randomisation and how figures label it.
SIMILARITY = {"spearman": "rank correlation (Spearman)", "ssim": "structural similarity (SSIM)"}
#: The layer that Hong and Zhang 2021 call hard to read.
HARD_LAYER = "block4_conv4"


def published_slices(lesions: np.ndarray, fullest: bool = False) -> np.ndarray:
    """Indices (from 0) of the slices of figures 3 and 4 in a stack of any number of slices.

    `fullest`: the slice with most lesion pixels and its neighbours instead (real patients, whose slices are others).
    """
    n = len(lesions)
    if fullest:
        return np.clip(int(lesions.sum(axis=(1, 2)).argmax()) + np.array([-1, 0, 1]), 0, n - 1)
    # 57 to 59, counted from 1 at the bottom of 135 (Hong and Zhang 2021).
    return np.array([min(n - 1, round((number - 1) * n / 135)) for number in (57, 58, 59)])


def measure_layers(network, images: np.ndarray, target: int, lesions: np.ndarray, brain: np.ndarray,
                   methods: Sequence[str], lobes: np.ndarray | None = None) -> pd.DataFrame:
    """Measures of every layer's maps of one subject's slices.

    Parameters
    ----------
    images : ndarray of float32, (n, H, W, M)
    target : int
        The class that is explained, the subject's own.
    lesions, brain : ndarray of bool, (n, H, W)
    methods : sequence of str
        Of `mslib.explain.CAM_METHODS`.
    lobes : ndarray of int, (n, H, W), optional
        From `lobe_labels`: with Grad-CAM, the share of each lobe in the map's sum (``lobe <name>``) and in the brain
        (``brain <name>``).

    Returns
    -------
    DataFrame
        One row per method, layer and slice: ``slice`` (number of the row of `images`), the columns of
        `mslib.measure.measure_maps`, ``layer, method``. Empty without slices.
    """
    if not len(images):
        return pd.DataFrame()
    cams = layer_cams(network, images, np.full(len(images), target), methods=methods, upsample=False)
    tables = []
    for method, of_layer in cams.items():
        for layer, raw in of_layer.items():
            heat = upsample_maps(raw, brain.shape[1:])
            table = measure_maps(heat, lesions & brain, brain)
            table.insert(0, "slice", np.arange(len(table)))
            if method == "gradcam" and lobes is not None:
                shares, uniform = lobe_shares(heat, lobes), lobe_shares(brain, lobes)
                table = pd.concat([table, shares.add_prefix("lobe "), uniform.add_prefix("brain ")], axis=1)
            tables.append(table.assign(layer=layer, method=method))
    return pd.concat(tables, ignore_index=True)


def layers_of(table: pd.DataFrame) -> list[str]:
    """Layer names of a column ``layer``, shallow to deep (pools after the convolutions of their block)."""
    return sorted(table["layer"].unique(), key=lambda name: (name.split("_")[0], "pool" in name, name))


def depth_table(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Mean of every measure per backbone, method and layer with its subject-bootstrap interval and chance.

    ``backbone, method, layer, measure, value, low, high, chance, slices, subjects, blank, mostly_blank``: blank maps
    have no measure and are counted; where they are more than half of the slices the mean is of the others.
    """
    rows = []
    for (backbone, method, layer), part in maps.groupby(["backbone", "method", "layer"], sort=True):
        for measure in MEASURES:
            rows.append({"backbone": backbone, "method": method, "layer": layer, "measure": measure,
                         **mean_interval(part[measure], part["subject"], **draws),
                         "chance": part[f"{measure}_chance"].mean(), "slices": len(part),
                         "subjects": part["subject"].nunique(), "blank": int(part["blank"].sum()),
                         "mostly_blank": bool(part["blank"].mean() > 0.5)})
    return pd.DataFrame(rows)


def best_layer(curves: pd.DataFrame, backbone: str) -> str | None:
    """Layer of Grad-CAM with the highest mean AUPRC; None where it is measured nowhere (no lesion masks).

    Layers that are blank in more than half of the slices are passed over where there are others: their mean is one of
    other, fuller slices.
    """
    part = curves[(curves["backbone"] == backbone) & (curves["measure"] == "auprc") & (curves["method"] == "gradcam")]
    part = part[part["value"].notna()]
    seen = part[~part["mostly_blank"]]
    part = seen if len(seen) else part
    return str(part.loc[part["value"].idxmax(), "layer"]) if len(part) else None


def headline_layers(layers: list[str], best: str | None, n: int = 5) -> list[str]:
    """Convolutions from the shallowest to the deepest of `layers`, evenly spread, the best layer among them."""
    convolutions = [layer for layer in layers if "pool" not in layer]
    chosen = {convolutions[round(i)] for i in np.linspace(0, len(convolutions) - 1, min(n, len(convolutions)))}
    if best in layers and best not in chosen:
        inner = sorted(chosen, key=layers.index)[1:-1]
        chosen -= {min(inner, key=lambda layer: abs(layers.index(layer) - layers.index(best)))}
        chosen |= {best}
    return [layer for layer in layers if layer in chosen]


def subject_means(maps: pd.DataFrame, backbone: str, measure: str) -> pd.DataFrame:
    """Mean of Grad-CAM's measure over a subject's slices: one row a subject, one column a layer, shallow to deep."""
    part = maps[(maps["backbone"] == backbone) & (maps["method"] == "gradcam")]
    return part.pivot_table(index="subject", columns="layer", values=measure).reindex(columns=layers_of(part))


def rank_sums(maps: pd.DataFrame, backbone: str) -> pd.DataFrame:
    """Each subject's sum of two ranks per layer: of AUPRC (1 = highest) and of the map's spread (1 = least).

    A small sum is a good compromise: a map that overlaps the lesions and does not cover the brain. A layer whose maps
    of the subject are all blank has the last rank in both.
    """
    auprc, spread = (subject_means(maps, backbone, name) for name in ("auprc", "half_heat_share"))
    return auprc.rank(axis=1, ascending=False, na_option="bottom") + spread.rank(axis=1, na_option="bottom")


def compromise(maps: pd.DataFrame, backbone: str) -> tuple[str, pd.Series]:
    """Is the last convolution a better compromise than its strongest rival, which other subjects have chosen?

    Subjects are divided in halves (every second of each group): the rival is the other layer with the smallest mean
    rank sum in the first half; the difference is tested on the second. Given are the rival's name and, for every
    subject of the second half, its rank sum minus that of the last convolution: above 0 the last convolution is better.
    """
    last, sums = last_convolution(backbone), rank_sums(maps, backbone)
    groups = maps.groupby("subject")["group"].first()[sums.index]
    second = groups.groupby(groups).cumcount() % 2 == 1
    rival = str(sums[~second].mean().drop(last).idxmin())
    return rival, sums.loc[second, rival] - sums.loc[second, last]


def sign_test(values: pd.Series, **draws) -> dict:
    """Is the mean of one value a subject (the index; NaN is left out) above 0, as a row with interval and border?

    Where all subjects have the same value other than 0 the bootstrap has no width; the share of subjects above 0, with
    Wilson's interval and the border one half, decides instead. ``statistic`` (mean, share above 0), ``value, low,
    high`` (NaN limits below five subjects), ``border``, ``mean``, ``above`` (subjects above 0), ``subjects``.
    """
    values = values.dropna()
    mean, above = mean_interval(values, values.index, **draws), int((values > 0).sum())
    row = {"statistic": "mean", **mean, "border": 0.0}
    if np.isnan(mean["low"]) and len(values) >= MIN_SUBJECTS and (values != 0).any():
        share = proportion_interval(above, len(values), draws.get("confidence", 0.95))
        row = {"statistic": "share above 0", "value": share.estimate, "low": share.low, "high": share.high,
               "border": 0.5}
    return row | {"mean": mean["value"], "above": above, "subjects": len(values)}


def depth_tests(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Tests of what the publication says of depth: ``backbone, test, layer, rank`` and the columns of `sign_test`.

    ``spread with depth`` and ``auprc with depth``: rank correlation of depth with the measure, mean over subjects.
    ``last convolution over rival``: rank sum of the rival minus that of the last convolution (`compromise`); ``layer``
    is the rival, ``rank`` that of the last convolution among all layers. ``hard layer minus last``: AUPRC at
    `HARD_LAYER` minus that at the last convolution, over slices. Without lesion masks the first is the only one.
    """
    rows, masked = [], maps["auprc"].notna().any()
    for backbone in maps["backbone"].unique():
        for test, measure in (("spread with depth", "half_heat_share"), ("auprc with depth", "auprc"))[: 1 + masked]:
            means = subject_means(maps, backbone, measure)
            depth = pd.Series(range(means.shape[1]), means.columns, float)
            trend = means.corrwith(depth, axis=1, method="spearman")
            rows.append({"backbone": backbone, "test": test, **sign_test(trend, **draws)})
        if not masked:
            continue
        last = last_convolution(backbone)
        rival, gain = compromise(maps, backbone)
        ranks = rank_sums(maps, backbone).mean().rank()
        rows.append({"backbone": backbone, "test": "last convolution over rival", "layer": rival,
                     "rank": int(ranks[last]), **sign_test(gain, **draws)})
        part = maps[(maps["backbone"] == backbone) & (maps["method"] == "gradcam")]
        wide = part.pivot_table(index=["subject", "slice"], columns="layer", values="auprc")
        if HARD_LAYER in wide:
            difference = wide[HARD_LAYER] - wide[last]
            found = mean_interval(difference, wide.index.get_level_values("subject"), **draws)
            rows.append({"backbone": backbone, "test": "hard layer minus last", "layer": HARD_LAYER,
                         "statistic": "mean", **found, "border": 0.0, "mean": found["value"],
                         "subjects": part["subject"].nunique()})
    columns = ["backbone", "test", "layer", "rank", "statistic", "value", "low", "high", "border", "mean", "above",
               "subjects"]
    return pd.DataFrame(rows, columns=columns)


def _percentiles(maps):
    """Mean of Grad-CAM's 95th percentile per subject and layer; a blank map's is 0 and not unknown."""
    part = maps[maps["method"] == "gradcam"]
    part = part.assign(value=part["q95"].where(~part["blank"].astype(bool), 0.0))
    return part.groupby(["backbone", "layer", "subject", "group"], as_index=False)["value"].mean()


def percentile_values(maps: pd.DataFrame, layers: Mapping[str, str]) -> pd.DataFrame:
    """95th percentile of Grad-CAM at one layer of each backbone: ``backbone, subject, group, value``."""
    means = _percentiles(maps)
    return means[means["layer"] == means["backbone"].map(layers)].drop(columns="layer").reset_index(drop=True)


def percentile_comparison(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Is the 95th percentile of Grad-CAM higher in SPMS than in RRMS, per backbone and layer?

    ``value, low, high``: probability that an SPMS patient exceeds an RRMS one (no limits below five patients a group);
    ``p`` (one-sided Mann-Whitney), ``p_holm`` over all rows, ``n_more``, ``n_less``; empty if a group is absent.
    """
    rows = []
    for (backbone, layer), one in _percentiles(maps).groupby(["backbone", "layer"]):
        more, less = (one.loc[one["group"] == group, "value"] for group in ("SPMS", "RRMS"))
        if len(more) and len(less):
            found = compare_groups(more, less, **draws)
            rows.append({"backbone": backbone, "layer": layer, "value": found.auc.estimate, "low": found.auc.low,
                         "high": found.auc.high, "p": found.p_value, "n_more": found.n_a, "n_less": found.n_b})
    table = pd.DataFrame(rows, columns=["backbone", "layer", "value", "low", "high", "p", "n_more", "n_less"])
    return table.assign(p_holm=adjust_p_values(table["p"]) if len(table) else [])


def lobe_table(maps: pd.DataFrame, layers: Mapping[str, str], **draws) -> pd.DataFrame:
    """Share of Grad-CAM's sum per backbone, group and lobe at one layer of each backbone, with intervals.

    ``brain``, the lobe's share of the brain: a uniform map's value; ``exceeds_others``: the interval lies above those
    of all other groups.
    """
    part = maps[(maps["method"] == "gradcam") & (maps["layer"] == maps["backbone"].map(layers))]
    table = pd.DataFrame([{"backbone": backbone, "group": group, "lobe": lobe,
                           **mean_interval(one[f"lobe {lobe}"], one["subject"], **draws),
                           "brain": one[f"brain {lobe}"].mean()}
                          for (backbone, group), one in part.groupby(["backbone", "group"]) for lobe in LOBES])
    others = table.merge(table, on=["backbone", "lobe"], suffixes=("", "_other")).query("group != group_other")
    within = others[~(others["high_other"] < others["low"])]
    keys = ["backbone", "group", "lobe"]
    return table.assign(exceeds_others=~table.set_index(keys).index.isin(within.set_index(keys).index))


def randomisation_summary(table: pd.DataFrame, **draws) -> pd.DataFrame:
    """Mean similarity to the original map per backbone, explained layer and step, with intervals.

    From `mslib.explain.cascading_randomisation`: ``backbone, layer, number, step`` (name of the layer randomised last),
    ``measure`` (spearman, ssim), ``value, low, high, blank``; ``all_random`` marks the last step.
    """
    rows = []
    for (backbone, layer, number, name), part in table.groupby(["backbone", "layer", "step", "randomised"]):
        for measure in SIMILARITY:
            rows.append({"backbone": backbone, "layer": layer, "number": number, "step": name, "measure": measure,
                         **mean_interval(part[measure], part["subject"], **draws), "blank": part["blank"].mean()})
    found = pd.DataFrame(rows)
    return found.assign(all_random=found["number"] == found.groupby("backbone")["number"].transform("max"))
