"""Relevance of sequences or signals: shares with intervals, over depth, and what they are related to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .curves import MARKERS
from .figure import add_legend, colours_of, label_of, require_columns, styled

#: Distance of the points of a group, of which the next one is 1 away.
STEP = 0.26


def _offset(k, count):
    return (k - (count - 1) / 2) * STEP


def _dots(ax, x, y, colour, filled, **style) -> None:
    """Dots, hollow where they are not `filled`."""
    faces = np.where(np.asarray(filled, bool), colour, "white")
    ax.scatter(x, y, s=22, facecolors=faces, edgecolors=colour, linewidths=1, zorder=3, **style)


@styled
def plot_share_points(table, modalities: Sequence[str], *, row: str, group: str, column: str | None = None,
                      groups: Sequence[str] | None = None, unit: str | Mapping[str, str] = "share of relevance [%]",
                      labels: Mapping | None = None) -> Figure:
    """Values of the modalities as points with intervals, beside the level of chance (dotted).

    Parameters
    ----------
    table : DataFrame
        Columns named by `row`, `column` and `group`, and ``modality, value, low, high``; ``chance``, where known. A
        missing value is drawn as a dash.
    row, column, group : str
        Columns whose values are the rows and columns of panels (None: one column), and the groups along the axis.
    groups : sequence of str, optional
        Order of the groups; default: those of a column of panels, as the table has them.
    unit : str or mapping of a row's value to str
    labels : mapping of value to str, optional
        How values of `row`, `column` and `group` are written.
    """
    require_columns(table, [row, *([column] if column else []), group, "modality", "value", "low", "high"], "shares")
    rows, columns = list(dict.fromkeys(table[row])), list(dict.fromkeys(table[column])) if column else [None]
    columns = {name: table if name is None else table[table[column] == name] for name in columns}
    groups = {name: list(groups or dict.fromkeys(part[group])) for name, part in columns.items()}
    most, colours = max(map(len, groups.values())), colours_of(modalities)

    def text(value):
        return (labels or {}).get(value, label_of(str(value)))

    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False, sharex="col",
                             sharey=True if isinstance(unit, str) and unit else "row",  # without one, rows differ
                             figsize=(max(3.0, 0.62 * most + 0.6) * len(columns) + 0.6, 1.9 * len(rows) + 1.3))
    for (name, part), line in zip(columns.items(), axes.T):
        for of_row, ax in zip(rows, line):
            wanted = pd.MultiIndex.from_product([modalities, groups[name]])
            drawn = part[part[row] == of_row].set_index(["modality", group]).reindex(wanted)
            for k, modality in enumerate(modalities):
                own = drawn.loc[modality]
                place = np.arange(len(own)) + _offset(k, len(modalities))
                if "chance" in own:
                    ax.hlines(own["chance"], place - STEP / 2, place + STEP / 2, color="black", lw=1.2,
                              ls=(0, (1.5, 1)))
                ax.vlines(place, own["low"], own["high"], color=colours[modality], lw=1.8)
                _dots(ax, place, own["value"], colours[modality], np.full(len(own), True), label=modality,
                      marker=MARKERS[k])
                for x in place[own["value"].isna()]:
                    ax.text(x, 0, "–", ha="center", color="#777777", transform=ax.get_xaxis_transform())
            if (drawn["value"] < 0).any():
                ax.axhline(0, color="#777777", lw=0.8)
            names = [text(one) for one in groups[name]]
            crowded = most > 4 or max(map(len, names), default=0) > 10
            ax.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center",
                          fontsize=7.5)
            ax.set_xlim(-0.5, len(groups[name]) - 0.5)
        line[0].set_title("" if name is None else text(name))
    for of_row, ax in zip(rows, axes[:, 0]):
        its_unit = unit if isinstance(unit, str) else unit[of_row]
        ax.set_ylabel(f"{text(of_row)}\n{its_unit}".strip(), fontsize=8)
    add_legend(fig, axes[0, 0], len(modalities))
    return fig


@styled
def plot_flow(flow, shares, sequences: Sequence[str]) -> Figure:
    """How much relevance reaches each layer on its way from the logit to the input, and how it ends up there.

    `flow`: ``backbone, layer`` (deep to shallow), ``sum, absolute`` (shares of the logits); `shares`: ``backbone,
    modality, value`` (percent): how the input's relevance divides.
    """
    require_columns(flow, ["backbone", "layer", "sum", "absolute"], "flow")
    require_columns(shares, ["backbone", "modality", "value"], "shares")
    backbones, colours = list(dict.fromkeys(flow["backbone"])), colours_of(sequences)
    fig, axes = plt.subplots(len(backbones), 2, squeeze=False, width_ratios=[6, 1],
                             figsize=(8.6, 2.1 * len(backbones) + 1.2))
    for (ax, end), backbone in zip(axes, backbones):
        part = flow[flow["backbone"] == backbone]
        place = np.arange(len(part))
        ax.plot(place, part["absolute"], "o-", ms=3, color="#777777", label="without its sign")
        ax.plot(place, part["sum"], "o-", ms=3, color="#0072B2", label="signed sum")
        ax.axhline(1, color="#777777", ls=":", lw=1)
        ax.axhline(0, color="#777777", lw=0.8)
        ax.set_ylim(bottom=min(0, 1.1 * part["sum"].min()))
        ax.set_xticks(place, part["layer"], rotation=60, ha="right", fontsize=6)
        ax.set_ylabel(f"{label_of(backbone)}\nrelevance / logit", fontsize=8)
        values = shares[shares["backbone"] == backbone].set_index("modality")["value"].reindex(list(sequences))
        for sequence, value, bottom in zip(sequences, values, np.cumsum(values) - values):
            end.bar(0, value, 0.6, bottom, color=colours[sequence])
            end.text(0, bottom + value / 2, f"{sequence} {value:.0f} %", ha="center", va="center", fontsize=6.5,
                     color="white", fontweight="bold")
        end.set_xticks([])
        end.set_ylim(0, 100)
        end.set_ylabel("of the input's relevance [%]", fontsize=7)
    add_legend(fig, axes[0, 0], 2)
    return fig


@styled
def plot_relations(table, *, row: str = "backbone", group: str = "label", colour: str = "modality", unit: str,
                   groups: Sequence[str] | None = None, labels: Mapping[str, str] | None = None) -> Figure:
    """Effects with intervals; filled where the false discovery rate is at most 5 %.

    Parameters
    ----------
    table : DataFrame
        ``estimate, low, high, q`` and the columns named by `row` (panels), `group` (lines) and `colour`; where known
        ``detectable``, the smallest effect that a single test finds with a power of 80 % (a grey bar). A missing
        estimate is drawn as a dash.
    unit : str
        Text of the axis.
    groups : sequence of str, optional
        Order of the lines; default: that of the table.
    labels : mapping of panel to title, optional
    """
    require_columns(table, [row, group, colour, "estimate", "low", "high", "q"], "effects")
    panels, lines, kinds = (list(dict.fromkeys(table[name])) for name in (row, group, colour))
    lines, colours = list(groups or lines), colours_of(kinds)
    fig, axes = plt.subplots(1, len(panels), squeeze=False, sharey=True, sharex="detectable" not in table,
                             figsize=(3.5 * len(panels) + 1, 0.22 * len(lines) * len(kinds) + 1.7))
    for ax, panel in zip(axes[0], panels):
        for k, kind in enumerate(kinds):
            part = table[(table[row] == panel) & (table[colour] == kind)].set_index(group).reindex(lines)
            place = np.arange(len(lines)) + _offset(k, len(kinds))
            if "detectable" in part:
                ax.hlines(place, -part["detectable"], part["detectable"], color="#e4e4e4", lw=5)
            ax.hlines(place, part["low"], part["high"], color=colours[kind], lw=1.5)
            _dots(ax, part["estimate"], place, colours[kind], part["q"] <= 0.05, marker=MARKERS[k])
            for y in place[part["estimate"].isna()]:
                ax.text(0, y, "–", ha="center", va="center", color="#777777")
            ax.plot([], [], MARKERS[k], ls="", color=colours[kind], label=label_of(kind))
        ax.axvline(0, color="#777777", ls=":", lw=1)
        ax.set_yticks(range(len(lines)), lines)
        ax.set_title((labels or {}).get(panel, label_of(panel)))
        ax.set_xlabel(unit)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    add_legend(fig, axes[0, 0], len(kinds))
    return fig
