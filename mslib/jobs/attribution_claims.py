"""Published claims about attribution methods, held against the planted nets of notebooks 04 and 05."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mslib.show.figure import label_of
from mslib.study import StudyConfig

from .record import interval_text
from .verdicts import FAILS, FAILS_ABOVE, HOLDS, sweep_repairs, undecided, untestable, verdict
from .words import LIFT

GUIDED = ("guided_backprop", "guided_gradcam")
#: Evidence and verdict where no net has learnt what was planted.
NO_TEST = ("no planted net gives a sequence a positive importance", untestable("the planted nets need no sequence"))


def _told(table, name):
    return f"{label_of(name)} {interval_text(*table.loc[name, ['msfi', 'msfi_low', 'msfi_high']])}"


def _best(table):
    """Guided BackProp and Guided Grad-CAM above all others, surely."""
    if table["msfi"].isna().all():
        return NO_TEST
    others = table.drop(list(GUIDED))["msfi"].nlargest(2).index
    lowest, highest = table.loc[list(GUIDED), "msfi_low"].min(), table.drop(list(GUIDED))["msfi_high"].max()
    beaten = table.loc[list(GUIDED), "msfi_high"].min() < table.loc[others[0], "msfi_low"]
    told = "MSFI " + ", ".join(_told(table, name) for name in (*GUIDED, *others))
    if lowest > highest:
        return told, HOLDS
    return told, FAILS if beaten else undecided("intervals of the best methods overlap")


def _useless(sweep):
    """Grad-CAM at its last layer not above chance in any net."""
    last = sweep[(sweep["method"] == "gradcam") & (sweep["layer"] == sweep["layer"].iloc[-1])]
    last = last[last["chance"].notna()]
    if last.empty:
        return NO_TEST
    told = f"MSFI at {last['layer'].iloc[0]}: " + "; ".join(
        f"{row.backbone} {interval_text(row.value, row.low, row.high)}, chance {row.chance:.2f}"
        for row in last.itertuples())
    if (last["high"] <= last["chance"]).all():
        return told, HOLDS
    if (last["low"] > last["chance"]).all():
        return told, FAILS
    return told, undecided("above chance in some nets only, or intervals include it")


def _keep_with_random_top(steps):
    """Guided methods still like themselves when the last block and the logits are random: no interval, one net."""
    part = steps[steps["step"] == steps["step"].max() - 1].set_index("method")
    likeness = part.loc[list(GUIDED), "likeness"]
    told = f"likeness with {part['random'].iloc[0]} random: " + ", ".join(
        f"{label_of(name)} {value:.2f}" for name, value in likeness.items())
    kept = likeness > FAILS_ABOVE
    found = HOLDS if kept.all() else FAILS if not kept.any() else undecided("not alike for the two")
    return f"{told} (keeps it: above {FAILS_ABOVE}; one net, no interval)", found


def _fail_randomisation(table):
    rows = table.loc[list(GUIDED), ["random", "random_low", "random_high"]]
    told = "likeness to the map of a net with random weights: " + ", ".join(
        f"{label_of(name)} {interval_text(*row)}" for name, row in rows.iterrows())
    verdicts = [verdict(row["random_low"], row["random_high"], FAILS_ABOVE, f"{FAILS_ABOVE}")
                for _, row in rows.iterrows()]
    found = verdicts[0] if len(set(verdicts)) == 1 else undecided("not alike for the two")
    return f"{told} (keeps it: above {FAILS_ABOVE}; one net)", found


def _of_nets(row):
    """Verdict on the deciding sequence coming first, over the planted nets."""
    if row["surely"] == row["nets"]:
        return HOLDS
    return undecided("not surely in every net") if row["first"] else FAILS


def _repaired(sweep):
    """Whether an earlier layer repairs Grad-CAM: in all planted nets, in some of them taken alone, or in none."""
    if sweep["chance"].isna().all():
        return NO_TEST
    repaired, told = sweep_repairs(sweep, "gradcam")
    if repaired:
        return told, HOLDS
    some = any(sweep_repairs(one, "gradcam")[0] for _, one in sweep.groupby("backbone"))
    return told, undecided("not surely in every net") if some else FAILS


def attribution_claims(run_dir: str | Path, numbers: dict, config: StudyConfig) -> list[dict]:
    """Claims of Jin et al. and Adebayo et al., and this study's own questions; none where nothing was planted.

    Parameters
    ----------
    run_dir : path
        Its ``tables/attribution_planted.csv`` and ``gradcam_msfi_by_layer.csv`` are read.
    numbers : dict
        What the notebooks recorded, by notebook.
    config : StudyConfig

    Returns
    -------
    list of dict
        Rows of the table of claims.
    """
    tables = Path(run_dir) / "tables"
    if "planted_msfi" not in numbers.get("04_multimodal_attribution", {}):
        return []
    table = pd.read_csv(tables / "attribution_planted.csv").set_index("method")
    sweep = pd.read_csv(tables / "gradcam_msfi_by_layer.csv")
    found = {"Guided BackProp and Guided Grad-CAM come nearest to planted truth (Jin et al. 2022: MSFI .49, .42)":
             _best(table),
             "Grad-CAM finds nothing of planted truth (Jin et al. 2022: MSFI .02, on a map of 2 x 2 x 2)":
             _useless(sweep),
             "Guided BackProp and Guided Grad-CAM keep their maps when the higher layers are random (Adebayo et al. "
             "2018)": _keep_with_random_top(pd.read_csv(tables / "randomisation_methods.csv")),
             "(sanity check) Guided BackProp and Guided Grad-CAM keep their maps when all weights are random":
             _fail_randomisation(table),
             "(question of this study) An earlier layer repairs Grad-CAM": _repaired(sweep)}
    own = [row for row in numbers.get("05_modality_relevance", {}).get("planted", [])
           if (row["kind"] == "absolute" and row["rule"] == config.relevance.rule) or row["kind"] == LIFT]
    for row in own:
        beyond = ", over its share of the brightness" if row["kind"] != "absolute" else ""
        found[f"(check) LRP ({row['rule']}) gives the deciding sequence of a planted net the largest share{beyond}"] = (
            f"in {row['first']} of {row['nets']} nets, with intervals apart in {row['surely']}; mean "
            f"{row['deciding']:.3g}{'' if beyond else ' %'}", _of_nets(row))
    return [{"published claim": claim, "net": "planted", "our evidence": evidence, "holds?": holds}
            for claim, (evidence, holds) in found.items()]
