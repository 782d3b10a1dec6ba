"""Figures of measures: over depth, under weight randomisation, by group and by lobe, all with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
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
    low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
    ax.fill_between(place, low, high, color=style["color"], alpha=0.18, lw=0)


def _curves(table, column, steps, measures, row_column, hue, hues, labels, chance) -> Figure:
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
            _draw_chance(ax, part, measure, chance, positions, column)
            ax.grid(axis="y")
            ax.set_xticks(range(len(steps)), [step.replace("_", " ") for step in steps], rotation=60,
                          ha="right", rotation_mode="anchor", fontsize=7)
            if i == 0:
                ax.set_title((labels or {}).get(measure, measure.replace("_", " ")))
        if row_column is not None:
            axes[i, 0].set_ylabel(label_of(row), fontweight="bold")
    keys = [Line2D([], [], marker="o", ms=3.5, label=label_of(name), **styles[name]) for name in hues]
    if chance or "chance" in table.columns:
        keys.append(Line2D([], [], label="chance", **CHANCE))
    inches = 1.35  # an entry of the legend
    fig.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), max(2, int(fig.get_figwidth() / inches))))
    return fig


def _draw_chance(ax, part, measure, chance, positions, column) -> None:
    if chance and measure in chance:
        ax.axhline(chance[measure], **CHANCE)
    elif "chance" in part.columns and part["chance"].notna().any():
        level = part.groupby(column)["chance"].mean()
        steps = [step for step in positions if step in level.index]
        ax.plot([positions[step] for step in steps], [level[step] for step in steps], **CHANCE)


@styled
def plot_depth_curves(table, layers: Sequence[str], *, measures: Sequence[str] | None = None,
                      hue: str = "method", hues: Sequence[str] | None = None, rows: str | None = "backbone",
                      labels: Mapping[str, str] | None = None, chance: Mapping[str, float] | None = None,
                      caption: str = "") -> Figure:
    """Each measure of the heat maps over depth, shallow to deep, with interval bands and chance.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``measure, layer, value, low, high``, the columns named by `hue` and `rows`, and optionally
        ``chance``, and ``mostly_blank``: hollow where more than half of the slices are left out.
    layers : sequence of str
        Horizontal axis, shallow to deep.
    measures : sequence of str, optional
        Panels; by default those of the table in their order.
    hue : str
        Column told apart by colour (method, backbone).
    hues : sequence of str, optional
        Order of its values.
    rows : str or None
        Column with one row of panels per value.
    labels : mapping of measure to title, optional
        State direction and unit there.
    chance : mapping of measure to value, optional
        Dotted line; replaces the column.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    wanted = ["measure", "layer", "value", "low", "high", hue] + ([rows] if rows else [])
    require_columns(table, wanted, "depth curves")
    fig = _curves(table, "layer", list(layers), measures, rows, hue, hues, labels, chance)
    add_caption(fig, caption)
    return fig


@styled
def plot_randomisation(table, steps: Sequence[str], *, measures: Sequence[str] | None = None,
                       hue: str = "layer", hues: Sequence[str] | None = None, rows: str | None = "backbone",
                       labels: Mapping[str, str] | None = None, caption: str = "") -> Figure:
    """Likeness of a map to the original while the weights are randomised from the top down.

    Where `hue` is ``layer``, colours go from dark (first of `hues`) to light (last); block 4 is dashed.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``measure, step, value, low, high`` and those named by `hue` and `rows`; ``step`` names the
        last layer randomised so far.
    steps : sequence of str
        Horizontal axis: from the output down.
    measures, hue, hues, rows, labels, caption
        As in `plot_depth_curves`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.

    Notes
    -----
    Cascading randomisation of Adebayo et al., Sanity checks for saliency maps, 2018. A map that explains the
    weights falls towards 0.
    """
    wanted = ["measure", "step", "value", "low", "high", hue] + ([rows] if rows else [])
    require_columns(table, wanted, "randomisation")
    fig = _curves(table, "step", list(steps), measures, rows, hue, hues, labels, None)
    for ax in fig.axes:
        ax.axhline(0, color="#777777", lw=0.8)
    fig.axes[-1].set_xlabel("randomised from the output down to")
    add_caption(fig, caption)
    return fig


