"""Sixteen attribution methods: their maps, and what these are worth beside features, importance and the network.

Parameters that functions share: ``images`` float32 (N, H, W, M); ``targets`` int (N,); ``brain`` bool (N, H, W);
``maps``: method to raw maps (N, H, W, M); ``importance`` (M,), as from `importance_of`; ``sequences``: names of the M
modalities; ``label``: text of the progress bar; ``**draws``: n, confidence, seed of the bootstrap over subjects.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import keras
import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import kendalltau, mannwhitneyu, spearmanr

from mslib.explain import (
    METHODS,
    attribute,
    baseline_images,
    batches_of,
    completeness_gap,
    logits_of,
    postprocess,
    randomised_copy,
    replace_removed,
)
from mslib.explain import superpixels as segment
from mslib.measure import (
    MIN_SUBJECTS,
    area_under_removal,
    correlation_by_chance,
    feature_importance_score,
    importance_correlation,
    iou_at_median,
    map_similarity,
    mean_interval,
    modality_totals,
    percentile_interval,
    removal_curve,
    resample_counts,
    shapley_values,
    share_inside,
    shuffled_maps,
)
from mslib.nets import evenly
from mslib.study import progress

#: Values change places between images: made for all images together, not for one.
JOINT = ("feature_permutation",)
#: SD of the smoothing before maps are measured, pixels.
SIGMA = 1.0
#: Methods whose superpixels add up to its difference from the image with black superpixels.
COMPLETE_IN_GROUPS = ("shapley_sampling", "kernel_shap")
#: Slices that the randomisation looks at; what is random at its steps, and the last layer that is.
RANDOMISED = 8
ALL_LAYERS = "all layers"
STEPS = {"logits": "logits", "block 5 and logits": "block5_conv1", ALL_LAYERS: "block1_conv1"}
#: Similarity to the map of random weights above which a method fails: it shows the image, not the network.
FAILS_ABOVE = 0.5
#: Delta-AUPC from which a map is taken to mark what the network needs; smaller ones are above 0 in the digits only.
NOTABLE = 0.01
#: Delta-AUPC below which, in size, removal by the map and by its shuffled copy cost the network the same.
NEGLIGIBLE = 0.001
#: Share by which values may miss what they should add up to.
GAP_ABOVE = 0.05
#: Measures of `method_table` in the order of the figure: their names there, and what is better.
LABELS = {"msfi": "MSFI", "portion": "portion", "iou": "IoU", "tau": "MI correlation", "delta_zero": "ΔAUPC zero",
          "delta_mean": "ΔAUPC mean", "delta_blurred": "ΔAUPC blurred", "delta_noise": "ΔAUPC noise",
          "delta_inpainted": "ΔAUPC in-painted", "rho": "informative (rho)", "random": "randomised", "repeat": "repeat"}
BETTER = dict.fromkeys(LABELS, "high") | {"random": "near 0"}
SCORES = ("msfi", "portion", "iou", "tau", "gap")
PASSES, FAILS, UNTESTABLE = "passes", "fails", "not testable"


@dataclass(frozen=True)
class Explained:
    """Slices whose maps are made and evaluated.

    ``features``, bool (N, H, W, M): what a map should mark, each modality's own (marks of a known decision rule, or
    lesions). ``targets``: the class that is explained. ``subjects``: str (N,).
    """

    images: np.ndarray
    targets: np.ndarray
    brain: np.ndarray
    features: np.ndarray
    subjects: np.ndarray

    def at(self, index) -> Explained:
        """The slices at `index`."""
        return Explained(*(values[index] for values in vars(self).values()))


def feature_groups(images, brain, superpixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Superpixels of every image, (N, H, W, M), and those that all images share, (H, W, M); each modality's own."""
    shared = segment(images.mean(0, keepdims=True), superpixels, mask=brain.any(0))[0]
    return segment(images, superpixels, mask=brain), shared


def method_parameters(method: str, *, samples: int, permutations: int, steps: int, seed: int, groups=None,
                      shared=None) -> dict:
    """Parameters of a method in this study; `groups`, `shared` as from `feature_groups`."""
    own = {"groups": groups}
    chosen = {"integrated_gradients": {"steps": steps}, "occlusion": {"window": 11, "stride": 5},
              "feature_ablation": own, "lime": own | {"samples": samples}, "kernel_shap": own | {"samples": samples},
              "shapley_sampling": own | {"permutations": permutations},
              "feature_permutation": {"groups": shared, "permutations": permutations}}.get(method, {})
    return chosen | ({"seed": seed} if "seed" in METHODS[method].parameters else {})


