"""Class activation maps of every layer, measured beside their comparators; what follows for depth, with intervals.

Tables of maps (`measure_layers`, `randomise_layers`) are those of one network, which the columns ``kind, backbone,
seed`` name. ``source`` says whose map a row measures: of the ``network``; of the network, but of ``another patient``;
of an ``untrained`` network (``draw``: which one); a ``comparator``, whose name stands under ``method``.
``**draws``: n, confidence, seed of the bootstrap over subjects and trainings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.stats import rankdata
from skimage.filters import sobel
from skimage.measure import label

from mslib import explain, measure
from mslib.nets import evenly, last_convolution
from mslib.study import StudyError

from .lobes import LOBES, lobe_shares

#: Layers that are explained; those of blocks 4 and 5 are what the publication looked at.
EXPLAINED = re.compile(r"block[345]_(conv\d+|pool)")
#: Measures of the curves over depth and how figures label them.
MEASURES = {"auprc": "AUPRC", "precision": "precision, hottest pixels", "pointing": "pointing game",
            "mass_share": "map's sum inside lesions", "half_heat_share": "brain share with half of the sum",
            "edge_share": "map's sum at the brain's edge"}
#: Measures of which the share of the way from location prior to oracle is given, as ``<measure>_way``.
WAYS = ("auprc", "precision")
#: Largest lesion of a slice, mm2: above the first border, up to the second.
SIZES = {"small": (0, 100), "medium": (100, 400), "large": (400, np.inf)}
#: Lowest layer of each step of the randomisation, deep to shallow.
STEPS = {"block5_conv1": "block 5", "block3_conv1": "blocks 3 to 5", "block1_conv1": "all layers"}
#: The step after which a map must not be like that of the trained network.
ALL_RANDOM = "blocks 3 to 5"
#: Width of the brain's edge, mm; smoothing of the location prior in the plane, mm, and across slices.
EDGE_MM, PRIOR_MM, PRIOR_SLICES = 5.0, 3.0, 5.0
#: The layer that Hong and Zhang 2021 call hard to read, and the middle of the slices that they show, of 135.
HARD_LAYER, PUBLISHED_SLICE = "block4_conv4", 57
NETWORK = ["kind", "backbone"]
TRAINING = [*NETWORK, "seed"]


class Slices(NamedTuple):
    """Slices that networks are explained on: images (N, H, W, M), all else (N, H, W).

    ``table``: ``subject, group, cohort, slice, target, area_mm2`` (all lesions), ``size`` (of `SIZES`); ``prior``:
    `location_prior`; ``edge``: the outermost `EDGE_MM` of the brain in the plane.
    """

    table: pd.DataFrame
    images: np.ndarray
    lesions: np.ndarray
    brain: np.ndarray
    prior: np.ndarray
    edge: np.ndarray

    def take(self, rows: np.ndarray) -> Slices:
        """The slices at these rows."""
        return Slices(self.table.iloc[rows].reset_index(drop=True), *(array[rows] for array in self[1:]))


def gather_slices(cases: Iterable, each: int, pixel_mm: float) -> Slices:
    """So many slices of every case (`evenly`), StudyError where none has any; the prior is made of all of them.

    `cases` have ``subject, group, cohort, target, slices`` (numbers), ``images, lesions, brain``, one slice a row.
    """
    rows, chosen, known = [], [], []
    for case in cases:
        lesions = case.lesions & case.brain
        known.append((case.subject, np.asarray(case.slices), lesions))
        if not len(case.slices):
            continue
        index = evenly(np.arange(len(case.slices)), each)
        chosen.append((case.images[index], lesions[index], case.brain[index]))
        for i in index:
            areas = np.bincount(label(lesions[i]).ravel())[1:] * pixel_mm**2
            size = [name for name, (low, high) in SIZES.items() if low < areas.max(initial=0) <= high]
            rows.append({"subject": case.subject, "group": case.group, "cohort": case.cohort,
                         "slice": int(case.slices[i]), "target": int(case.target), "area_mm2": areas.sum(),
                         "size": "".join(size)})
    if not rows:
        raise StudyError("maps: no explained person has a slice with lesions")
    table = pd.DataFrame(rows)
    images, lesions, brain = (np.concatenate(part) for part in zip(*chosen))
    edge = brain & (np.stack([distance_transform_edt(one) for one in brain]) * pixel_mm <= EDGE_MM)
    return Slices(table, images, lesions, brain, location_prior(table, known, pixel_mm), edge)


def location_prior(table: pd.DataFrame, known: Sequence[tuple[str, np.ndarray, np.ndarray]],
                   pixel_mm: float) -> np.ndarray:
    """Density of the lesions of all other subjects about each slice of a table, (N, H, W), smoothed.

    `known`: subject, slice numbers and lesion masks, (n, H, W), of everybody; slices left out hold no lesion.
    """
    number, owner = table["slice"].to_numpy(), table["subject"].to_numpy()
    total = np.zeros((len(table), *known[0][2].shape[1:]), np.float32)
    for subject, numbers, lesions in known:
        weights = np.exp(-0.5 * ((number[:, None] - numbers) / PRIOR_SLICES) ** 2) * (owner != subject)[:, None]
        total += np.einsum("ns,shw->nhw", weights.astype(np.float32), lesions.astype(np.float32), optimize=True)
    return gaussian_filter(total, (0, PRIOR_MM / pixel_mm, PRIOR_MM / pixel_mm))


def explained_layers(network: keras.Model) -> list[str]:
    """Convolutions and pools of blocks 3 to 5, shallow to deep."""
    return [name for name in explain.spatial_layers(network) if EXPLAINED.fullmatch(name)]


def another_patient(table: pd.DataFrame) -> np.ndarray | None:
    """For each slice of a table the row of another subject's slice, the nearest in height; None: there is no other.

    Of the same ``target`` wherever there is one, since maps of two logits differ for that reason alone.
    """
    number, owner, target = table["slice"].to_numpy(float), table["subject"].to_numpy(), table["target"].to_numpy()
    distance = np.abs(number[:, None] - number) + (target[:, None] != target) * (np.ptp(number) + 1)
    distance[owner[:, None] == owner] = np.inf
    return distance.argmin(1) if np.isfinite(distance).any(1).all() else None


def _measured(heat, slices, **names):
    """Rows of `measure_maps` with the share of the brain's edge and the columns of the slices."""
    found = measure.measure_maps(heat, slices.lesions, slices.brain)
    total, edge = ((heat * mask).sum((1, 2), dtype=float) for mask in (slices.brain, slices.edge))
    found = found.assign(chance=found["auprc_chance"], edge_share=edge / np.where(total > 0, total, np.nan))
    return slices.table.join(found[[*MEASURES, "q95", "blank", "chance"]]).assign(**{"draw": 0} | names)


