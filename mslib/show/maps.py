"""Heat maps layer by layer: figures 3 and 4 of the published study and the full grid of both networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import add_caption, draw_slice, heat_bar, label_of, mark_blank, outline, overlay_heat, styled

BLANK_BELOW = 1e-12
LABEL_WIDTH = 0.95  # of a slice
PUBLISHED_FIGURE_3 = {"vgg16": ("block5_conv3", "block5_conv2", "block5_conv1"),
                      "vgg19": ("block5_pool", "block5_conv4", "block5_conv3")}
PUBLISHED_FIGURE_4 = {"vgg19": ("block5_conv2", "block5_conv1", "block4_conv4")}
Blocks = Mapping[str, Mapping[str, np.ndarray]]


def _check(slices: np.ndarray, blocks: Blocks) -> None:
    if slices.ndim != 3:
        raise ValueError(f"slices: must be (S, H, W) (got {slices.shape})")
    for net, maps in blocks.items():
        for layer, heat in maps.items():
            if np.shape(heat) != slices.shape:
                raise ValueError(f"{net} {layer}: maps must have the slices' shape {slices.shape} "
                                 f"(got {np.shape(heat)})")
            if not np.isfinite(heat).all():
                raise ValueError(f"{net} {layer}: maps hold values that are not finite")


def _row_label(ax, text: str, **style) -> None:
    """Write into the empty column left of the row; the layout must not make room for it a second time."""
    ax.text(-0.06, 0.5, text, transform=ax.transAxes, ha="right", va="center", linespacing=1.5,
            in_layout=False, **style)


def _draw_row(axes, slices, heat, lesions, label: str) -> None:
    """Heat of one layer over all slices, on the scale of the row; blank maps are called so."""
    top = float(np.max(heat))
    for ax, background, one, lesion in zip(axes, slices, heat, lesions, strict=True):
        draw_slice(ax, background)
        if one.max() > BLANK_BELOW:
            overlay_heat(ax, one, top)
        else:
            mark_blank(ax)
        if lesion is not None:
            outline(ax, lesion, width=0.6)
    _row_label(axes[0], f"{label}\nmax {top:.2g}", fontsize=7.5)


def _frame(slices, blocks: Blocks, rows: int, slice_names, lesions, pixel_mm, size: float):
    """Make the grid (one column of panels per network) and draw the top row of slices."""
    count, height, width = slices.shape
    fig, axes = plt.subplots(
        rows + 1, (count + 1) * len(blocks), squeeze=False,
        width_ratios=([LABEL_WIDTH] + [1] * count) * len(blocks),
        figsize=(size * (count + LABEL_WIDTH) * len(blocks) + 0.6, size * (rows + 1) * height / width + 0.6))
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.ravel():
        ax.set_axis_off()
    for block, net in enumerate(blocks):
        first = block * (count + 1) + 1
        for index in range(count):
            ax = axes[0, first + index]
            draw_slice(ax, slices[index], lesion=lesions[index], sides=index == 0,
                       pixel_mm=pixel_mm if index == count - 1 else None)
            ax.set_title(slice_names[index], fontsize=8, fontweight="normal")
        _row_label(axes[0, first], f"{label_of(net)}\n\nFLAIR", fontsize=8.5, fontweight="bold")
    return fig, axes


def _plot(slices, blocks, rows_of, rows, slice_names, lesions, pixel_mm, size, title, caption) -> Figure:
    slices = np.asarray(slices)
    _check(slices, blocks)
    lesions = [None] * len(slices) if lesions is None else lesions
    slice_names = [f"slice {i + 1}" for i in range(len(slices))] if slice_names is None else slice_names
    fig, axes = _frame(slices, blocks, rows, slice_names, lesions, pixel_mm, size)
    for block, maps in enumerate(blocks.values()):
        first = block * (len(slices) + 1) + 1
        for row, layer, label in rows_of(maps):
            places = axes[row + 1, first:first + len(slices)]
            _draw_row(places, slices, np.asarray(maps[layer]), lesions, label)
    heat_bar(fig, list(axes.ravel()), "map, share of the row's maximum")
    if title:
        fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    add_caption(fig, caption)
    return fig


@styled
def plot_layer_block(slices, blocks: Blocks, *, slice_names: Sequence[str] | None = None, lesions=None,
                     pixel_mm: float | None = None, title: str = "", caption: str = "") -> Figure:
    """Heat maps of chosen layers under their slices, networks side by side, rows lettered A, B, C.

    Parameters
    ----------
    slices : (S, H, W) array
        FLAIR slices in [0, 1], the top row.
    blocks : mapping of network to mapping of layer to (S, H, W) array
        Raw, non-negative maps in the order of the rows. Each row is normalised for display only, by its
        own maximum, which its label states; maps without heat are marked "blank".
    slice_names : sequence of S str, optional
        Titles of the columns ("slice 57 of 135").
    lesions : (S, H, W) bool array, optional
    pixel_mm : float, optional
    title : str

    Raises
    ------
    ValueError
        A map that is not finite or not of the slices' shape.

    Notes
    -----
    Layout of figures 3 and 4 of Hong and Zhang, ISMRM 2021, abstract 3275; the layers that they show are
    ``PUBLISHED_FIGURE_3`` and ``PUBLISHED_FIGURE_4``.
    """
    rows = max(len(maps) for maps in blocks.values())

    def rows_of(maps):
        return [(i, layer, f"$\\bf{{{ascii_uppercase[i % 26]}}}$  {layer}") for i, layer in enumerate(maps)]

    return _plot(slices, blocks, rows_of, rows, slice_names, lesions, pixel_mm, 1.25, title, caption)


@styled
def plot_layer_grid(slices, blocks: Blocks, *, layers: Sequence[str] | None = None,
                    slice_names: Sequence[str] | None = None, lesions=None, pixel_mm: float | None = None,
                    title: str = "", caption: str = "") -> Figure:
    """Heat maps of every layer, one row per layer name, so that the networks can be read across.

    Parameters
    ----------
    slices, blocks, slice_names, lesions, pixel_mm, title
        As in `plot_layer_block`.
    layers : sequence of str, optional
        Rows from top to bottom; by default all layers, by name, shallow to deep. A network without that layer
        leaves the row empty.

    Raises
    ------
    ValueError
        A map that is not finite or not of the slices' shape.
    """
    # "conv" sorts before "pool", as depth does within a VGG block.
    layers = list(layers) if layers else sorted({layer for maps in blocks.values() for layer in maps})

    def rows_of(maps):
        return [(layers.index(layer), layer, layer) for layer in maps if layer in layers]

    return _plot(slices, blocks, rows_of, len(layers), slice_names, lesions, pixel_mm, 1.05, title, caption)
