"""Figures of sleep staging: nights, epochs coloured by relevance, shares of the modalities with intervals.

`stages` and `modalities` are names in the order wanted. A table that lacks a column is refused with a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .figure import SIGNED_MAP, add_caption, colours_of, heat_bar, require_columns, styled

#: Height of a stage in a hypnogram, from the top; stages of other names follow in their order.
DEPTH = ("W", "REM", "N1", "N2", "N3")
#: Relevance that is drawn in full colour, as a quantile of its size over an epoch, and the seconds it is summed over.
FULL, SECONDS = 0.995, 0.1
EPOCH_HOURS = 30 / 3600


def _legend(fig, modalities, more=()) -> None:
    colours = colours_of(list(modalities))
    handles = [Patch(color=colours[modality], label=modality) for modality in modalities]
    fig.legend(handles=[*handles, *more], loc="outside upper center", ncols=len(handles) + len(more))


@styled
def plot_night(hours, scored, predicted, shares, stages: Sequence[str], modalities: Sequence[str], *, title: str = "",
               caption: str = "") -> Figure:
    """A night's hypnogram, as scored and as the network stages it, with the modalities' shares as a band beneath.

    Parameters
    ----------
    hours : (N,) array
        Onset of every 30-s epoch, ascending.
    scored, predicted : (N,) array of int
        Indices into `stages`.
    shares : (N, M) array
        Percent of the relevance; rows add up to 100.

    Raises
    ------
    ValueError
        Lengths differ.
    """
    hours, scored, predicted, shares = map(np.asarray, (hours, scored, predicted, shares))
    if not len(hours) == len(scored) == len(predicted) == len(shares) or shares.shape[1:] != (len(modalities),):
        raise ValueError(f"night: hours, stages and shares must be of one length, with {len(modalities)} shares (got "
                         f"{len(hours)}, {len(scored)}, {len(predicted)} and {shares.shape})")
    order = [name for name in DEPTH if name in stages] + [name for name in stages if name not in DEPTH]
    height = np.array([order.index(name) for name in stages])
    fig, (top, middle, band) = plt.subplots(3, 1, sharex=True, figsize=(8.6, 4.6), height_ratios=[2, 2, 1.9])
    edges = np.append(hours, hours[-1] + EPOCH_HOURS)
    wrong = scored != predicted
    for ax, values, name in ((top, scored, "scored"), (middle, predicted, "predicted")):
        ax.stairs(height[values], edges, baseline=None, color="#222222", lw=0.8)
        ax.set_yticks(range(len(order)), order)
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_ylabel(name)
    middle.plot(hours[wrong] + EPOCH_HOURS / 2, height[predicted[wrong]], "|", color="#D55E00", ms=6, mew=0.8)
    colours, below = colours_of(list(modalities)), np.zeros(len(hours))
    for column, modality in enumerate(modalities):
        above = below + shares[:, column]
        band.stairs(above, edges, baseline=below, fill=True, color=colours[modality], lw=0, antialiased=False)
        below = above
    band.set_ylim(0, 100)
    band.set_ylabel("share of\nrelevance (%)")
    band.set_xlabel("hours from the start of the recording")
    band.set_xlim(edges[0], edges[-1])
    top.set_title(title)
    _legend(fig, modalities, [Line2D([], [], color="#D55E00", marker="|", ls="", label="wrongly classified epoch")])
    add_caption(fig, caption)
    return fig


def _draw_epoch(ax, signal, relevance, modalities, rate) -> None:
    """Standardised traces one above the other: grey, coloured where relevance is."""
    size = max(1, round(SECONDS * rate))
    kernel = np.ones(size)
    summed = np.stack([np.convolve(column, kernel, mode="same") for column in relevance.T], axis=1)
    share = np.clip(summed / (np.quantile(np.abs(summed), FULL) or 1), -1, 1)
    time = np.arange(len(signal)) / rate
    for column in range(len(modalities)):
        trace = np.clip(signal[:, column], -4, 4) / 8 - column
        ax.plot(time, trace, color="#bbbbbb", lw=0.4)
        segments = np.stack([np.column_stack([time[:-1], trace[:-1]]), np.column_stack([time[1:], trace[1:]])], axis=1)
        colour = plt.get_cmap(SIGNED_MAP)((share[:-1, column] + 1) / 2)
        colour[:, 3] = np.clip(2 * np.abs(share[:-1, column]), 0, 1)
        ax.add_collection(LineCollection(segments, colors=colour, linewidths=1.0))
    ax.set_yticks(-np.arange(len(modalities)), modalities, fontsize=7)
    ax.set_ylim(-len(modalities) + 0.35, 0.65)
    ax.set_xlim(0, time[-1])


@styled
def plot_relevant_epochs(examples: Mapping[str, Mapping], stages: Sequence[str], modalities: Sequence[str], *,
                         rate: float = 100.0, caption: str = "") -> Figure:
    """One epoch per stage: traces of the modalities, coloured by the relevance of every sample.

    Parameters
    ----------
    examples : mapping of stage to mapping
        ``signal`` and ``relevance``, (T, M) arrays; ``title``. A stage without example has a panel that says so.
    rate : float
        Samples per second.

    Raises
    ------
    ValueError
        Signal and relevance of different shape, or not finite.
    """
    fig, axes = plt.subplots(len(stages), 1, sharex=True, squeeze=False, figsize=(9.2, 1.35 * len(stages) + 1.0))
    for ax, stage in zip(axes[:, 0], stages):
        one = examples.get(stage)
        ax.set_ylabel(stage, rotation=0, ha="right", va="center", fontweight="bold", labelpad=12)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.tick_params(length=0)
        if one is None:
            ax.set_yticks([])
            ax.text(0.5, 0.5, "no epoch of this stage is correctly classified", transform=ax.transAxes, ha="center",
                    va="center", color="#777777")
            continue
        signal, relevance = np.asarray(one["signal"], float), np.asarray(one["relevance"], float)
        if signal.shape != relevance.shape or not np.isfinite(relevance).all() or signal.shape[1] != len(modalities):
            raise ValueError(f"{stage}: signal and relevance must be finite, (T, {len(modalities)}) (got "
                             f"{signal.shape} and {relevance.shape})")
        _draw_epoch(ax, signal, relevance, modalities, rate)
        ax.set_title(one.get("title", ""), fontsize=7.5, loc="left", fontweight="normal", pad=2)
    axes[-1, 0].set_xlabel("seconds")
    heat_bar(fig, list(axes[:, 0]), "relevance, share of the epoch's full colour", signed=True)
    add_caption(fig, caption)
    return fig


@styled
def plot_stage_shares(panels: Mapping[str, object], stages: Sequence[str], modalities: Sequence[str], *,
                      units: Mapping[str, str] | None = None, chance: Mapping[str, float] | None = None,
                      caption: str = "") -> Figure:
    """One point with its interval per stage and modality, in panels one below the other.

    Parameters
    ----------
    panels : mapping of title to DataFrame
        ``stage, modality, value, low, high``; a missing value is drawn as a dash, a missing interval not at all.
    units : mapping of title to str, optional
        Text of the axes; default: share of the relevance in percent.
    chance : mapping of title to float, optional
        Height of a dotted line; default: a line at 0.
    """
    fig, axes = plt.subplots(len(panels), 1, sharex=True, squeeze=False, figsize=(7.2, 1.75 * len(panels) + 1.1))
    colours = colours_of(list(modalities))
    for ax, (title, table) in zip(axes[:, 0], panels.items()):
        require_columns(table, ["stage", "modality", "value", "low", "high"], title)
        level = (chance or {}).get(title, 0)
        ax.axhline(level, color="#777777", ls=":" if level else "-", lw=1.0)
        for k, modality in enumerate(modalities):
            rows = table[table["modality"] == modality].set_index("stage").reindex(list(stages))
            place = np.arange(len(rows)) + (k - (len(modalities) - 1) / 2) * 0.2
            ax.vlines(place, rows["low"], rows["high"], color=colours[modality], lw=2)
            ax.plot(place, rows["value"], "o", color=colours[modality], ms=4.5)
            for x in place[rows["value"].isna()]:
                ax.text(x, level, "–", ha="center", va="bottom", fontsize=7, color="#777777")
        ax.set_xticks(range(len(stages)), stages)
        ax.grid(axis="y")
        ax.set_title(title)
        ax.set_ylabel((units or {}).get(title, "share of relevance (%)"))
    _legend(fig, modalities)
    add_caption(fig, caption)
    return fig


@styled
def plot_effects(table, effects: Mapping[str, str], stages: Sequence[str], modalities: Sequence[str], *,
                 level: float = 0.05, caption: str = "") -> Figure:
    """Estimates of mixed models with intervals: one panel per effect, stages and modalities below each other.

    Parameters
    ----------
    table : DataFrame
        ``stage, modality, term, value, low, high, p_fdr, detectable``.
    effects : mapping of term to str
        What a panel is called.
    level : float
        Estimates whose corrected p is at most this are filled.
    """
    require_columns(table, ["stage", "modality", "term", "value", "low", "high", "p_fdr", "detectable"], "effects")
    colours, count = colours_of(list(modalities)), len(modalities) + 1
    fig, axes = plt.subplots(1, max(1, len(effects)), squeeze=False, sharey=True,
                             figsize=(2.9 * max(1, len(effects)) + 0.8, 0.75 * len(stages) + 1.6))
    for ax, (term, title) in zip(axes[0], effects.items()):
        part = table[table["term"] == term].set_index(["stage", "modality"])
        for i, stage in enumerate(stages):
            for k, modality in enumerate(modalities):
                y = i * count + k
                if (stage, modality) not in part.index or not np.isfinite(part.loc[(stage, modality), "value"]):
                    ax.text(0, y, "–", ha="center", va="center", color="#777777")
                    continue
                row = part.loc[(stage, modality)]
                ax.hlines(y, -row["detectable"], row["detectable"], color="#e4e4e4", lw=5)
                ax.hlines(y, row["low"], row["high"], color=colours[modality], lw=1.5)
                sure = row["p_fdr"] <= level
                ax.plot(row["value"], y, "o", color=colours[modality], ms=5,
                        markerfacecolor=colours[modality] if sure else "white")
        ax.axvline(0, color="#777777", lw=0.8)
        ax.set_title(title)
        ax.set_xlabel("percentage points")
    axes[0, 0].set_yticks([i * count + (len(modalities) - 1) / 2 for i in range(len(stages))], stages)
    axes[0, 0].set_ylim(len(stages) * count - 1, -1)
    _legend(fig, modalities, [
        Line2D([], [], marker="o", color="#333333", ls="", label=f"corrected p up to {level:g}"),
        Line2D([], [], marker="o", color="#333333", ls="", markerfacecolor="white", label="above"),
        Patch(color="#e4e4e4", label="smaller than found with 80 % power")])
    add_caption(fig, caption)
    return fig
