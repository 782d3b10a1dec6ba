"""Who trains, who validates, who is tested: at slice level as published, at subject level as it should be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from mslib.study.config import Split
from mslib.study.errors import StudyError

PARTS = ("train", "validation", "test")
#: Kind of network to the unit of its split.
KINDS = {"published": "slice", "honest": "subject", "cause": "subject"}
#: Classes of the ``cause`` networks, which see simulated patients' slices without and with their lesions.
CAUSE_CLASSES = ("lesion-free", "lesions")
#: Permutations of which the labels of the leakage control are chosen.
PERMUTATIONS = 300
#: Split of the people of ``cause``.
CAUSE_SPLIT = Split(train=0.6, validation=0.1, test=0.3)


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

    `groups`: group of every subject, indexed by subject id. ``train``, ``validation`` or ``test``, indexed likewise.
    StudyError: a group with fewer than three subjects cannot be in all three parts.
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


def assign_parts(kind: str, table: pd.DataFrame, split: Split, seed: int) -> pd.Series:
    """Part of every slice in the table of a `SliceSet`, by `split_subjects` at the level of a kind of `KINDS`."""
    if KINDS[kind] == "slice":
        return split_subjects(table["group"], split, seed)
    return table["subject"].map(split_subjects(table.groupby("subject")["group"].first(), split, seed))


def bootstrap_rows(table: pd.DataFrame, rows: np.ndarray, unit: str, seed: int) -> np.ndarray:
    """Rows of a table of slices, some several times: as many subjects or slices (`unit`) of each group, drawn anew."""
    rng, chosen = np.random.default_rng([seed, 78]), []
    own = table.iloc[rows].assign(row=rows)
    for _, part in own.groupby("group", sort=True):
        units = [unit["row"].to_numpy() for _, unit in part.groupby("subject" if unit == "subject" else "row")]
        chosen += [units[k] for k in rng.integers(len(units), size=len(units))]
    return np.concatenate(chosen)


def permuted_labels(table: pd.DataFrame, classes: Sequence[str], seed: int) -> pd.DataFrame:
    """Table of slices with the groups of their subjects permuted: the leakage control.

    Of many permutations the one that says least of the true groups (chi squared): by chance alone labels often go with
    the disease, and then learning the disease is rewarded without any leakage. ``true`` keeps the true class.
    """
    groups, rng = table.groupby("subject")["group"].first(), np.random.default_rng([seed, 79])
    drawn = min((rng.permutation(groups.to_numpy()) for _ in range(PERMUTATIONS)),
                key=lambda one: chi2_contingency(pd.crosstab(groups.to_numpy(), one), correction=False).statistic)
    labels = table["subject"].map(dict(zip(groups.index, drawn)))
    return table.assign(true=table["target"], group=labels, target=labels.map(list(classes).index))


def prediction_table(table: pd.DataFrame, logits: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Table of slices with ``logit_<class>``."""
    return table.reset_index(drop=True).join(
        pd.DataFrame(np.asarray(logits, float).round(5), columns=[f"logit_{name}" for name in classes]))