def measure_layers(found: explain.LayerPass, slices: Slices, flair: int,
                   lobes: np.ndarray | None = None) -> pd.DataFrame:
    """Measures of a network's maps and of all comparators on the same slices.

    `flair`: channel of FLAIR; `lobes`: int (N, H, W), from `lobe_labels`. A row per slice, source, method and layer
    (``image``: of none): the columns of `Slices.table`, `MEASURES`, ``q95, blank, chance`` (lesions' share of the
    brain); of Grad-CAM ``kept`` (`mslib.explain.LayerPass`) and, with lobes, the share of each in the map's sum
    (``lobe <name>``) and in the brain (``brain <name>``). Comparators: ``oracle`` (the lesions, averaged to the layer's
    cells and resampled like its maps), ``prior``, ``intensity`` (FLAIR), ``edges`` (its Sobel filter).
    """
    other, tables, size = another_patient(slices.table), [], slices.brain.shape[1:]
    for method, of_layer in found.cams.items():
        for layer, raw in of_layer.items():
            heat, names = explain.upsample_maps(raw, size), {"method": method, "layer": layer}
            table = _measured(heat, slices, source="network", **names)
            if method == "gradcam":
                table["kept"] = found.kept[layer]
                if lobes is not None:
                    shares, uniform = lobe_shares(heat, lobes), lobe_shares(slices.brain, lobes)
                    table = pd.concat([table, shares.add_prefix("lobe "), uniform.add_prefix("brain ")], axis=1)
            tables.append(table)
            if other is not None and method in explain.CAM_METHODS:
                tables.append(_measured(heat[other], slices, source="another patient", **names))
    image = np.maximum(slices.images[..., flair].astype(np.float32), 0)
    comparators = {("oracle", layer): explain.upsample_maps(explain.average_cells(slices.lesions, raw.shape[1:]), size)
                   for layer, raw in next(iter(found.cams.values())).items()}
    comparators |= {("prior", "image"): slices.prior, ("intensity", "image"): image,
                    ("edges", "image"): np.stack([sobel(one) for one in image])}
    tables += [_measured(heat, slices, source="comparator", method=name, layer=layer)
               for (name, layer), heat in comparators.items()]
    return pd.concat(tables, ignore_index=True)


