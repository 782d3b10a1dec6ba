"""Heat maps layer by layer: figures 3 and 4 of the published study, and every layer of a network in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import draw_slice, heat_bar, label_of, outline, overlay_heat, styled

LABEL_WIDTH = 0.95  # of a slice
#: By figure of the publication and network: its layers, from top to bottom.
PUBLISHED_LAYERS = {
    "3": {"vgg16": ("block5_conv3", "block5_conv2", "block5_conv1"),
          "vgg19": ("block5_pool", "block5_conv4", "block5_conv3")},
    "4": {"vgg19": ("block5_conv2", "block5_conv1", "block4_conv4")}}


def _draw_layers(slices, maps, slice_names, lesions, pixel_mm, place: Callable, shape: tuple[int, int], unit: str,
                 **layout) -> tuple[Figure, np.ndarray, Sequence[str]]:
    """Slices and their maps on a grid of axes; `place`: from network, number of the layer and slice to row and column.

    Number 0 is the slice itself. Given are the figure, its axes and the slices' names.
    """
    slices = np.asarray(slices)
    for name, of_layer in maps.items():
        for layer, heat in of_layer.items():
            if np.shape(heat) != slices.shape or not np.isfinite(heat).all():
                raise ValueError(f"{name} {layer}: maps must be finite, of the slices' shape {slices.shape} (got "
                                 f"{np.shape(heat)})")
    count = len(slices)
    lesions = [None] * count if lesions is None else lesions
    fig, axes = plt.subplots(*shape, squeeze=False, **layout)
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.ravel():
        ax.set_axis_off()
    for block, of_layer in enumerate(maps.values()):
        for i, lesion in enumerate(lesions):
            draw_slice(axes[place(block, 0, i)], slices[i], lesion=lesion, sides=i == 0,
                       pixel_mm=pixel_mm if i == count - 1 else None)
            for number, heat in enumerate(of_layer.values(), 1):
                ax = axes[place(block, number, i)]
                draw_slice(ax, slices[i])
                overlay_heat(ax, heat[i], np.max(heat))
                if lesion is not None:
                    outline(ax, lesion, width=0.6)
    heat_bar(fig, list(axes.ravel()), f"map, share of the {unit}'s maximum")
    return fig, axes, slice_names or [f"slice {i + 1}" for i in range(count)]


def _row_label(ax, text: str, **style) -> None:
    """Write into the empty column left of the row; the layout must not make room for it a second time."""
    ax.text(-0.06, 0.5, text, transform=ax.transAxes, ha="right", va="center", linespacing=1.5,
            in_layout=False, **style)


@styled
def plot_layer_grid(slices, maps: Mapping[str, Mapping[str, np.ndarray]], *,
                    slice_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
                    lesions=None, pixel_mm: float | None = None) -> Figure:
    """Heat maps of a few layers under their slices, networks side by side, lettered A, B, C.

    The layout of figures 3 and 4 of Hong and Zhang, ISMRM 2021, abstract 3275 (`PUBLISHED_LAYERS`).

    Parameters
    ----------
    slices : (S, H, W) array
        FLAIR slices in [0, 1], the top row.
    maps : mapping of network to mapping of layer to (S, H, W) array
        Raw, non-negative; else, and where not finite, a ValueError. Each row is normalised for display only, by its
        own maximum, which its label states; maps without heat are marked "blank".
    slice_names : sequence of S str, or mapping of network to it, optional
        Titles of the columns ("slice 57 of 135").
    lesions : (S, H, W) bool array, optional
    pixel_mm : float, optional
    """
    (count, height, width), rows, size = np.shape(slices), max(map(len, maps.values())), 1.25
    wide = (count + LABEL_WIDTH) * len(maps)
    fig, axes, names = _draw_layers(
        slices, maps, slice_names, lesions, pixel_mm, lambda block, number, i: (number, block * (count + 1) + 1 + i),
        (rows + 1, (count + 1) * len(maps)), "row", width_ratios=([LABEL_WIDTH] + [1] * count) * len(maps),
        figsize=(size * wide + 0.6, size * (rows + 1) * height / width + 0.6))
    for block, (net, of_layer) in enumerate(maps.items()):
        panels = axes[:, block * (count + 1) + 1:(block + 1) * (count + 1)]
        for ax, name in zip(panels[0], names[net] if isinstance(names, Mapping) else names):
            ax.set_title(name, fontsize=8, fontweight="normal")
        _row_label(panels[0, 0], f"{label_of(net)}\n\nFLAIR", fontsize=8.5, fontweight="bold")
        for letter, ax, (layer, heat) in zip(ascii_uppercase, panels[1:, 0], of_layer.items()):
            _row_label(ax, f"$\\bf{{{letter}}}$  {layer}\nmax {np.max(heat):.2g}", fontsize=7.5)
    return fig


@styled
def plot_layer_columns(slices, maps: Mapping[str, Mapping[str, np.ndarray]], *,
                       slice_names: Sequence[str] | None = None, lesions=None,
                       pixel_mm: float | None = None) -> Figure:
    """Every layer of a network (or every layer by a method) as a column, slices below each other.

    Parameters are those of `plot_layer_grid`; each column is normalised by its own maximum, which its title states.
    """
    (count, height, width), columns, size = np.shape(slices), max(map(len, maps.values())) + 1, 0.98
    high = (size * height / width + 0.1) * count * len(maps)
    fig, axes, names = _draw_layers(
        slices, maps, slice_names, lesions, pixel_mm, lambda block, number, i: (block * count + i, number),
        (count * len(maps), columns), "column", figsize=(size * columns + 1.6, high + 0.35 * len(maps) + 0.4))
    for block, (name, of_layer) in enumerate(maps.items()):
        panels = axes[block * count:(block + 1) * count]
        panels[0, 0].set_title(label_of(name), fontsize=7.5)
        for ax, text in zip(panels[:, 0], names):
            ax.text(-0.05, 0.5, text, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=6.5)
        for ax, (layer, heat) in zip(panels[0, 1:], of_layer.items()):
            ax.set_title(f"{layer}\nmax {np.max(heat):.2g}", fontsize=6.5, fontweight="normal")
    return fig
