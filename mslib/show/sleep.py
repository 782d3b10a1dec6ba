"""Figures of sleep staging: a night, and epochs coloured by relevance.

`stages` and `modalities` are names in the order wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .figure import SIGNED_MAP, colours_of, heat_bar, styled

#: Height of a stage in a hypnogram, from the top; stages of other names follow in their order.
DEPTH = ("W", "REM", "N1", "N2", "N3")
EPOCH_HOURS = 30 / 3600


@styled
def plot_night(hours, scored, predicted, shares, stages: Sequence[str], modalities: Sequence[str], *,
               title: str = "") -> Figure:
    """A night's hypnogram, as scored and as the network stages it, with the modalities' shares as a band beneath.

    Parameters
    ----------
    hours : (N,) array
        Onset of every 30-s epoch, ascending; of another length than the others a ValueError.
    scored, predicted : (N,) array of int
        Indices into `stages`.
    shares : (N, M) array
        Percent of the relevance; rows add up to 100.
    """
    hours, scored, predicted, shares = map(np.asarray, (hours, scored, predicted, shares))
    if not len(hours) == len(scored) == len(predicted) == len(shares) or shares.shape[1:] != (len(modalities),):
        raise ValueError(f"night: hours, stages and shares must be of one length, with {len(modalities)} shares (got "
                         f"{len(hours)}, {len(scored)}, {len(predicted)} and {shares.shape})")
    order = [name for name in DEPTH if name in stages] + [name for name in stages if name not in DEPTH]
    height = np.array([order.index(name) for name in stages])
    fig, (top, middle, band) = plt.subplots(3, 1, sharex=True, figsize=(8.6, 4.6), height_ratios=[2, 2, 1.9])
    gaps = np.flatnonzero(np.diff(hours) > 1.01 * EPOCH_HOURS)  # epochs that were left out stay blank
    edges = np.append(np.insert(hours, gaps + 1, hours[gaps] + EPOCH_HOURS), hours[-1] + EPOCH_HOURS)
    wrong = scored != predicted

    def with_gaps(values):
        return np.insert(np.asarray(values, float), gaps + 1, np.nan, axis=0)

    for ax, values, name in ((top, scored, "scored"), (middle, predicted, "predicted")):
        ax.stairs(with_gaps(height[values]), edges, baseline=None, color="#222222", lw=0.8)
        ax.set_yticks(range(len(order)), order)
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_ylabel(name)
    middle.plot(hours[wrong] + EPOCH_HOURS / 2, height[predicted[wrong]], "|", color="#D55E00", ms=6, mew=0.8)
    colours, below, shares = colours_of(list(modalities)), np.zeros(len(edges) - 1), with_gaps(shares)
    for column, modality in enumerate(modalities):
        above = below + shares[:, column]
        band.stairs(above, edges, baseline=np.nan_to_num(below), fill=True, color=colours[modality], lw=0,
                    antialiased=False)
        below = above
    band.set_ylim(0, 100)
    band.set_ylabel("share of\nrelevance (%)")
    band.set_xlabel("hours from the start of the recording")
    band.set_xlim(edges[0], edges[-1])
    top.set_title(title)
    keys = [Patch(color=colours[modality], label=modality) for modality in modalities]
    keys.append(Line2D([], [], color="#D55E00", marker="|", ls="", label="wrongly classified epoch"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return fig


def _draw_epoch(ax, signal, relevance, modalities, rate) -> None:
    """Standardised traces one above the other: grey, coloured where relevance, summed over 0.1 s, is.

    Full colour: the 99.5th percentile of its size over the epoch.
    """
    kernel = np.ones(max(1, round(0.1 * rate)))
    summed = np.stack([np.convolve(column, kernel, mode="same") for column in relevance.T], axis=1)
    share = np.clip(summed / (np.quantile(np.abs(summed), 0.995) or 1), -1, 1)
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
                         rate: float = 100.0) -> Figure:
    """One epoch per stage: traces of the modalities, coloured by the relevance of every sample.

    `examples`: by stage ``signal`` and ``relevance``, (T, M) arrays (ValueError: of different shape or not finite), and
    ``title``; a stage without example has a panel that says so. `rate`: samples per second.
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
    return fig
