"""A claim is a row of a table and a border; the verdict follows from its interval alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mslib.claims import (
    CHECK,
    CLAIMS,
    FAILS,
    HOLDS,
    LEAKY,
    LOST,
    OPEN,
    RECOVERED,
    UNREACHED,
    UNTESTABLE,
    Claim,
    judge,
    verdict,
)
from mslib.measure import interval_text

ROWS = pd.DataFrame([
    {"backbone": "vgg16", "name": "a", "value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.3},
    {"backbone": "vgg19", "name": "a", "value": 0.2, "low": 0.1, "high": 0.25, "chance": 0.3},
    {"backbone": "vgg16", "name": "b", "value": 0.4, "low": 0.2, "high": 0.6, "chance": 0.3},
    {"backbone": "vgg19", "name": "b", "value": 0.4, "low": np.nan, "high": np.nan, "chance": 0.3}])


def judged(read=None, **changes):
    claim = Claim(**{"text": "it is above", "source": "nobody", "kind": CHECK, "table": "rows", "query": "name == 'a'",
                     "border": "chance"} | changes)
    table = judge([claim], read or {"rows": ROWS}.get)
    return dict(zip(table["network"], zip(table["verdict"], table["reason"])))


@pytest.mark.parametrize("low,high,direction,expected", [
    (0.1, 0.2, "above", HOLDS), (-0.2, -0.1, "above", FAILS), (-0.1, 0.1, "above", OPEN), (0.0, 0.2, "above", OPEN),
    (0.1, 0.2, "below", FAILS), (-0.2, -0.1, "below", HOLDS), (-0.1, 0.1, "below", OPEN),
    (0.1, 0.2, "not above", FAILS), (-0.2, -0.1, "not above", HOLDS), (-0.1, 0.1, "not above", HOLDS),
    (np.nan, 0.2, "above", UNTESTABLE), (np.nan, 0.2, "not above", UNTESTABLE)])
def test_verdict_of_an_interval(low, high, direction, expected):
    assert verdict(low, high, 0.0, direction)[0] == expected


@pytest.mark.parametrize("changes,expected", [
    ({}, {"vgg16": HOLDS, "vgg19": FAILS}), ({"direction": "below"}, {"vgg16": FAILS, "vgg19": HOLDS}),
    ({"query": "name == 'b'"}, {"vgg16": OPEN, "vgg19": UNTESTABLE}),
    ({"query": "name in ('a', 'b')"}, {"vgg16": OPEN, "vgg19": FAILS}),  # all rows of a network have to pass
    ({"query": "name == 'c'"}, {"": UNTESTABLE}), ({"table": "absent"}, {"": UNTESTABLE}),
    ({"least": 0.29}, {"vgg16": HOLDS, "vgg19": FAILS}),  # less is next to nothing
    ({"least": 0.31}, {"vgg16": OPEN, "vgg19": FAILS}), ({"holds": LEAKY}, {"vgg16": LEAKY, "vgg19": FAILS}),
    ({"by": "name"}, {"a": FAILS}), ({"by": "name", "conjunction": False}, {"a": OPEN}),  # rows that differ
    ({"refutes": "a longer training might"}, {"vgg16": OPEN, "vgg19": FAILS})])
def test_verdicts_of_networks(changes, expected):
    found = judged({"rows": ROWS, "absent": pd.DataFrame()}.get, **changes)
    assert {network: of_it for network, (of_it, _) in found.items()} == expected


def test_what_speaks_against_a_passed_test_makes_it_undecided():
    spoil = pd.DataFrame({"backbone": ["vgg16"], "bad": [True]})
    tables = {"rows": ROWS, "spoil": spoil, "none": pd.DataFrame()}
    found = judged(tables.get, unless=(("spoil", "bad", "why"),))
    assert found == {"vgg16": (OPEN, "why"), "vgg19": (FAILS, "")}
    assert judged(tables.get, unless=(("spoil", "~bad", "why"),)) == judged()
    assert judged(tables.get, unless=(("none", "bad", "why"),)) == judged()
    assert judged(tables.get, unless=(("spoil", "bad", "why"),), spoils=FAILS) == judged()


def test_seeds_that_disagree_decide_nothing():
    rows = ROWS.assign(seed=[1, 1, 2, 2], backbone="vgg16", low=[0.5, 0.4, 0.2, 0.2], high=0.7)
    tables = {"rows": rows}.get
    assert judged(tables, query="seed == 1") == {"vgg16": (HOLDS, "")}
    assert judged(tables, query="index >= 0")["vgg16"] == (OPEN, "seeds disagree: 1 holds, 2 undecided")


def test_five_subjects_are_no_verdict():
    rows = ROWS.assign(subjects=[5, 6, 6, 6])
    assert judged({"rows": rows}.get) == {
        "vgg16": (UNTESTABLE, "fewer than 6 subjects (5)"), "vgg19": (FAILS, "")}


def test_words_for_what_was_planted_and_for_leaking_accuracy():
    claim = Claim("it is above", "nobody", CHECK, "rows", "name == 'a'", "chance", planted=True)
    for simulated, words in (({"nights"}, [RECOVERED, LOST]), ({"patients"}, [HOLDS, FAILS])):
        assert judge([claim], {"rows": ROWS}.get, simulated)["verdict"].tolist() == words
    absent = judge([replace(claim, planted=False)], {"rows": ROWS}.get, simulated={"nights"})
    assert absent["verdict"].tolist() == [UNTESTABLE] * 2 and set(absent["reason"]) == {
        "the simulated nights do not contain it"}
    accuracy = replace(claim, planted=None, holds=LEAKY)
    assert judge([accuracy], {"rows": ROWS}.get, {"patients"})["verdict"].tolist() == [LEAKY, UNREACHED]


@pytest.mark.parametrize("numbers,text", [
    ((0.93, 0.88, 0.97), "0.93 (0.88 to 0.97)"), ((0.5, None, None), "0.50 (no interval)"),
    ((float("nan"),) * 3, "not measured"), ((None,) * 3, "not measured")])
def test_interval_in_words(numbers, text):
    assert interval_text(dict(zip(("value", "low", "high"), numbers))) == text


def test_shallow_layers_are_held_against_untrained_networks():
    claim = next(one for one in CLAIMS if one.text.startswith("Shallower layers are more localised"))

    def found(**lows):
        names = {"own": "spread with depth", "beyond": "spread with depth, beyond untrained"}
        tests = pd.DataFrame([{"kind": "published", "backbone": "vgg16", "seed": 1, "test": names[name], "border": 0.0,
                               "value": low + 0.3, "low": low, "high": low + 0.6, "subjects": 12}
                              for name, low in lows.items()])
        return judge([claim], {"depth_tests": tests}.get)["verdict"].item()

    assert [found(own=0.4), found(own=0.4, beyond=0.3), found(own=0.4, beyond=-0.1), found(own=-0.1, beyond=0.3)] == [
        UNTESTABLE, HOLDS, OPEN, OPEN]


def test_the_claims_of_the_study_are_whole():
    assert len({(one.text, one.source) for one in CLAIMS}) == len(CLAIMS)
    for one in CLAIMS:
        assert one.kind in ("published", "control", "check") and one.text and one.table and one.query, one