@styled
def plot_groups(points, groups: Sequence[str], *, intervals=None, panel: str | None = None,
                panels: Sequence[str] | None = None, ylabel: str = "95th percentile of Grad-CAM",
                notes: Mapping[str, str] | None = None, seed: int = 0, caption: str = "") -> Figure:
    """One dot per subject by group, the mean with its interval beside the dots.

    Parameters
    ----------
    points : pandas.DataFrame
        Columns ``group, value`` and the one named by `panel`; one row per subject.
    groups : sequence of str
        Order on the axis.
    intervals : pandas.DataFrame, optional
        Columns ``group, value, low, high`` and the one named by `panel`.
    panel : str, optional
        Column with one panel per value (layer, backbone).
    panels : sequence of str, optional
        Order of the panels.
    ylabel : str
    notes : mapping of panel to str, optional
        A line below the panel's title (test, effect size, p).
    seed : int
        Sideways scatter of the dots.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    require_columns(points, ["group", "value"] + ([panel] if panel else []), "points")
    names = _present(points, panel, panels) if panel else [None]
    rng = np.random.default_rng(seed)
    colours = colours_of(groups)
    size = (0.75 * len(groups) * len(names) + 1.2, 3.2)
    fig, axes = plt.subplots(1, len(names), squeeze=False, figsize=size)
    for ax, name in zip(axes[0], names):
        part = points if panel is None else points[points[panel] == name]
        for i, group in enumerate(groups):
            values = part.loc[part["group"] == group, "value"].to_numpy(float)
            ax.plot(i - 0.12 + rng.uniform(-0.13, 0.13, len(values)), values, "o", ms=3.5, alpha=0.55,
                    color=colours[group], mec="none")
            if intervals is not None:
                rows = intervals if panel is None else intervals[intervals[panel] == name]
                for row in rows[rows["group"] == group].itertuples():
                    ax.plot([i + 0.22] * 2, [row.low, row.high], color=colours[group], lw=2)
                    ax.plot(i + 0.22, row.value, "D", color=colours[group], mec="white", ms=5.5)
        counts = [int((part["group"] == group).sum()) for group in groups]
        ax.set_xticks(range(len(groups)), [f"{g}\nn={n}" for g, n in zip(groups, counts)], fontsize=7)
        ax.set_xlim(-0.5, len(groups) - 0.4)
        ax.grid(axis="y")
        title = label_of(str(name)) if panel else ""
        ax.set_title(title + (f"\n{notes[name]}" if notes and name in notes else ""), fontsize=8)
    axes[0, 0].set_ylabel(ylabel)
    add_caption(fig, caption)
    return fig


@styled
def plot_lobes(table, lobes: Sequence[str], groups: Sequence[str], *, xlabel: str = "share of the heat",
               reference: Mapping[str, float] | None = None, caption: str = "") -> Figure:
    """Bars of each lobe's share of the heat by group, with intervals.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``lobe, group, value, low, high``.
    lobes, groups : sequences of str
        Order on the axis and of the bars.
    xlabel : str
    reference : mapping of lobe to share, optional
        Share of the brain that the lobe holds: what an even heat would give, drawn as a tick.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    require_columns(table, ["lobe", "group", "value", "low", "high"], "lobes")
    colours = colours_of(groups)
    step = 0.8 / len(groups)
    fig, ax = plt.subplots(figsize=(5.6, 0.26 * len(groups) * len(lobes) + 1.1))
    for row in table.itertuples():
        if row.lobe in lobes and row.group in groups:
            y = lobes.index(row.lobe) + (groups.index(row.group) - (len(groups) - 1) / 2) * step
            ax.barh(y, row.value, step * 0.9, color=colours[row.group], alpha=0.85)
            ax.plot([row.low, row.high], [y, y], color="black", lw=1.1)
    for lobe, share in (reference or {}).items():
        if lobe in lobes:
            place = lobes.index(lobe)
            ax.plot([share] * 2, [place - 0.45, place + 0.45], color="black", ls=":", lw=1.2)
    ax.set_yticks(range(len(lobes)), lobes)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x")
    keys = [Line2D([], [], color=colours[group], lw=6, alpha=0.85, label=group) for group in groups]
    if reference:
        keys.append(Line2D([], [], color="black", ls=":", lw=1.2, label="share of the brain (even heat)"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    add_caption(fig, caption)
    return fig
