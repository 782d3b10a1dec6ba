"""The rules of layer-wise relevance propagation, and composites: which rule which layer gets.

Every rule states which inputs, through which weights, make up a denominator z, and hands each input its part of R / z.
A rule is a function (linear, x, relevance, *, parameters) -> relevance of x, with `linear` a `LinearMap`, x the layer's
input and relevance that of its output before any activation. A denominator is moved away from zero by `STABILISER`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

#: Added to the size of every denominator, except where a rule has its own epsilon.
STABILISER = 1e-6


def epsilon(linear, x, relevance, *, epsilon: float = 1e-6):
    """Bach et al. 2015, eq. 58: R_i = sum_j x_i w_ij R_j / (z_j + epsilon sign(z_j)), z with bias."""
    return share([(x, linear.kernel)], linear, linear.bias, relevance, epsilon)


def alpha1_beta0(linear, x, relevance):
    """Bach et al. 2015, eq. 60, alpha = 1, beta = 0: positive contributions only, z with positive bias.

    A contribution is positive where input and weight are, or where both are negative; so this is the z+ rule (Montavon
    et al. 2017) for inputs of any sign.
    """
    return share(_by_sign(linear, x, tf.nn.relu(linear.kernel), -tf.nn.relu(-linear.kernel)), linear,
                 tf.nn.relu(linear.bias), relevance)


def alpha2_beta1(linear, x, relevance):
    """Bach et al. 2015, eq. 60, alpha = 2, beta = 1: positive contributions twice, negative ones against them."""
    negative = _by_sign(linear, x, -tf.nn.relu(-linear.kernel), tf.nn.relu(linear.kernel))
    return (2.0 * alpha1_beta0(linear, x, relevance)
            - share(negative, linear, -tf.nn.relu(-linear.bias), relevance))


def gamma(linear, x, relevance, *, gamma: float = 0.25):
    """Montavon et al. 2019, LRP-gamma, for inputs of any sign: contributions of z's own sign count 1 + gamma times.

    Of positive inputs and z > 0 this is the paper's w + gamma max(w, 0), bias likewise; the rest is as in zennit. What
    a ReLU has set to zero has no relevance, so that behind one there is no rest.
    """
    more, less = (lambda w: w + gamma * tf.nn.relu(w)), (lambda w: w - gamma * tf.nn.relu(-w))
    favours = _by_sign(linear, x, more(linear.kernel), less(linear.kernel)), linear, more(linear.bias)
    if linear.rectified:
        return share(*favours, relevance)
    z = linear(x, linear.kernel) + linear.bias
    return share(*favours, tf.where(z > 0, relevance, 0.0)) + share(
        _by_sign(linear, x, less(linear.kernel), more(linear.kernel)), linear, less(linear.bias),
        tf.where(z < 0, relevance, 0.0))


LRP_RULES = {"epsilon": epsilon, "alpha1_beta0": alpha1_beta0, "alpha2_beta1": alpha2_beta1, "gamma": gamma}


@dataclass(frozen=True)
class Composite:
    """Which rule convolutions and which one dense layers get (see `LRP_RULES`)."""

    conv: Callable
    dense: Callable
    citation: str

    @property
    def parameters(self) -> dict:
        """Parameters of its rules with their defaults."""
        return parameters_of(self.conv) | parameters_of(self.dense)


LRP_COMPOSITES = {
    "epsilon_plus": Composite(alpha1_beta0, epsilon, "Kohlbrenner et al. 2020"),
    "epsilon": Composite(epsilon, epsilon, "Bach et al. 2015"),
    "alpha1_beta0": Composite(alpha1_beta0, alpha1_beta0, "Bach et al. 2015"),
    "alpha2_beta1": Composite(alpha2_beta1, alpha2_beta1, "Bach et al. 2015"),
    "gamma": Composite(gamma, gamma, "Montavon et al. 2019"),
    "epsilon_gamma": Composite(gamma, epsilon, "Montavon et al. 2019"),
    "epsilon_alpha2_beta1": Composite(alpha2_beta1, epsilon, "Kohlbrenner et al. 2020"),
}


def parameters_of(rule: Callable) -> dict:
    """Parameters of a rule with their defaults."""
    return {name: one.default for name, one in inspect.signature(rule).parameters.items()
            if one.kind is inspect.Parameter.KEYWORD_ONLY}


def resolve_rule(rule: str | Composite) -> Composite:
    """Composite of a name (ValueError: unknown); a composite made by hand is taken as it is."""
    if isinstance(rule, Composite):
        return rule
    if rule not in LRP_COMPOSITES:
        raise ValueError(f"rule: must be one of {', '.join(LRP_COMPOSITES)}, or a Composite (got {rule!r})")
    return LRP_COMPOSITES[rule]


def check_parameters(composite: Composite, given: dict) -> dict:
    """Parameters of a composite, the given ones checked, the others at their defaults.

    ValueError: unknown (the allowed ones are named), no finite number, epsilon that is not positive, negative gamma.
    """
    allowed = composite.parameters
    if unknown := [name for name in given if name not in allowed]:
        raise ValueError(f"rule: unknown parameter {', '.join(map(repr, unknown))}; this one has "
                         f"{', '.join(allowed) or 'none'}")
    chosen = allowed | given
    for name, value in chosen.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: must be a finite number (got {value!r})")
    if chosen.get("epsilon", 1) <= 0:
        raise ValueError(f"epsilon: must be positive (got {chosen['epsilon']})")
    if chosen.get("gamma", 0) < 0:
        raise ValueError(f"gamma: must not be negative (got {chosen['gamma']})")
    return {name: float(value) for name, value in chosen.items()}


def share(terms, linear, bias, relevance, stabiliser=STABILISER):
    """Hand relevance to the inputs of a map in proportion to what they add to its output.

    `terms` are inputs, each with the weights through which it counts: z = sum of ``linear(input, weights)``, plus bias,
    which keeps its part of the relevance (that of the output). What is returned is the sum over the terms of input
    times gradient of z, with R / z as the gradient of the output: the map's own stride, dilation and padding.
    """
    inputs = [x for x, _ in terms]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        z = sum(linear(x, weights) for x, weights in terms) + bias
    parts = tape.gradient(z, inputs, relevance / away_from_zero(z, stabiliser))
    return sum(x * part for x, part in zip(inputs, parts))


def away_from_zero(z, by=STABILISER):
    """Denominators made larger in size by a small number; zero counts as positive."""
    return tf.where(z < 0, z - by, z + by)


def _by_sign(linear, x, of_positive, of_negative):
    """Positive inputs through one kernel, negative ones, if there can be any, through another."""
    if linear.nonnegative:
        return [(x, of_positive)]
    return [(tf.nn.relu(x), of_positive), (-tf.nn.relu(-x), of_negative)]