def method_overview(superpixels: int, **given) -> pd.DataFrame:
    """The methods and their parameters in this study: ``method, family, source, map per sequence, parameters``."""
    rows = []
    for name, method in METHODS.items():
        values = method.parameters | method_parameters(name, **given)
        shown = [f"{key} {value}" for key, value in values.items() if value is not None
                 and key not in ("groups", "seed", "batch_size", "engine", "progress")]
        shown += [f"superpixels {superpixels}"] if "groups" in values else []
        rows.append({"method": name, "family": method.family, "source": method.citation,
                     "map per sequence": method.per_modality, "parameters": ", ".join(shown)})
    return pd.DataFrame(rows)


def attribute_all(model: keras.Model, images, targets, brain, methods: Iterable[str] = tuple(METHODS),
                  label: str = "attributions", *, superpixels: int, **given) -> tuple[dict, dict]:
    """Maps of several methods with the parameters of this study: raw maps, and seconds per image, by method.

    `superpixels`: about how many a modality; `given`: samples, permutations, steps, seed, as in `method_parameters`.
    """
    groups, shared = feature_groups(images, brain, superpixels)
    maps, seconds = {}, {}
    for method in progress(list(methods), desc=label, unit="method"):
        start = time.perf_counter()
        parameters = method_parameters(method, groups=groups, shared=shared, **given)
        maps[method] = attribute(method, model, images, targets, **parameters)
        seconds[method] = (time.perf_counter() - start) / len(images)
    return maps, seconds


# --- importance of the modalities --------------------------------------------------------------------------------


def subset_outcomes(model: keras.Model, images, targets, brain, baseline: str, seed: int) -> dict[str, np.ndarray]:
    """What the network says with every subset of the modalities; the absent ones are replaced inside the brain.

    ``accuracy`` and ``cross-entropy`` (negative, so that more is better), each (2 ** M, N).
    """
    base = np.where(brain[..., None], baseline_images(images, baseline, seed), images)
    channels = np.arange(images.shape[-1])
    found = [_outcome(model, np.where(subset >> channels & 1, images, base), targets)
             for subset in range(2 ** len(channels))]
    return {"accuracy": np.array([logits.argmax(1) == targets for logits, _ in found], float),
            "cross-entropy": np.log(np.maximum([probability for _, probability in found], 1e-12)).astype(float)}


def _outcome(model, images, targets):
    """Logits, and the probability of the explained class."""
    logits = logits_of(model, batches_of(images, 64))
    return logits, softmax(logits, axis=1)[np.arange(len(targets)), targets]


def importance_table(model: keras.Model, images, targets, brain, subjects, sequences: Sequence[str],
                     label: str = "network", *, n: int, confidence: float, seed: int) -> pd.DataFrame:
    """Exact Shapley value of every modality, with intervals over subjects (Jin et al. 2022, modality importance).

    ``baseline, worth, modality, value, low, high, nothing, all`` (worth without and with all modalities); no limits
    below `mslib.measure.MIN_SUBJECTS` subjects.
    """
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    draws = resample_counts(np.zeros(len(names), int), n, seed)[:, owner]
    rows = []
    # In-painting, of a whole modality, would have nothing to start from.
    for baseline in progress(("zero", "mean", "noise"), desc=f"{label}: modality importance", unit="baseline"):
        for worth, outcome in subset_outcomes(model, images, targets, brain, baseline, seed).items():
            values = shapley_values(outcome.mean(1))
            resampled = shapley_values(outcome @ (draws / draws.sum(1, keepdims=True)).T)
            for modality, value, others in zip(sequences, values, resampled):
                kept = others if len(names) >= MIN_SUBJECTS else np.array([])
                _, low, high = percentile_interval(value, kept, confidence)
                rows.append({"baseline": baseline, "worth": worth, "modality": modality, "value": value, "low": low,
                             "high": high, "nothing": outcome[0].mean(), "all": outcome[-1].mean()})
    return pd.DataFrame(rows)


