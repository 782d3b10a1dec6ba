"""Tables of predictions as training leaves them: where they lie, which rows are tested, what chance would reach."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def predictions_path(run_dir: str | Path, backbone: str, protocol: str) -> Path:
    """Where the predictions of a net under a protocol (or for the independent cohort) lie."""
    return Path(run_dir) / "nets" / backbone / protocol / "predictions.csv"


def read_predictions(run_dir: str | Path, backbone: str, protocol: str) -> pd.DataFrame:
    """Predictions of a net, one row per slice of validation and test.

    Returns
    -------
    pandas.DataFrame
        ``subject, slice, group, target, part, logit_<class>``; no ``part`` for the independent cohort.
    """
    return pd.read_csv(predictions_path(run_dir, backbone, protocol), dtype={"subject": str})


def tested(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test part; all rows of a table that no split has cut."""
    return table[table["part"] == "test"] if "part" in table else table


def chance_level(table: pd.DataFrame) -> float:
    """Accuracy without knowledge: share of the largest class among the tested rows."""
    return float(tested(table)["target"].value_counts(normalize=True).max())
