"""Cohorts: BIDS folders checked as a whole, simulated patients with known truth, real patients."""

from . import openms
from .anatomy import template, write_template
from .bids import Cohort, Subject
from .checks import Fault
from .listing import read_listing, write_listing
from .phantom import Participant, draw_participants, render, simulate_subject, write_dataset

__all__ = ["Cohort", "Fault", "Participant", "Subject", "draw_participants", "openms", "read_listing", "render",
           "simulate_subject", "template", "write_dataset", "write_listing", "write_template"]
