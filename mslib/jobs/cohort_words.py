"""Sentences of notebook 00, made from its tables."""

from __future__ import annotations

import pandas as pd


def coverage_sentence(table: pd.DataFrame, reference: dict, labels: dict[str, str]) -> str:
    """Whether each simulated group covers the range of the real one.

    Parameters
    ----------
    table : pandas.DataFrame
        From `mslib.jobs.truth.truth_table`.
    reference : dict of measure to dict of group to (median, low, high)
        From `mslib.jobs.truth.cohort_reference`.
    labels : dict of str to str
        What readers see for each measure.

    Returns
    -------
    str
        One sentence a measure and group; empty without a reference.
    """
    lines = []
    for measure, groups in reference.items():
        for group, (_, low, high) in groups.items():
            own = table.loc[table["group"] == group, measure]
            covers = own.min() <= low and own.max() >= high
            lines.append(f"{group}, {labels.get(measure, measure)}: here {own.min():.3g} to {own.max():.3g}, real "
                         f"patients {low:.3g} to {high:.3g} ({'covered' if covers else 'NOT covered'}).")
    return "\n".join(lines)
