"""Does a map depend on what the net has learnt? Weights drawn anew from the output down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import numpy as np

from .adapt import explainable
from .model import DEPTHWISE, set_weights


def cascading_randomisation(model: keras.Model, lowest: Sequence[str], draws: int = 10,
                            seed: int = 0) -> Iterator[tuple[int, str, keras.Model]]:
    """Networks whose layers are random from the output down to one layer, then down to the next, in several draws.

    Layers with a kernel, those of nested models among them (`explainable`), are drawn anew (He normal, bias 0); each
    stays random while the next follow. A map that explains what was learnt loses its likeness to that of the model.

    `lowest` names the last layer drawn in each step, deep to shallow (else ValueError). Yielded are the number of the
    draw, from 1 on, the name, and the network: one and the same copy of the model, traced once, whose weights hold
    until the next step. Adebayo et al. 2018, Sanity checks for saliency maps, section 3.
    """
    model = explainable(model)
    names = [layer.name for layer in model.layers]
    places = [names.index(name) if name in names else len(names) for name in lowest]
    if not places or len(names) in places or (np.diff(places) >= 0).any():
        raise ValueError(f"lowest: must name layers of the model, deep to shallow (got {list(lowest)})")
    clone, learnt = _copy(model), model.get_weights()
    for draw in range(1, draws + 1):
        clone.set_weights(learnt)
        rng, done = np.random.default_rng([seed, draw]), len(names)
        for name, place in zip(lowest, places):
            _randomise(clone.layers[place:done], rng)
            done = place
            yield draw, name, clone


def randomised_copy(model: keras.Model, lowest: str, seed: int = 0) -> keras.Model:
    """A copy of a net (`explainable`) whose layers are drawn anew from the output down to a layer (He normal, bias 0).

    `lowest` names the last layer that is drawn (ValueError: the net has none of this name).
    """
    model = explainable(model)
    names = [layer.name for layer in model.layers]
    if lowest not in names:
        raise ValueError(f"lowest: must be a layer of the model: {', '.join(names)} (got {lowest!r})")
    clone = _copy(model)
    _randomise(clone.layers[names.index(lowest):], np.random.default_rng(seed))
    return clone


def _copy(model):
    clone = keras.models.clone_model(model)
    set_weights(clone, model.get_weights())
    return clone


def _randomise(layers, rng):
    """Draw the kernels of layers, the deepest first."""
    for layer in reversed(layers):
        kernels = [getattr(layer, name) for name in ("kernel", "depthwise_kernel", "pointwise_kernel")
                   if getattr(layer, name, None) is not None]
        for kernel in kernels:
            shape = tuple(kernel.shape)
            alone = isinstance(layer, DEPTHWISE) or kernel is getattr(layer, "depthwise_kernel", None)
            read = np.prod(shape[:-2] if alone else shape[:-1])  # values that make up one output
            kernel.assign(rng.normal(0.0, np.sqrt(2.0 / read), shape).astype(np.float32))
        if kernels and layer.bias is not None:
            layer.bias.assign(np.zeros(layer.bias.shape, np.float32))
