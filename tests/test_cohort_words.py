"""What notebook 00 says of the simulated groups' ranges."""

import pandas as pd

from mslib.jobs.cohort_words import coverage_sentence


def test_a_range_is_covered_only_at_both_ends():
    table = pd.DataFrame({"group": ["RRMS"] * 3 + ["SPMS"] * 3, "lesion_load_ml": [0.5, 9, 60, 41, 43, 60]})
    reference = {"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6), "SPMS": (45.3, 40.7, 50.0)}}
    first, second = coverage_sentence(table, reference, {"lesion_load_ml": "load [mL]"}).splitlines()
    assert first == "RRMS, load [mL]: here 0.5 to 60, real patients 0.66 to 52.6 (covered)."
    assert second.endswith("(NOT covered).")


def test_no_reference_no_sentence():
    assert coverage_sentence(pd.DataFrame({"group": ["a"]}), {}, {}) == ""