def importance_of(table: pd.DataFrame, sequences: Sequence[str]) -> np.ndarray:
    """Importance of every modality, in the order of the sequences (cross-entropy is less coarse than accuracy)."""
    rows = table[(table["baseline"] == "zero") & (table["worth"] == "cross-entropy")].set_index("modality")
    return rows["value"].reindex(list(sequences)).to_numpy()


def first_by_importance(table: pd.DataFrame) -> dict[str, int]:
    """In how many settings (baseline and value function) each sequence has the largest Shapley value above 0.

    ``none`` where all sequences together gain nothing, ``a tie`` where two are first. Empty without intervals: of a
    handful of subjects no order is given.
    """
    def first(part):
        best = part.loc[part["value"] == part["value"].max(), "modality"]
        if min(part["value"].max(), (part["all"] - part["nothing"]).iloc[0]) <= 0:
            return "none"
        return best.iloc[0] if len(best) == 1 else "a tie"

    known = table[table["low"].notna()].groupby(["worth", "baseline"])
    return dict(Counter(first(part) for _, part in known).most_common())


# --- measures of maps --------------------------------------------------------------------------------------------


def once_a_group(values, groups) -> np.ndarray:
    """A map that has the value of every group in one of its pixels alone, so that its sum is that of the groups."""
    kept = np.zeros_like(values)
    names, places = np.unique(groups, return_index=True)
    places = places[names >= 0]
    kept.flat[places] = values.flat[places]
    return kept


def score_maps(maps: Mapping[str, np.ndarray], explained: Explained, importance, model: keras.Model,
               sequences: Sequence[str], superpixels: int) -> pd.DataFrame:
    """Measures of every map, one row per method and image; `superpixels` as the maps were made with.

    ``msfi``, ``portion`` (of the most important modality), ``iou``, ``tau`` (MI correlation), ``share_<sequence>`` of
    the positive attribution, ``gap`` (completeness), ``blank``, ``probability`` of the explained class and ``correct``
    (the network gives it); ``msfi_chance, portion_chance, iou_chance``. MSFI and portion are NaN for a network that
    gives no sequence a positive importance, and where nothing is to be marked.
    """
    images, brain, features = explained.images, explained.brain, explained.features
    logits, probability = _outcome(model, images, explained.targets)
    where = np.repeat(brain[..., None], images.shape[-1], -1)
    uniform = share_inside(where, features, brain)
    top, stacked = int(np.argmax(importance)), (len(images), -1, images.shape[2])
    needed = 1 if importance[top] > 0 else np.nan  # a network that needs no sequence has no most important one
    common = {"subject": list(explained.subjects), "image": np.arange(len(images)), "probability": probability,
              "correct": logits.argmax(1) == explained.targets,
              "msfi_chance": feature_importance_score(uniform, importance), "portion_chance": needed * uniform[:, top]}
    groups = segment(images, superpixels, mask=brain) if set(maps) & set(COMPLETE_IN_GROUPS) else None
    tables = []
    for method, raw in maps.items():
        heat = postprocess(raw, SIGMA)
        portions = share_inside(heat, features, brain)
        flat = [np.moveaxis(array, -1, 1).reshape(stacked) for array in (heat, features & where, where)]
        iou, iou_chance = iou_at_median(*flat)
        totals = modality_totals(heat * where)
        shares = totals / np.where(totals.sum(1) > 0, totals.sum(1), np.nan)[:, None]
        row = common | {"msfi": feature_importance_score(portions, importance), "portion": needed * portions[:, top],
                        "iou": iou, "iou_chance": iou_chance, "blank": totals.sum(1) == 0}
        if METHODS[method].per_modality:
            row |= {f"share_{name}": shares[:, m] for m, name in enumerate(sequences)}
            row["tau"] = importance_correlation(totals, importance)
        if method in ("integrated_gradients", "deeplift", "gradient_shap"):  # add up, pixel by pixel, from zeros on
            row["gap"] = completeness_gap(raw, model, images, explained.targets, np.zeros_like(images))
        if method in COMPLETE_IN_GROUPS:
            once = np.stack([once_a_group(one, own) for one, own in zip(raw, groups)])
            row["gap"] = completeness_gap(once, model, images, explained.targets, np.where(groups >= 0, 0, images))
        tables.append(pd.DataFrame(row).assign(method=method))
    return pd.concat(tables, ignore_index=True)


