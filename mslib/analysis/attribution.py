"""Sixteen attribution methods and rules of relevance propagation: their maps, and what these are worth.

Parameters that functions share: ``explained``, an `Explained`; ``maps``: method to raw maps, (n, H, W, M), of the
slices that `Explained.rows` gives for it; ``importance`` (M,), of the modalities; ``sequences``: names of the M
modalities; ``label``: text of the progress bar; ``**draws``: n, confidence, seed of the bootstrap over subjects.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from mslib import explain, measure
from mslib.study import progress

from .relevance import relevance_maps

#: Before the name of a rule of relevance propagation (`mslib.analysis.relevance`), which is then a method like others.
LRP = "LRP "
#: Values change places between images: made for all images together, not for one.
JOINT = ("feature_permutation",)
#: SD of the smoothing before maps are measured; window and step of occlusion: mm.
SMOOTH_MM, WINDOW_MM, STRIDE_MM = 2.0, 22.0, 22.0
#: What is random at the steps of the randomisation, and the last layer that is.
STEPS = {"block 5 and logits": "block5_conv1", "all layers": "block1_conv1"}
#: Similarity to the map of random weights above which a method fails: it shows the image, not the network.
FAILS_ABOVE = 0.5
#: Delta-AUPC from which a map is taken to mark what the network needs; smaller ones are above 0 in the digits only.
NOTABLE = 0.01
#: Delta-AUPC below which, in size, removal by the map and by its shuffled copy cost the network the same.
NEGLIGIBLE = 0.001
#: Measures of `method_table` in the order of the figure, with their names there.
LABELS = {"msfi": "MSFI", "portion": "portion", "iou": "IoU", "tau": "MI correlation", "delta_zero": "ΔAUPC zero",
          "delta_mean": "ΔAUPC mean", "delta_blurred": "ΔAUPC blurred", "delta_noise": "ΔAUPC noise",
          "delta_inpainted": "ΔAUPC in-painted", "random": "randomised", "repeat": "repeat"}
SCORES = ("msfi", "portion", "iou", "tau")
PASSES, FAILS, UNDECIDED, UNTESTABLE = "passes", "fails", "undecided", "not testable"
#: Verdicts, the worst first: a missing interval hides no failure.
WORST = (FAILS, UNTESTABLE, UNDECIDED, PASSES)
#: Multiples of the shortcut's share of the picture from which a method exposes it.
EXPOSED_FROM = 2.0


@dataclass(frozen=True)
class Explained:
    """Slices whose maps are made and evaluated.

    ``features``, bool (N, H, W, M): what a map should mark, each modality's own (marks of a known decision rule, or
    lesions). ``few``: the slices that perturbation methods explain, which cost much more (default: all).
    """

    images: np.ndarray
    targets: np.ndarray
    brain: np.ndarray
    features: np.ndarray
    subjects: np.ndarray
    pixel_mm: float
    few: np.ndarray | None = None

    def at(self, index) -> Explained:
        """The slices at `index`, every one for all methods."""
        arrays = (self.images, self.targets, self.brain, self.features, self.subjects)
        return Explained(*(values[index] for values in arrays), self.pixel_mm)

    def rows(self, method: str | None = None) -> np.ndarray:
        """Indices of the slices that a method explains; None: that all of them do."""
        costly = method is None or (not method.startswith(LRP) and explain.METHODS[method].family == "perturbation")
        return self.few if costly and self.few is not None else np.arange(len(self.images))

    @property
    def sigma(self) -> float:
        """`SMOOTH_MM` in pixels."""
        return SMOOTH_MM / self.pixel_mm


def feature_groups(images, brain, superpixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Superpixels of every image, (N, H, W, M), and those that all images share, (H, W, M); each modality's own."""
    shared = explain.superpixels(images.mean(0, keepdims=True), superpixels, mask=brain.any(0))[0]
    return explain.superpixels(images, superpixels, mask=brain), shared


