"""Figures of fine-tuning: confusion matrices, learning curves, accuracy per protocol and over lesion area."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figure import colours_of, label_of, require_columns, styled

CHANCE = {"color": "#888888", "ls": ":", "lw": 1}


@styled
def plot_confusions(matrices, classes: Sequence[str], titles: Sequence[str], *,
                    accuracies: Sequence[tuple[float, float, float]] | None = None,
                    sizes: Sequence[str] | None = None, n_columns: int | None = None, inches: float = 3.1) -> Figure:
    """Confusion matrices side by side, counts with the share of their row (figure 2 of Hong and Zhang, ISMRM 2021).

    Parameters
    ----------
    matrices : (P, K, K) array of int
        Rows true class, columns predicted class; of other shape than `titles` and `classes` a ValueError.
    classes, titles : sequences of K and P str
    accuracies : sequence of P (value, low, high), optional
        Accuracy and its interval, shares of 1; NaN limits are written as "no interval".
    sizes : sequence of P str, optional
        What the counts count, for instance ``"810 slices, 6 subjects"``.
    n_columns : int, optional
        Panels per row; by default all in one row.
    inches : float
        Width of a panel: larger for many classes or large counts.
    """
    matrices = np.asarray(matrices)
    if matrices.shape != (len(titles), len(classes), len(classes)):
        raise ValueError(f"matrices: must be ({len(titles)}, {len(classes)}, {len(classes)}) (got {matrices.shape})")
    columns = n_columns or len(matrices)
    rows = -(-len(matrices) // columns)
    fig, axes = plt.subplots(rows, columns, squeeze=False,
                             figsize=(inches * columns + 0.4, (inches + 0.1) * rows + 0.3))
    for ax in axes.ravel()[len(matrices):]:
        ax.set_axis_off()
    for i, (ax, counts) in enumerate(zip(axes.ravel(), matrices)):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        written = [[f"{count:,}\n{share:.0%}" for count, share in zip(*row)] for row in zip(counts, shares)]
        sns.heatmap(shares, annot=np.array(written), fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True,
                    xticklabels=classes, yticklabels=classes, ax=ax)
        ax.tick_params(length=0)
        lines = [textwrap.fill(titles[i], int(11 * inches))]
        if accuracies is not None:
            value, low, high = accuracies[i]
            lines.append(f"accuracy {value:.1%} " + (f"[{low:.1%}, {high:.1%}]" if low == low else "(no interval)"))
        if sizes is not None:
            lines.append(f"n = {sizes[i]}")
        ax.set_title(lines[0], loc="left", pad=6 + 11 * (len(lines) - 1), fontsize=9)
        ax.text(0, 1.02, "\n".join(lines[1:]), transform=ax.transAxes, fontsize=8, va="bottom", linespacing=1.3)
        ax.set(xlabel="predicted class", ylabel="" if i % columns else "true class")
    return fig


@styled
def plot_learning_curves(history) -> Figure:
    """Loss and accuracy over the epochs, one column per protocol, one colour per network.

    `history`: ``backbone, protocol, epoch, loss, val_loss, accuracy, val_accuracy``, and where known ``best`` (bool):
    the epoch whose weights were kept.
    """
    wanted = ["backbone", "protocol", "epoch", "loss", "val_loss", "accuracy", "val_accuracy"]
    require_columns(history, wanted, "history")
    protocols, nets = (list(dict.fromkeys(history[column])) for column in ("protocol", "backbone"))
    colours = colours_of(nets)
    fig, axes = plt.subplots(2, len(protocols), squeeze=False, sharey="row", sharex="col",
                             figsize=(2.3 * len(protocols) + 1.2, 4.2))
    for (protocol, net), part in history.groupby(["protocol", "backbone"], sort=False):
        part = part.sort_values("epoch")
        for ax, measure in zip(axes[:, protocols.index(protocol)], ("loss", "accuracy")):
            ax.plot(part["epoch"], part[measure], color=colours[net], ls="--", lw=1.2)
            ax.plot(part["epoch"], part[f"val_{measure}"], color=colours[net])
            if "best" in part:
                best = part[part["best"].astype(bool)]
                ax.plot(best["epoch"], best[f"val_{measure}"], "o", color=colours[net], mec="white")
    for protocol, (loss, accuracy) in zip(protocols, axes.T):
        loss.set_title(label_of(protocol), fontsize=8)
        accuracy.set_xlabel("epoch")
        last = history.loc[history["protocol"] == protocol, "epoch"].max()
        accuracy.set_xticks(np.unique(np.linspace(1, last, 5).round()))
        accuracy.set_xlim(0.5, last + 0.5)
    axes[0, 0].set(ylabel="loss (cross-entropy)", ylim=(0, None))
    axes[1, 0].set(ylabel="accuracy (slices)", ylim=(0, 1.02))
    keys = [Line2D([], [], color=colours[net], label=label_of(net)) for net in nets]
    keys += [Line2D([], [], color="#444444", label="validation"),
             Line2D([], [], color="#444444", ls="--", lw=1.2, label="training")]
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return fig


@styled
def plot_accuracies(table, *, protocols: Sequence[str] | None = None, published: Mapping[str, float] | None = None,
                    unit: str = "accuracy") -> Figure:
    """Accuracy over slices and over subjects, with intervals, for every protocol, control and baseline model.

    Parameters
    ----------
    table : DataFrame
        Columns ``protocol, backbone, level, value, low, high``, and optionally ``n``, ``chance`` (a dotted line) and
        ``seed``: the first one has its interval, others are circles. The baseline model is a ``backbone`` of its own
        (``logistic``).
    protocols : sequence of str, optional
        Rows from top to bottom; default: those of the table.
    published : mapping of backbone to accuracy, optional
        Dashed lines in the panel of slices, on the first protocol: what Hong and Zhang report.
    """
    require_columns(table, ["protocol", "backbone", "level", "value", "low", "high"], "accuracies")
    protocols = list(protocols) if protocols else list(dict.fromkeys(table["protocol"]))
    nets = list(dict.fromkeys(table["backbone"]))
    colours = colours_of(nets)
    rows, ends = {}, [0.0]
    for name in protocols:
        present = [net for net in nets if ((table["protocol"] == name) & (table["backbone"] == net)).any()]
        rows |= {(name, net): ends[-1] + 0.7 + i for i, net in enumerate(present)}
        ends.append(ends[-1] + len(present) + 0.4)
    fig, axes = plt.subplots(1, 2, sharey=True, figsize=(8.4, 0.2 * ends[-1] + 1.5))
    for ax, level in zip(axes, ("slice", "subject")):
        for row in table[table["level"] == level].itertuples():
            place, number = rows[row.protocol, row.backbone], protocols.index(row.protocol)
            if getattr(row, "seed", 1) > 1:
                ax.plot(row.value, place, "o", color=colours[row.backbone], ms=4.5, mfc="none", mew=0.8)
                continue
            ax.plot([row.low, row.high], [place] * 2, color=colours[row.backbone], lw=1.6, solid_capstyle="butt")
            ax.plot(row.value, place, "o", color=colours[row.backbone], ms=4.5)
            told = (f"  n={row.n:,}" if hasattr(row, "n") else "") + ("  (no interval)" if np.isnan(row.high) else "")
            ax.text(1.04, place, f"{row.value:.2f}{told}", fontsize=6, va="center", color="#444444")
            if hasattr(row, "chance"):
                ax.vlines(row.chance, *ends[number:number + 2], **CHANCE)
        for net, value in (published or {}).items() if level == "slice" else ():
            ax.plot([value] * 2, ends[:2], color=colours.get(net, "#444444"), ls="--", lw=1)
        for border in ends[1:-1]:
            ax.axhline(border, color="#cccccc", lw=0.6)
        ax.set(title=f"by {level}", xlim=(0, 1.45), xticks=np.linspace(0, 1, 6), xlabel=unit)
        ax.grid(axis="x")
    axes[0].set_yticks([sum(pair) / 2 for pair in pairwise(ends)], [name.replace("_", " ") for name in protocols])
    axes[0].set_ylim(ends[-1], 0)
    keys = [Line2D([], [], marker="o", color=colours[net], label=label_of(net)) for net in nets]
    if published:
        keys.append(Line2D([], [], color="#444444", ls="--", lw=1, label="published (network's colour)"))
    if "chance" in table:
        keys.append(Line2D([], [], label="chance", **CHANCE))
    fig.legend(handles=keys, loc="outside upper center", ncols=3)
    return fig


@styled
def plot_psychometric(table, *, border: float | None = None) -> Figure:
    """Accuracy over the lesion area of a slice, and on lesion-free slices (at the left), with intervals.

    `table`: ``backbone, lesions, mm2, value, low, high``, ``mm2`` 0 for lesion-free slices; `border`: accuracy that is
    aimed at, a dotted line.
    """
    require_columns(table, ["backbone", "lesions", "mm2", "value", "low", "high"], "psychometric table")
    nets = list(dict.fromkeys(table["backbone"]))
    colours, names = colours_of(nets), list(dict.fromkeys(table.sort_values("mm2")["lesions"]))
    fig, ax = plt.subplots(figsize=(5, 3.2))
    for number, net in enumerate(nets):
        part = table[table["backbone"] == net].sort_values("mm2")
        x = np.array([names.index(name) for name in part["lesions"]]) + (number - (len(nets) - 1) / 2) * 0.12
        limits = np.abs(part[["low", "high"]].to_numpy(float).T - part["value"].to_numpy(float))
        ax.errorbar(x, part["value"], limits, fmt="o", color=colours[net], ms=4.5, label=label_of(net))
        ax.plot(x[part["mm2"] > 0], part["value"][part["mm2"] > 0], color=colours[net], lw=1)
    if border is not None:
        ax.axhline(border, **CHANCE)
    ax.set(xlabel="lesion area in the slice (mm²)", ylabel="share of slices classified correctly", ylim=(0, 1.04))
    ax.set_xticks(range(len(names)), names)
    ax.legend(loc="lower right")
    return fig