def removal_table(maps: Mapping[str, np.ndarray], explained: Explained, model: keras.Model, baselines: Sequence[str],
                  levels: int, seed: int, label: str = "network") -> pd.DataFrame:
    """Delta-AUPC of every map under every replacement baseline: ``method, baseline, image, subject, aupc, delta``.

    What is followed is the probability of the explained class, image by image; what is removed lies in the brain.
    """
    images, falling = explained.images, np.linspace(1, 0, levels)
    inside = np.repeat(explained.brain[..., None], images.shape[-1], -1)

    def areas(heat, baseline):
        curve = removal_curve(lambda changed: _outcome(model, changed, explained.targets)[1], images, heat, baseline,
                              inside, falling)
        return np.array([area_under_removal(one, falling) for one in curve.T])

    tables = []
    for method, raw in progress(list(maps.items()), desc=f"{label}: removal", unit="method"):
        heat = postprocess(raw, SIGMA)
        for name in baselines:
            baseline = partial(replace_removed, baseline=name, seed=seed)
            area, random = areas(heat, baseline), areas(shuffled_maps(heat, inside, seed), baseline)
            tables.append(pd.DataFrame({"method": method, "baseline": name, "image": np.arange(len(images)),
                                        "subject": list(explained.subjects), "aupc": area, "delta": random - area}))
    return pd.concat(tables, ignore_index=True)


def randomised_similarity(model: keras.Model, maps: Mapping[str, np.ndarray], explained: Explained,
                          cascade: Collection[str] = tuple(STEPS), label: str = "network", **settings) -> pd.DataFrame:
    """Similarity of every method's maps to the original while layers are set to random from the output down.

    `maps` are of the trained network; `cascade` are some of `STEPS` (others raise a ValueError); `settings` are those
    of `attribute_all`, and ``seed`` draws the weights too. Given for `RANDOMISED` slices spread over the subjects:
    ``method, step, random, subject, similarity``, NaN where a map is flat (Adebayo et al. 2018).
    """
    if isinstance(cascade, str) or not set(cascade) <= set(STEPS):
        raise ValueError(f"cascade: must be a collection of some of {list(STEPS)} (got {cascade!r})")
    index = evenly(np.arange(len(explained.images)), RANDOMISED)
    part = explained.at(index)
    asked = part.images, part.targets, part.brain
    before, tables = {method: values[index] for method, values in maps.items()}, []
    if len(index) < len(explained.images):  # made of the same images as those that they are compared with
        joint = [method for method in maps if method in JOINT]
        before |= attribute_all(model, *asked, joint, f"{label}: as trained", **settings)[0]
    for step, (random, lowest) in enumerate(STEPS.items(), start=1):
        if random in cascade:
            network = randomised_copy(model, lowest, settings["seed"])
            found, _ = attribute_all(network, *asked, list(maps), f"{label}, random: {random}", **settings)
            tables += [pd.DataFrame({"method": method, "step": step, "random": random, "subject": part.subjects,
                                     "similarity": map_similarity(before[method], after, part.brain)})
                       for method, after in found.items()]
    return pd.concat(tables, ignore_index=True)


def repeat_similarity(maps: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], brain,
                      subjects) -> pd.DataFrame:
    """Similarity of the maps of two networks trained alike from another seed: ``method, subject, similarity``."""
    return pd.concat([pd.DataFrame({"method": method, "subject": list(subjects),
                                    "similarity": map_similarity(own, others[method], brain)})
                      for method, own in maps.items()], ignore_index=True)


# --- tables of methods -------------------------------------------------------------------------------------------


def informativeness(scores: pd.DataFrame) -> pd.DataFrame:
    """Does a map tell a correct prediction from a wrong one?

    By method: Spearman's ``rho`` of MSFI with the probability of the explained class, and ``p_correct``, the one-sided
    p of MSFI being larger where the network is correct (NaN: all or none are). Fewer than `MIN_SUBJECTS` maps have no
    rho.
    """
    rows = []
    for method, part in scores.groupby("method", sort=False):
        known = part[part["msfi"].notna()]
        correct, wrong = known.loc[known["correct"], "msfi"], known.loc[~known["correct"], "msfi"]
        varies = len(known) >= MIN_SUBJECTS and np.ptp(known["msfi"]) > 0
        rho = spearmanr(known["msfi"], known["probability"]).statistic if varies else np.nan
        p = mannwhitneyu(correct, wrong, alternative="greater").pvalue if len(correct) and len(wrong) else np.nan
        rows.append({"method": method, "rho": rho, "p_correct": p})
    return pd.DataFrame(rows).set_index("method")