def method_parameters(method: str, *, samples: int, permutations: int, steps: int, seed: int, precision: str,
                      pixel_mm: float, groups=None, shared=None) -> dict:
    """Parameters of a method in this study; `groups`, `shared` as from `feature_groups`.

    Occlusion computes what a window changes alone, in float32, which saves more than `precision`.
    """
    own = {"groups": groups, "precision": precision}
    window, stride = (max(1, round(mm / pixel_mm)) for mm in (WINDOW_MM, STRIDE_MM))
    chosen = {"integrated_gradients": {"steps": steps}, "occlusion": {"window": window, "stride": stride},
              "feature_ablation": own, "lime": own | {"samples": samples}, "kernel_shap": own | {"samples": samples},
              "shapley_sampling": own | {"permutations": permutations},
              "feature_permutation": own | {"groups": shared, "permutations": permutations}}.get(method, {})
    return chosen | ({"seed": seed} if "seed" in explain.METHODS[method].parameters else {})


def method_overview(superpixels: int, **given) -> pd.DataFrame:
    """The methods and their parameters in this study: ``method, family, source, map per sequence, parameters``."""
    rows = []
    for name, method in explain.METHODS.items():
        values = method.parameters | method_parameters(name, **given)
        shown = [f"{key} {value}" for key, value in values.items() if value is not None
                 and key not in ("groups", "seed", "batch_size", "engine")]
        shown += [f"superpixels {superpixels}"] * ("groups" in values)
        rows.append({"method": name, "family": method.family, "source": method.citation,
                     "map per sequence": method.per_modality, "parameters": ", ".join(shown)})
    return pd.DataFrame(rows)


def attribute_all(model: keras.Model, explained: Explained, methods: Iterable[str] = tuple(explain.METHODS),
                  label: str = "attributions", *, superpixels: int, **given) -> tuple[dict, dict]:
    """Maps of several methods (of `METHODS`, or `LRP` and a rule) as this study makes them, and seconds per image.

    `superpixels`: about how many a modality; `given`: as in `method_parameters`.
    """
    few, maps, seconds = explained.at(explained.rows()), {}, {}
    groups, shared = feature_groups(few.images, few.brain, superpixels)
    for method in progress(list(methods), desc=label, unit="method"):
        own, start = explained.at(explained.rows(method)), time.perf_counter()
        if method.startswith(LRP):
            maps[method] = relevance_maps(model, own.images, own.targets, method.removeprefix(LRP), own.brain)
        else:
            parameters = method_parameters(method, groups=groups, shared=shared, pixel_mm=own.pixel_mm, **given)
            maps[method] = explain.attribute(method, model, own.images, own.targets, **parameters)
        seconds[method] = (time.perf_counter() - start) / len(own.images)
    return maps, seconds


def of_few(maps: Mapping[str, np.ndarray], explained: Explained) -> tuple[dict[str, np.ndarray], Explained]:
    """The slices that all methods explain, and the maps of them."""
    rows = explained.rows()
    return {name: raw[np.isin(explained.rows(name), rows)] for name, raw in maps.items()}, explained.at(rows)


# --- importance of the modalities --------------------------------------------------------------------------------


def _of_brain(baseline, explained):
    """A replacement baseline; the mean is that of the brain: with the air, it would be darker than any tissue."""
    if baseline != "mean":
        return baseline
    mean = explained.images.mean((1, 2), keepdims=True, where=explained.brain[..., None])
    return np.broadcast_to(mean, explained.images.shape)


def _outcome(model, images, targets):
    """Whether images are classified correctly, and the probability of their class."""
    logits = explain.logits_of(model, explain.batches_of(images, 64))
    return logits.argmax(1) == targets, softmax(logits, axis=1)[np.arange(len(targets)), targets]


