"""Who trains, who validates, who is tested: nobody is in two parts of a fold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Fold(NamedTuple):
    """Subjects of the three parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(subjects: Iterable[str], n_folds: int, seed: int = 0) -> tuple[Fold, ...]:
    """Deal subjects into folds: each is tested once and validates once, in the fold before.

    Repetitions in `subjects` do not count.

    Raises
    ------
    ValueError
        Fewer subjects than folds, or fewer than three folds (one subject alone cannot be cross-validated).
    """
    known = np.array(sorted(set(subjects)))
    if not 3 <= n_folds <= len(known):
        raise ValueError(f"n_folds: must lie in 3..{len(known)}, the number of subjects, of which training, validation "
                         f"and test need one each (got {n_folds} folds and {len(known)} subjects)")
    parts = np.array_split(np.random.default_rng([seed, 3]).permutation(known), n_folds)
    folds = []
    for number, test in enumerate(parts):
        validation = parts[(number + 1) % n_folds]
        train = np.setdiff1d(known, np.concatenate([test, validation]))
        folds.append(Fold(*(tuple(np.sort(part).tolist()) for part in (train, validation, test))))
    return tuple(folds)


def refuse_leak(fold: Fold) -> None:
    """Raise a ValueError that names the first subject who is in two parts of a fold."""
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = set(getattr(fold, first)) & set(getattr(fold, second))
        if shared:
            raise ValueError(f"fold: subject {min(shared)!r} is in {first} and {second} at once; allowed: each subject "
                             "in one part")
