"""Attributions of many methods: maps per sequence, the table that judges them, importance of the sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import (
    SIGNED_MAP,
    add_caption,
    colours_of,
    draw_slice,
    heat_bar,
    label_of,
    mark_blank,
    outline,
    require_columns,
    styled,
)

#: Magnitude that is drawn in full colour, as a quantile of a method's map over all sequences.
FULL = 0.995
BLANK_BELOW = 1e-12


def _draw_map(ax, background, heat, top, lesion):
    draw_slice(ax, 0.6 * background)
    if top > BLANK_BELOW:
        share = np.clip(heat / top, -1, 1)
        ax.imshow(share, cmap=SIGNED_MAP, vmin=-1, vmax=1, alpha=np.clip(2 * np.abs(share), 0, 0.9),
                  interpolation="nearest")
    else:
        mark_blank(ax)
    if lesion is not None:
        outline(ax, lesion, colour="#00c853", width=0.6)


@styled
def plot_attributions(image, maps: Mapping[str, np.ndarray], sequences: Sequence[str], *, features=None,
                      modality_blind: Sequence[str] = (), columns: int = 3, caption: str = "") -> Figure:
    """Maps of many methods over one slice, each sequence on its own, methods side by side.

    Parameters
    ----------
    image : (H, W, M) array
        In [0, 1], the first block.
    maps : mapping of method to (H, W, M) array
        Raw, signed: red speaks for the class, blue against it. One scale per method, shared by its sequences, so that
        they can be compared.
    sequences : sequence of M str
    features : (H, W, M) bool array, optional
        What should be marked, drawn as outlines.
    modality_blind : sequence of str
        Methods whose map is one for all sequences; their names carry a star.
    columns : int
        Methods side by side.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A map of another shape than the image, or not finite.
    """
    image = np.asarray(image)
    for name, heat in maps.items():
        if np.shape(heat) != image.shape or not np.isfinite(heat).all():
            raise ValueError(f"{name}: must be finite, of the shape of the image {image.shape} (got {np.shape(heat)})")
    count, rows = len(sequences), -(-(len(maps) + 1) // columns)
    widths = ([1] * count + [0.25]) * columns
    fig, axes = plt.subplots(rows, len(widths), squeeze=False, width_ratios=widths,
                             figsize=(0.98 * sum(widths) + 0.7, 1.32 * rows + 0.7))
    fig.get_layout_engine().set(w_pad=0.005, h_pad=0.02, wspace=0.005, hspace=0.02)
    for ax in axes.ravel():
        ax.set_axis_off()
    outlines = [None] * count if features is None else [features[..., m] for m in range(count)]
    for place, name in enumerate([None, *maps]):
        row, first = place // columns, place % columns * (count + 1)
        block = axes[row, first:first + count]
        heat = None if name is None else np.asarray(maps[name], float)
        top = 0 if name is None else float(np.quantile(np.abs(heat), FULL)) or float(np.abs(heat).max())
        for m, ax in enumerate(block):
            if name is None:
                draw_slice(ax, image[..., m], sides=m == 0)
                if outlines[m] is not None:
                    outline(ax, outlines[m], colour="#00c853", width=0.6)
                ax.set_title(sequences[m], fontsize=7)
            else:
                _draw_map(ax, image[..., m], heat[..., m], top, outlines[m])
        if name is not None:
            star = " *" if name in modality_blind else ""
            block[count // 2].set_title(f"{label_of(name)}{star}", fontsize=7, fontweight="bold")
    heat_bar(fig, list(axes.ravel()), "attribution, share of the method's full colour", signed=True)
    add_caption(fig, caption)
    return fig


@styled
def plot_scores(table, better: Mapping[str, int], *, chance: Mapping[str, float] | None = None,
                labels: Mapping[str, str] | None = None, caption: str = "") -> Figure:
    """The table that judges methods, as a figure: one row per method, one column per measure.

    Parameters
    ----------
    table : DataFrame
        Index: method; one column per measure.
    better : mapping of column to {1, -1}
        1: larger is better. Colour runs from the worst (dark) to the best (light) of a column; best and worst are
        written bold and in italics.
    chance : mapping of column to float, optional
        A last row: what a map without knowledge reaches.
    labels : mapping of column to str, optional
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    columns = list(better)
    require_columns(table, columns, "scores")
    names, chance = list(table.index), chance or {}
    values = table[columns].to_numpy(float)
    order = values * np.array([better[name] for name in columns])
    low, high = np.nanmin(order, 0), np.nanmax(order, 0)
    share = (order - low) / np.where(high > low, high - low, 1)
    fig, ax = plt.subplots(figsize=(1.0 * len(columns) + 2.2, 0.27 * (len(names) + 1) + 1.6))
    ax.imshow(np.vstack([share, np.full((1, len(columns)), np.nan)]), cmap="cividis", vmin=-0.35, vmax=1, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            best, worst = share[i, j] == 1, share[i, j] == 0
            ax.text(j, i, "–" if np.isnan(value) else f"{value:z.2f}", ha="center", va="center", fontsize=7.5,
                    color="black" if share[i, j] > 0.35 else "white" if not np.isnan(value) else "#777777",
                    fontweight="bold" if best else "normal", style="italic" if worst else "normal")
    for j, name in enumerate(columns):
        ax.text(j, len(names), f"{chance[name]:.2f}" if name in chance else "", ha="center", va="center", fontsize=7.5)
    ax.set_yticks(range(len(names) + 1), [label_of(name) for name in names] + ["chance"], fontsize=8)
    ax.set_xticks(range(len(columns)), [(labels or {}).get(name, name) for name in columns], fontsize=7.5, rotation=30,
                  ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    add_caption(fig, caption)
    return fig


@styled
def plot_importance(table, sequences: Sequence[str], *, panel: str = "net", caption: str = "") -> Figure:
    """Importance of the sequences with intervals: one panel per net and value function, one bar colour per fill.

    Parameters
    ----------
    table : DataFrame
        ``<panel>, fill, worth, modality, value, low, high``.
    sequences : sequence of str
    panel : str
        Column whose values are the rows of panels.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(table, [panel, "fill", "worth", "modality", "value", "low", "high"], "importance")
    rows, columns, fills = (list(dict.fromkeys(table[name])) for name in (panel, "worth", "fill"))
    colours = colours_of(fills)
    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="col",
                             figsize=(3.1 * len(columns) + 0.6, 1.35 * len(rows) + 1.2))
    for i, row in enumerate(rows):
        for j, worth in enumerate(columns):
            ax = axes[i, j]
            for k, fill in enumerate(fills):
                part = table[(table[panel] == row) & (table["worth"] == worth) & (table["fill"] == fill)]
                part = part.set_index("modality").reindex(list(sequences))
                place = np.arange(len(sequences)) + (k - (len(fills) - 1) / 2) * 0.8 / len(fills)
                ax.bar(place, part["value"], 0.75 / len(fills), color=colours[fill], label=fill)
                low, high = part["low"].fillna(part["value"]), part["high"].fillna(part["value"])
                ax.vlines(place, low, high, color="black", lw=1)
            ax.axhline(0, color="#777777", lw=0.8)
            ax.set_xticks(range(len(sequences)), sequences)
            if i == 0:
                ax.set_title(worth)
        axes[i, 0].set_ylabel(label_of(row), fontweight="bold")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(fills), title="absent sequences replaced by")
    add_caption(fig, caption)
    return fig


@styled
def plot_shares(table, *, chance: float, unit: str, caption: str = "") -> Figure:
    """One value with interval per method as horizontal dots beside the level of chance.

    Parameters
    ----------
    table : DataFrame
        Index: method; ``value, low, high``.
    chance : float
    unit : str
        Text of the axis.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_columns(table, ["value", "low", "high"], "shares")
    part = table.iloc[::-1]
    fig, ax = plt.subplots(figsize=(6.2, 0.24 * len(part) + 1.3))
    place = np.arange(len(part))
    ax.hlines(place, part["low"].fillna(part["value"]), part["high"].fillna(part["value"]), color="#0072B2", lw=2)
    ax.plot(part["value"], place, "o", color="#0072B2", ms=5)
    ax.axvline(chance, color="#777777", ls=":", lw=1.2)
    ax.text(chance, len(part) - 0.4, " chance", fontsize=7, color="#777777")
    ax.set_yticks(place, [label_of(name) for name in part.index], fontsize=8)
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    add_caption(fig, caption)
    return fig