def slice_importance(model: keras.Model, explained: Explained, sequences: Sequence[str], seed: int,
                     label: str = "network") -> pd.DataFrame:
    """Exact Shapley value of every modality, slice by slice (Jin et al. 2022, modality importance).

    The network is asked with every subset of the modalities, the absent ones replaced inside the brain. One row per
    slice, replacement ``baseline`` and ``worth`` (``accuracy``: 1 or 0; ``cross-entropy``: its negative): ``image,
    subject, correct`` (with all modalities), and a column per modality, which add up to what the slice gains.
    """
    subsets = np.arange(2 ** len(sequences))[:, None] >> np.arange(len(sequences)) & 1
    common, tables = {"image": np.arange(len(explained.images)), "subject": explained.subjects}, []
    # In-painting, of a whole modality, would have nothing to start from.
    for baseline in progress(("zero", "mean"), desc=f"{label}: modality importance", unit="baseline"):
        absent = explain.baseline_images(explained.images, _of_brain(baseline, explained), seed)
        absent = np.where(explained.brain[..., None], absent, explained.images)
        correct, probability = map(np.array, zip(*(
            _outcome(model, np.where(present, explained.images, absent), explained.targets) for present in subsets)))
        worths = {"accuracy": correct, "cross-entropy": np.log(np.maximum(probability, 1e-12))}
        tables += [pd.DataFrame({"baseline": baseline, "worth": worth, **common, "correct": correct[-1],
                                 **dict(zip(sequences, measure.shapley_values(of_subsets)))})
                   for worth, of_subsets in worths.items()]
    return pd.concat(tables, ignore_index=True)


def importance_table(importance: pd.DataFrame, by: str, sequences: Sequence[str], **draws) -> pd.DataFrame:
    """Mean of `slice_importance` over correctly classified slices by network (column `by`), with intervals.

    `by`, ``baseline, worth, modality, value, low, high, slices, subjects``, and ``asked``: slices, correct or not.
    """
    keys, names = [by, "baseline", "worth"], list(sequences)
    own = importance.assign(**importance[names].where(importance["correct"]))
    asked = importance.groupby(keys).size().rename("asked")
    return measure.mean_by(own, keys, names, **draws).rename(columns={"measure": "modality"}).join(asked, on=keys)


def importance_of(importance: pd.DataFrame, sequences: Sequence[str]) -> np.ndarray:
    """Importance of every modality to one network, (M,): by cross-entropy, which is less coarse than accuracy."""
    rows = importance[importance["correct"] & (importance["baseline"] == "zero") & (
        importance["worth"] == "cross-entropy")]
    return rows[list(sequences)].mean().to_numpy()


# --- measures of maps --------------------------------------------------------------------------------------------


def score_maps(maps: Mapping[str, np.ndarray], explained: Explained, importance, model: keras.Model,
               sequences: Sequence[str]) -> pd.DataFrame:
    """Measures of every map of slices with features of each modality's own, one row per method and image.

    ``msfi, portion`` (of the most important modality), ``iou``, each with ``_chance``; ``tau`` (MI correlation),
    ``share_<sequence>`` of the positive attribution, ``blank``, ``correct`` (the network gives the explained class).
    The first two are NaN where no sequence has a positive importance, or nothing is to be marked.
    """
    correct, _ = _outcome(model, explained.images, explained.targets)
    where = np.repeat(explained.brain[..., None], explained.images.shape[-1], -1)
    uniform = measure.share_inside(where, explained.features, explained.brain)
    top, needed = int(np.argmax(importance)), 1 if np.max(importance) > 0 else np.nan
    common = pd.DataFrame({"subject": explained.subjects, "image": np.arange(len(correct)), "correct": correct,
                           "msfi_chance": measure.feature_importance_score(uniform, importance),
                           "portion_chance": needed * uniform[:, top]})
    tables = []
    for method, raw in maps.items():
        rows = explained.rows(method)
        own, inside, heat = explained.at(rows), where[rows], explain.postprocess(raw, explained.sigma)
        portions, stacked = measure.share_inside(heat, own.features, own.brain), (len(rows), -1, heat.shape[2])
        flat = [np.moveaxis(array, -1, 1).reshape(stacked) for array in (heat, own.features & inside, inside)]
        iou, totals = measure.measure_maps(*flat), measure.modality_totals(heat * inside)
        found = {"msfi": measure.feature_importance_score(portions, importance), "portion": needed * portions[:, top],
                 "iou": iou["iou"], "iou_chance": iou["iou_chance"], "blank": totals.sum(1) == 0}
        if method.startswith(LRP) or explain.METHODS[method].per_modality:
            shares = totals / np.where(totals.sum(1) > 0, totals.sum(1), np.nan)[:, None]
            found |= {f"share_{name}": shares[:, m] for m, name in enumerate(sequences)}
            found["tau"] = measure.importance_correlation(totals, importance)
        tables.append(common.iloc[rows].reset_index(drop=True).assign(**found, method=method))
    return pd.concat(tables, ignore_index=True)


