"""Cohorts: BIDS folders checked as a whole, simulated patients with known truth, real patients."""

from . import open_cohorts, openms, openms_bids
from .anatomy import template, write_template
from .bids import Cohort, Subject, read_listing, write_listing
from .checks import Fault
from .people import Participant, draw_participants
from .phantom import render, simulate_subject, write_dataset

__all__ = ["Cohort", "Fault", "Participant", "Subject", "draw_participants", "open_cohorts", "openms", "openms_bids",
           "read_listing", "render", "simulate_subject", "template", "write_dataset", "write_listing", "write_template"]
