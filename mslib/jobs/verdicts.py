"""Borders on which verdicts about attribution methods stand; knows tables and no nets."""

from __future__ import annotations

import pandas as pd

#: Mean rank correlation with the original map above which a method fails: it shows the image, not the net.
FAILS_ABOVE = 0.5


def sweep_repairs(sweep: pd.DataFrame, method: str) -> tuple[bool, str]:
    """Whether the best layer of a method lies, in every net, surely above chance and above its last; and the means."""
    rows = sweep[sweep["method"] == method]
    mean = rows.groupby("layer", sort=False)["value"].mean()
    last, best = mean.iloc[-1], mean.idxmax()
    limits = rows[rows["layer"] == best]
    beyond = rows.loc[rows["layer"] == mean.index[-1], "high"].to_numpy()
    sure = (limits["low"] > limits["chance"]).to_numpy() & (limits["low"].to_numpy() > beyond)
    return bool(sure.all()), (f"mean MSFI {last:.2f} at {mean.index[-1]}, highest {mean.max():.2f} at {best} (chance "
                              f"{rows['chance'].mean():.2f}); intervals apart in {sure.sum()} of {len(sure)} nets")
