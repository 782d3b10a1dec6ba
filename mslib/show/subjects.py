"""Figures of the cohort: who was studied and how well the scans were aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figure import add_legend, colours_of, require_columns, styled


@styled
def plot_cohort(table, groups: Sequence[str], measures: Mapping[str, str], *,
                reference: Mapping[str, Mapping[str, tuple[float, float, float]]] | None = None,
                log: Sequence[str] = ("lesion_load_ml",), seed: int = 0) -> Figure:
    """The cohort by group, one dot per subject, beside the statistics of real patients.

    Parameters
    ----------
    table : pandas.DataFrame
        ``group`` and the columns of `measures`; one row per subject.
    measures : mapping of column to label with unit
        Panels, for instance ``{"lesion_load_ml": "lesion load [mL]"}``.
    reference : mapping of measure to mapping of group to (median, low, high), optional
        Real patients: median and range, drawn in black beside the dots.
    log : sequence of str
        Measures on a logarithmic axis (linear below 0.1, so that zeros show).
    """
    require_columns(table, ["group", *measures], "cohort")
    rng = np.random.default_rng(seed)
    colours = colours_of(groups)
    reference = {measure: of_group for measure, of_group in (reference or {}).items()
                 if measure in measures and set(of_group) & set(groups)}
    columns = min(5, len(measures))
    rows = -(-len(measures) // columns)
    size = (max(4.6, max(0.8 * len(groups), 1.6) * columns + 0.6), (3.3 if rows == 1 else 2.1) * rows)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    for ax in axes.flat[len(measures):]:
        ax.set_axis_off()
    for ax, (measure, label) in zip(axes.flat, measures.items()):
        for i, group in enumerate(groups):
            values = table.loc[table["group"] == group, measure].dropna().to_numpy(float)
            ax.plot(i - 0.12 + rng.uniform(-0.14, 0.14, len(values)), values, "o", ms=3.5, alpha=0.6,
                    mec="none", color=colours[group])
            if len(values):
                ax.plot([i - 0.32, i + 0.08], [np.median(values)] * 2, color=colours[group], lw=2)
            if group in reference.get(measure, {}):
                median, low, high = reference[measure][group]
                ax.plot([i + 0.28] * 2, [low, high], color="black", lw=1.2)
                ax.plot(i + 0.28, median, "D", color="black", ms=4)
        counts = [int((table["group"] == group).sum()) for group in groups]
        ax.set_xticks(range(len(groups)), [f"{g}\nn={n}" for g, n in zip(groups, counts)], fontsize=7)
        ax.set_xlim(-0.55, len(groups) - 0.45)
        if measure in log:
            ax.set_yscale("symlog", linthresh=0.1)
            ax.set_ylim(-0.02, 1.6 * max(1.0, table[measure].max()))
        ax.set_title(label)
        ax.grid(axis="y")
    keys = [Line2D([], [], marker="o", ls="", color="#666666", label="one subject"),
            Line2D([], [], color="#666666", lw=2, label="median")]
    if reference:
        keys.append(Line2D([], [], color="black", marker="D", ms=4, lw=1.2,
                           label="real patients: median, range"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return fig


@styled
def plot_registration_errors(table, *, targets: Mapping[str, float] | None = None, seed: int = 0) -> Figure:
    """Registration error of every subject before and after co-registration, one panel per sequence.

    `table`: ``sequence, before, after`` in mm, a row per subject and sequence; `targets`: dashed lines, label to mm;
    `seed`: sideways scatter of the dots.
    """
    require_columns(table, ["sequence", "before", "after"], "registration errors")
    sequences = list(dict.fromkeys(table["sequence"]))
    colours = colours_of(sequences)
    rng = np.random.default_rng(seed)
    fig, axes = plt.subplots(1, len(sequences), squeeze=False, sharey=True,
                             figsize=(2.7 * len(sequences) + 0.8, 3.3))
    for ax, sequence in zip(axes[0], sequences):
        part = table[table["sequence"] == sequence]
        pairs = part[["before", "after"]].to_numpy(float)
        places = np.array([0, 1]) + rng.uniform(-0.12, 0.12, (len(pairs), 1))
        ax.plot(places.T, pairs.T, color="#cccccc", lw=0.5, zorder=1)
        ax.plot(places, pairs, "o", ms=3.5, alpha=0.7, mec="none", color=colours[sequence])
        for i, values in enumerate(pairs.T):
            ax.plot([i - 0.22, i + 0.22], [np.median(values)] * 2, color="black", lw=2)
            ax.text(i + 0.25, np.median(values), f"{np.median(values):.2g}", fontsize=7, va="center")
        for (label, value), style in zip((targets or {}).items(), ("--", ":", "-."), strict=False):
            ax.axhline(value, color="#B00020", ls=style, lw=1, zorder=0, label=f"{label}, {value:g} mm")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        ax.set_xticks([0, 1], ["before", "after"])
        ax.set_xlim(-0.45, 1.5)
        worst = pairs[:, 1].max()
        ax.set_title(f"{sequence}: n = {len(pairs)}, worst after {worst:.2f} mm", fontsize=8)
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("mean error over the brain [mm]")
    if targets:
        add_legend(fig, axes[0, 0], len(targets))
    return fig
