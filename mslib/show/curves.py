"""Figures of measures: over depth, under weight randomisation, by group and by lobe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figure import add_caption, colours_by_depth, colours_of, label_of, require_columns, styled

CHANCE = {"color": "#777777", "ls": ":", "lw": 1.2}


def _present(table, column: str, order: Sequence[str] | None) -> list:
    found = list(dict.fromkeys(table[column]))
    return [name for name in order if name in found] if order else found


def _styles(names: Sequence[str], hue: str) -> dict[str, dict[str, str]]:
    """Colour and line of every curve: layers by depth, block 4 dashed; all else in the order given, solid."""
    if hue != "layer":
        return {name: {"color": colour, "ls": "-"} for name, colour in colours_of(names).items()}
    return {name: {"color": colour, "ls": "--" if name.startswith("block4") else "-"}
            for name, colour in colours_by_depth(names).items()}


def _draw_curve(ax, part, positions: Mapping[str, int], column: str, style: Mapping[str, str]) -> None:
    part = part[part[column].isin(list(positions))]
    place = part[column].map(positions).to_numpy()
    order = np.argsort(place)
    place, part = place[order], part.iloc[order]
    ax.plot(place, part["value"], marker="o", ms=3.5, **style)
    if "mostly_blank" in part:
        thin = part["mostly_blank"].to_numpy(bool)
        ax.plot(place[thin], part["value"].to_numpy()[thin], "o", ms=3.5, mec=style["color"], mfc="white")
    low, high = part["low"].astype(float), part["high"].astype(float)
    ax.fill_between(place, low, high, color=style["color"], alpha=0.18, lw=0)


def _draw_chance(ax, part, positions, column) -> None:
    if "chance" in part and part["chance"].notna().any():
        level = part.groupby(column)["chance"].mean()
        steps = [step for step in positions if step in level.index]
        ax.plot([positions[step] for step in steps], [level[step] for step in steps], **CHANCE)


def _curves(table, column, steps, measures, row_column, hue, hues, labels) -> Figure:
    """Grid of curves with interval bands: one panel column per measure, one row per value of `row_column`."""
    panels, hues = _present(table, "measure", measures), _present(table, hue, hues)
    rows = _present(table, row_column, None) if row_column else [None]
    styles = _styles(hues, hue)
    fig, axes = plt.subplots(len(rows), len(panels), squeeze=False, sharex=True, sharey="col",
                             figsize=(2.6 * len(panels) + 0.9, 2.0 * len(rows) + 1.5))
    positions = {step: i for i, step in enumerate(steps)}
    for i, row in enumerate(rows):
        for j, measure in enumerate(panels):
            ax = axes[i, j]
            part = table[table["measure"] == measure]
            part = part if row_column is None else part[part[row_column] == row]
            for name in hues:
                _draw_curve(ax, part[part[hue] == name], positions, column, styles[name])
            _draw_chance(ax, part, positions, column)
            ax.grid(axis="y")
            ax.set_xticks(range(len(steps)), [step.replace("_", " ") for step in steps], rotation=60,
                          ha="right", rotation_mode="anchor", fontsize=7)
            if i == 0:
                ax.set_title((labels or {}).get(measure, measure.replace("_", " ")))
        if row_column is not None:
            axes[i, 0].set_ylabel(label_of(row), fontweight="bold")
    keys = [Line2D([], [], marker="o", ms=3.5, label=label_of(name), **styles[name]) for name in hues]
    if "chance" in table.columns:
        keys.append(Line2D([], [], label="chance", **CHANCE))
    inches = 1.35  # an entry of the legend
    fig.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), max(2, int(fig.get_figwidth() / inches))))
    return fig


@styled
def plot_depth_curves(table, layers: Sequence[str], *, measures: Sequence[str] | None = None,
                      hue: str = "method", hues: Sequence[str] | None = None, rows: str | None = "backbone",
                      labels: Mapping[str, str] | None = None, caption: str = "") -> Figure:
    """Each measure of the maps over depth, shallow to deep, with interval bands and chance.

    Parameters
    ----------
    table : DataFrame
        Columns ``measure, layer, value, low, high``, the columns named by `hue` and `rows`, and optionally
        ``chance``, and ``mostly_blank``: hollow where more than half of the slices are left out.
    layers : sequence of str
        Horizontal axis, shallow to deep.
    measures : sequence of str, optional
        Panels; by default those of the table in their order.
    hue : str
        Column of the colours (method, backbone).
    hues : sequence of str, optional
        Order of its values.
    rows : str or None
        Column with one row of panels per value.
    labels : mapping of measure to title, optional
    """
    require_columns(table, ["measure", "layer", "value", "low", "high", hue, *([rows] if rows else [])], "depth curves")
    fig = _curves(table, "layer", list(layers), measures, rows, hue, hues, labels)
    add_caption(fig, caption)
    return fig


@styled
def plot_randomisation(table, steps: Sequence[str], *, measures: Sequence[str] | None = None,
                       hue: str = "layer", hues: Sequence[str] | None = None, rows: str | None = "backbone",
                       labels: Mapping[str, str] | None = None, caption: str = "") -> Figure:
    """Similarity of a map to the original while the weights are randomised from the output down.

    Where `hue` is ``layer``, colours go from dark (first of `hues`) to light (last); block 4 is dashed.

    Parameters
    ----------
    table : DataFrame
        Columns ``measure, step, value, low, high`` and those named by `hue` and `rows`; ``step`` names the
        last layer randomised so far.
    steps : sequence of str
        Horizontal axis: from the output down.
    measures, hue, hues, rows, labels
        As in `plot_depth_curves`.

    Notes
    -----
    Cascading randomisation of Adebayo et al., Sanity checks for saliency maps, 2018. A map that explains the
    weights falls towards 0.
    """
    require_columns(table, ["measure", "step", "value", "low", "high", hue, *([rows] if rows else [])], "randomisation")
    fig = _curves(table, "step", list(steps), measures, rows, hue, hues, labels)
    for ax in fig.axes:
        ax.axhline(0, color="#777777", lw=0.8)
    fig.axes[-1].set_xlabel("randomised from the output down to")
    add_caption(fig, caption)
    return fig


@styled
def plot_groups(points, groups: Sequence[str], *, panel: str, ylabel: str = "95th percentile of Grad-CAM",
                caption: str = "") -> Figure:
    """One dot per subject by group, and the group's median as a line.

    Parameters
    ----------
    points : DataFrame
        Columns ``group, value`` and the one named by `panel`; one row per subject.
    groups : sequence of str
        Order on the axis.
    panel : str
        Column with one panel per value (backbone, layer).
    ylabel : str
    """
    require_columns(points, ["group", "value", panel], "points")
    names = _present(points, panel, None)
    fig, axes = plt.subplots(1, len(names), squeeze=False, figsize=(0.9 * len(groups) * len(names) + 1.2, 3.2))
    for ax, name in zip(axes[0], names):
        part = points[points[panel] == name]
        shared = {"data": part, "x": "group", "y": "value", "order": groups, "hue": "group", "hue_order": groups,
                  "palette": colours_of(groups), "legend": False, "ax": ax}
        sns.swarmplot(**shared, size=4, alpha=0.7)
        sns.pointplot(**shared, estimator="median", errorbar=None, linestyle="none", marker="_", markersize=22)
        counts = part["group"].value_counts()
        ax.set_xticks(range(len(groups)), [f"{group}\nn={counts.get(group, 0)}" for group in groups], fontsize=7)
        ax.grid(axis="y")
        ax.set(xlabel="", ylabel="", title=label_of(str(name)))
    axes[0, 0].set_ylabel(ylabel)
    add_caption(fig, caption)
    return fig


@styled
def plot_lobes(table, lobes: Sequence[str], groups: Sequence[str], *, xlabel: str = "share of the map's sum",
               reference: Mapping[str, float] | None = None, caption: str = "") -> Figure:
    """Bars of each lobe's share of the maps by group, with intervals.

    Parameters
    ----------
    table : DataFrame
        Columns ``lobe, group, value, low, high``.
    lobes, groups : sequences of str
        Order on the axis and of the bars.
    xlabel : str
    reference : mapping of lobe to share, optional
        Share of the brain that the lobe holds: what a uniform map would give, drawn as a tick.
    """
    require_columns(table, ["lobe", "group", "value", "low", "high"], "lobes")
    colours = colours_of(groups)
    step = 0.8 / len(groups)
    fig, ax = plt.subplots(figsize=(5.6, 0.26 * len(groups) * len(lobes) + 1.1))
    for row in table.itertuples():
        y = lobes.index(row.lobe) + (groups.index(row.group) - (len(groups) - 1) / 2) * step
        ax.barh(y, row.value, step * 0.9, color=colours[row.group], alpha=0.85)
        ax.plot([row.low, row.high], [y, y], color="black", lw=1.1)
    for lobe, share in (reference or {}).items():
        ax.vlines(share, lobes.index(lobe) - 0.45, lobes.index(lobe) + 0.45, color="black", ls=":", lw=1.2)
    ax.set_yticks(range(len(lobes)), lobes)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x")
    keys = [Line2D([], [], color=colours[group], lw=6, alpha=0.85, label=group) for group in groups]
    if reference:
        keys.append(Line2D([], [], color="black", ls=":", lw=1.2, label="share of the brain (uniform map)"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    add_caption(fig, caption)
    return fig