def localise(maps: Mapping[str, np.ndarray], explained: Explained, **names) -> pd.DataFrame:
    """How well maps find the features of all modalities together: ``auprc, precision, blank, chance``, columns `names`.

    One row per method and image. Maps (n, H, W, M) are summed over the modalities, their positive part is smoothed;
    those (N, H, W), of what is no method, are measured as they are.
    """
    tables = []
    for method, raw in maps.items():
        rows, heat = np.arange(len(explained.images)), raw
        if raw.ndim == 4:
            rows = explained.rows(method)
            heat = gaussian_filter(np.maximum(raw.sum(-1), 0), (0, explained.sigma, explained.sigma))
        own = explained.at(rows)
        found = measure.measure_maps(heat, own.features.any(-1), own.brain).rename(columns={"auprc_chance": "chance"})
        tables.append(found[["auprc", "precision", "blank", "chance"]].assign(
            subject=own.subjects, image=rows, method=method, **names))
    return pd.concat(tables, ignore_index=True)


def removal_table(maps: Mapping[str, np.ndarray], explained: Explained, model: keras.Model, baselines: Sequence[str],
                  levels: int, seed: int, label: str = "network") -> pd.DataFrame:
    """Delta-AUPC of every map under every replacement baseline: ``method, baseline, image, subject, delta``.

    Of the slices that all methods explain: the probability of the explained class, while what is removed lies inside.
    """
    maps, few = of_few(maps, explained)
    inside, falling = np.repeat(few.brain[..., None], few.images.shape[-1], -1), np.linspace(1, 0, levels)

    def areas(heat, baseline):
        replaced = partial(explain.replace_removed, baseline=_of_brain(baseline, few), seed=seed)
        curve = measure.removal_curve(lambda changed: _outcome(model, changed, few.targets)[1], few.images, heat,
                                      replaced, inside, falling)
        return np.array([measure.area_under_removal(one, falling) for one in curve.T])

    tables = []
    for method, raw in progress(list(maps.items()), desc=f"{label}: removal", unit="method"):
        heat = explain.postprocess(raw, explained.sigma)
        shuffled = measure.shuffled_maps(heat, inside, seed)
        tables += [pd.DataFrame({"method": method, "baseline": name, "image": explained.rows(), "subject": few.subjects,
                                 "delta": areas(shuffled, name) - areas(heat, name)}) for name in baselines]
    return pd.concat(tables, ignore_index=True)


def randomised_similarity(model: keras.Model, maps: Mapping[str, np.ndarray], explained: Explained,
                          label: str = "network", lowest: Mapping[str, str] = STEPS, **settings) -> pd.DataFrame:
    """Similarity of every method's maps to the original while layers are set to random from the output down.

    `settings` are those of `attribute_all`, and ``seed`` draws the weights too. Given for the slices that all methods
    explain: ``method, step, random`` (of `lowest`), ``subject, similarity``, NaN of flat maps (Adebayo et al. 2018).
    The network holds the random weights meanwhile, so that nothing is traced anew.
    """
    before, few = of_few(maps, explained)
    tables, trained = [], model.get_weights()
    randomised = explain.cascading_randomisation(model, list(lowest.values()), 1, settings["seed"])
    for step, (name, (*_, random)) in enumerate(zip(lowest, randomised), start=1):
        model.set_weights(random.get_weights())
        after, _ = attribute_all(model, few, list(maps), f"{label}, random: {name}", **settings)
        model.set_weights(trained)
        tables.append(repeat_similarity(before, after, few).assign(step=step, random=name))
    return pd.concat(tables, ignore_index=True)


