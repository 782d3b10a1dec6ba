"""What attribution methods and relevance say of networks with a known decision rule: sequence, layer, shortcut.

Shared parameters are those of `mslib.analysis.attribution`. Tables of several networks have the column ``experiment``;
that of a network in which a sequence decides is called like the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import pandas as pd

from mslib.explain import attribute, covered, layer_cams, postprocess
from mslib.measure import MIN_SUBJECTS, feature_importance_score, mean_by, mean_interval, share_inside
from mslib.nets import SliceSet, predict
from mslib.nets import known_rule as rules

from .attribution import EXPOSED_FROM, JOINT, LRP, Explained, feature_groups
from .relevance import mean_shares, shares_of

#: Cues of the network with a shortcut: the corner shows the class, or the opposite.
CORNER, REVERSED = "corner", "corner, reversed"
#: Accuracy on the decisive sequence alone from which a network follows its rule.
FOLLOWS = 0.9


def explained_marks(marked: rules.Marked, pixel_mm: float, few: np.ndarray | None = None) -> Explained:
    """Marked slices as what is explained: the marks are what a map should show."""
    table = marked.slices.table
    return Explained(marked.slices.images.astype("float32"), table["target"].to_numpy(), marked.brain, marked.marks,
                     table["subject"].to_numpy(dtype=str), pixel_mm, few)


# --- which cue does the network use? -----------------------------------------------------------------------------


def answers_to_cues(model: keras.Model, experiment: rules.Experiment, slices: SliceSet, sequences: Sequence[str],
                    pixel_mm: float, mark_seed: int) -> pd.DataFrame:
    """Slices where one sequence alone shows the class and the others by chance: which one does the network use?

    `slices`: unseen ones without marks. A row per slice: ``experiment, cue`` (a sequence, or with the shortcut `CORNER`
    or `REVERSED`), ``subject, correct``.
    """
    if experiment.shortcut:
        sets = {cue: rules.draw_marks(slices, experiment.decisive, pixel_mm, mark_seed, rules.SHORTCUT_AGREEMENT,
                                      shortcut=shown) for cue, shown in ((CORNER, 1.0), (REVERSED, 0.0))}
    else:
        sets = {sequence: rules.draw_marks(slices, number, pixel_mm, mark_seed + number, (1.0, 0.5, 0.5))
                for number, sequence in enumerate(sequences)}
    return pd.concat([pd.DataFrame({
        "experiment": experiment.name, "cue": cue, "subject": marked.slices.table["subject"],
        "correct": predict(model, marked.slices).argmax(1) == marked.slices.table["target"]})
        for cue, marked in sets.items()], ignore_index=True)


def accuracy_by_cue(answers: pd.DataFrame, **draws) -> pd.DataFrame:
    """Share of correct answers of every ``training``: that, ``experiment, cue, value, low, high, slices, subjects``."""
    return mean_by(answers, ["training", "experiment", "cue"], ["correct"], **draws).drop(columns="measure")


def learnt_shortcut(use: pd.DataFrame) -> bool:
    """Whether the network uses the corner: `accuracy_by_cue` surely above chance with it, surely below reversed."""
    rows = use[use["experiment"] == rules.SHORTCUT].set_index("cue")
    shown, reverse = (rows.loc[cue].fillna(rows.loc[cue, "value"]) for cue in (CORNER, REVERSED))
    return bool(shown["low"] > 0.5 and reverse["high"] < 0.5)


def learnt_rules(use: pd.DataFrame, training: int = 1) -> list[str]:
    """Networks that follow their rule: `accuracy_by_cue` of the decisive sequence alone surely above `FOLLOWS`.

    Above it without an interval where there are too few people for one.
    """
    own = use[(use["experiment"] == use["cue"]) & (use["training"] == training)]
    return list(own.loc[own["low"].fillna(own["value"]) > FOLLOWS, "experiment"])


# --- do maps find the decisive sequence? -------------------------------------------------------------------------


def known_rule_shares(shares: pd.DataFrame, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """`mean_shares` of `slice_shares` with marks by ``experiment, rule``; ``role`` of every sequence: of `ROLES`."""
    role = {(sequences[decisive], sequences[m]): name for decisive in range(len(sequences))
            for name, m in zip(rules.ROLES, rules.roles(decisive, len(sequences)))}
    found = mean_shares(shares, ["experiment", "rule"], sequences, **draws)
    return found.assign(role=[role[pair] for pair in zip(found["experiment"], found["modality"])])


def margin(shares: np.ndarray, decisive: int) -> np.ndarray:
    """Share (of N, M) of the decisive sequence minus that of the next one (the largest other mean), slice by slice."""
    others = np.delete(shares, decisive, 1)
    means = np.where(np.isnan(others).all(0), -np.inf, np.nansum(others, 0) / (~np.isnan(others)).sum(0).clip(1))
    return shares[:, decisive] - others[:, means.argmax()]


def decisive_margins(shares: pd.DataFrame, by: str, kind: str, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """How far does the decisive sequence stand above the next one, by ``method`` or ``rule`` (`by`) and network?

    `shares`: correctly classified slices, of `score_maps` (`kind`: ``share``) or of `slice_shares` (`kind`: of `KINDS`
    there, or `LIFT`). `by`, ``experiment, kind, decisive`` (mean share of the decisive sequence), ``value, low, high``
    (`margin`); methods with one map for all sequences are left out.
    """
    rows = []
    for name, every in shares.groupby(by, sort=False):
        if pd.concat([shares_of(every, kind, one) for one in sequences]).isna().all():
            continue
        for experiment, part in every.groupby("experiment", sort=False):
            values, own = np.stack([shares_of(part, kind, one) for one in sequences], 1), sequences.index(experiment)
            rows.append({by: name, "experiment": experiment, "kind": kind, "decisive": pd.Series(values[:, own]).mean(),
                         **mean_interval(margin(values, own), part["subject"], **draws),
                         "subjects": part["subject"].nunique()})
    return pd.DataFrame(rows, columns=[by, "experiment", "kind", "decisive", "value", "low", "high", "subjects"])


# --- Grad-CAM at earlier layers ----------------------------------------------------------------------------------


def layer_scores(model: keras.Model, explained: Explained, importance) -> pd.DataFrame:
    """``method, layer, image, subject, msfi, chance, blank`` of (Guided) Grad-CAM at convolutions of blocks 3 to 5."""
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


def layer_gain(scores: pd.DataFrame, **draws) -> pd.DataFrame:
    """Does an earlier layer repair Grad-CAM? Best earlier one (over all networks) against the last and chance, paired.

    From `layer_scores`: ``experiment, method, layer, last, compared`` (``last layer`` or ``chance``), ``value, low,
    high`` of the difference in MSFI; networks that need no sequence are left out.
    """
    rows = []
    for method, part in scores[scores["chance"].notna()].groupby("method", sort=False):
        mean, last = part.groupby("layer", sort=False)["msfi"].mean(), part["layer"].iloc[-1]
        earlier = mean.drop(last)
        best = earlier.idxmax() if earlier.notna().any() else last
        for experiment, own in part.groupby("experiment", sort=False):
            at = {layer: own[own["layer"] == layer].set_index("image") for layer in (best, last)}
            for compared, other in (("last layer", at[last]["msfi"]), ("chance", at[best]["chance"])):
                rows.append({"experiment": experiment, "method": method, "layer": best, "last": last,
                             "compared": compared,
                             **mean_interval(at[best]["msfi"] - other, at[best]["subject"], **draws),
                             "subjects": own["subject"].nunique()})
    return pd.DataFrame(rows)


# --- do maps expose the shortcut? --------------------------------------------------------------------------------


def shortcut_shares(maps: Mapping[str, np.ndarray], explained: Explained, corner, superpixels: int) -> pd.DataFrame:
    """Share of every map's positive attribution that lies on the shortcut, of slices that show it (`corner`, (N,)).

    ``method, image, subject, shown``, ``covered`` (the method can give a value there at all), ``share`` (NaN where
    either is not so, and of blank maps), ``chance`` (the shortcut's share of the picture).
    """
    square, few = rules.shortcut_mask(explained.images.shape[1:3], explained.pixel_mm), explained.at(explained.rows())
    groups, shared = feature_groups(few.images, few.brain, superpixels)
    tables = []
    for method, raw in maps.items():
        rows, heat = explained.rows(method), np.maximum(raw, 0).sum(-1)
        seen = method.startswith(LRP) or bool(
            covered(method, shared if method in JOINT else groups)[..., square, :].any())
        total, shown = heat.sum((1, 2)), corner[rows]
        share = np.divide(heat[:, square].sum(1), total, out=np.full(len(heat), np.nan),
                          where=(total > 0) & shown & seen)
        tables.append(pd.DataFrame({"method": method, "image": rows, "subject": explained.subjects[rows],
                                    "shown": shown, "covered": seen, "share": share, "chance": square.mean()}))
    return pd.concat(tables, ignore_index=True)


def shortcut_table(shares: pd.DataFrame, **draws) -> pd.DataFrame:
    """Which methods expose the shortcut? Mean of `shortcut_shares` by ``method``; ``slices``: those that show it.

    ``exposed``: the share is surely above `EXPOSED_FROM` times chance; missing where that cannot be tested (not
    covered, too few subjects).
    """
    found = mean_by(shares, ["method"], ["share"], **draws).drop(columns="measure").set_index("method")
    found = found.join(shares.groupby("method")[["covered", "chance"]].first())
    low = found["low"].fillna(found["value"])  # all slices alike
    exposed = (low > EXPOSED_FROM * found["chance"]).astype("boolean").where(found["subjects"] >= MIN_SUBJECTS)
    return found.assign(exposed=exposed, slices=shares.groupby("method")["shown"].sum()).reset_index()
