"""What all figures share: one style, colours, slice panels with side and scale, and byte-stable saving."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from mslib.study import StudyError, atomic_path, write_text

pd.set_option("display.max_colwidth", None)  # readers are to see the whole reason of a flag

CAM_MAP = "inferno"
SIGNED_MAP = "RdBu_r"
LESION = "#35d6f4"
# Okabe and Ito's palette: told apart with any of the common colour-vision deficiencies.
COLOURS = {
    "control": "#0072B2", "RRMS": "#E69F00", "SPMS": "#D55E00",
    "vgg16": "#009E73", "vgg19": "#AA4499", "logistic": "#555555",
    "gradcam": "#D55E00", "gradcam++": "#0072B2", "hirescam": "#009E73", "layercam": "#CC79A7",
    "xgradcam": "#8C6D1F", "T1w": "#555555", "T2w": "#0072B2", "FLAIR": "#D55E00",
}
NAMES = {
    "vgg16": "VGG16+GAP", "vgg19": "VGG19+GAP", "logistic": "baseline model",
    "areas": "true areas of the slice", "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM", "layercam": "LayerCAM", "xgradcam": "XGrad-CAM",
    "gradient": "Gradient", "input_x_gradient": "Input × Gradient", "smoothgrad": "SmoothGrad",
    "guided_backprop": "Guided Backpropagation", "deconvolution": "Deconvolution", "deeplift": "DeepLift",
    "integrated_gradients": "Integrated Gradients", "gradient_shap": "Gradient SHAP",
    "guided_gradcam": "Guided Grad-CAM", "occlusion": "Occlusion", "feature_ablation": "Feature Ablation",
    "feature_permutation": "Feature Permutation", "lime": "LIME", "shapley_sampling": "Shapley Value Sampling",
    "kernel_shap": "Kernel SHAP", "gradcam_absolute": "Grad-CAM, absolute weights",
    "gradcam_positive": "Grad-CAM, positive gradients", "activation": "activations alone",
    "prior": "location prior", "intensity": "FLAIR intensity", "edges": "Sobel edges",
    "untrained": "untrained network", "another patient": "another patient's map",
    "cause": "only lesions can decide", "honest": "MS type, subject-level split",
    "published": "MS type, slice-level split", "backbone": "network",
    "simulated people": "pre-trained on simulated people",
    "ImageNet": "pre-trained on ImageNet", "auprc": "AUPRC", "auprc_chance": "AUPRC by chance", "msfi": "MSFI",
    "half_heat_share": "share of the brain with half of the map", "pointing": "pointing game",
    "lesion_load_ml": "lesion load (mL)", "csf": "CSF", "edss": "EDSS", "p_fdr": "p (FDR)", "p_holm": "p (Holm)",
}
#: Rules of layer-wise relevance propagation, as zennit and the literature write them.
RULES = {"epsilon": "ε", "alpha1_beta0": "α1β0", "alpha2_beta1": "α2β1", "gamma": "γ", "epsilon_plus": "ε-plus",
         "epsilon_gamma": "ε-γ", "epsilon_alpha2_beta1": "ε-α2β1", "epsilon_0.01": "ε = 0.01",
         "epsilon_100": "ε = 100"}
NAMES |= {f"{start}{rule}{end}": f"LRP {name}{', centred' * bool(end)}" for rule, name in RULES.items()
          for start in ("", "LRP ") for end in ("", "_centred")}
#: Dots an inch of a saved figure; pictures of scans, which are no vector drawings, are also kept large, for print.
DPI, PRINT_DPI = 130, 300
SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8C6D1F")


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a plot function under the study's style, its keyword `caption` below the figure, wrapped to its width.

    A notebook then shows the figure once, as a value.
    """

    @functools.wraps(plot)
    def wrapper(*args, caption: str = "", **kwargs):
        with plt.style.context("mslib.show.mslib"):
            figure = plot(*args, **kwargs)
            if caption:
                text = textwrap.fill(caption, max(40, int(figure.get_figwidth() * 15.5)))
                figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="#444444")
        plt.close(figure)
        return figure

    return wrapper


def save_figure(fig: Figure, path: str | Path, dpi: int = DPI) -> Path:
    """Save a figure as PNG in full colour or as SVG; its bytes depend on nothing but the figure and `dpi`. The path.

    The folder is made, the writing is atomic. StudyError: another suffix, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix == ".png":
        return _write(_drawn(fig, dpi), path)
    if path.suffix != ".svg":
        raise StudyError(f"{path}: figures are saved as '.png' or '.svg' (got '{path.suffix}')")
    with plt.style.context("mslib.show.mslib"):
        fig.savefig(drawn := io.BytesIO(), format="svg", dpi=dpi, metadata={"Date": None, "Creator": None})
    return write_text(path, drawn.getvalue().decode())


def save_scans(fig: Figure, path: str | Path) -> Path:
    """Save a figure with scans as PNG and, of `PRINT_DPI`, as JPEG beside it, from one drawing. The path of the PNG."""
    large, path = _drawn(fig, PRINT_DPI), Path(path)
    _write(large, path.with_suffix(".jpg"), quality=80, subsampling=0)
    return _write(large.resize([round(side * DPI / PRINT_DPI) for side in large.size]), path)


def _drawn(fig, dpi):
    with plt.style.context("mslib.show.mslib"):
        fig.savefig(drawn := io.BytesIO(), format="png", dpi=dpi, pil_kwargs={"compress_level": 1})
    with Image.open(drawn) as picture:
        return picture.convert("RGB")  # pixels only: versions and dates stay behind


def _write(picture, path, **options):
    with atomic_path(path) as temporary:
        picture.save(temporary, {".png": "PNG", ".jpg": "JPEG"}[path.suffix], optimize=True, **options)
    return path


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Give each name its fixed colour, or the next spare one where it has none."""
    used = {COLOURS[name] for name in names if name in COLOURS}
    spare = cycle([colour for colour in SPARE if colour not in used] or SPARE)
    return {name: COLOURS.get(name) or next(spare) for name in names}