def method_table(scores: pd.DataFrame, removal: pd.DataFrame, randomised: pd.DataFrame,
                 repeat: pd.DataFrame | None = None, **draws) -> pd.DataFrame:
    """One row per method: mean of all measures with ``<measure>_low`` and ``<measure>_high``.

    Tables as from `score_maps`, `removal_table` (``delta_<baseline>``), `randomised_similarity` (its last step counts:
    ``random``) and `repeat_similarity` (``repeat``). Besides ``<measure>_chance`` where it is defined, ``rho,
    p_correct`` of `informativeness`, ``blank`` and ``slices``: blank maps and all of them.
    """
    last = randomised[randomised["step"] == randomised["step"].max()]
    values = [scores.assign(measure=name, value=scores[name]) for name in SCORES if name in scores]
    values.append(removal.assign(measure="delta_" + removal["baseline"], value=removal["delta"]))
    values += [similar.assign(measure=name, value=similar["similarity"])
               for name, similar in (("random", last), ("repeat", repeat)) if similar is not None]
    rows = {method: {} for method in METHODS if method in set(scores["method"])}
    for (method, name), part in pd.concat(values).groupby(["method", "measure"], sort=False):
        limits = mean_interval(part["value"], part["subject"], **draws).values()
        rows[method] |= dict(zip((name, f"{name}_low", f"{name}_high"), limits))
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").join(informativeness(scores))
    by_method = scores.groupby("method")
    for name in (f"{name}_chance" for name in SCORES if f"{name}_chance" in scores):
        table[name] = by_method[name].mean()
    return table.assign(blank=by_method["blank"].sum(), slices=by_method.size())


def shown_measures(table: pd.DataFrame) -> dict[str, str]:
    """Columns of the figure that the table has, with what is better (`BETTER`)."""
    return {name: better for name, better in BETTER.items() if name in table and table[name].notna().any()}


def cannot_order(table: pd.DataFrame) -> list[str]:
    """Columns of delta-AUPC whose values are all below `NEGLIGIBLE` in size.

    Removal by any map, and by its shuffled copy, cost the network the same under this baseline: that may be the
    baseline, not the map, and the order of the methods means nothing.
    """
    return [name for name in BETTER if name.startswith("delta") and name in table
            and (table[name].abs() < NEGLIGIBLE).all()]


def chance_levels(scores: pd.DataFrame) -> dict[str, float]:
    """What a map without knowledge reaches, by measure."""
    rows = scores[scores["method"] == scores["method"].iloc[0]]
    zero = dict.fromkeys(["rho", *(name for name in BETTER if name.startswith("delta"))], 0.0)
    modalities = sum(name.startswith("share_") for name in scores)
    return zero | {name: float(rows[f"{name}_chance"].mean()) for name in ("msfi", "portion")} | {
        "iou": float(scores["iou_chance"].mean()), "tau": float(correlation_by_chance(modalities).mean())}


def by_step(randomised: pd.DataFrame, **draws) -> pd.DataFrame:
    """Mean similarity by method and step of the randomisation: ``method, step, random, value, low, high``."""
    keys = ["method", "step", "random"]
    return pd.DataFrame([dict(zip(keys, key)) | mean_interval(part["similarity"], part["subject"], **draws)
                         for key, part in randomised.groupby(keys, sort=False)])


def advantage(scores: pd.DataFrame, methods: Sequence[str], **draws) -> pd.DataFrame:
    """MSFI of some methods minus that of the best other, slice by slice: ``method, other, value, low, high``."""
    own = [name for name in ("experiment", "subject", "image") if name in scores]
    wide = scores.pivot_table("msfi", own, "method").reindex(columns=scores["method"].unique())
    others = wide.drop(columns=list(methods))
    best = others.mean().idxmax() if others.notna().any(axis=None) else others.columns[0]
    return pd.DataFrame([{"method": name, "other": best} | mean_interval(
        wide[name] - wide[best], wide.index.get_level_values("subject"), **draws) for name in methods])