def repeat_similarity(maps: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray],
                      explained: Explained) -> pd.DataFrame:
    """Similarity of two networks' maps of the slices that all methods explain: ``method, subject, similarity``."""
    (maps, few), (others, _) = of_few(maps, explained), of_few(others, explained)
    return pd.concat([pd.DataFrame({"method": method, "subject": few.subjects,
                                    "similarity": measure.map_similarity(own, others[method], few.brain)})
                      for method, own in maps.items()], ignore_index=True)


# --- tables of methods -------------------------------------------------------------------------------------------


def method_table(scores: pd.DataFrame, removal: pd.DataFrame, randomised: pd.DataFrame, repeat: pd.DataFrame,
                 **draws) -> pd.DataFrame:
    """One row per method: means of all measures, with ``<measure>_low``, ``<measure>_high`` and ``<measure>_chance``.

    Of `score_maps`, `removal_table` (``delta_<baseline>``), `randomised_similarity` (its last step: ``random``) and
    `repeat_similarity` (``repeat``; ``repeat_gain``: less the size of the similarity to the random network's, slice by
    slice). ``blank``, ``slices``: blank maps and all of them.
    """
    last = randomised[randomised["step"] == randomised["step"].max()]
    last = last.assign(slice=last.groupby("method").cumcount())
    again = repeat.assign(slice=repeat.groupby("method").cumcount() % (last["slice"].max() + 1 if len(last) else 1))
    again = again.merge(last[["method", "slice", "similarity"]], on=["method", "slice"], suffixes=("", "_random"))
    sign = again["method"].map(np.sign(last.groupby("method")["similarity"].mean()))
    values = [scores.melt(["method", "subject"], [name for name in SCORES if name in scores], "name"),
              removal.assign(name="delta_" + removal["baseline"], value=removal["delta"]),
              last.assign(name="random", value=last["similarity"]),
              repeat.assign(name="repeat", value=repeat["similarity"]),
              again.assign(name="repeat_gain", value=again["similarity"] - sign * again["similarity_random"])]
    found = measure.mean_by(pd.concat(values), ["method", "name"], ["value"], **draws)
    names = list(dict.fromkeys([*found["name"], "random", "repeat", "repeat_gain"]))  # also those that nothing is of
    ends = {end: found.pivot_table(end, "method", "name", dropna=False).reindex(columns=names)
            for end in ("value", "low", "high")}
    by_method = scores.groupby("method", sort=False)
    chance = by_method[[name for name in scores if name.endswith("_chance")]].mean()
    return chance.assign(blank=by_method["blank"].sum(), slices=by_method.size()).join(
        [ends["value"], ends["low"].add_suffix("_low"), ends["high"].add_suffix("_high")])


def shown_measures(table: pd.DataFrame) -> list[str]:
    """Columns of the figure (`LABELS`) that the table has."""
    return [name for name in LABELS if name in table and table[name].notna().any()]


def cannot_order(table: pd.DataFrame) -> list[str]:
    """Columns of delta-AUPC whose values are all below `NEGLIGIBLE` in size: the baseline, not the map, may be why."""
    return [name for name in _deltas(table) if (table[name].abs() < NEGLIGIBLE).all()]


def _deltas(table):
    return [name for name in LABELS if name.startswith("delta") and name in table]


def chance_levels(scores: pd.DataFrame) -> dict[str, float]:
    """What a map without knowledge reaches, by measure."""
    rows, modalities = scores[scores["method"] == scores["method"].iloc[0]], scores.filter(regex="^share_").shape[1]
    return dict.fromkeys(_deltas(LABELS), 0.0) | {
        "msfi": float(rows["msfi_chance"].mean()), "portion": float(rows["portion_chance"].mean()),
        "iou": float(scores["iou_chance"].mean()), "tau": float(measure.correlation_by_chance(modalities).mean())}


