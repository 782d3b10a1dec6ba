"""What attribution methods say of networks with a known decision rule: maps, layers, the shortcut.

Parameters that functions share are those of `mslib.analysis.attribution`. Tables of several networks have the column
``experiment``; that of a network in which a sequence decides is called like the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import pandas as pd

from mslib.explain import attribute, covered, layer_cams, postprocess
from mslib.measure import MIN_SUBJECTS, feature_importance_score, mean_interval, share_inside
from mslib.nets import SliceSet, predict
from mslib.nets.known_rule import SHORTCUT, SHORTCUT_AGREEMENT, Experiment, Marked, draw_marks, shortcut_mask

from .attribution import JOINT, LRP, Explained, feature_groups
from .relevance import margin

#: Cues of the network with a shortcut: the corner shows the class, or the opposite.
CORNER, REVERSED = "corner", "corner, reversed"


def explained_marks(marked: Marked, pixel_mm: float, few: np.ndarray | None = None) -> Explained:
    """Marked slices as what is explained: the marks are what a map should show."""
    table = marked.slices.table
    return Explained(marked.slices.images.astype("float32"), table["target"].to_numpy(), marked.brain, marked.marks,
                     table["subject"].to_numpy(dtype=str), pixel_mm, few)


def accuracy_by_cue(model: keras.Model, experiment: Experiment, slices: SliceSet, sequences: Sequence[str],
                    pixel_mm: float, mark_seed: int, **draws) -> pd.DataFrame:
    """Accuracy where one sequence alone shows the class and the others by chance: which one does the network use?

    With the shortcut: where the corner shows the class, and where it shows the opposite. `slices` are of people whom
    the network has not seen, without marks; `mark_seed` is that of places and stripes of the marks. ``experiment``,
    ``cue`` (a sequence, `CORNER` or `REVERSED`), ``value, low, high, slices, subjects``.
    """
    if experiment.shortcut:
        sets = {cue: draw_marks(slices, experiment.decisive, pixel_mm, mark_seed, SHORTCUT_AGREEMENT, shortcut=shown)
                for cue, shown in ((CORNER, 1.0), (REVERSED, 0.0))}
    else:
        sets = {sequence: draw_marks(slices, number, pixel_mm, mark_seed + number, (1.0, 0.5, 0.5))
                for number, sequence in enumerate(sequences)}
    rows = []
    for cue, marked in sets.items():
        table = marked.slices.table
        correct = predict(model, marked.slices).argmax(1) == table["target"].to_numpy()
        rows.append({"experiment": experiment.name, "cue": cue, **mean_interval(correct, table["subject"], **draws),
                     "slices": len(table), "subjects": table["subject"].nunique()})
    return pd.DataFrame(rows)


def learnt_shortcut(use: pd.DataFrame) -> bool:
    """Whether the network uses the corner: `accuracy_by_cue` surely above chance with it, surely below reversed."""
    rows = use[use["experiment"] == SHORTCUT].set_index("cue")
    shown, reverse = (rows.loc[cue].fillna(rows.loc[cue, "value"]) for cue in (CORNER, REVERSED))
    return bool(shown["low"] > 0.5 and reverse["high"] < 0.5)


def learnt_rules(use: pd.DataFrame) -> list[str]:
    """Networks that follow their rule: `accuracy_by_cue` of the decisive sequence alone surely above chance."""
    own = use[use["experiment"] == use["cue"]]
    return list(own.loc[own["low"].fillna(own["value"]) > 0.5, "experiment"])


def decisive_share(scores: pd.DataFrame, sequences: Sequence[str], experiments: Sequence[str], **draws) -> pd.DataFrame:
    """Which methods give the decisive sequence more positive attribution than the next one, network by network?

    `scores`: from `mslib.analysis.attribution.score_maps`, of slices that are classified correctly. ``method,
    experiment, decisive`` (mean share of the decisive sequence), ``value, low, high`` of
    `mslib.analysis.relevance.margin`; methods with one map for all sequences are left out.
    """
    rows = []
    known = scores[scores["experiment"].isin(experiments)].dropna(subset=[f"share_{sequences[0]}"])
    for (method, experiment), part in known.groupby(["method", "experiment"], sort=False):
        shares, own = part[[f"share_{name}" for name in sequences]].to_numpy(), list(sequences).index(experiment)
        rows.append({"method": method, "experiment": experiment, "decisive": shares[:, own].mean(),
                     **mean_interval(margin(shares, own), part["subject"], **draws)})
    return pd.DataFrame(rows, columns=["method", "experiment", "decisive", "value", "low", "high"])


def layer_scores(model: keras.Model, explained: Explained, importance) -> pd.DataFrame:
    """MSFI of Grad-CAM and Guided Grad-CAM at every convolution of blocks 3 to 5, image by image.

    ``method, layer, image, subject, msfi, chance, blank``.
    """
    images, brain, features = explained.images, explained.brain, explained.features
    layers = [layer.name for layer in model.layers if layer.name.startswith(tuple(f"block{i}_conv" for i in (3, 4, 5)))]
    cams = layer_cams(model, images, explained.targets, layers, ("gradcam",))["gradcam"]
    guided = attribute("guided_backprop", model, images, explained.targets)
    uniform = share_inside(np.repeat(brain[..., None], images.shape[-1], -1), features, brain)
    chance, tables = feature_importance_score(uniform, importance), []
    for layer, cam in cams.items():
        for method, raw in (("gradcam", np.repeat(cam[..., None], images.shape[-1], -1)),
                            ("guided_gradcam", guided * cam[..., None])):
            portions = share_inside(postprocess(raw, explained.sigma), features, brain)
            tables.append(pd.DataFrame({
                "method": method, "layer": layer, "image": np.arange(len(images)), "subject": explained.subjects,
                "msfi": feature_importance_score(portions, importance), "chance": chance,
                "blank": np.isnan(portions).all(1)}))
    return pd.concat(tables, ignore_index=True)


def layer_curves(scores: pd.DataFrame, **draws) -> pd.DataFrame:
    """Mean of `layer_scores` by network, method and layer with its interval; ``blank``: how many maps are."""
    return pd.DataFrame([
        {"experiment": experiment, "method": method, "layer": layer, "measure": "msfi",
         **mean_interval(part["msfi"], part["subject"], **draws), "chance": part["chance"].mean(),
         "blank": int(part["blank"].sum())}
        for (experiment, method, layer), part in scores.groupby(["experiment", "method", "layer"], sort=False)])


def layer_gain(scores: pd.DataFrame, **draws) -> pd.DataFrame:
    """Does an earlier layer repair Grad-CAM? Best layer against the last one, and against chance, slice by slice.

    The best layer of a method is that of the highest mean over the networks. From `layer_scores`: ``experiment, method,
    layer, last, compared`` (``last layer`` or ``chance``), ``value, low, high`` of the difference in MSFI; networks
    that need no sequence are left out.
    """
    rows = []
    for method, part in scores[scores["chance"].notna()].groupby("method", sort=False):
        mean, last = part.groupby("layer", sort=False)["msfi"].mean(), part["layer"].iloc[-1]
        best = mean.idxmax() if mean.notna().any() else last
        for experiment, own in part.groupby("experiment", sort=False):
            at = {layer: own[own["layer"] == layer].set_index("image") for layer in (best, last)}
            for compared, other in (("last layer", at[last]["msfi"]), ("chance", at[best]["chance"])):
                rows.append({"experiment": experiment, "method": method, "layer": best, "last": last,
                             "compared": compared,
                             **mean_interval(at[best]["msfi"] - other, at[best]["subject"], **draws)})
    return pd.DataFrame(rows)


def shortcut_table(maps: Mapping[str, np.ndarray], explained: Explained, corner, superpixels: int,
                   **draws) -> pd.DataFrame:
    """Share of every map's positive attribution that lies on the shortcut, of slices that show it.

    `corner`, bool (N,): which slices show the shortcut; `superpixels` as the maps were made with. By method:
    ``covered`` (it can give a value on the shortcut at all), ``value, low, high`` (NaN where it cannot), ``chance``
    (the shortcut's share of the picture), ``blank`` (maps without positive attribution), ``slices`` and ``subjects``
    that show it, ``exposed``: the share is surely above chance (missing: not to be tested).
    """
    square, few = shortcut_mask(explained.images.shape[1:3], explained.pixel_mm), explained.at(explained.rows())
    groups, shared = feature_groups(few.images, few.brain, superpixels)
    chance, rows = square.mean(), []
    for method, raw in maps.items():
        index = explained.rows(method)
        shown, part = corner[index], explained.at(index[corner[index]])
        subjects, heat = len(set(part.subjects)), np.maximum(raw[shown], 0).sum(-1)
        total = heat.sum((1, 2))
        seen = method.startswith(LRP) or bool(
            covered(method, shared if method in JOINT else groups)[..., square, :].any())
        share = np.divide(heat[:, square].sum(1), total, out=np.full(len(heat), np.nan), where=(total > 0) & seen)
        found = mean_interval(share, part.subjects, **draws)
        testable = subjects >= MIN_SUBJECTS and not np.isnan(found["value"])
        low = found["value"] if np.isnan(found["low"]) else found["low"]  # all slices alike
        exposed = bool(low > chance * (1 + 1e-6)) if testable else pd.NA
        rows.append({"method": method, "covered": seen, **found, "chance": chance, "blank": int((total <= 0).sum()),
                     "slices": len(heat), "subjects": subjects, "exposed": exposed})
    return pd.DataFrame(rows).astype({"exposed": "boolean"})