def label_of(name):
    """The name as it is written in the field (``gradcam++`` is Grad-CAM++); layers, sentences and numbers stay."""
    if not isinstance(name, str) or name.startswith("block") or " " in name:
        return NAMES.get(name, name)
    return NAMES.get(name, name.replace("_", " "))


def readable(table: pd.DataFrame, digits: int = 2, rows: int = 12) -> pd.DataFrame:
    """A table as readers see it: standard names, rounded numbers, a dash for what is unknown, so many rows at most."""
    shown = table.head(rows).round(digits)
    shown = shown.astype(object).where(shown.notna(), "–").map(label_of)
    if shown.index.name is None and shown.index.inferred_type == "integer":
        shown.index = [""] * len(shown)  # numbers of rows say nothing
    return shown.rename(index=label_of, columns=label_of).rename_axis(
        index=[label_of(name) for name in shown.index.names], columns=[label_of(name) for name in shown.columns.names])


def add_legend(fig: Figure, ax: Axes, columns: int, **style) -> None:
    """The legend of one of the axes, above all of them."""
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns, **style)


def slice_array(image, name: str = "slice") -> np.ndarray:
    """Return `image` as a 2-D float array or say what it is instead."""
    image = np.asarray(image)
    if image.ndim != 2:
        raise ValueError(f"{name}: must be 2-D (H, W) (got shape {image.shape})")
    return image.astype(np.float32)


def draw_slice(ax: Axes, image, *, lesion=None, sides: bool = False, pixel_mm: float | None = None,
               z_mm: float | None = None) -> None:
    """Draw one axial slice, (H, W), in grey as a radiologist reads it: row 0 anterior, column 0 the patient's right.

    `lesion`: mask that is outlined; `sides`: with the letters R and L; `pixel_mm`: with a scale bar of 20 mm, in the
    corner that a brain leaves free; `z_mm`: height that is written in the upper corner.
    """
    image = slice_array(image)
    ax.set_axis_off()
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if lesion is not None:
        outline(ax, lesion)
    height, width = image.shape
    text = {"color": "white", "fontsize": 7, "fontweight": "bold"}
    if sides:
        ax.text(0.02, 0.5, "R", transform=ax.transAxes, va="center", ha="left", **text)
        ax.text(0.98, 0.5, "L", transform=ax.transAxes, va="center", ha="right", **text)
    if z_mm is not None:
        ax.text(0.03, 0.97, f"z {z_mm:+.0f} mm", transform=ax.transAxes, va="top", **(text | {"fontsize": 6}))
    if pixel_mm:
        bar = 20 / pixel_mm
        ax.plot([width * 0.98 - bar, width * 0.98], [height * 0.97] * 2, color="white", lw=1.5, solid_capstyle="butt")
        ax.text(width * 0.98, height * 0.955, "20 mm", color="white", fontsize=5, ha="right", va="bottom")
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)


def outline(ax: Axes, mask, colour: str = LESION, width: float = 0.8) -> None:
    """Draw the border of a mask; nothing where the mask is empty."""
    mask = slice_array(mask, "mask")
    if mask.any():
        ax.contour(mask, levels=[0.5], colors=[colour], linewidths=width)


def overlay_heat(ax: Axes, heat, top: float, signed: bool = False) -> None:
    """Lay a heat map over a slice: colour and opacity grow with heat / top; "blank" where nothing reaches 1e-12.

    `signed`: red speaks for the class, blue against it; else values below 0 are not shown.
    """
    heat = slice_array(heat, "heat map")
    if not (np.abs(heat).max() if signed else heat.max()) > 1e-12:
        ax.text(0.5, 0.5, "blank", transform=ax.transAxes, ha="center", va="center", color="white", fontweight="bold",
                bbox={"facecolor": "#aa0000", "edgecolor": "none", "pad": 2})
        return
    share = np.clip(heat / top, -1 if signed else 0, 1)
    opacity = np.clip(2 * np.abs(share), 0, 0.85) if signed else np.clip(1.8 * share, 0, 0.8)
    ax.imshow(share, cmap=SIGNED_MAP if signed else CAM_MAP, vmin=-1 if signed else 0, vmax=1, alpha=opacity,
              interpolation="nearest")


def full_colour(values) -> float:
    """Magnitude that signed maps show in full colour: the 99.5th percentile of theirs (the largest where that is 0)."""
    sizes = np.abs(values)
    return float(np.quantile(sizes, 0.995)) or float(sizes.max())


def heat_bar(fig: Figure, axes, label: str, signed: bool = False) -> None:
    """Add the colour bar of a normalised heat map, sequential or signed."""
    scale = ScalarMappable(Normalize(-1 if signed else 0, 1), SIGNED_MAP if signed else CAM_MAP)
    bar = fig.colorbar(scale, ax=axes, fraction=0.025, pad=0.01, aspect=35)
    bar.set_label(label, fontsize=8)
    bar.set_ticks([-1, 0, 1] if signed else [0, 0.5, 1])
    bar.outline.set_visible(False)


def require_columns(table, columns: Sequence[str], name: str) -> None:
    """Raise ValueError where a table lacks columns that a figure needs."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{name}: the table lacks {missing} (it has {list(table.columns)})")
