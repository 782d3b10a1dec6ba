"""Cohorts: BIDS folders checked as a whole, simulated patients with known truth, real patients."""

from . import openms
from .bids import Cohort, Subject
from .checks import Fault
from .phantom import (
    Participant,
    draw_participants,
    render,
    simulate_cohort,
    simulate_subject,
    template,
    write_dataset,
)

__all__ = ["Cohort", "Fault", "Participant", "Subject", "draw_participants", "openms", "render", "simulate_cohort",
           "simulate_subject", "template", "write_dataset"]
