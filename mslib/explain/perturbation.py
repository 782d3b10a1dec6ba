"""Attributions from what happens to a score when feature groups are replaced by a baseline.

A *coalition* says for every feature group whether it stays; what does not is replaced. Images that are predicted are
made batch by batch, so that memory does not grow with the number of samples.

Model, images, targets, `baseline`, `batch_size` and result as in `mslib.explain.gradient`; every member of a group has
the group's value. `groups`: integers of the shape of `images` or of one image (`superpixels`, `window_groups`), -1 is
never removed; default: `default_groups`. `seed`: of a noisy baseline and of what is drawn: the same draws for every
image, so that its map is the same whatever other images stand beside it. Errors of sampling are therefore alike in all
images.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from .baselines import baseline_images
from .groups import default_groups, number_groups
from .model import batches_of, logits_of


def coalition_scores(model: keras.Model, image, base, groups, coalitions, target: int,
                     batch_size: int = 64) -> np.ndarray:
    """Score of a class, (n,) in float64, with the groups of an image that do not stay replaced by their baseline.

    `coalitions`, (n, n_groups), says which groups stay; one that comes again is predicted once. `groups` has the shape
    of `image` and `base`; values at -1 stay always.
    """
    once, places = np.unique(coalitions, axis=0, return_inverse=True)
    stays = np.concatenate([once, np.ones((len(once), 1), bool)], 1)  # the last one answers to -1

    def batches():
        for start in range(0, len(stays), batch_size):
            yield np.where(stays[start:start + batch_size][:, groups], image, base)

    return logits_of(model, batches())[places.ravel(), target]


def _spread_over_groups(values, groups):
    """Values of groups at the places of their members; 0 where there is no group."""
    return np.append(values, 0.0)[groups].astype(np.float32)


def _explain_each(explain: Callable, images, targets, groups, baseline, seed, check: Callable | None = None):
    """Attribution of every image, whatever images stand beside it; 0 in an image without groups.

    `explain` takes (image, base, groups, n_groups, target, rng), the groups numbered per image and a generator of the
    same seed for every image, and gives a value a group. `check` takes the greatest number of groups of an image and
    raises what there is to raise, before the net predicts.
    """
    groups, counts = number_groups(default_groups(images) if groups is None else groups, images)
    if check is not None:
        check(int(counts.max()))
    base = baseline_images(images, baseline, seed)
    maps = np.zeros(images.shape, np.float32)
    for i in np.flatnonzero(counts):
        values = explain(images[i], base[i], groups[i], int(counts[i]), int(targets[i]), np.random.default_rng(seed))
        maps[i] = _spread_over_groups(values, groups[i])
    return maps


def feature_ablation(model: keras.Model, images, targets, *, groups=None, baseline="zero", seed: int = 0,
                     batch_size: int = 64) -> np.ndarray:
    """What the score loses when one feature group is replaced by the baseline (Kokhlikyan et al. 2020)."""
    def losses(image, base, own, n_groups, target, _):
        coalitions = np.concatenate([np.ones((1, n_groups), bool), ~np.eye(n_groups, dtype=bool)])
        scores = coalition_scores(model, image, base, own, coalitions, target, batch_size)
        return scores[0] - scores[1:]

    return _explain_each(losses, images, targets, groups, baseline, seed)


def feature_permutation(model: keras.Model, images, targets, *, groups=None, permutations: int = 8, seed: int = 0,
                        batch_size: int = 64) -> np.ndarray:
    """What the score loses when a feature group takes another image's values (Fisher et al. 2019).

    The images, two at least (else ValueError), are shifted cyclically by a random number of places, so that each one
    always gets values of another; over all N - 1 shifts it gets those of every other image once. The maps depend on
    which images are given together. `groups` are the same for all images (else ValueError), because values change
    places between them; default: `default_groups` of their mean. `permutations`: over how many different shifts the
    loss is averaged; from N - 1 on over all of them, exactly.
    """
    if len(images) < 2:
        raise ValueError("feature_permutation: needs two images at least, because values change places between them")
    groups = default_groups(images.mean(0, keepdims=True))[0] if groups is None else groups
    if np.shape(groups) != images.shape[1:]:
        raise ValueError(f"feature_permutation: groups must be the same for all images, {images.shape[1:]} "
                         f"(got {np.shape(groups)})")
    own, counts = number_groups(groups, images)
    n_groups = int(counts[0])
    rng, rows = np.random.default_rng(seed), np.arange(len(images))

    def scores(batch):
        return logits_of(model, batches_of(batch, batch_size))[rows, targets]

    whole, losses = scores(images), np.zeros((len(images), n_groups))
    for group in range(n_groups):
        shifts = 1 + rng.permutation(len(images) - 1)[:permutations]
        for shift in shifts:
            other = np.roll(images, shift, 0)
            losses[:, group] += (whole - scores(np.where(own == group, other, images))) / len(shifts)
    return np.stack([_spread_over_groups(loss, one) for loss, one in zip(losses, own)])


def lime(model: keras.Model, images, targets, *, groups=None, samples: int = 500, width: float = 1.0, baseline="zero",
         seed: int = 0, batch_size: int = 64) -> np.ndarray:
    """Weights of a linear model of the score in random coalitions, near ones counting more (Ribeiro et al. 2016).

    `samples`: random coalitions, more than there are groups (else ValueError); several times as many for values that do
    not hang on the seed. `width`, above 0: of the kernel ``exp(-d^2 / (2 width^2))``, d the cosine distance between the
    coalition and all groups.
    """
    from sklearn.linear_model import LinearRegression  # takes longer to import than this whole wing

    def weights(image, base, own, n_groups, target, rng):
        coalitions = rng.random((samples, n_groups)) < 0.5
        _check_rank("lime", np.column_stack([coalitions, np.ones(samples)]), samples)
        scores = coalition_scores(model, image, base, own, coalitions, target, batch_size)
        distance = 1 - np.sqrt(coalitions.mean(1))
        near = np.exp(-(distance**2) / (2 * width**2))
        return LinearRegression().fit(coalitions, scores, near).coef_

    return _explain_each(weights, images, targets, groups, baseline,
                         seed, lambda most: _check_samples("lime", samples, most + 1, most))


def shapley_sampling(model: keras.Model, images, targets, *, groups=None, permutations: int = 25, baseline="zero",
                     seed: int = 0, batch_size: int = 64) -> np.ndarray:
    """Mean gain of a feature group over random orders in which groups join (Strumbelj and Kononenko 2010).

    `permutations`: random orders. Values of the groups add up to the score minus that of the baseline.
    """
    def gains(image, base, own, n_groups, target, rng):
        orders = rng.permuted(np.tile(np.arange(n_groups), (permutations, 1)), axis=1)
        ranks = orders.argsort(1)
        joined = ranks[:, None] < np.arange(n_groups + 1)[:, None]
        scores = coalition_scores(model, image, base, own, joined.reshape(-1, n_groups), target, batch_size)
        steps = np.diff(scores.reshape(permutations, n_groups + 1), axis=1)
        return np.take_along_axis(steps, ranks, 1).mean(0)

    return _explain_each(gains, images, targets, groups, baseline, seed)


def kernel_shap(model: keras.Model, images, targets, *, groups=None, samples: int = 600, baseline="zero", seed: int = 0,
                batch_size: int = 64) -> np.ndarray:
    """Shapley values by weighted regression over random coalitions (Lundberg and Lee 2017, theorem 2).

    Values of the groups add up to the score minus that of the baseline exactly. `samples`: random coalitions, drawn in
    pairs of complements. Because a pair says one thing about n groups, there must be ``2 (n - 1)`` at least (else
    ValueError), and more where some are drawn twice. 600 do for about 150 superpixels; the published 300 were for
    superpixels that modalities shared.
    """
    def values(image, base, own, n_groups, target, rng):
        ends = np.array([np.zeros(n_groups, bool), np.ones(n_groups, bool)])
        nothing, everything = coalition_scores(model, image, base, own, ends, target, batch_size)
        if n_groups == 1:
            return np.array([everything - nothing])
        coalitions = _kernel_coalitions(n_groups, samples, rng)
        _check_rank("kernel_shap", _free_design(coalitions), samples)
        scores = coalition_scores(model, image, base, own, coalitions, target, batch_size)
        return _efficient_regression(coalitions, scores - nothing, everything - nothing)

    return _explain_each(values, images, targets, groups, baseline,
                         seed, lambda most: _check_samples("kernel_shap", samples, 2 * (most - 1), most))


def _check_samples(method, samples, needed, n_groups):
    if samples < needed:
        raise ValueError(f"{method}: samples must be {needed} at least for {n_groups} groups (got {samples})")


def _check_rank(method, design, samples):
    """Raise where drawn coalitions, one a row, leave some of the unknowns, one a column, undetermined."""
    rank, unknowns = np.linalg.matrix_rank(design), design.shape[1]
    if rank < unknowns:
        raise ValueError(f"{method}: {samples} samples happen to determine {rank} of {unknowns} values only, some are "
                         f"drawn twice; draw {2 * samples} or more")


def _kernel_coalitions(n_groups, samples, rng):
    """Coalitions drawn with the Shapley kernel's probability: sizes by ``1 / (k (n - k))``, then any of that size."""
    sizes = np.arange(1, n_groups)
    chance = 1 / (sizes * (n_groups - sizes))
    drawn = rng.choice(sizes, -(-samples // 2), p=chance / chance.sum())
    half = rng.random((len(drawn), n_groups)).argsort(1) < drawn[:, None]
    return np.concatenate([half, ~half])[:samples]


def _free_design(coalitions):
    """Design of the coefficients but the last one, which is the rest of what they add up to."""
    z = coalitions.astype(np.float64)
    return z[:, :-1] - z[:, -1:]


def _efficient_regression(coalitions, gains, total):
    """Least squares of the gains under the condition that the coefficients add up to `total`.

    The last coefficient is the rest, which leaves an ordinary regression for the others.
    """
    found = np.linalg.lstsq(_free_design(coalitions), gains - total * coalitions[:, -1], rcond=None)[0]
    return np.append(found, total - found.sum())
