"""Advice of notebook 04: which attribution methods to trust, tied to the numbers of its tables."""

from __future__ import annotations

import pandas as pd

from mslib.explain import METHODS

from . import planted
from .attribution_scores import tells_sequences
from .verdicts import FAILS_ABOVE

#: Delta-AUPC from which a map is taken to mark what the net needs; smaller ones are above 0 in the digits only.
NOTABLE = 0.01
#: Delta-AUPC below which, in size, removal by the map and by its shuffled copy cost the net the same.
MUTE = 0.001
#: Share by which values may miss what they should add up to.
GAP_ABOVE = 0.05
#: Two of the checks, in words.
CHANGES, MARKS = "changes with the net's weights", "marks what the net needs under every fill"


def learnt_shortcut(used: pd.DataFrame) -> bool:
    """Whether the net goes by the corner: surely right where it tells the class, surely wrong where it lies."""
    rows = used[used["experiment"] == planted.SHORTCUT].set_index("tells")
    right, wrong = (rows.loc[name].fillna(rows.loc[name, "value"]) for name in ("corner", "corner, reversed"))
    return bool(right["low"] > 0.5 and wrong["high"] < 0.5)


def shortcut_learnt(used: pd.DataFrame) -> str:
    """Whether the net goes by the shortcut, in words."""
    if learnt_shortcut(used):
        return "The net goes by the shortcut: right where the corner tells the class, wrong where it lies."
    return ("The net did NOT learn to go by the shortcut (table at the top): whether a method shows it says nothing "
            "about the method, and no figure is drawn.")


def shortcut_sentence(exposed: pd.DataFrame) -> str:
    """Which methods expose the shortcut."""
    yes, no = ([name for name in exposed.index if bool(exposed.loc[name, "exposed"]) is seen] for seen in (True, False))
    return (f"Share on the shortcut surely above that of an even map: {', '.join(yes) or 'none'}. Not so: "
            f"{', '.join(no) or 'none'}.")


def sound_methods(table: pd.DataFrame) -> pd.Series:
    """MSFI of the methods that pass the randomisation and mark what the net needs under every fill, best first."""
    passed = checks(table, None)
    return table.loc[passed[CHANGES] & passed[MARKS], "msfi"].sort_values(ascending=False)


def advice(table: pd.DataFrame | None, patients: dict[str, pd.DataFrame], exposed: pd.DataFrame | None,
           used: pd.DataFrame) -> list[str]:
    """Which methods to trust and why, tied to the tables' numbers.

    Parameters
    ----------
    table : DataFrame or None
        Of the planted nets, from `mslib.jobs.attribution_tables.judgement`; None where there are none.
    patients : dict of str to DataFrame
        Of the study's nets on patients, by net.
    exposed : DataFrame or None
        From `mslib.jobs.planted_results.shortcut_table`.
    used : DataFrame
        From `mslib.jobs.planted.use_table`.

    Returns
    -------
    list of str
        Sentences.
    """
    told = []
    if table is not None:
        told.append(f"Nearest to the planted truth (MSFI): {_values(table['msfi'].nlargest(3))}; farthest: "
                    f"{_values(table['msfi'].nsmallest(3))}.")
        failed = table[table["random"] > FAILS_ABOVE].index
        told.append(f"Fail the randomisation check (likeness above {FAILS_ABOVE} with all weights "
                    f"random), so they show the image more than the net: {', '.join(failed) or 'none'}.")
        told.append("Pass it, and mark what the net needs under every fill (delta-AUPC surely above "
                    f"{NOTABLE:g}), best MSFI first: {_values(sound_methods(table))}.")
        told += _mute_fills("the planted nets", table)
    if exposed is not None:
        told.append(shortcut_sentence(exposed) if learnt_shortcut(used) else shortcut_learnt(used))
    blind = [name for name in METHODS if not tells_sequences(name)]
    told.append(f"Cannot say which sequence decided, whatever their scores: {', '.join(blind)}.")
    for net, one in patients.items():
        told += _on_patients(net.upper(), one)
    told += _gaps(patients)
    return told + ([] if table is None else trust(table, exposed if learnt_shortcut(used) else None))


