"""What was chosen as the best of many in one half of the people, measured in the other half."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .depth import NETWORK, best_layers, depth_table


def cross_fitted(maps: pd.DataFrame, methods: Sequence[str], **draws) -> pd.DataFrame:
    """The best method and layer of one half of the people, measured in the other half, both ways.

    What was chosen as the best of many looks better than it is on the people who chose it. Of correctly classified
    slices in `maps`: ``kind, backbone, tested`` (half), ``method, layer, value, low, high, subjects``; ``value`` is the
    share of the way from location prior to oracle.
    """
    maps = maps[maps["correct"].astype(bool)]
    half, found = maps.groupby("kind")["subject"].transform(lambda names: pd.factorize(names, sort=True)[0] % 2), []
    tables = [depth_table(maps[half == number], **draws) for number in (0, 1) if (half == number).any()]
    for number, (chosen, tested) in enumerate(zip(tables, reversed(tables)) if len(tables) == 2 else ()):
        own = chosen[(chosen["source"] == "network") & chosen["method"].isin(methods)]
        best = best_layers(own).query("pick == 'best of all'")[[*NETWORK, "method", "layer"]]
        way = tested[tested["measure"] == "auprc_way"]
        found.append(best.merge(way, on=list(best)).assign(tested="ba"[number]))
    columns = [*NETWORK, "tested", "method", "layer", "value", "low", "high", "subjects"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)
