"""Figures over depth: curves of measures beside their comparators, and a table of layers by lesion size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from .figure import colours_of, label_of, require_columns, styled

CHANCE = {"color": "#777777", "ls": ":", "lw": 1.2}
#: How comparators are drawn: they are no candidates, so none of them has a colour of its own.
COMPARATORS = {"oracle": {"color": "black", "ls": "-"}, "intensity": {"color": "black", "ls": "--"},
               "prior": {"color": "black", "ls": ":"}, "edges": {"color": "#888888", "ls": "-."},
               "untrained": {"color": "#888888", "ls": "-"}, "another patient": {"color": "#888888", "ls": ":"},
               "activation": {"color": "#888888", "ls": "--"}}


def _present(table, column: str, order: Sequence[str] | None) -> list:
    found = list(dict.fromkeys(table[column]))
    return [name for name in order if name in found] if order else found


def _draw_curve(ax, part, positions: Mapping[str, int], style: Mapping[str, str], marker: str | None = "o") -> None:
    """One curve with its band; a value without a layer (``image``) is a line over all layers."""
    if part.empty:
        return
    if set(part["layer"]) == {"image"}:
        part = part.iloc[[0] * len(positions)].assign(layer=list(positions))
    part = part[part["layer"].isin(list(positions))]
    place = part["layer"].map(positions).to_numpy()
    order = np.argsort(place)
    place, part = place[order], part.iloc[order]
    ax.plot(place, part["value"], marker=marker, ms=3.5, lw=1.4 if marker else 1.1, **style)
    if "blank" in part and marker:
        thin = part["blank"].to_numpy(float) > 0.5
        ax.plot(place[thin], part["value"].to_numpy()[thin], "o", ms=3.5, mec=style["color"], mfc="white")
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
    panels, hues, row_names = (_present(table, *known) for known in ((columns, measures), (hue, hues), (rows, None)))
    positions = {layer: i for i, layer in enumerate(layers)}
    size = (max(2.6, 0.19 * len(layers)) * len(panels) + 0.9, 2.2 * len(row_names) + 1.5)
    fig, axes = plt.subplots(len(row_names), len(panels), squeeze=False, sharex=True, figsize=size,
                             sharey="col" if columns == "measure" else "all")
    for (i, j), ax in np.ndenumerate(axes):
        part, others = (each if each is None else each[(each[columns] == panels[j]) & (each[rows] == row_names[i])]
                        for each in (table, comparators))
        for name, style in COMPARATORS.items() if others is not None else ():
            _draw_curve(ax, others[others["name"] == name], positions, style, marker=None)
        for name in hues:
            _draw_curve(ax, part[part[hue] == name], positions, {"color": colours[name], "ls": "-"})
        if "chance" in part and part["chance"].notna().any():
            ax.plot(range(len(layers)), part.groupby("layer")["chance"].mean().reindex(layers), **CHANCE)
        ax.grid(axis="y")
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        ax.set_xticks(range(len(layers)), [layer.replace("_", " ") for layer in layers], rotation=60, ha="right",
                      rotation_mode="anchor", fontsize=7)
        ax.set_title((labels or {}).get(panels[j], str(panels[j]).replace("_", " ")) if i == 0 else "")
        ax.set_ylabel(f"{label_of(row_names[i])}\n{ylabel}".strip() if j == 0 else "", fontweight="bold")
    keys = [Line2D([], [], marker="o", ms=3.5, label=label_of(name), color=colours[name]) for name in hues]
    if comparators is not None:
        keys += [Line2D([], [], label=label_of(name), **style) for name, style in COMPARATORS.items()
                 if name in set(comparators["name"])]
    if "chance" in table.columns:
        keys.append(Line2D([], [], label="chance", **CHANCE))
    fig.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), max(2, int(size[0] / 1.8))))  # inches
    return fig


@styled
def plot_size_map(table, layers: Sequence[str], sizes: Sequence[str]) -> Figure:
    """Which layer to read for lesions of a size: AUPRC for every layer and size, the best of each size framed.

    `table`: ``backbone, method, layer, size, value, low``, a row of panels per backbone, a column per method; `layers`
    and `sizes` are rows and columns of a panel. No layer is framed where none has an interval: too few people.
    """
    require_columns(table, ["backbone", "method", "layer", "size", "value"], "layers by lesion size")
    names, row_names = _present(table, "method", None), _present(table, "backbone", None)
    fig, axes = plt.subplots(len(row_names), len(names), squeeze=False, sharey="row",
                             figsize=(1.3 + 0.65 * len(sizes) * len(names), 0.9 + 0.22 * len(layers) * len(row_names)))
    for (i, j), ax in np.ndenumerate(axes):
        part = table[(table["method"] == names[j]) & (table["backbone"] == row_names[i])]
        wide = part.pivot_table(index="layer", columns="size", values="value")
        known = part.groupby("size")["low"].count()
        wide = wide.reindex(index=[layer for layer in layers if layer in wide.index], columns=list(sizes))
        sns.heatmap(wide, ax=ax, cmap="viridis", vmin=0, vmax=float(table["value"].max()), annot=True, fmt=".2f",
                    annot_kws={"fontsize": 7}, cbar=False, linewidths=0.5)
        for column, size in enumerate(sizes):
            if known.get(size, 0):
                best = wide.index.get_loc(wide[size].idxmax())
                ax.add_patch(plt.Rectangle((column, best), 1, 1, fill=False, ec="#D55E00", lw=2))
        ax.set(xlabel="", ylabel=label_of(row_names[i]) if j == 0 else "")
        ax.tick_params(axis="both", labelsize=7, rotation=0)
        if i == 0:
            ax.set_title(label_of(names[j]))
    fig.suptitle("AUPRC", fontsize=9)
    return fig
