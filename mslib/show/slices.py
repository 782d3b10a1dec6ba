"""Figures of scans: examples per group; the findings of a study in three panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .figure import colours_of, draw_slice, label_of, outline, overlay_heat, styled


@styled
def plot_examples(slices, sequences: Sequence[str], groups: Sequence[str], *, lesions=None,
                  pixel_mm: float | None = None, z_mm: Sequence[float] | None = None) -> Figure:
    """Example slices, a row per sequence, a column per group: figure 1 of Hong and Zhang, ISMRM 2021, abstract 3275.

    Parameters
    ----------
    slices : (R, C, H, W) array
        Intensities in [0, 1] of R sequences and C groups (else ValueError), row 0 anterior, column 0 the patient's
        right.
    sequences, groups : sequences of str
        Row and column titles.
    lesions : (C, H, W) or (R, C, H, W) bool array, optional
        Outlined; one mask per group is drawn in every sequence.
    pixel_mm : float, optional
        Pixel size in mm, for the scale bar.
    z_mm : sequence of C floats, optional
        Height of each group's slice.
    """
    slices = np.asarray(slices)
    if slices.ndim != 4 or slices.shape[:2] != (len(sequences), len(groups)):
        raise ValueError(f"slices: must be ({len(sequences)}, {len(groups)}, H, W) (got {slices.shape})")
    rows, columns, height, width = slices.shape
    lesions = np.broadcast_to(False if lesions is None else lesions, slices.shape)
    size = (1.9 * columns + 0.4, 1.9 * rows * height / width + 0.5)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    for (i, j), ax in np.ndenumerate(axes):
        draw_slice(ax, slices[i, j], lesion=lesions[i, j], sides=True,
                   pixel_mm=pixel_mm if (i, j) == (rows - 1, columns - 1) else None,
                   z_mm=z_mm[j] if z_mm is not None and i == 0 else None)
        ax.set_title(groups[j] if i == 0 else "")
    for ax, sequence in zip(axes[:, 0], sequences):
        ax.text(-0.04, 0.5, sequence, transform=ax.transAxes, rotation=90, ha="right", va="center", fontweight="bold")
    return fig


@styled
def plot_summary(flair, maps: Mapping[str, np.ndarray], *, accuracy=None, curves=None, layers: Sequence[str] = (),
                 lesion=None, pixel_mm: float | None = None) -> Figure:
    """The findings in three panels: accuracy of new people, localisation over depth, one slice.

    Parameters
    ----------
    flair : (H, W) array
        Intensities in [0, 1], of `pixel_mm`; `lesion`, bool, is outlined.
    maps : mapping of title to (H, W) array
        Raw maps of the slice, each relative to its own maximum.
    accuracy : DataFrame, optional
        Balanced accuracy, ``tested, backbone, value, low, high, chance``: points from left to right in the order of
        ``tested``; chance is dotted.
    curves : DataFrame, optional
        ``layer, backbone, method, value, low, high``: AUPRC of methods (in colour), of the oracle, the location prior,
        FLAIR intensity and activations alone (in black); circles and squares as in the first panel.
    layers : sequence of str
        Of the horizontal axis, shallow to deep.
    """
    slices = 1 + len(maps)
    plots = ["A"] * slices * (accuracy is not None) + ["B"] * 2 * slices * (curves is not None)
    rows = [plots * (3 * slices // len(plots))] if plots else []
    fig, axes = plt.subplot_mosaic([*rows, [f"slice {n}" for n in range(slices) for _ in range(3)]],
                                   figsize=(8.2, 2.9 * (len(rows) + 1)))
    letters, axes = iter("ABC"), list(axes.values())
    if accuracy is not None:
        ax, tested, backbones = axes.pop(0), *(list(dict.fromkeys(accuracy[key])) for key in ("tested", "backbone"))
        shifts = 0.14 * (np.arange(len(backbones)) - (len(backbones) - 1) / 2)
        for number, backbone in enumerate(backbones):
            part = accuracy[accuracy["backbone"] == backbone]
            place = np.array([tested.index(name) for name in part["tested"]]) + shifts[number]
            ax.vlines(place, part["low"], part["high"], color="0.25", lw=1.8)
            ax.plot(place, part["value"], "os"[number], color="0.25", ms=5, label=label_of(backbone))
        chance = accuracy.drop_duplicates("tested")["chance"]
        ax.hlines(chance, np.arange(len(tested)) - 0.5, np.arange(len(tested)) + 0.5, color="0.4", ls=":", lw=1,
                  label="chance")
        ax.set(title=f"{next(letters)}  Balanced accuracy", ylim=(0, 1.02), xlim=(-0.5, len(tested) - 0.5))
        ax.set_xticks(range(len(tested)), tested, fontsize=8)
        ax.grid(axis="y")
        ax.yaxis.set_major_formatter("{x:.1f}")
        ax.legend(loc="lower center", ncols=2, fontsize=7.5)
    if curves is not None:
        ax = axes.pop(0)
        styles = {"oracle": "-", "intensity": "--", "prior": ":", "activation": "-."}
        colours = colours_of([name for name in dict.fromkeys(curves["method"]) if name not in styles])
        for (method, backbone), part in curves.groupby(["method", "backbone"], sort=False):
            level = set(part["layer"]) == {"image"}
            place = range(len(layers)) if level else part["layer"].map(list(layers).index)
            values = np.repeat(part["value"].to_numpy(), len(layers) if level else 1)
            ax.plot(place, values, color=colours.get(method, "black"), lw=1.2, ls=styles.get(method, "-"),
                    marker=None if method in styles else "os"[backbone != curves["backbone"].iloc[0]], ms=3.5,
                    label=label_of(method))
        ax.set(title=f"{next(letters)}  AUPRC on lesions", ylim=(0, 1.02))
        ax.yaxis.set_major_formatter("{x:.1f}")
        ax.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
        ax.grid(axis="y")
        handles = dict(zip(*ax.get_legend_handles_labels()[::-1]))
        fig.legend(handles.values(), handles, fontsize=7.5, loc="outside upper center", ncols=4)
    draw_slice(axes[0], flair, lesion=lesion, sides=True, pixel_mm=pixel_mm)
    axes[0].set_title(f"{next(letters)}  FLAIR" + ", lesions" * (lesion is not None))
    for ax, (name, heat) in zip(axes[1:], maps.items(), strict=True):
        draw_slice(ax, flair)
        overlay_heat(ax, heat, np.max(heat))
        ax.set_title(name, fontweight="normal")
        if lesion is not None:
            outline(ax, lesion, width=0.6)
    return fig
