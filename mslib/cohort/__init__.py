"""Cohorts: BIDS folders checked as a whole, simulated patients with known truth, real patients."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["open_cohorts", "openms", "openms_bids", "survey"], {
    "anatomy": ["template", "write_template"],
    "bids": ["Cohort", "Subject", "read_listing", "write_listing"],
    "checks": ["Fault"],
    "people": ["Participant", "draw_participants"],
    "phantom": ["render", "simulate_subject", "write_dataset"]})
