"""Who trains, who validates, who is tested: slice-wise as published, subject-wise as it should be."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.study import StudyError
from mslib.study.config import Split

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
    """Subject-wise, group-stratified split.

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
            raise StudyError(f"group {group}: the subject-wise split needs at least {len(PARTS)} subjects "
                             f"(found {len(members)})")
        sizes = _part_sizes(len(members), split)
        parts[rng.permutation(np.sort(members.index))] = np.repeat(PARTS, sizes)
    return parts


def split_slices(groups: pd.Series, split: Split, seed: int) -> pd.Series:
    """Slice-wise, group-stratified split as published: slices of one subject fall into several parts.

    Parameters
    ----------
    groups : pandas.Series
        Group of every slice (default integer index).

    Returns
    -------
    pandas.Series
        Part of every slice, indexed like `groups`.
    """
    return split_subjects(groups, split, seed)


def permute_groups(groups: pd.Series, seed: int) -> pd.Series:
    """Give every subject the group of another, drawn at random (group sizes stay): the leakage control."""
    rng = np.random.default_rng(seed)
    return pd.Series(rng.permutation(groups.sort_index().to_numpy()), index=groups.sort_index().index)


def refuse_leakage(subjects, parts) -> None:
    """Raise if a subject has slices in more than one part.

    Parameters
    ----------
    subjects, parts : array-like of str, shape (n_slices,)

    Raises
    ------
    StudyError
        One line naming the first subject that leaks and its parts.
    """
    spread = pd.Series(np.asarray(parts)).groupby(np.asarray(subjects)).unique()
    for subject, found in spread.items():
        if len(found) > 1:
            raise StudyError(f"sub-{subject}: is in {' and '.join(sorted(found))} at once; "
                             "a subject-wise split must keep each subject in one part")
