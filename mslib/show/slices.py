"""Figures of scans: examples per group; class activation maps and signed maps side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import add_caption, draw_slice, full_colour, heat_bar, outline, overlay_heat, styled


@styled
def plot_examples(slices, sequences: Sequence[str], groups: Sequence[str], *, lesions=None,
                  pixel_mm: float | None = None, z_mm: Sequence[float] | None = None,
                  caption: str = "") -> Figure:
    """Figure 1: example slices, one row per sequence and one column per group.

    Parameters
    ----------
    slices : (R, C, H, W) array
        Intensities in [0, 1]; R sequences, C groups; row 0 anterior, column 0 the patient's right.
    sequences, groups : sequences of str
        Row and column titles.
    lesions : (C, H, W) or (R, C, H, W) bool array, optional
        Outlined; one mask per group is drawn in every sequence.
    pixel_mm : float, optional
        Pixel size in mm, for the scale bar.
    z_mm : sequence of C floats, optional
        Height of each group's slice.

    Raises
    ------
    ValueError
        Shapes and titles do not agree.

    Notes
    -----
    Layout of figure 1 of Hong and Zhang, ISMRM 2021, abstract 3275.
    """
    slices = np.asarray(slices)
    if slices.ndim != 4 or slices.shape[:2] != (len(sequences), len(groups)):
        raise ValueError(f"slices: must be ({len(sequences)}, {len(groups)}, H, W) (got {slices.shape})")
    rows, columns, height, width = slices.shape
    if lesions is not None:
        lesions = np.broadcast_to(np.asarray(lesions), slices.shape)
    size = (1.9 * columns + 0.4, 1.9 * rows * height / width + 0.5)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    for i in range(rows):
        for j in range(columns):
            ax = axes[i, j]
            draw_slice(ax, slices[i, j], lesion=None if lesions is None else lesions[i, j], sides=True,
                       pixel_mm=pixel_mm if (i, j) == (rows - 1, columns - 1) else None,
                       z_mm=z_mm[j] if z_mm is not None and i == 0 else None)
            if i == 0:
                ax.set_title(groups[j])
        axes[i, 0].text(-0.04, 0.5, sequences[i], transform=axes[i, 0].transAxes, rotation=90, ha="right",
                        va="center", fontweight="bold")
    add_caption(fig, caption)
    return fig


@styled
def plot_headline(flair, maps: Mapping[str, np.ndarray], *, lesion=None,
                  extra: Sequence[tuple[str, np.ndarray, str]] = (), pixel_mm: float | None = None,
                  caption: str = "") -> Figure:
    """A FLAIR slice with its lesions, Grad-CAM per layer, then optional panels, in one row.

    Parameters
    ----------
    flair : (H, W) array
        Intensities in [0, 1].
    maps : mapping of layer name to (H, W) array
        Raw Grad-CAM maps, shown relative to each map's own maximum.
    lesion : (H, W) bool array, optional
    extra : sequence of (title, map, kind)
        Further panels; `kind` is ``sequential`` (>= 0) or ``diverging`` (signed, symmetric about 0; all of them share
        one scale, full colour at the 99.5th percentile of their magnitudes).
    pixel_mm : float, optional
    """
    count = 1 + len(maps) + len(extra)
    height = 1.75 * flair.shape[0] / flair.shape[1]
    fig, axes = plt.subplots(1, count, squeeze=False, figsize=(1.75 * count + 0.5, height + 0.62))
    axes = axes[0]
    draw_slice(axes[0], flair, lesion=lesion, sides=True, pixel_mm=pixel_mm)
    axes[0].set_title("FLAIR" if lesion is None else "FLAIR, lesions outlined")
    panels = [(name, heat, "sequential") for name, heat in maps.items()] + list(extra)
    signed = [heat for _, heat, kind in panels if kind == "diverging"]
    for ax, (name, heat, kind) in zip(axes[1:], panels, strict=True):
        if kind not in ("sequential", "diverging"):
            raise ValueError(f"kind of panel '{name}': must be 'sequential' or 'diverging' (got '{kind}')")
        draw_slice(ax, flair)
        ax.set_title(name)
        top = full_colour(signed) if kind == "diverging" else np.max(heat)
        overlay_heat(ax, heat, top, signed=kind == "diverging")
        if lesion is not None:
            outline(ax, lesion, width=0.6)
    if signed:
        heat_bar(fig, list(axes), "signed: share of the full colour", signed=True)
    heat_bar(fig, list(axes), "share of the panel's maximum")
    add_caption(fig, caption)
    return fig
