"""Relevance of the sequences: shares as bars, per subject, over depth, and what they are related to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import add_caption, colours_of, grouped_bars, label_of, require_columns, styled


@styled
def plot_share_bars(table, sequences: Sequence[str], *, row: str, column: str, bars: str,
                    unit: str = "share of relevance [%]", labels: Mapping[str, str] | None = None,
                    caption: str = "") -> Figure:
    """Shares of the sequences as grouped bars with intervals.

    Parameters
    ----------
    table : DataFrame
        Columns named by `row`, `column` and `bars`, and ``modality, value, low, high, chance`` (dotted, bar by bar).
    sequences : sequence of str
        Order of the bars of a group.
    row, column, bars : str
        Columns whose values are the rows and columns of panels, and the groups along the axis.
    unit : str
    labels : mapping of str to str, optional
        How values of `row`, `column` and `bars` are written.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(table, [row, column, bars, "modality", "value", "low", "high", "chance"], "shares")
    rows, columns = (list(dict.fromkeys(table[name])) for name in (row, column))
    groups = {name: list(dict.fromkeys(table.loc[table[column] == name, bars])) for name in columns}
    labels, half = labels or {}, 0.4 / len(sequences)
    most = max(len(found) for found in groups.values())
    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False, sharey="row", sharex="col",
                             figsize=(max(3.0, 0.62 * most + 0.6) * len(columns) + 0.6, 1.9 * len(rows) + 1.3))
    for i, of_row in enumerate(rows):
        for j, of_column in enumerate(columns):
            ax = axes[i, j]
            part = table[(table[row] == of_row) & (table[column] == of_column)]
            for own in grouped_bars(ax, part, groups[of_column], sequences, by=bars):
                ax.hlines(own["chance"], own["place"] - half, own["place"] + half, color="black", lw=1.3,
                          ls=(0, (1.5, 1)))
            ax.set_xticks(range(len(groups[of_column])), [labels.get(name, label_of(name))
                                                           for name in groups[of_column]],
                          rotation=30 if most > 4 else 0, ha="right" if most > 4 else "center", fontsize=7.5)
            if i == 0:
                ax.set_title(labels.get(of_column, label_of(of_column)))
        axes[i, 0].set_ylabel(f"{labels.get(of_row, label_of(of_row))}\n{unit}".strip(), fontsize=8)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(sequences))
    add_caption(fig, caption)
    return fig


@styled
def plot_subject_shares(table, sequences: Sequence[str], groups: Sequence[str], *, kind: str = "absolute",
                        seed: int = 0, caption: str = "") -> Figure:
    """Mean share of every sequence, one dot per subject; filled where the net names most of its slices rightly.

    Parameters
    ----------
    table : DataFrame
        ``backbone, group, right`` (share of slices), ``<kind>_<sequence>``; one row per subject and net.
    sequences, groups : sequence of str
    kind : str
    seed : int
        Of the sideways spread of dots.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(table, ["backbone", "group", "right", *(f"{kind}_{name}" for name in sequences)], "shares")
    nets, colours = list(dict.fromkeys(table["backbone"])), colours_of(sequences)
    groups = [name for name in groups if (table["group"] == name).any()]
    rng = np.random.default_rng(seed)
    fig, axes = plt.subplots(1, len(nets), squeeze=False, sharey=True,
                             figsize=(max(3.2, 1.3 * len(groups)) * len(nets) + 0.6, 3.2))
    for ax, backbone in zip(axes[0], nets):
        for i, group in enumerate(groups):
            part = table[(table["backbone"] == backbone) & (table["group"] == group)]
            for k, sequence in enumerate(sequences):
                place = i + (k - (len(sequences) - 1) / 2) * 0.27
                across = place + rng.uniform(-0.08, 0.08, len(part))
                right = (part["right"] > 0.5).to_numpy()
                values = part[f"{kind}_{sequence}"].to_numpy()
                style = {"s": 16, "edgecolors": colours[sequence], "linewidths": 0.9}
                ax.scatter(across[right], values[right], color=colours[sequence], label=sequence if not i else None,
                           **style)
                ax.scatter(across[~right], values[~right], facecolors="none", **style)
                ax.hlines(np.nanmedian(values) if len(values) else np.nan, place - 0.11, place + 0.11, color="black")
        ax.set_xticks(range(len(groups)), groups)
        ax.set_title(label_of(backbone))
    axes[0, 0].set_ylabel("share of relevance [%]")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(sequences))
    add_caption(fig, caption)
    return fig


@styled
def plot_flow(flow, shares, sequences: Sequence[str], *, caption: str = "") -> Figure:
    """How much relevance reaches each layer on its way from the logit to the input, and how it ends up there.

    Parameters
    ----------
    flow : DataFrame
        ``backbone, layer`` (deep to shallow), ``sum, absolute`` (shares of the logits).
    shares : DataFrame
        ``backbone, modality, value`` (percent): how the input's relevance divides.
    sequences : sequence of str
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(flow, ["backbone", "layer", "sum", "absolute"], "flow")
    require_columns(shares, ["backbone", "modality", "value"], "shares")
    nets, colours = list(dict.fromkeys(flow["backbone"])), colours_of(sequences)
    fig, axes = plt.subplots(len(nets), 2, squeeze=False, width_ratios=[6, 1], figsize=(8.6, 2.1 * len(nets) + 1.2))
    for (ax, end), backbone in zip(axes, nets):
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
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=2)
    add_caption(fig, caption)
    return fig


@styled
def plot_relations(table, *, row: str = "backbone", group: str = "label", colour: str = "modality", unit: str,
                 level: float = 0.05, caption: str = "") -> Figure:
    """Effects with intervals; filled where the false discovery rate is below `level`.

    Parameters
    ----------
    table : DataFrame
        ``estimate, low, high, q`` and the columns named by `row` (panels), `group` (lines) and `colour`.
    row, group, colour : str
    unit : str
        Text of the axis.
    level : float
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(table, [row, group, colour, "estimate", "low", "high", "q"], "effects")
    panels, groups, kinds = (list(dict.fromkeys(table[name])) for name in (row, group, colour))
    colours = colours_of(kinds)
    fig, axes = plt.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True,
                             figsize=(3.5 * len(panels) + 1, 0.22 * len(groups) * len(kinds) + 1.7))
    for ax, panel in zip(axes[0], panels):
        for k, kind in enumerate(kinds):
            part = table[(table[row] == panel) & (table[colour] == kind)].set_index(group).reindex(groups)
            place = np.arange(len(groups)) + (k - (len(kinds) - 1) / 2) * 0.25
            ax.hlines(place, part["low"], part["high"], color=colours[kind], lw=1.5)
            passed = (part["q"] < level).to_numpy()
            ax.scatter(part["estimate"][passed], place[passed], s=26, color=colours[kind], zorder=3)
            ax.scatter(part["estimate"][~passed], place[~passed], s=26, facecolors="white", edgecolors=colours[kind],
                       zorder=3)
            ax.plot([], [], "o", color=colours[kind], label=label_of(kind))
        ax.axvline(0, color="#777777", ls=":", lw=1)
        ax.set_yticks(range(len(groups)), groups)
        ax.set_title(label_of(panel))
        ax.set_xlabel(unit)
    axes[0, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(kinds))
    add_caption(fig, caption)
    return fig
