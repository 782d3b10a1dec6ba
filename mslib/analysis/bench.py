"""The bench: any attribution method on networks whose cause is known, one row a method (docs/bench.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd

from mslib.explain import METHODS, Method
from mslib.study.errors import StudyError

from .attribution import FAILS_ABOVE, STEPS, Explained, attribute_all, localise, randomised_similarity, score_maps
from .known_rule import shortcut_shares, shortcut_table

#: First row of the table: what a map without knowledge reaches.
CHANCE = "chance"
#: What is random in the check of `mslib.analysis.attribution.randomised_similarity`.
ALL_RANDOM = {"all layers": STEPS["all layers"]}


@dataclass(frozen=True)
class Known:
    """A network whose cause is known, and unseen slices with that cause, the features of `explained`.

    ``decisive``: number of the sequence whose mark decides; ``corner``, bool (N,): slices that show the shortcut.
    Neither: lesions decide.
    """

    name: str
    model: keras.Model
    explained: Explained
    decisive: int | None = None
    corner: np.ndarray | None = None


@contextmanager
def registered(name: str, function: Callable) -> Iterator[str]:
    """A function (model, images, targets) -> maps as a method of the registry while it is needed; its name.

    Maps have the shape of the images, (N, H, W, M), or (N, H, W), one for all modalities. StudyError: the name is that
    of another method; maps of another shape or not finite.
    """
    if name in METHODS:
        raise StudyError(f"bench: a method of the name {name} exists; give the function another name")

    def checked(model, images, targets):
        maps = np.asarray(function(model, images, targets), np.float32)
        if maps.shape == images.shape[:-1]:
            maps = np.repeat(maps[..., None], images.shape[-1], -1)
        if maps.shape != images.shape or not np.isfinite(maps).all():
            raise StudyError(f"bench: {name} must return finite maps of the shape {images.shape} or "
                             f"{images.shape[:-1]} (got {maps.shape}, {np.count_nonzero(~np.isfinite(maps))} values "
                             "not finite)")
        return maps

    METHODS[name] = Method(checked, "gradient", "yours")
    try:
        yield name
    finally:
        del METHODS[name]


def bench(networks: Iterable[Known], methods: Sequence[str], sequences: Sequence[str], **settings) -> pd.DataFrame:
    """What methods find of causes that are known: a row per method, after a row `CHANCE`.

    Means over correctly classified slices: ``auprc, precision`` where lesions decide; where a sequence does, ``msfi``
    (all importance being the decisive sequence's) and ``found`` (share of slices in which it has more of the positive
    attribution than any other). Whether classified correctly or not: of slices that show the shortcut, where that
    decides, ``shortcut`` (share of the positive attribution on it) and ``exposed`` (surely more than twice its share of
    the picture); of slices that all methods explain ``random``, rank correlation with the maps of the same network with
    random weights, and ``sane`` (below `FAILS_ABOVE`); of all slices ``blank`` (share of maps without positive
    attribution in the brain) and ``seconds`` an image. NaN: no such network, or not defined for the method.

    Parameters
    ----------
    networks : iterable of Known
        Each is released before the next one, if the iterable makes them one by one. Their layers are called as in
        VGG16 (`ALL_RANDOM`).
    methods : sequence of str
        As of `mslib.analysis.attribution.attribute_all`, those of `registered` among them.
    sequences : sequence of str
        Names of the modalities.
    **settings
        As of `attribute_all`: superpixels, samples, permutations, steps, seed, precision.
    """
    tables: dict[str, list] = {name: [] for name in ("lesions", "marks", "shortcut", "random", "cost")}
    for known in networks:
        explained, names = known.explained, {"experiment": known.name}
        maps, seconds = attribute_all(known.model, explained, methods, f"bench: {known.name}", **settings)
        scores = score_maps(maps, explained, np.eye(len(sequences))[known.decisive or 0], known.model, sequences)
        tables["cost"].append(scores[["method", "blank"]].assign(seconds=scores["method"].map(seconds)))
        tables["random"].append(randomised_similarity(known.model, maps, explained, known.name, ALL_RANDOM, **settings))
        right = scores[scores["correct"]]
        if known.corner is not None:
            tables["shortcut"].append(shortcut_shares(maps, explained, known.corner, settings["superpixels"]))
        elif known.decisive is not None:
            tables["marks"].append(right.assign(found=_found(right, sequences, known.decisive), **names))
        else:
            tables["lesions"].append(localise(maps, explained).merge(right[["method", "image"]]))
    return _rows({name: pd.concat(parts) for name, parts in tables.items() if parts}, methods, len(sequences))


def _found(scores, sequences, decisive):
    """1 where the decisive sequence has a larger share than any other, else 0; NaN where there are no shares."""
    shares = scores.reindex(columns=[f"share_{name}" for name in sequences]).to_numpy(float)
    return np.where(np.isnan(shares).any(1), np.nan, shares[:, decisive] > np.delete(shares, decisive, 1).max(1))


def _rows(tables, methods, modalities):
    rows = pd.DataFrame(np.nan, pd.Index([CHANCE, *methods], name="method"), ["auprc", "precision", "msfi", "found"])
    if "lesions" in tables:
        rows.update(tables["lesions"].groupby("method")[["auprc", "precision"]].mean())
        rows.loc[CHANCE, ["auprc", "precision"]] = tables["lesions"]["chance"].mean()
    if "marks" in tables:
        rows.update(tables["marks"].groupby("method")[["msfi", "found"]].mean())
        rows.loc[CHANCE, ["msfi", "found"]] = tables["marks"]["msfi_chance"].mean(), 1 / modalities
    rows["shortcut"], rows["exposed"] = np.nan, pd.NA
    if "shortcut" in tables:
        found = shortcut_table(tables["shortcut"]).set_index("method")
        rows["shortcut"], rows["exposed"] = found["value"], found["exposed"]
        rows.loc[CHANCE, "shortcut"] = found["chance"].mean()
    rows["random"] = tables["random"].groupby("method")["similarity"].mean()
    rows["sane"] = (rows["random"] < FAILS_ABOVE).astype("boolean").where(rows["random"].notna())
    cost = tables["cost"].astype({"blank": float}).groupby("method")[["blank", "seconds"]].mean()
    return rows.join(cost)
