"""Who trains, who validates, who is tested: at slice level as published, at subject level as it should be."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.study.config import Split
from mslib.study.errors import StudyError

PARTS = ("train", "validation", "test")


def _part_sizes(n: int, split: Split) -> np.ndarray:
    """Largest-remainder rounding of the shares, with at least one in every part."""
    exact = n * np.array([split.train, split.validation, split.test])
    sizes = np.maximum(np.floor(exact).astype(int), 1)
    while sizes.sum() < n:
        sizes[np.argmax(exact - sizes)] += 1
    while sizes.sum() > n:
        sizes[np.argmax(np.where(sizes > 1, sizes - exact, -np.inf))] -= 1
    return sizes


def split_subjects(groups: pd.Series, split: Split, seed: int) -> pd.Series:
    """Group-stratified split: subject-level, or slice-level as published where `groups` has an element per slice.

    Parameters
    ----------
    groups : pandas.Series
        Group of every subject, indexed by subject id.
    split : Split
    seed : int

    Returns
    -------
    pandas.Series
        ``train``, ``validation`` or ``test``, indexed like `groups`.

    Raises
    ------
    StudyError
        A group with fewer than three subjects cannot be in all three parts.
    """
    rng = np.random.default_rng(seed)
    parts = pd.Series(index=groups.index, dtype=object)
    for group, members in groups.groupby(groups, sort=True):
        if len(members) < len(PARTS):
            raise StudyError(f"group {group}: the subject-level split needs at least {len(PARTS)} subjects "
                             f"(found {len(members)})")
        sizes = _part_sizes(len(members), split)
        parts[rng.permutation(np.sort(members.index))] = np.repeat(PARTS, sizes)
    return parts


def refuse_leakage(subjects, parts) -> None:
    """StudyError naming the first subject with slices in more than one part; subject and part of every slice."""
    for subject, found in pd.Series(np.asarray(parts)).groupby(np.asarray(subjects)).unique().items():
        if len(found) > 1:
            raise StudyError(f"sub-{subject}: is in {' and '.join(sorted(found))} at once; "
                             "a subject-level split must keep each subject in one part")
