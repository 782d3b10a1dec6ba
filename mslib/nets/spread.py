"""Slices spread evenly over subjects, for what need not look at all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd


def evenly(index: np.ndarray, count: int) -> np.ndarray:
    """Elements spread evenly from the first to the last.

    Parameters
    ----------
    index : ndarray, (n,)
    count : int
        How many. One: that in the middle. More than there are: all of them.

    Returns
    -------
    ndarray, (min(n, count),)
    """
    last = len(index) - 1
    places = np.linspace(0, last, min(count, len(index))) if count > 1 else np.array([last / 2])
    return index[places.round().astype(int)]


def evenly_of_subjects(table: pd.DataFrame, index: np.ndarray, count: int) -> np.ndarray:
    """Rows of every subject, spread evenly over those that it has.

    Parameters
    ----------
    table : pandas.DataFrame
        A row per slice, with the column ``subject``.
    index : ndarray of int
        Rows to choose from, of each subject in the order of its slices.
    count : int
        Of each subject, as in `evenly`.

    Returns
    -------
    ndarray of int
        Subjects in alphabetical order.
    """
    owners = table["subject"].to_numpy()[index]
    return np.concatenate([evenly(index[owners == name], count) for name in np.unique(owners)])
