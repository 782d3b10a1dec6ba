"""The words of a verdict and the borders on which it stands; knows numbers and tables, no nets."""

from __future__ import annotations

import math

import pandas as pd

HOLDS, FAILS = "holds", "does not hold"
#: Mean rank correlation with the original map above which a method fails: it shows the image, not the net.
FAILS_ABOVE = 0.5


def untestable(why: str) -> str:
    """The verdict on what cannot be tested, with its reason."""
    return f"not testable: {why}"


def undecided(why: str) -> str:
    """The verdict on what was tested and is not settled, with its reason."""
    return f"undecided: {why}"


def verdict(low: float | None, high: float | None, border: float = 0.0, name: str = "0") -> str:
    """Whether an interval lies above the border, below it, or (also where there is none) decides nothing."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return untestable("too few subjects for an interval")
    if low > border:
        return HOLDS
    return FAILS if high < border else undecided(f"the interval includes {name}")


def sweep_repairs(sweep: pd.DataFrame, method: str) -> tuple[bool, str]:
    """Whether the best layer of a method lies, in every net, surely above chance and above its last; and the means.

    Nets that give no sequence a positive importance (no chance level) are left out.
    """
    rows = sweep[(sweep["method"] == method) & sweep["chance"].notna()]
    if rows["value"].isna().all():
        return False, "not defined"
    mean = rows.groupby("layer", sort=False)["value"].mean()
    last, best = mean.iloc[-1], mean.idxmax()
    limits = rows[rows["layer"] == best]
    beyond = rows.loc[rows["layer"] == mean.index[-1], "high"].to_numpy()
    sure = (limits["low"] > limits["chance"]).to_numpy() & (limits["low"].to_numpy() > beyond)
    return bool(sure.all()), (f"mean MSFI {last:.2f} at {mean.index[-1]}, highest {mean.max():.2f} at {best} (chance "
                              f"{rows['chance'].mean():.2f}); intervals apart in {sure.sum()} of {len(sure)} nets")