def advantage(scores: pd.DataFrame, methods: Sequence[str], **draws) -> pd.DataFrame:
    """MSFI of some methods minus that of the best other, slice by slice.

    ``method, other, value, low, high, subjects``; the best other is the one that is furthest ahead on the slices that
    both explain: perturbation methods explain few.
    """
    wide, rows = scores.pivot_table("msfi", ["experiment", "subject", "image"], "method"), []
    wide = wide.reindex(columns=scores["method"].unique())
    subjects, others = wide.index.get_level_values("subject"), wide.drop(columns=list(methods))
    for name in methods:
        ahead = others.sub(wide[name], axis=0).mean()
        best = ahead.idxmax() if ahead.notna().any() else others.columns[0]
        gain = wide[name] - wide[best]
        rows.append({"method": name, "other": best, **measure.mean_interval(gain, subjects, **draws),
                     "subjects": subjects[gain.notna()].nunique()})
    return pd.DataFrame(rows)


def localisation_table(scores: pd.DataFrame, **draws) -> pd.DataFrame:
    """Means of `localise` by ``backbone, source, method``, and of ``gain``: the AUPRC minus the location prior's.

    A blank map says no more than chance, and counts as that.
    """
    prior = scores[scores["method"] == "prior"].set_index(["backbone", "image"])["auprc"].rename("prior")
    chance = scores.groupby(["backbone", "image"])["chance"].transform("max")
    known = scores.assign(**{name: scores[name].fillna(chance) for name in ("auprc", "precision")})
    known = known.join(prior, on=["backbone", "image"]).eval("gain = auprc - prior")
    return measure.mean_by(known, ["backbone", "source", "method"], ["auprc", "precision", "gain"],
                   beside=["chance", "blank"], **draws)


def checks(table: pd.DataFrame, margins: pd.DataFrame, local: pd.DataFrame,
           exposed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Which methods pass which check, where the truth is known: a row per method, a column per check.

    From `method_table`, of networks with a known decision rule; `decisive_margins` of those that follow it;
    `localisation_table` (may be empty), of networks that lesions alone can decide; `shortcut_table`, where the network
    has learnt the shortcut. `PASSES`, `FAILS`, `UNDECIDED` (the interval includes the border) or `UNTESTABLE`: not
    defined for the method, for no map of it (blank ones), too few subjects for an interval, or no network that has
    learnt. Of several networks or baselines the worst verdict counts; baselines of `cannot_order` do not.
    """
    silent, nothing = cannot_order(table), pd.DataFrame(columns=["method", "low", "high"])
    removed = [pd.DataFrame({"method": table.index, "low": table[f"{name}_low"], "high": table[f"{name}_high"]})
               for name in _deltas(table) if name not in silent]
    gains = local[(local["measure"] == "gain") & (local["source"] == "network")] if len(local) else nothing

    def worst(rows, border):
        each = _verdicts(rows["low"], rows["high"], border).groupby(rows["method"])
        return each.agg(lambda found: min(found, key=WORST.index)).reindex(table.index).fillna(UNTESTABLE)

    found = {
        "sequence found": worst(margins if len(margins) else nothing, 0),
        "localises above prior": worst(gains, 0),
        "randomisation": _verdicts(-table["random_high"], -table["random_low"], -FAILS_ABOVE),
        "repeat": _verdicts(table["repeat_gain_low"], table["repeat_gain_high"], 0),
        "shortcut exposed": UNTESTABLE,
        "removal": worst(pd.concat([*removed, nothing]), NOTABLE)}
    if exposed is not None:
        low, high = (exposed[end].fillna(exposed["value"]) for end in ("low", "high"))  # all slices alike
        shown = _verdicts(low, high, EXPOSED_FROM * exposed["chance"]).where(exposed["exposed"].notna())
        found["shortcut exposed"] = shown.reindex(table.index).fillna(UNTESTABLE)
    return pd.DataFrame(found, index=table.index)


def _verdicts(low, high, border):
    found = np.select([low.isna() | high.isna() | pd.isna(border), low > border, high <= border],
                      [UNTESTABLE, PASSES, FAILS], UNDECIDED)
    return pd.Series(found, low.index)
