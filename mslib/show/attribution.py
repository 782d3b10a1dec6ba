"""Attributions of many methods: maps per sequence, the table of their measures, importance of the sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .curves import COMPARATORS
from .figure import (
    add_legend,
    colours_of,
    draw_slice,
    full_colour,
    heat_bar,
    label_of,
    outline,
    overlay_heat,
    require_columns,
    styled,
)

FEATURE = "#00c853"


@styled
def plot_attributions(image, maps: Mapping[str, np.ndarray], sequences: Sequence[str], *, features=None,
                      shared: Sequence[str] = ()) -> Figure:
    """Maps of many methods over one slice, each sequence on its own, methods side by side.

    Parameters
    ----------
    image : (H, W, M) array
        In [0, 1], the first block.
    maps : mapping of method to (H, W, M) array
        Raw, signed: red speaks for the class, blue against it; ValueError where of another shape or not finite. One
        scale per method, shared by its sequences; full colour at the 99.5th percentile of the sizes.
    sequences : sequence of M str
    features : (H, W, M) bool array, optional
        What should be marked, drawn as outlines.
    shared : sequence of str
        Methods whose map is one for all sequences; their names carry a star.
    """
    image = np.asarray(image)
    for name, values in maps.items():
        if np.shape(values) != image.shape or not np.isfinite(values).all():
            raise ValueError(f"{name}: must be finite, of the shape of the image {image.shape} "
                             f"(got {np.shape(values)})")
    columns = 2 if len(maps) < 4 else 3  # a wide strip of one row is small where it is read
    count, rows = len(sequences), -(-(len(maps) + 1) // columns)
    widths = ([1] * count + [0.25]) * columns
    fig, axes = plt.subplots(rows, len(widths), squeeze=False, width_ratios=widths,
                             figsize=(0.98 * sum(widths) + 0.7, 1.32 * rows + 0.7))
    fig.get_layout_engine().set(w_pad=0.005, h_pad=0.02, wspace=0.005, hspace=0.02)
    for ax in axes.ravel():
        ax.set_axis_off()
    for place, name in enumerate([None, *maps]):
        row, first = place // columns, place % columns * (count + 1)
        block = axes[row, first:first + count]
        for m, ax in enumerate(block):
            if name is None:
                draw_slice(ax, image[..., m], sides=m == 0)
                ax.set_title(sequences[m], fontsize=7)
            else:
                draw_slice(ax, 0.6 * image[..., m])
                overlay_heat(ax, maps[name][..., m], full_colour(maps[name]), signed=True)
            if features is not None:
                outline(ax, features[..., m], colour=FEATURE, width=0.6)
        if name is not None:
            block[count // 2].set_title(label_of(name) + " *" * (name in shared), fontsize=7, fontweight="bold")
    heat_bar(fig, list(axes.ravel()), "attribution, share of the method's full colour", signed=True)
    return fig


@styled
def plot_scores(table, measures: Sequence[str], *, silent: Sequence[str] = (),
                chance: Mapping[str, float] | None = None, labels: Mapping[str, str] | None = None) -> Figure:
    """The measures of methods as dots with intervals: one line per method, one panel per measure.

    `table`: index method; columns `measures`, each with ``<measure>_low`` and ``<measure>_high``; ordered by the first
    measure, the highest on top. `silent`: measures that cannot order the methods, drawn in grey. `chance`: dotted, what
    a map without knowledge reaches, by measure; `labels`: titles by measure.
    """
    require_columns(table, [f"{name}{end}" for name in measures for end in ("", "_low", "_high")], "scores")
    table, place = table.sort_values(measures[0], na_position="first"), np.arange(len(table))
    fig, axes = plt.subplots(1, len(measures), squeeze=False, sharey=True,
                             figsize=(1.15 * len(measures) + 1.9, 0.22 * len(table) + 1.2))
    for ax, name in zip(axes[0], measures):
        colour = "#999999" if name in silent else "#0072B2"
        ax.hlines(place, table[f"{name}_low"], table[f"{name}_high"], color=colour, lw=1.5)
        ax.plot(table[name], place, "o", color=colour, ms=4)
        if name in (chance or {}):
            ax.axvline(chance[name], color="#777777", ls=":", lw=1.2)
        ax.set_title((labels or {}).get(name, name).replace(" ", "\n", 1), fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(axis="y", lw=0.4)
    axes[0, 0].set_yticks(place, [label_of(name) for name in table.index], fontsize=7.5)
    return fig


@styled
def plot_checks(table) -> Figure:
    """Which methods pass which checks: green and a tick, red and a cross, or pale where it is open or cannot be tested.

    `table`: index method; one column per check, of "passes", "fails", "undecided", "not testable".
    """
    kinds = {"fails": ("#d9826b", "✗"), "undecided": ("#f2e3b3", "?"), "not testable": ("#e6e6e6", ""),
             "passes": ("#8cc9a1", "✓")}
    found = table.map(list(kinds).index)
    fig, ax = plt.subplots(figsize=(0.85 * table.shape[1] + 2.2, 0.24 * len(table) + 1.5))
    sns.heatmap(found, ax=ax, cmap=[colour for colour, _ in kinds.values()], vmin=0, vmax=3, cbar=False, linewidths=1,
                annot=table.map(lambda verdict: kinds[verdict][1]).to_numpy(), fmt="", annot_kws={"color": "#222222"})
    ax.set_yticks(ax.get_yticks(), [label_of(name) for name in table.index], fontsize=8, rotation=0)
    ax.set_xticks(ax.get_xticks(), [name.replace(" ", "\n", 1) for name in table.columns], fontsize=7.5, rotation=0)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlabel="", ylabel="")
    fig.legend(handles=[Patch(color=colour, label=f"{name} {mark}") for name, (colour, mark) in kinds.items()],
               loc="outside upper center", ncols=4)
    return fig


@styled
def plot_importance(table, sequences: Sequence[str]) -> Figure:
    """Importance of the sequences with intervals: one panel per network and value function, colours by baseline.

    `table`: ``network, baseline, worth, modality, value, low, high``.
    """
    require_columns(table, ["network", "baseline", "worth", "modality", "value", "low", "high"], "importance")
    rows, columns, baselines = (list(dict.fromkeys(table[name])) for name in ("network", "worth", "baseline"))
    colours = colours_of(baselines)
    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="col",
                             figsize=(3.1 * len(columns) + 0.6, 1.35 * len(rows) + 1.2))
    for (i, j), ax in np.ndenumerate(axes):
        own = table[(table["network"] == rows[i]) & (table["worth"] == columns[j])]
        for k, baseline in enumerate(baselines):
            part = own[own["baseline"] == baseline].set_index("modality").reindex(list(sequences))
            place = np.arange(len(sequences)) + (k - (len(baselines) - 1) / 2) * 0.8 / len(baselines)
            ax.bar(place, part["value"], 0.75 / len(baselines), color=colours[baseline], label=baseline)
            ax.vlines(place, part["low"], part["high"], color="black", lw=1)
        ax.axhline(0, color="#777777", lw=0.8)
        ax.set_xticks(range(len(sequences)), sequences)
        ax.set_title(columns[j] if i == 0 else "")
        ax.set_ylabel(label_of(rows[i]) if j == 0 else "", fontweight="bold")
    add_legend(fig, axes[0, 0], len(baselines), title="absent sequences replaced by")
    return fig


@styled
def plot_shares(table, *, chance: float, unit: str) -> Figure:
    """One value with interval per method as horizontal dots beside the level of chance.

    `table`: index method; ``value, low, high``; a method without value is marked "n/a". `unit`: text of the axis.
    """
    require_columns(table, ["value", "low", "high"], "shares")
    part = table.iloc[::-1]
    fig, ax = plt.subplots(figsize=(6.2, 0.24 * len(part) + 1.3))
    place = np.arange(len(part))
    ax.hlines(place, part["low"], part["high"], color="#0072B2", lw=2)
    ax.plot(part["value"], place, "o", color="#0072B2", ms=5)
    ax.axvline(chance, color="#777777", ls=":", lw=1.2)
    ax.text(chance, len(part) - 0.4, " chance", fontsize=7, color="#777777")
    for row in np.flatnonzero(part["value"].isna()):
        ax.text(0.01, row, "n/a", transform=ax.get_yaxis_transform(), va="center", fontsize=7.5, color="#777777")
    ax.set_yticks(place, [label_of(name) for name in part.index], fontsize=8)
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    return fig


@styled
def plot_localisation(table) -> Figure:
    """How well methods find what decided, one panel per backbone, best first; lines: what needs no network.

    `table`: ``backbone, source, method, value, low, high, chance`` of AUPRC: filled dots for ``source`` network, hollow
    ones for ``untrained``, black and grey lines for ``comparator``, dotted grey for the mean ``chance``.
    """
    require_columns(table, ["backbone", "source", "method", "value", "low", "high", "chance"], "localisation")
    backbones = list(dict.fromkeys(table["backbone"]))
    own = table[table["source"] == "network"]
    order = own.groupby("method")["value"].mean().sort_values(na_position="first").index
    place = np.arange(len(order))
    fig, axes = plt.subplots(1, len(backbones), squeeze=False, sharey=True, sharex=True,
                             figsize=(3.2 * len(backbones) + 2.2, 0.22 * len(order) + 1.8))
    for ax, backbone in zip(axes[0], backbones):
        part = table[table["backbone"] == backbone]
        known, random = (part[part["source"] == name].set_index("method").reindex(order)
                         for name in ("network", "untrained"))
        ax.hlines(place, known["low"], known["high"], color="#0072B2", lw=1.8)
        ax.plot(known["value"], place, "o", color="#0072B2", ms=5, label="trained network")
        ax.plot(random["value"], place, "o", color="#0072B2", mfc="white", ms=4, label="untrained network")
        for row in part[part["source"] == "comparator"].to_dict("records"):
            ax.axvline(row["value"], lw=1, label=label_of(row["method"]), **COMPARATORS[row["method"]])
        ax.axvline(part["chance"].mean(), color="#777777", ls=":", lw=1.2, label="chance")
        ax.set_title(label_of(backbone))
        ax.set_xlabel("AUPRC")
        ax.grid(axis="x")
    axes[0, 0].set_yticks(place, [label_of(name) for name in order], fontsize=7.5)
    add_legend(fig, axes[0, 0], 3)
    return fig
