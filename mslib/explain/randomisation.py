"""Does a map depend on what the net has learnt? Cascading randomisation from the output down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pandas as pd
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

from .cam import layer_cams
from .maps import blank_maps
from .model import resolve_layers


def cascading_randomisation(model: keras.Model, images, targets, layers: Sequence[str] | None = None,
                            seed: int = 0, method: str = "gradcam", mask=None, batch_size: int = 16,
                            progress: Callable = iter) -> pd.DataFrame:
    """Re-initialise a net layer by layer from its output down and see how far its maps follow.

    Every layer with a kernel is drawn anew (He normal, bias 0) on a clone, the output layer first, down to
    the lowest explained layer; each stays random while the next follows. A sound map loses its likeness.

    Parameters
    ----------
    model, images, targets, layers, batch_size
        As in `layer_cams`; the model stays untouched.
    seed : int
    method : str
        One of `layer_cams`' methods.
    mask : array-like of bool, (N, H, W), optional
        Where maps are compared (the brain: a rim that is black in all maps feigns likeness). Default: all.
    progress : callable
        Wraps the list of layers, for instance to show a bar.

    Returns
    -------
    DataFrame
        A row per step, explained layer and image: ``step`` (0 = as learnt), ``randomised`` (layer drawn in
        this step), ``layer``, ``image``, ``spearman`` (rank correlation with the original map), ``ssim``
        (structural similarity, both maps scaled to a maximum of 1), ``blank``. A blank map gives NaN, not 0.

    Raises
    ------
    ValueError
        As `layer_cams`; images smaller than SSIM's window of 7 px; mask of another shape.

    References
    ----------
    Adebayo et al. 2018, Sanity checks for saliency maps, section 3 (cascading randomisation).
    """
    def maps(net):
        return layer_cams(net, images, targets, layers, (method,), batch_size)[method]

    original = maps(model)
    layers = resolve_layers(model, layers)
    mask = _check_mask(mask, original[layers[0]].shape)
    clone, rng = _copy(model), np.random.default_rng(seed)
    rows = _compare(0, "none", original, original, mask)
    for step, layer in enumerate(progress(_cascade(clone, layers[0])), start=1):
        _reinitialise(layer, rng)
        rows += _compare(step, layer.name, original, maps(clone), mask)
    return pd.DataFrame(rows)


def randomised_copy(model: keras.Model, lowest: str, seed: int = 0) -> keras.Model:
    """A copy of a net whose layers are drawn anew from the output down to a layer (He normal, bias 0).

    `lowest` names the last layer that is drawn (ValueError: the net has none of this name).
    """
    if lowest not in [layer.name for layer in model.layers]:
        raise ValueError(f"lowest: must be a layer of the model: {', '.join(x.name for x in model.layers)} "
                         f"(got {lowest!r})")
    clone, rng = _copy(model), np.random.default_rng(seed)
    for layer in _cascade(clone, lowest):
        _reinitialise(layer, rng)
    return clone


def _copy(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def _cascade(model, lowest):
    names = [layer.name for layer in model.layers]
    return [layer for layer in reversed(model.layers[names.index(lowest):]) if hasattr(layer, "kernel")]


def _reinitialise(layer, rng):
    shape = tuple(layer.kernel.shape)
    layer.kernel.assign(rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[:-1])), shape).astype(np.float32))
    if layer.bias is not None:
        layer.bias.assign(np.zeros(layer.bias.shape, np.float32))


def _check_mask(mask, shape):
    if min(shape[1:]) < 7:
        raise ValueError(f"images: must be at least 7 x 7 px for the structural similarity (got {shape[1:]})")
    if mask is None:
        return np.ones(shape, bool)
    mask = np.asarray(mask, bool)
    if mask.shape != shape or not mask.any(axis=(1, 2)).all():
        raise ValueError(f"mask: must be {shape} with cells in every image (got {mask.shape})")
    return mask


def _compare(step, randomised, original, now, mask):
    rows = []
    for layer in original:
        blank = blank_maps(original[layer]) | blank_maps(now[layer])
        for image, (before, after) in enumerate(zip(original[layer], now[layer])):
            inside = mask[image]
            alike = (np.nan, np.nan) if blank[image] else (
                _spearman(before[inside], after[inside]), _ssim(before, after)[inside].mean())
            rows.append({"step": step, "randomised": randomised, "layer": layer, "image": image,
                         "spearman": alike[0], "ssim": alike[1], "blank": bool(blank[image])})
    return rows


def _spearman(before, after):
    ranks = rankdata([before, after], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1).prod())
    return ranks[0] @ ranks[1] / norm if norm > 0 else np.nan


def _ssim(before, after):
    return structural_similarity(before / before.max(), after / after.max(), data_range=1.0, full=True)[1]
