"""Layer-wise relevance propagation: the score of a class handed down, layer by layer, to the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from .adapt import explainable, stacked
from .baselines import baseline_images
from .lrp_net import read_net
from .lrp_rules import Composite, check_parameters, resolve_rule
from .model import check_inputs, choose_targets


def lrp(model: keras.Model, inputs, targets=None, rule: str | Composite = "epsilon_plus", *, baseline="zero",
        layers: bool | Sequence[str] = False, batch_size: int = 16, **parameters):
    """Relevance of every input value, and on request of every layer's output, for the score of a class.

    Relevance starts as the target's logit and is handed down by one rule a layer. A bias keeps the part that it has in
    a denominator, so that the relevance of the input adds up to the logit only in a net without biases.

    Parameters
    ----------
    model : keras.Model
        Any that `explainable` can adapt, of convolutions (depthwise, separable and transposed ones too), dense layers,
        pools, batch norm, dropout, flatten, add, concatenate and activations like ReLU. Batch norm right after a
        convolution or dense layer without activation is folded into it; elsewhere it shares relevance out as a layer
        of its own, by the epsilon rule. So do pools of the mean and add. Relevance goes to the winner of a max-pool,
        and passes activations and dropout as it is.
    inputs : array-like, (N, T, M), (N, H, W, M) or (N, D, H, W, M)
    targets : array-like of int, (N,), or int, optional
        Default: the class that the net predicts; of an output of one unit 0, the positive class.
    rule : str or Composite
        One of `LRP_COMPOSITES`, or rules put together by hand.
    baseline : str, float or array-like
        As in `mslib.explain.baseline_images`: what input values are counted from. A net says the same of inputs minus a
        baseline if the first layer's bias takes in what that layer makes of the baseline, but relevance is then another
        (Kindermans et al. 2017): from zero on, bright values get more of it.
    layers : bool or sequence of str
        True: the relevance of every layer's output too, the input layer among them; or the names of some. A layer
        with folded batch norm has that of the norm. They are held for all images; see `relevance_flow` for sums.
    batch_size : int
        Images in one pass, all of whose activations are held at once.
    **parameters : float
        Of the rules (``LRP_COMPOSITES[rule].parameters``): epsilon, gamma.

    Returns
    -------
    ndarray of float32, shape of `inputs`
        Signed, in units of the logit. With `layers`, a pair: this, and a dict of layer (shallow to deep) to ndarray
        of float32, shape of the layer's output.

    Raises
    ------
    ValueError
        A net, layer, input, rule or parameter that does not fit; relevance that is not finite; a baseline that is not
        zero where the input goes into anything but convolutions or dense layers.

    References
    ----------
    Bach et al. 2015; Montavon et al. 2017, 2019; Kohlbrenner et al. 2020 (which rule for which layer).
    """
    names, batches = _explain(model, inputs, targets, rule, baseline, layers, batch_size, parameters)
    parts = [[part.numpy() for part in (relevance, *of_layers)] for relevance, of_layers in batches]
    relevance, *of_layers = (np.concatenate(part) for part in zip(*parts))
    if not np.isfinite(relevance).all():
        raise ValueError("lrp: relevance is not finite; the net's values exceed float32, or epsilon is too small")
    return (relevance, dict(zip(names, of_layers))) if layers else relevance


def relevance_flow(model: keras.Model, inputs, targets=None, rule: str | Composite = "epsilon_plus", *, baseline="zero",
                   batch_size: int = 16, **parameters) -> dict[str, dict[str, np.ndarray]]:
    """How much relevance reaches each layer: what biases keep on the way down is the difference between two.

    Parameters as in `lrp`. By layer, input layer first, ``sum`` and ``absolute``: float64, (N,), of the signed values
    and of their sizes, in units of the logit; the sum of the last layer is the logit itself. Memory does not grow with
    the depth of the net. Where the net branches, layers side by side share the relevance.
    """
    names, batches = _explain(model, inputs, targets, rule, baseline, True, batch_size, parameters)
    parts = [[_sums(part) for part in of_layers] for _, of_layers in batches]
    return {name: {key: np.concatenate([one[key] for one in of_layer]) for key in ("sum", "absolute")}
            for name, of_layer in zip(names, zip(*parts))}


def relevance_shares(relevance) -> dict[str, np.ndarray]:
    """Share of every input channel (modality) in the relevance, (N, ..., M), of images or signals, in percent.

    ``absolute``: float64, (N, M), ``100 sum |R_m| / sum_m sum |R_m|`` (Ellis et al. 2021); ``positive``: likewise of
    positive relevance alone. Of signed sums no share is made: they can cancel. NaN where there is no relevance to
    share. ValueError: relevance of another shape or not finite.
    """
    relevance = np.asarray(relevance, np.float64)
    if relevance.ndim < 2 or not relevance.size or not np.isfinite(relevance).all():
        raise ValueError(f"relevance: must be finite, (N, ..., M) (got {relevance.shape})")
    space = tuple(range(1, relevance.ndim - 1))
    sums = {"absolute": np.abs(relevance).sum(space), "positive": np.maximum(relevance, 0).sum(space)}
    return {name: np.divide(100 * part, total := part.sum(-1, keepdims=True), out=np.full_like(part, np.nan),
                            where=total > 0) for name, part in sums.items()}


def _sums(relevance):
    rows = relevance.numpy().reshape(len(relevance), -1).astype(np.float64)
    return {"sum": rows.sum(1), "absolute": np.abs(rows).sum(1)}


def _explain(model, inputs, targets, rule, baseline, layers, batch_size, parameters) -> tuple[list[str], Iterator]:
    """Checks; then names of the wanted layers, and (relevance of the input, of the layers) batch by batch."""
    model, inputs = explainable(model), stacked(inputs, model)
    composite = resolve_rule(rule)
    parameters = check_parameters(composite, parameters)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size: must be a whole number from 1 on (got {batch_size!r})")
    if targets is None:  # -1: the class that the pass itself predicts
        inputs, targets = check_inputs(model, inputs, np.zeros(len(inputs), int))
        targets = targets - 1
    else:
        inputs, targets = choose_targets(model, inputs, targets, batch_size)
    names, base = _wanted(model, layers), baseline_images(inputs, baseline)
    run = _traced(model, composite, tuple(parameters.items()), tuple(names), bool(base.any()))
    return names, (run(*(tf.constant(part[i:i + batch_size]) for part in (inputs, base, targets)))
                   for i in range(0, len(inputs), batch_size))


def _wanted(model, layers):
    known = [layer.name for layer in keras.Model(model.inputs, model.outputs).layers]
    if isinstance(layers, bool):
        return known if layers else []
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"layers: {', '.join(map(repr, unknown))}: not among {', '.join(known)}")
    return [name for name in known if name in wanted]


@lru_cache(maxsize=8)
def _traced(model, composite, parameters, names, centred):
    """One graph of the way forward and back, for any batch size; weights are read when it runs."""
    steps, source, target = read_net(model)
    input_name = keras.Model(model.inputs, model.outputs).layers[0].name
    if unfit := [step.layer.name for step in steps if centred and source in step.reads and not step.is_linear]:
        raise ValueError(f"baseline: must be zero, because the input goes into '{unfit[0]}', which is no convolution "
                         "or dense layer")

    @tf.function(autograph=False,  # nothing here turns on a tensor's value; several times as fast to trace
                 input_signature=[*[tf.TensorSpec(model.inputs[0].shape)] * 2, tf.TensorSpec((None,), tf.int32)])
    def run(inputs, base, targets):
        values, maps = {source: inputs}, [step.linear() for step in steps]
        for step, linear in zip(steps, maps):
            values[step.writes] = step.forward([values[one] for one in step.reads], linear)
        logits = values[target]
        chosen = tf.where(targets < 0, tf.argmax(logits, -1, tf.int32), targets)
        relevance, of_layers = {target: logits * tf.one_hot(chosen, logits.shape[-1])}, {}
        for step, linear in zip(reversed(steps), reversed(maps)):
            above = relevance.pop(step.writes)
            of_layers |= dict.fromkeys(step.names, above)
            read = [values[one] for one in step.reads]
            if centred and step.reads == (source,):
                read, linear = [inputs - base], linear.shifted(base)
            parts = step.backward(read, above, linear, composite, dict(parameters))
            for one, part in zip(step.reads, parts):
                relevance[one] = relevance[one] + part if one in relevance else part
        of_layers[input_name] = relevance[source]
        return relevance[source], [of_layers[name] for name in names]

    return run