def brain_cells(brain: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Cells of a layer of which at least half is brain: bool, (N, h, w), of masks (N, H, W)."""
    return explain.average_cells(brain, cells) >= 0.5


def rank_correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Spearman's correlation, (N,), of maps over cells `inside`, all (N, h, w); NaN: one map is constant there."""
    found = np.full(len(a), np.nan)
    for i, cells in enumerate(inside):
        ranks = rankdata([a[i][cells], b[i][cells]], axis=1) if cells.sum() > 2 else np.zeros((2, 1))
        ranks -= ranks.mean(axis=1, keepdims=True)
        norm = np.sqrt((ranks**2).sum(axis=1).prod())
        found[i] = ranks[0] @ ranks[1] / norm if norm > 0 else np.nan
    return found


def randomise_layers(network: keras.Model, found: explain.LayerPass, slices: Slices, draws: int,
                     seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Maps of networks that are random from the output down to the lowest layers of `STEPS`.

    At each step every slice is explained once, by one of `draws` random networks. First table: `rank_correlation` with
    the trained network's map: the columns of `Slices.table`, ``step, draw, method, layer, spearman``; under ``step``
    also that of the trained network's own maps with those of ``another patient``. Second: measures of the maps when all
    layers are random, as of `measure_layers`.
    """
    own = {(method, layer): raw for method, maps in found.cams.items() if method in explain.CAM_METHODS
           for layer, raw in maps.items()}
    methods, layers = (list(dict.fromkeys(names)) for names in zip(*own))
    n, size, likeness, untrained = len(slices.table), slices.brain.shape[1:], [], []
    inside = {layer: brain_cells(slices.brain, own[methods[0], layer].shape[1:]) for layer in layers}

    def compare(rows, maps, **names):
        for (method, layer), raw in own.items():
            correlation = rank_correlation(raw[rows], maps[method, layer], inside[layer][rows])
            likeness.append(slices.table.iloc[rows].assign(spearman=correlation, method=method, layer=layer, **names))

    other = another_patient(slices.table)
    if other is not None:
        compare(np.arange(n), {key: raw[other] for key, raw in own.items()}, step="another patient", draw=0)
    for draw, lowest, random in explain.cascading_randomisation(network, list(STEPS), draws, seed):
        rows = np.arange(draw - 1, n, draws)
        if not len(rows):
            continue
        part = slices.take(rows)
        cams = explain.explain_layers(random, part.images, part.table["target"], layers, methods).cams
        maps = {(method, layer): cams[method][layer] for method, layer in own}
        compare(rows, maps, step=STEPS[lowest], draw=draw)
        if lowest == list(STEPS)[-1]:
            untrained += [_measured(explain.upsample_maps(raw, size), part, source="untrained", draw=draw,
                                    method=method, layer=layer) for (method, layer), raw in maps.items()]
    return pd.concat(likeness, ignore_index=True), pd.concat(untrained, ignore_index=True)


def channel_peaks(network: keras.Model, images: np.ndarray, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Largest activation of every channel of layers, (N, channels), as in `LayerPass`, from forward passes alone."""
    peaks = [keras.layers.GlobalMaxPooling2D()(network.get_layer(name).output) for name in layers]
    return dict(zip(layers, keras.Model(network.inputs, peaks).predict(images, batch_size=8, verbose=0)))


def dead_channels(peaks: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Shares of a layer's channels that no slice activates: ``layer, channels, slices, dead, dead_at_start, died``.

    `peaks`, `start`: (N, channels) of the same slices, after and before fine-tuning. ``died``: dead since then only.
    """
    rows = []
    for layer, after in peaks.items():
        dead, before = (each.max(0) <= 0 for each in (after, start[layer]))
        rows.append({"layer": layer, "channels": len(dead), "slices": len(after), "dead": dead.mean(),
                     "dead_at_start": before.mean(), "died": (dead & ~before).mean()})
    return pd.DataFrame(rows)


def layers_of(table: pd.DataFrame) -> list[str]:
    """Layer names of a column ``layer``, shallow to deep (pools after the convolutions of their block)."""
    names = [name for name in table["layer"].unique() if EXPLAINED.fullmatch(name)]
    return sorted(names, key=lambda name: (name.split("_")[0], "pool" in name, name))


def depth_table(maps: pd.DataFrame, by: Sequence[str] = NETWORK, **draws) -> pd.DataFrame:
    """Mean of every measure per source, method and layer, correctly and wrongly classified slices apart.

    `by`, ``classified, source, method, layer, measure, value, low, high, slices, subjects, trainings, blank`` (share of
    blank maps, which have no measure). ``<measure>_way``: share of the way from the location prior to the oracle of the
    layer, ``(value - prior) / (oracle - prior)``, all three of the slices whose map is not blank; NaN where not even
    the oracle exceeds the prior.
    """
    maps, keys = maps.assign(classified=np.where(maps["correct"], "correctly", "wrongly")), [*by, "classified"]
    return pd.concat([_means(rows, **draws).assign(**dict(zip(keys, key)))
                      for key, rows in maps.groupby([*keys, maps["source"] == "untrained"])], ignore_index=True)


def _means(rows, n, confidence, seed):
    cell = ["source", "method", "layer"]
    wide = rows.pivot_table(index=["seed", "draw", "subject", "slice"], columns=cell, values=list(MEASURES))
    cells = rows[cell].drop_duplicates().itertuples(index=False, name=None)  # also those whose maps are all blank
    known = [(name, *one) for name, one in product(wide.columns.unique(0), list(cells))]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(known, names=wide.columns.names))
    units = wide.index.to_frame()
    trainings = units["seed"].astype(str) + "/" + units["draw"].astype(str)
    # Every draw of an untrained network explains other slices: subjects and draws are not crossed.
    means, resampled = measure.bootstrap_means(wide, units["subject"], units["seed"], n, seed)
    found = {column: (means[i], resampled[:, i]) for i, column in enumerate(wide.columns)}
    for name, source, method, layer in list(found):
        ends = [(name, "comparator", "prior", "image"), (name, "comparator", "oracle", layer)]
        if name in WAYS and source == "network" and set(ends) <= set(found):
            own = wide[name, source, method, layer]
            value, (prior, oracle) = found[name, source, method, layer], (found[column] for column in ends)
            if own.isna().any():
                same = wide[ends].where(own.notna(), axis=0)
                at, drawn = measure.bootstrap_means(same, units["subject"], units["seed"], n, seed)
                prior, oracle = zip(at, drawn.T)
            found[f"{name}_way", source, method, layer] = tuple(
                (value[i] - prior[i]) / np.where(oracle[i] > prior[i], oracle[i] - prior[i], np.nan) for i in (0, 1))
    blank = rows.groupby(cell)["blank"].mean()
    counts = {"slices": len(units[["subject", "slice"]].drop_duplicates()), "subjects": units["subject"].nunique(),
              "trainings": trainings.nunique()}
    return pd.DataFrame([{**dict(zip(["measure", *cell], column)),
                          **measure.percentile_interval(value, draws, confidence), **counts, "blank": blank[column[1:]]}
                         for column, (value, draws) in found.items()])


def example_candidates(maps: pd.DataFrame, group: str = "SPMS", n_slices: int = 135) -> pd.DataFrame:
    """Slices for the figures, the best first: ``subject, slice, group, errors`` (networks that misclassify it).

    In this order: fewest errors; lesions of 100 mm2 or more; the group and slices (57 to 59 of 135) of the publication.
    """
    one = maps[(maps["source"] == "network") & (maps["method"] == maps["method"].iloc[0])]
    one = one[one["layer"] == one["layer"].iloc[0]].assign(wrong=~one["correct"].astype(bool))
    table = one.groupby(["subject", "slice", "group"], as_index=False).agg(errors=("wrong", "sum"),
                                                                           area=("area_mm2", "max"))
    table = table.assign(small=table["area"] < 100, other=table["group"] != group,
                         distance=(table["slice"] - PUBLISHED_SLICE * n_slices / 135).abs())
    order = ["errors", "small", "other", "distance", "subject"]
    return table.sort_values(order, ignore_index=True)[["subject", "slice", "group", "errors"]]


def choose_example(candidates: pd.DataFrame, networks: Mapping, patient_of: Callable) -> tuple:
    """The first of five `example_candidates` that networks classify correctly together with both its neighbours.

    `patient_of`: from a subject to images, (n, H, W, M), and class. Given are the number of errors (if there is no such
    slice the smallest), the subject, the three slices, and the classes, (3,), that each of the `networks` predicts.
    """
    found = []
    for place in candidates.head(5).itertuples():
        images, target = patient_of(place.subject)
        index = np.clip(place.slice, 1, len(images) - 2) + np.array([-1, 0, 1])
        classes = {name: network.predict(images[index], verbose=0).argmax(1) for name, network in networks.items()}
        found.append((sum(int((one != target).sum()) for one in classes.values()), place.subject, index, classes))
        if not found[-1][0]:
            break
    return min(found, key=lambda one: one[0])


def size_examples(maps: pd.DataFrame, cases: Iterable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, lesions, brain of a slice per lesion size (the best of `example_candidates`) of a network, by area."""
    best = [example_candidates(part).iloc[0] for _, part in maps.groupby("size")]
    cases = {case.subject: case for case in cases if case.subject in {place.subject for place in best}}
    found = [(cases[place.subject], list(cases[place.subject].slices).index(place.slice)) for place in best]
    found.sort(key=lambda one: one[0].lesions[one[1]].sum())
    return tuple(np.stack([getattr(case, name)[row] for case, row in found]) for name in ("images", "lesions", "brain"))


def best_layers(curves: pd.DataFrame) -> pd.DataFrame:
    """Where networks' own maps of `depth_table` go furthest from location prior to oracle (``value``): three rows each.

    ``pick``: the last convolution with Grad-CAM, Grad-CAM's best layer, the best method and layer of all. Layers of
    which more than half of the maps are blank do not count.
    """
    key = [*NETWORK, "method", "layer"]
    auprc = curves.loc[curves["measure"] == "auprc", [*key, "value"]].rename(columns={"value": "auprc"})
    way = curves[(curves["measure"] == "auprc_way") & curves["value"].notna() & (curves["blank"] <= 0.5)]
    columns = [*NETWORK, "pick", "method", "layer", "auprc", "value", "low", "high", "trainings", "slices", "blank"]
    way = way.merge(auprc, on=key)
    gradcam = way[way["method"] == "gradcam"]
    picks = {"last convolution": gradcam[gradcam["layer"] == gradcam["backbone"].map(last_convolution)],
             "best of Grad-CAM": gradcam.loc[gradcam.groupby(NETWORK)["value"].idxmax()],
             "best of all": way.loc[way.groupby(NETWORK)["value"].idxmax()]}
    table = pd.concat([rows.assign(pick=pick) for pick, rows in picks.items()])
    return table[columns].sort_values(NETWORK, kind="stable")


def kind_similarity(stored: Mapping[tuple[str, int], Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """`rank_correlation` of the maps of every two networks of a backbone, slice by slice.

    `stored`: by kind and seed ``subject, slice, brain`` of the same slices, and maps under ``<method>|<layer>``.
    Columns ``pair`` (kinds), ``trainings`` (seeds), ``method, layer, subject, slice, spearman``.
    """
    return pd.concat([pd.DataFrame({
        "pair": " and ".join(sorted([one[0], two[0]])), "trainings": f"{one[1]}/{two[1]}",
        **dict(zip(("method", "layer"), name.split("|"))), "subject": a["subject"], "slice": a["slice"],
        "spearman": rank_correlation(a[name], b[name], brain_cells(a["brain"], a[name].shape[1:]))})
        for (one, a), (two, b) in combinations(stored.items(), 2) for name in a if "|" in name], ignore_index=True)


def randomisation_summary(table: pd.DataFrame, **draws) -> pd.DataFrame:
    """Are maps of random networks more like the original than a map of another patient is?

    From the similarities of `randomise_layers`: ``kind, backbone, method, layer, step, similarity, null`` (with another
    patient's map, same slices), ``value, low, high, subjects`` of their difference (interval over subjects, each with
    draws of its own), ``measure`` (spearman), ``all_random``: the step that decides.
    """
    place, by = [*NETWORK, "method", "layer", "subject", "slice"], [*NETWORK, "method", "layer", "step"]
    null = table[table["step"] == "another patient"].set_index(place)["spearman"].rename("null")
    pairs = table[table["step"] != "another patient"].rename(columns={"spearman": "similarity"}).join(null, on=place)
    pairs = pairs.assign(spearman=pairs["similarity"] - pairs["null"]).sort_values(by, kind="stable")
    found = measure.mean_by(pairs, by, ["spearman"], beside=["similarity", "null"], **draws).assign(
        all_random=lambda rows: rows["step"] == ALL_RANDOM)
    return found[[*by, "similarity", "null", "value", "low", "high", "subjects", "measure", "all_random"]]


# What the publication says of depth: Grad-CAM in blocks 4 and 5, correctly classified slices.


def _published(maps, source="network"):
    """Rows of Grad-CAM in blocks 4 and 5: networks' own maps of correctly classified slices, or maps of a `source`."""
    rows = maps[(maps["source"] == source) & (maps["method"] == "gradcam") & (maps["correct"] | (source != "network"))]
    return rows[~rows["layer"].str.startswith("block3")]


def _subject_means(part, name):
    """Mean of a measure over a subject's slices: one row a subject, one column a layer, shallow to deep."""
    return part.pivot_table(index="subject", columns="layer", values=name).reindex(columns=layers_of(part))


def _trend(part, name):
    """Rank correlation of depth with a measure, subject by subject."""
    means = _subject_means(part, name)
    return means.corrwith(pd.Series(range(means.shape[1]), means.columns, float), axis=1, method="spearman")


def rank_sums(part: pd.DataFrame) -> pd.DataFrame:
    """Each subject's sum of two ranks per layer: of AUPRC (1 = highest) and of the map's spread (1 = least).

    A small sum is a good compromise. A layer whose maps of the subject are all blank has the last rank in both.
    """
    auprc, spread = (_subject_means(part, name) for name in ("auprc", "half_heat_share"))
    return auprc.rank(axis=1, ascending=False, na_option="bottom") + spread.rank(axis=1, na_option="bottom")


def compromise(part: pd.DataFrame, last: str) -> tuple[str, pd.Series]:
    """Is the last convolution a better compromise than its strongest rival, which other subjects have chosen?

    The rival is the other layer with the smallest mean rank sum in one half of the subjects (every second of each
    group). Given are its name and, for every subject of the other half, its rank sum minus that of the last
    convolution: above 0 the last convolution is better.
    """
    sums = rank_sums(part)
    groups = part.groupby("subject")["group"].first()[sums.index]
    second = groups.groupby(groups).cumcount() % 2 == 1
    rival = str(sums[~second].mean().drop(last).idxmin())
    return rival, sums.loc[second, rival] - sums.loc[second, last]


def sign_test(values: pd.Series, **draws) -> dict:
    """Is the mean of one value a subject (the index; NaN is left out) above 0, as a row with interval and border?

    ``statistic, value, low, high, border, mean, above`` (subjects above 0), ``subjects``. Where all subjects have the
    same value the bootstrap has no width; the share of them above 0, with Wilson's interval, decides instead.
    """
    values = values.dropna()
    mean, above = measure.mean_interval(values, values.index, **draws), int((values > 0).sum())
    row = {"statistic": "mean", **mean, "border": 0.0}
    if np.isnan(mean["low"]) and len(values) >= measure.MIN_SUBJECTS and (values != 0).any():
        share = measure.proportion_interval(above, len(values), draws.get("confidence", 0.95))
        row = {"statistic": "share above 0", **share, "border": 0.5}
    return row | {"mean": mean["value"], "above": above, "subjects": len(values)}


def depth_tests(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Tests of what the publication says of depth: ``kind, backbone, seed, test, layer, rank``, columns of `sign_test`.

    ``spread with depth`` and ``auprc with depth``: rank correlations, mean over subjects. ``spread with depth, beyond
    untrained``: how far the former exceeds that of untrained networks, whose layers have the same grids, on the same
    slices (a few draws, which the interval does not cover). (Without lesion masks these two are the only ones.) ``last
    convolution over rival``: `compromise`; ``layer`` is the rival, ``rank`` that of the last convolution among all.
    ``hard layer minus last``: AUPRC at `HARD_LAYER` minus that of the last convolution, slices.
    """
    rows, masked = [], maps["auprc"].notna().any()
    untrained = _published(maps, "untrained").drop(columns="seed")
    for training, part in _published(maps).groupby(TRAINING):
        last, network = last_convolution(training[1]), dict(zip(TRAINING, training))
        spread = _trend(part, "half_heat_share")
        tests = [("spread with depth", spread, {})]
        beside = untrained.merge(part[[*NETWORK, "subject", "slice"]].drop_duplicates())
        if len(beside):
            gain = spread - _trend(beside, "half_heat_share")
            tests.append(("spread with depth, beyond untrained", gain, {}))
        if masked:
            rival, gain = compromise(part, last)
            facts = {"layer": rival, "rank": int(rank_sums(part).mean().rank()[last])}
            tests += [("auprc with depth", _trend(part, "auprc"), {}), ("last convolution over rival", gain, facts)]
        rows += [network | facts | {"test": test, **sign_test(values, **draws)} for test, values, facts in tests]
        if masked and HARD_LAYER in set(part["layer"]):
            chance = part.groupby(["subject", "slice"])["chance"].transform("max")  # a blank map says no more than that
            wide = part.assign(auprc=part["auprc"].fillna(chance)).pivot_table("auprc", ["subject", "slice"], "layer")
            people = wide.index.get_level_values("subject")
            found = measure.mean_interval(wide[HARD_LAYER] - wide[last], people, **draws)
            rows.append(network | {"test": "hard layer minus last", "layer": HARD_LAYER, "statistic": "mean", **found,
                                   "border": 0.0, "mean": found["value"], "subjects": people.nunique()})
    columns = [*TRAINING, "test", "layer", "rank", "statistic", "value", "low", "high", "border", "mean", "above",
               "subjects"]
    return pd.DataFrame(rows, columns=columns)


def percentile_comparison(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Is the 95th percentile of Grad-CAM (of a blank map 0) higher in SPMS than in RRMS, per training and layer?

    `compare_groups` of patients, and ``p_holm`` over all rows of a seed; empty if a group is absent.
    """
    keys, maps, rows = [*TRAINING, "layer"], _published(maps), []
    q95 = maps["q95"].where(~maps["blank"].astype(bool), 0.0)
    of_subjects = maps.assign(q95=q95).groupby([*keys, "subject", "group"])["q95"].mean().reset_index()
    for key, part in of_subjects.groupby(keys):
        more, less = (part.loc[part["group"] == group, "q95"] for group in ("SPMS", "RRMS"))
        if len(more) and len(less):
            rows.append({**dict(zip(keys, key)), **measure.compare_groups(more, less, **draws)})
    table = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "p", "n_a", "n_b"])
    return table.assign(p_holm=table.groupby("seed")["p"].transform(measure.adjust_p_values))


def lobe_table(maps: pd.DataFrame, **draws) -> pd.DataFrame:
    """Share of Grad-CAM's sum at the last convolution per training, group and lobe; empty where no lobes are known.

    ``brain``: the lobe's share of the brain; ``exceeds_others``: the interval lies above those of all other groups.
    """
    keys, names = [*TRAINING, "group", "lobe"], [f"{of} {lobe}" for of in ("lobe", "brain") for lobe in LOBES]
    own = _published(maps.reindex(columns=list(dict.fromkeys([*maps, *names])))).dropna(subset=names[-1:])
    own = own[own["layer"] == own["backbone"].map(last_convolution)]
    long = pd.concat([own.assign(lobe=lobe, share=own[f"lobe {lobe}"], brain=own[f"brain {lobe}"]) for lobe in LOBES])
    table = measure.mean_by(long.sort_values(keys[:-1], kind="stable"), keys, ["share"], beside=["brain"], **draws)
    others = table.merge(table, on=[*TRAINING, "lobe"], suffixes=("", "_other")).query("group != group_other")
    others = others.assign(exceeds_others=others["high_other"] < others["low"])
    exceeds = others.groupby(keys)["exceeds_others"].all()
    return table.assign(exceeds_others=[bool(exceeds.get(key, False)) for key in zip(*(table[key] for key in keys))])
