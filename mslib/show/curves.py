"""Figures over depth: curves of measures beside their comparators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from .figure import colours_of, label_of, require_columns, styled

#: In the order in which colours are given, so that no figure tells by colour alone.
MARKERS = "os^DvP*X"
CHANCE = {"color": "#777777", "ls": ":", "lw": 1.2}
#: How comparators are drawn: they are no candidates, so none of them has a colour of its own.
COMPARATORS = {"oracle": {"color": "black", "ls": "-"}, "intensity": {"color": "black", "ls": "--"},
               "prior": {"color": "black", "ls": ":"}, "edges": {"color": "#888888", "ls": "-."},
               "untrained": {"color": "#888888", "ls": "-"}, "another patient": {"color": "#888888", "ls": ":"},
               "activation": {"color": "#888888", "ls": "--"}}


def _present(table, column: str, order: Sequence[str] | None) -> list:
    found = list(dict.fromkeys(table[column]))
    return [name for name in order if name in found] if order else found


def _draw_curve(ax, part, positions: Mapping[str, int], style: Mapping[str, str], marker: str = "") -> None:
    """One curve with its band; a value without a layer (``image``) is a line over all layers."""
    if part.empty:
        return
    if set(part["layer"]) == {"image"}:
        part = part.iloc[[0] * len(positions)].assign(layer=list(positions))
    part = part[part["layer"].isin(list(positions))]
    place = part["layer"].map(positions).to_numpy()
    order = np.argsort(place)
    place, part = place[order], part.iloc[order]
    ax.plot(place, part["value"], marker=marker, ms=4, lw=1.4 if marker else 1.1, **style)
    if "blank" in part and marker:
        thin = part["blank"].to_numpy(float) > 0.5
        ax.plot(place[thin], part["value"].to_numpy()[thin], marker, ms=4, mec=style["color"], mfc="white")
    low, high = part["low"].astype(float), part["high"].astype(float)
    ax.fill_between(place, low, high, color=style["color"], alpha=0.18 if marker else 0.09, lw=0)


@styled
def plot_depth_curves(table, layers: Sequence[str], *, columns: str = "measure", measures: Sequence[str] | None = None,
                      hue: str = "method", hues: Sequence[str] | None = None, rows: str = "backbone",
                      labels: Mapping[str, str] | None = None, comparators=None, log: bool = False,
                      ylabel: str = "") -> Figure:
    """Means over depth, shallow to deep, with interval bands and what they are to be held against.

    Parameters
    ----------
    table : DataFrame
        Columns ``layer, value, low, high``, those named by `columns`, `hue` and `rows`, and optionally ``chance``, and
        ``blank``: hollow where more than half of the maps are blank and left out.
    layers : sequence of str
        Horizontal axis, shallow to deep.
    columns, hue, rows : str
        Columns with a column of panels, a colour and a row of panels per value.
    measures, hues : sequence of str, optional
        Values of `columns` and `hue` in their order; default: that of the table.
    labels : mapping of panel to title, optional
    comparators : DataFrame, optional
        Columns as `table`, and ``source``; drawn without markers. ``source`` names the comparator (`COMPARATORS`), or
        where it is "comparator" the column ``method`` does.
    log : bool
        Logarithmic vertical axis.
    """
    require_columns(table, [columns, "layer", "value", "low", "high", hue, rows], "depth curves")
    if comparators is not None:
        source = comparators["source"]
        comparators = comparators.assign(name=source.where(source != "comparator", comparators["method"]))
    colours = colours_of(hues or list(table[hue].unique()))  # absent ones too: alike in all figures
    markers = dict(zip(colours, cycle(MARKERS)))
    panels, hues, row_names = (_present(table, *known) for known in ((columns, measures), (hue, hues), (rows, None)))
    positions = {layer: i for i, layer in enumerate(layers)}
    size = (max(2.6, 0.19 * len(layers)) * len(panels) + 0.9, 2.2 * len(row_names) + 1.5)
    fig, axes = plt.subplots(len(row_names), len(panels), squeeze=False, sharex=True, figsize=size,
                             sharey="col" if columns == "measure" else "all")
    for (i, j), ax in np.ndenumerate(axes):
        part, others = (each if each is None else each[(each[columns] == panels[j]) & (each[rows] == row_names[i])]
                        for each in (table, comparators))
        for name, style in COMPARATORS.items() if others is not None else ():
            _draw_curve(ax, others[others["name"] == name], positions, style)
        for name in hues:
            _draw_curve(ax, part[part[hue] == name], positions, {"color": colours[name], "ls": "-"}, markers[name])
        if "chance" in part and part["chance"].notna().any():
            ax.plot(range(len(layers)), part.groupby("layer")["chance"].mean().reindex(layers), **CHANCE)
        ax.grid(axis="y")
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        ax.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        ax.set_title((labels or {}).get(panels[j], str(panels[j]).replace("_", " ")) if i == 0 else "")
        ax.set_ylabel(f"{label_of(row_names[i])}\n{ylabel}".strip() if j == 0 else "", fontweight="bold")
    keys = [Line2D([], [], marker=markers[name], ms=4, label=label_of(name), color=colours[name]) for name in hues]
    if comparators is not None:
        keys += [Line2D([], [], label=label_of(name), **style) for name, style in COMPARATORS.items()
                 if name in set(comparators["name"])]
    if "chance" in table.columns:
        keys.append(Line2D([], [], label="chance", **CHANCE))
    fig.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), max(2, int(size[0] / 1.8))))  # inches
    return fig
