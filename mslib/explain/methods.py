"""The registry of attribution methods, and the one call for all of them.

A new method is one function (model, images, targets, *, parameters) in its module and one line in `METHODS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from . import gradient, perturbation
from .adapt import explainable, stacked
from .model import batches_of, check_inputs, choose_targets, logits_of, predict_copy
from .occlusion import occlusion

#: Outputs that differ by less than this share of their size are equal in float32.
EQUAL = 1e-6


@dataclass(frozen=True)
class Method:
    """An attribution method.

    ``function`` takes (model, images, targets, *, parameters) to maps of the images' shape; ``family`` is ``gradient``,
    ``activation`` or ``perturbation``; ``per_modality`` says whether every modality has a map of its own, else one map
    stands for all; ``complete`` whether a map adds up to the score minus that of the baseline. Feature Permutation has
    a map of each modality here, unlike in Jin et al. 2022, because its default groups are each modality's own
    superpixels (or windows), the same for all images.
    """

    function: Callable
    family: str
    citation: str
    per_modality: bool = True
    complete: bool = False

    @property
    def parameters(self) -> dict:
        """Parameters with their defaults."""
        return {name: one.default for name, one in inspect.signature(self.function).parameters.items()
                if one.kind is inspect.Parameter.KEYWORD_ONLY}


METHODS = {
    "gradient": Method(gradient.gradient, "gradient", "Simonyan et al. 2014"),
    "input_x_gradient": Method(gradient.input_x_gradient, "gradient", "Shrikumar et al. 2016"),
    "smoothgrad": Method(gradient.smoothgrad, "gradient", "Smilkov et al. 2017"),
    "guided_backprop": Method(gradient.guided_backprop, "gradient", "Springenberg et al. 2015"),
    "deconvolution": Method(gradient.deconvolution, "gradient", "Zeiler and Fergus 2014"),
    "deeplift": Method(gradient.deeplift, "gradient", "Shrikumar et al. 2017", complete=True),
    "integrated_gradients": Method(gradient.integrated_gradients, "gradient", "Sundararajan et al. 2017",
                                   complete=True),
    "gradient_shap": Method(gradient.gradient_shap, "gradient", "Lundberg and Lee 2017", complete=True),
    "gradcam": Method(gradient.gradcam, "activation", "Selvaraju et al. 2017", per_modality=False),
    "guided_gradcam": Method(gradient.guided_gradcam, "activation", "Selvaraju et al. 2017"),
    "occlusion": Method(occlusion, "perturbation", "Zeiler and Fergus 2014"),
    "feature_ablation": Method(perturbation.feature_ablation, "perturbation", "Kokhlikyan et al. 2020"),
    "feature_permutation": Method(perturbation.feature_permutation, "perturbation", "Fisher et al. 2019"),
    "lime": Method(perturbation.lime, "perturbation", "Ribeiro et al. 2016"),
    "shapley_sampling": Method(perturbation.shapley_sampling, "perturbation", "Strumbelj and Kononenko 2010",
                               complete=True),
    "kernel_shap": Method(perturbation.kernel_shap, "perturbation", "Lundberg and Lee 2017", complete=True),
}


def covered(method: str, groups) -> np.ndarray:
    """Where a method can give a value at all, bool, shape of `groups`: elsewhere 0 because nothing was asked there.

    `groups`: integers, as the methods that take them are given them (`superpixels`); -1 is never removed. True
    everywhere for a method without groups.
    """
    groups = np.asarray(groups)
    return groups >= 0 if "groups" in _method(method).parameters else np.ones(groups.shape, bool)


def _method(name):
    if name not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)} (got {name!r})")
    return METHODS[name]


def attribute(method: str, model: keras.Model, images, targets=None, *, precision: str = "float32",
              **parameters) -> np.ndarray:
    """Attribute the score of a class to every value of the input.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    model : keras.Model
        Any that `explainable` can adapt.
    images : array-like, (N, T, M), (N, H, W, M) or (N, D, H, W, M)
    targets : array-like of int, (N,), or int, optional
        Class whose score is explained, of every image or of all; default: the class that the net predicts. An output
        of one unit has the positive class alone: 0, whatever is predicted.
    precision : {"float32", "bfloat16"}
        In what a perturbation method lets the net predict (see `predict_copy`); others need float32.
    **parameters
        Of the method (``METHODS[method].parameters``).

    Returns
    -------
    ndarray of float32, shape of `images`
        Raw values, signed where the method is; one channel per modality.

    Raises
    ------
    ValueError
        Unknown method or parameter (the allowed ones are named), a parameter outside its range, a net or an input that
        cannot be explained, a map that is not finite.
    """
    chosen, model, images = _method(method), explainable(model), stacked(images, model)
    _check_parameters(method, chosen, parameters)
    if precision not in ("float32", *(["bfloat16"] if chosen.family == "perturbation" else [])):
        raise ValueError(f"precision: must be float32, or bfloat16 for perturbation methods, which only predict (got "
                         f"{precision!r} for {method})")
    images, targets = choose_targets(model, images, targets, parameters.get("batch_size", 16))
    net = model if precision == "float32" else predict_copy(model)
    maps = np.asarray(chosen.function(net, images, targets, **parameters), np.float32)
    if not np.isfinite(maps).all():
        raise ValueError(f"{method}: a map is not finite; the net's values exceed float32")
    return maps


def _check_parameters(method, chosen, parameters):
    allowed = chosen.parameters
    unknown = [name for name in parameters if name not in allowed]
    if unknown:
        raise ValueError(f"{method}: unknown parameter {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
    for name in ("samples", "steps", "permutations", "window", "stride", "batch_size"):
        value = parameters.get(name, 1)
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{method}: {name} must be a whole number from 1 on (got {value!r})")
    given = allowed | parameters
    if "stride" in given and given["stride"] > given["window"]:
        raise ValueError(f"{method}: stride must not exceed the window, or values between windows are never covered "
                         f"(got stride {given['stride']} and window {given['window']})")
    if "width" in given and not 0 < given["width"] < np.inf:
        raise ValueError(f"{method}: width must be above 0 (got {given['width']!r})")
    if "noise" in given and not 0 <= given["noise"] < np.inf:
        raise ValueError(f"{method}: noise must be from 0 on (got {given['noise']!r})")


def completeness_gap(maps: np.ndarray, model: keras.Model, images, targets, baseline) -> np.ndarray:
    """How far attributions are from adding up to what they explain, (N,).

    ``|sum of a map - owed| / |owed|`` with ``owed = score - baseline's score``. Where the two scores are equal in
    float32 the divisor is a millionth of the larger one: so the gap of a map that rightly adds up to nothing stays
    small, that of another becomes very large, and both stay finite.

    Parameters
    ----------
    maps : ndarray, shape of `images`
        Of a method that should be complete: integrated gradients, DeepLift, the SHAP methods.
    model, images, targets
        What was explained.
    baseline : ndarray, shape of `images`
        What it was explained against (`baseline_images`).

    Raises
    ------
    ValueError
        Maps or baseline of another shape than the images, or not finite; see `check_inputs`.
    """
    model, images, baseline = explainable(model), stacked(images, model), stacked(baseline, model)
    images, targets = check_inputs(model, images, targets)
    maps, baseline = np.asarray(maps), np.asarray(baseline, np.float32)
    for name, given in (("maps", maps), ("baseline", baseline)):
        if given.shape != images.shape or not np.isfinite(given).all():
            raise ValueError(f"{name}: must be finite, of the shape of the images {images.shape} (got {given.shape})")
    rows = np.arange(len(images))
    scores = np.array([logits_of(model, batches_of(x, 16))[rows, targets] for x in (images, baseline)])
    owed, size = scores[0] - scores[1], np.abs(scores).max(0)
    whole = np.maximum(np.maximum(np.abs(owed), EQUAL * size), np.finfo(np.float32).tiny)
    return np.abs(maps.reshape(len(maps), -1).sum(1, dtype=np.float64) - owed) / whole
