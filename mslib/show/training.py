"""Figures of fine-tuning: confusion matrices, learning curves, accuracy per protocol with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figure import add_caption, colours_of, label_of, require_columns, styled


@styled
def plot_confusions(matrices, classes: Sequence[str], titles: Sequence[str], *,
                    accuracies: Sequence[tuple[float, float, float]] | None = None,
                    sizes: Sequence[str] | None = None, n_columns: int | None = None, inches: float = 3.1,
                    caption: str = "") -> Figure:
    """Figure 2: confusion matrices side by side, counts with the share of their row.

    Parameters
    ----------
    matrices : (P, K, K) array of int
        Rows true class, columns predicted class.
    classes : sequence of K str
    titles : sequence of P str
    accuracies : sequence of P (value, low, high), optional
        Accuracy and its interval, shares of 1; NaN limits are told as "no interval".
    sizes : sequence of P str, optional
        What the counts count, for instance ``"810 slices, 6 subjects"``.
    n_columns : int, optional
        Panels per row; by default all in one row.
    inches : float
        Width of a panel: larger for many classes or large counts.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        Shapes, titles and classes do not agree.

    Notes
    -----
    Layout of figure 2 of Hong and Zhang, ISMRM 2021, abstract 3275 (VGG16+GAP left, VGG19+GAP right).
    """
    matrices = np.asarray(matrices)
    if matrices.shape != (len(titles), len(classes), len(classes)):
        raise ValueError(f"matrices: must be ({len(titles)}, {len(classes)}, {len(classes)}) "
                         f"(got {matrices.shape})")
    columns = n_columns or len(matrices)
    rows = -(-len(matrices) // columns)
    fig, axes = plt.subplots(rows, columns, squeeze=False,
                             figsize=(inches * columns + 0.4, (inches + 0.1) * rows + 0.3))
    for ax in axes.ravel()[len(matrices):]:
        ax.set_axis_off()
    for i, (ax, counts) in enumerate(zip(axes.ravel(), matrices)):
        _draw_confusion(ax, counts, classes)
        lines = [titles[i]]
        if accuracies is not None:
            value, low, high = accuracies[i]
            lines.append(f"accuracy {value:.1%} " + (f"[{low:.1%}, {high:.1%}]" if low == low else "(no interval)"))
        if sizes is not None:
            lines.append(f"n = {sizes[i]}")
        ax.set_title(lines[0], loc="left", pad=6 + 11 * (len(lines) - 1), fontsize=10)
        ax.text(0, 1.02, "\n".join(lines[1:]), transform=ax.transAxes, fontsize=8, va="bottom",
                linespacing=1.3)
        if i % columns == 0:
            ax.set_ylabel("true class")
        ax.set_xlabel("predicted class")
    add_caption(fig, caption)
    return fig


def _draw_confusion(ax, counts, classes) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ax.text(column, row, f"{counts[row, column]:,}\n{share:.0%}", ha="center", va="center",
                linespacing=1.3, color="white" if share > 0.55 else "black",
                fontweight="bold" if row == column else "normal")
    ax.set_xticks(range(len(classes)), classes)
    ax.set_yticks(range(len(classes)), classes, rotation=90, va="center")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@styled
def plot_learning_curves(history, *, protocols: Sequence[str] | None = None, chance: float | None = None,
                         caption: str = "") -> Figure:
    """Loss and accuracy over the epochs, one column per protocol, one colour per net.

    Parameters
    ----------
    history : pandas.DataFrame
        Columns ``backbone, protocol, epoch, loss, val_loss, accuracy, val_accuracy``. Column ``best`` (bool),
        where present, marks the epoch whose weights were kept.
    protocols : sequence of str, optional
        Columns of the figure; by default those of the table in their order.
    chance : float, optional
        Dotted line in the accuracy panels.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    wanted = ["backbone", "protocol", "epoch", "loss", "val_loss", "accuracy", "val_accuracy"]
    require_columns(history, wanted, "history")
    protocols = list(protocols) if protocols else list(dict.fromkeys(history["protocol"]))
    nets = list(dict.fromkeys(history["backbone"]))
    colours = colours_of(nets)
    fig, axes = plt.subplots(2, len(protocols), squeeze=False, sharey="row", sharex="col",
                             figsize=(2.3 * len(protocols) + 1.2, 4.2))
    for column, protocol in enumerate(protocols):
        axes[0, column].set_title(protocol.replace("_", " "))
        for net in nets:
            part = history[(history["protocol"] == protocol) & (history["backbone"] == net)]
            part = part.sort_values("epoch")
            for ax, measure in zip(axes[:, column], ("loss", "accuracy")):
                ax.plot(part["epoch"], part[measure], color=colours[net], ls="--", lw=1.2)
                ax.plot(part["epoch"], part[f"val_{measure}"], color=colours[net])
                if "best" in part.columns:
                    best = part[part["best"].astype(bool)]
                    ax.plot(best["epoch"], best[f"val_{measure}"], "o", color=colours[net], mec="white")
        if chance is not None:
            axes[1, column].axhline(chance, color="#888888", ls=":", lw=1)
        axes[1, column].set_xlabel("epoch")
        axes[1, column].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("loss (cross-entropy)")
    axes[1, 0].set_ylabel("accuracy (slices)")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylim(0, 1.02)
    keys = [Line2D([], [], color=colours[net], label=label_of(net)) for net in nets]
    keys += [Line2D([], [], color="#444444", label="validation"),
             Line2D([], [], color="#444444", ls="--", lw=1.2, label="training")]
    if chance is not None:
        keys.append(Line2D([], [], color="#888888", ls=":", lw=1, label="chance"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    add_caption(fig, caption)
    return fig


@styled
def plot_accuracies(table, *, protocols: Sequence[str] | None = None,
                    levels: Sequence[str] = ("slice", "subject"), chance: float | Mapping[str, float] | None = None,
                    published: Mapping[str, float] | None = None, published_level: str = "slice",
                    measure: str = "accuracy", caption: str = "") -> Figure:
    """Accuracy with its interval for every protocol, control and baseline.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``protocol, backbone, level, value, low, high``, and ``n`` where the number is to be shown.
        The logistic baseline is a ``backbone`` of its own (``logistic``).
    protocols : sequence of str, optional
        Rows from top to bottom.
    levels : sequence of str
        Panels: accuracy over slices, over subjects.
    chance : float or mapping of protocol to float, optional
        Dotted line: one for all, or one per row.
    published : mapping of backbone to accuracy, optional
        Dashed lines in the panel `published_level`: what Hong and Zhang report.
    published_level : str
    measure : str
        Axis label.
    caption : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        A column is missing.
    """
    require_columns(table, ["protocol", "backbone", "level", "value", "low", "high"], "accuracies")
    protocols = list(protocols) if protocols else list(dict.fromkeys(table["protocol"]))
    nets = list(dict.fromkeys(table["backbone"]))
    colours = colours_of(nets)
    fig, axes = plt.subplots(1, len(levels), squeeze=False, sharey=True,
                             figsize=(3.5 * len(levels) + 1.4, 0.55 * len(protocols) + 1.5))
    for ax, level in zip(axes[0], levels):
        ax.set_title(f"by {level}")
        part = table[table["level"] == level]
        for row in part.itertuples():
            if row.protocol in protocols:
                offset = (nets.index(row.backbone) - (len(nets) - 1) / 2) * 0.24
                _interval_dot(ax, row, protocols.index(row.protocol) + offset, colours[row.backbone])
        for row, name in enumerate(protocols):
            level_of_chance = chance.get(name) if isinstance(chance, Mapping) else chance
            if level_of_chance is not None:
                ax.plot([level_of_chance] * 2, [row - 0.5, row + 0.5], color="#888888", ls=":", lw=1)
        if published and level == published_level:
            for net, value in published.items():
                ax.axvline(value, color=colours.get(net, "#444444"), ls="--", lw=1)
        ax.set_xlim(0, 1.45)
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.set_xlabel(measure)
        ax.grid(axis="x")
    axes[0, 0].set_yticks(range(len(protocols)), [name.replace("_", " ") for name in protocols])
    axes[0, 0].set_ylim(len(protocols) - 0.5, -0.5)
    keys = [Line2D([], [], marker="o", color=colours[net], label=label_of(net)) for net in nets]
    if published:
        keys.append(Line2D([], [], color="#444444", ls="--", lw=1, label="published (net's colour)"))
    if chance is not None:
        keys.append(Line2D([], [], color="#888888", ls=":", lw=1, label="chance"))
    fig.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    add_caption(fig, caption)
    return fig


def _interval_dot(ax, row, y: float, colour: str) -> None:
    """A value with its interval; its figure stands in a column on the right."""
    ax.plot([row.low, row.high], [y, y], color=colour, lw=1.6, solid_capstyle="butt")
    ax.plot(row.value, y, "o", color=colour, ms=4.5)
    size = f"  n={row.n:,}" if hasattr(row, "n") else ""
    size += "" if row.high == row.high else "  (no interval)"
    ax.text(1.04, y, f"{row.value:.2f}{size}", fontsize=6, va="center", color="#444444")
