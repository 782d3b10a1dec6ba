"""Cohorts: BIDS folders checked as a whole, simulated patients with known truth, real patients."""

from . import openms
from .bids import Cohort, Subject
from .checks import Fault

__all__ = ["Cohort", "Fault", "Subject", "openms"]
