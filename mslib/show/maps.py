"""Heat maps layer by layer: figures 3 and 4 of the published study, and every layer of a network in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import add_caption, draw_slice, heat_bar, label_of, outline, overlay_heat, styled

LABEL_WIDTH = 0.95  # of a slice
#: By figure of the publication and network: its layers, from top to bottom.
PUBLISHED_LAYERS = {
    "3": {"vgg16": ("block5_conv3", "block5_conv2", "block5_conv1"),
          "vgg19": ("block5_pool", "block5_conv4", "block5_conv3")},
    "4": {"vgg19": ("block5_conv2", "block5_conv1", "block4_conv4")}}


def _row_label(ax, text: str, **style) -> None:
    """Write into the empty column left of the row; the layout must not make room for it a second time."""
    ax.text(-0.06, 0.5, text, transform=ax.transAxes, ha="right", va="center", linespacing=1.5,
            in_layout=False, **style)


def _check_shapes(slices, maps) -> None:
    for name, of_layer in maps.items():
        for layer, heat in of_layer.items():
            if np.shape(heat) != slices.shape or not np.isfinite(heat).all():
                raise ValueError(f"{name} {layer}: maps must be finite, of the slices' shape {slices.shape} (got "
                                 f"{np.shape(heat)})")


def _draw_map(ax, background, heat, top: float, lesion) -> None:
    draw_slice(ax, background)
    overlay_heat(ax, heat, top)
    if lesion is not None:
        outline(ax, lesion, width=0.6)


@styled
def plot_layer_grid(slices, maps: Mapping[str, Mapping[str, np.ndarray]], *, slice_names: Sequence[str] | None = None,
                    lesions=None, pixel_mm: float | None = None, caption: str = "") -> Figure:
    """Heat maps of a few layers under their slices, networks side by side, lettered A, B, C.

    The layout of figures 3 and 4 of Hong and Zhang, ISMRM 2021, abstract 3275 (`PUBLISHED_LAYERS`).

    Parameters
    ----------
    slices : (S, H, W) array
        FLAIR slices in [0, 1], the top row.
    maps : mapping of network to mapping of layer to (S, H, W) array
        Raw, non-negative. Each row is normalised for display only, by its own maximum, which its label states; maps
        without heat are marked "blank".
    slice_names : sequence of S str, optional
        Titles of the columns ("slice 57 of 135").
    lesions : (S, H, W) bool array, optional
    pixel_mm : float, optional

    Raises
    ------
    ValueError
        A map that is not finite or not of the slices' shape.
    """
    slices = np.asarray(slices)
    _check_shapes(slices, maps)
    (count, height, width), rows, size = slices.shape, max(map(len, maps.values())), 1.25
    lesions = [None] * count if lesions is None else lesions
    names = [f"slice {i + 1}" for i in range(count)] if slice_names is None else slice_names
    fig, axes = plt.subplots(
        rows + 1, (count + 1) * len(maps), squeeze=False, width_ratios=([LABEL_WIDTH] + [1] * count) * len(maps),
        figsize=(size * (count + LABEL_WIDTH) * len(maps) + 0.6, size * (rows + 1) * height / width + 0.6))
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.ravel():
        ax.set_axis_off()
    for block, (net, of_layer) in enumerate(maps.items()):
        panels = axes[:, block * (count + 1) + 1:(block + 1) * (count + 1)]
        for i, ax in enumerate(panels[0]):
            draw_slice(ax, slices[i], lesion=lesions[i], sides=i == 0, pixel_mm=pixel_mm if i == count - 1 else None)
            ax.set_title(names[i], fontsize=8, fontweight="normal")
        _row_label(panels[0, 0], f"{label_of(net)}\n\nFLAIR", fontsize=8.5, fontweight="bold")
        for row, (layer, heat) in enumerate(of_layer.items()):
            letter = f"$\\bf{{{ascii_uppercase[row % 26]}}}$  "
            _row_label(panels[row + 1, 0], f"{letter}{layer}\nmax {np.max(heat):.2g}", fontsize=7.5)
            for ax, background, one, lesion in zip(panels[row + 1], slices, np.asarray(heat), lesions, strict=True):
                _draw_map(ax, background, one, np.max(heat), lesion)
    heat_bar(fig, list(axes.ravel()), "map, share of the row's maximum")
    add_caption(fig, caption)
    return fig


@styled
def plot_layer_columns(slices, maps: Mapping[str, Mapping[str, np.ndarray]], *,
                       slice_names: Sequence[str] | None = None, lesions=None, pixel_mm: float | None = None,
                       caption: str = "") -> Figure:
    """Every layer of a network (or every layer by a method) as a column, slices below each other.

    Parameters are those of `plot_layer_grid`; each column is normalised by its own maximum, which its title states.
    """
    slices = np.asarray(slices)
    _check_shapes(slices, maps)
    (count, height, width), columns, size = slices.shape, max(map(len, maps.values())) + 1, 0.98
    lesions = [None] * count if lesions is None else lesions
    names = [f"slice {i + 1}" for i in range(count)] if slice_names is None else slice_names
    fig, axes = plt.subplots(count * len(maps), columns, squeeze=False, figsize=(
        size * columns + 1.6, (size * height / width + 0.1) * count * len(maps) + 0.35 * len(maps) + 0.4))
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.ravel():
        ax.set_axis_off()
    for block, (name, of_layer) in enumerate(maps.items()):
        panels = axes[block * count:(block + 1) * count]
        panels[0, 0].set_title(label_of(name), fontsize=7.5)
        for i, ax in enumerate(panels[:, 0]):
            draw_slice(ax, slices[i], lesion=lesions[i], sides=i == 0, pixel_mm=pixel_mm if i == count - 1 else None)
            ax.text(-0.05, 0.5, names[i], transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=6.5)
        for column, (layer, heat) in enumerate(of_layer.items(), 1):
            panels[0, column].set_title(f"{layer}\nmax {np.max(heat):.2g}", fontsize=6.5, fontweight="normal")
            for ax, background, one, lesion in zip(panels[:, column], slices, np.asarray(heat), lesions, strict=True):
                _draw_map(ax, background, one, np.max(heat), lesion)
    heat_bar(fig, list(axes.ravel()), "map, share of the column's maximum")
    add_caption(fig, caption)
    return fig