def _on_patients(net, table):
    failed, unknown = (table.index[rows] for rows in (table["random"] > FAILS_ABOVE, table["random"].isna()))
    return [f"On patients, with all weights of {net} random, likeness above {FAILS_ABOVE}: "
            f"{', '.join(failed) or 'none'}"
            + f"; not defined, for blank maps: {', '.join(unknown)}" * bool(len(unknown)) + ".",
            *_mute_fills(f"{net} on patients", table)]


def _mute_fills(whose, table):
    """Fills under which many a delta-AUPC is 0 but for the digits: neither best nor worst of them means anything."""
    names = [name for name in table if name.startswith("delta_") and not name.endswith(("_low", "_high"))]
    mute = {name.removeprefix("delta_"): int((table[name].abs() < MUTE).sum()) for name in names}
    return [f"Of {whose}, under the fill {fill}, {count} of {len(table)} methods have a delta-AUPC below {MUTE:g} in "
            "size: removing what the map marks costs the net neither more nor less than removing as a shuffled map "
            "says, and their order means nothing. That may be the fill, not the map."
            for fill, count in mute.items() if count]


def _gaps(patients):
    """By how much values miss what they should add up to, by net."""
    told = ("Values should add up to the score's difference from a black image (of the Shapley methods: from the image "
            "with black superpixels).")
    for net, table in patients.items():
        gaps = table["gap"].dropna() if "gap" in table else pd.Series(dtype=float)
        told += (f" {net.upper()} on patients, share by which they miss it: {_values(gaps)}; more than {GAP_ABOVE:g}, "
                 f"so that no total may be read: {', '.join(gaps.index[gaps > GAP_ABOVE]) or 'none'}.")
    return [told]


def checks(table: pd.DataFrame, exposed: pd.DataFrame | None) -> pd.DataFrame:
    """Which methods pass which check on planted nets, one column a check in plain words.

    Parameters
    ----------
    table : DataFrame
        From `mslib.jobs.attribution_tables.judgement`, with its intervals.
    exposed : DataFrame or None
        From `mslib.jobs.planted_results.shortcut_table`; None where the net has learnt no shortcut.

    Returns
    -------
    DataFrame of bool
        By method. A check that does not apply (sums of methods that need not add up) counts as passed, one that could
        not be made (blank maps) as failed.
    """
    deltas = [name for name in table if name.startswith("delta_") and name.endswith("_low")]
    passed = pd.DataFrame({
        "tells the sequences apart": [tells_sequences(name) for name in table.index],
        "marks the planted signs more than chance": table["msfi_low"] > table["msfi_chance"],
        CHANGES: table["random"] <= FAILS_ABOVE,
        MARKS: (table[deltas] > NOTABLE).all(axis=1),
        "adds up, if it should": ~(table["gap"] > GAP_ABOVE) if "gap" in table else True}, index=table.index)
    if exposed is not None:
        passed["exposes the shortcut"] = exposed["exposed"].reindex(table.index, fill_value=False).astype(bool)
    return passed


def trust(table: pd.DataFrame, exposed: pd.DataFrame | None) -> list[str]:
    """The advice in a page: which methods pass every check, which fail one of them, how near the best come."""
    passed = checks(table, exposed)
    failed = passed.apply(lambda row: [name for name in passed if not row[name]], axis=1)
    told = [f"Checks that a method can pass here: {'; '.join(passed)}."]
    for number, title in ((0, "Pass all of them"), (1, "Fail one")):
        names = failed.index[failed.str.len() == number]
        names = table.loc[names, "msfi"].sort_values(ascending=False).index
        told.append(f"{title} (in brackets: MSFI): " + ("; ".join(
            f"{name} ({table.loc[name, 'msfi']:.2f})" + "".join(f", not: {what}" for what in failed[name])
            for name in names) or "none") + ".")
    told.append(f"Fail more: {', '.join(failed.index[failed.str.len() > 1]) or 'none'}.")
    best = table["msfi"].max()
    far = [name for name in failed.index[failed.str.len() == 0] if table.loc[name, "msfi"] < best / 2]
    if far:
        told.append(f"Of those that pass, {', '.join(far)} put less than half as much of their heat into the planted "
                    f"signs as {table['msfi'].idxmax()} does: they name the right part of the picture, coarsely.")
    told.append("Passing says that nothing spoke against a method on these nets; on your own net repeat the checks "
                "that need no planted truth (weights at random, removal under several fills, sums).")
    return told


def _values(series):
    return ", ".join(f"{name} {value:.2g}" for name, value in series.dropna().items()) or "none"