def baseline_agreement(removal: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau between the orders of the methods by delta-AUPC under two replacement baselines each.

    NaN where all values of one are below `NEGLIGIBLE` in size: it gives no order.
    """
    means = removal.pivot_table("delta", "method", "baseline")
    silent = (means.abs() < NEGLIGIBLE).all()
    return pd.DataFrame([{"baseline": a, "other baseline": b, "tau": np.nan if silent[a] or silent[b] else
                          kendalltau(means[a], means[b]).statistic} for a, b in combinations(means, 2)])


def network_agreement(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Do two networks put the methods into the same order? Kendall's tau of each measure over the methods.

    Tables by network, from `method_table`. Delta-AUPC below `NEGLIGIBLE` in size count as 0, all alike; for ``random``
    the distance from 0 counts. ``chance``: 95 % of orders drawn at random have a tau within it on either side (normal
    approximation, without ties). Left out: a measure that fewer than three methods have, or that does not differ
    between them, or of fewer than `MIN_SUBJECTS` slices.
    """
    rows = []
    for (name, one), (other, two) in combinations(tables.items(), 2):
        few = min(one["slices"].min(), two["slices"].min()) < MIN_SUBJECTS
        # Portion is that of a sequence that may be another one; rho is of few slices.
        compared = [] if few else [name for name in BETTER if name in one and name in two]
        for measure in (name for name in compared if name not in ("portion", "rho")):
            both = pd.concat([one[measure], two[measure]], axis=1).dropna().to_numpy(float)
            if measure.startswith("delta"):
                both = np.where(np.abs(both) < NEGLIGIBLE, 0, both)
            both = np.abs(both) if BETTER[measure] == "near 0" else both
            n = len(both)
            if n > 2 and np.ptp(both, axis=0).all():
                rows.append({"network": name, "other network": other, "measure": LABELS[measure],
                             "tau": kendalltau(*both.T).statistic,
                             "chance": 1.96 * np.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))), "methods": n})
    return pd.DataFrame(rows)


def share_table(scores: pd.DataFrame, importance: pd.DataFrame, sequences: Sequence[str]) -> pd.DataFrame:
    """Mean share of every sequence in the maps of each method; last, where it has intervals, their importance."""
    table = scores.groupby("method", sort=False)[[f"share_{name}" for name in sequences]].mean().dropna(how="all")
    weights = np.clip(importance_of(importance, sequences), 0, None)
    if importance["low"].notna().any() and weights.any():
        table.loc["exact Shapley value of the sequence"] = weights / weights.sum()
    return table.reset_index()


def checks(table: pd.DataFrame, exposed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Which methods pass which check on networks with a known decision rule: by method, one column a check.

    `table`: from `method_table`; `exposed`: from `mslib.analysis.known_rule.shortcut_table`, None where the network has
    not learnt the shortcut. `PASSES`, `FAILS`, or `UNTESTABLE`: not defined for the method, for no map of it (blank
    ones), or too few subjects for an interval. Baselines of `cannot_order` do not count.
    """
    silent, own = cannot_order(table), [METHODS[name].per_modality for name in table.index]
    deltas = [name for name in BETTER if name.startswith("delta") and name in table and name not in silent]
    lows = table[[f"{name}_low" for name in deltas]]
    worst = lows.min(axis=1)
    found = {
        "map of its own per sequence": _passes(pd.Series(own, table.index).astype(float), 0),
        "marks the features more than chance": _passes(table["msfi_low"], table["msfi_chance"]),
        "changes with the network's weights": _passes(-table["random"], -FAILS_ABOVE),
        "marks what the network needs": _passes(worst.where(lows.notna().all(axis=1) | (worst <= NOTABLE)), NOTABLE),
        "adds up": _passes(-table.get("gap", pd.Series(np.nan, table.index)), -GAP_ABOVE)}
    if exposed is not None:
        shown = exposed["exposed"].reindex(table.index).astype("boolean")
        found["exposes the shortcut"] = shown.map({True: PASSES, False: FAILS}).fillna(UNTESTABLE)
    return pd.DataFrame(found, index=table.index)


def _passes(values, border):
    return np.where(values.isna() | pd.isna(border), UNTESTABLE, np.where(values > border, PASSES, FAILS))
