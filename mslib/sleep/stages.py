"""Sleep stages: their names, what hypnograms call them, and how real nights pass from one to the next."""

from __future__ import annotations

import numpy as np

STAGES = ("W", "N1", "N2", "N3", "REM")
EPOCH_SECONDS = 30
#: Stage of every label that Sleep-EDF uses (Kemp et al. 2000), None for epochs without one. Its scorers followed
#: older rules with a stage 4, which today's rules count as N3 (Berry et al. 2012).
LABELS = {"Sleep stage W": 0, "Sleep stage 1": 1, "Sleep stage 2": 2, "Sleep stage 3": 3, "Sleep stage 4": 3,
          "Sleep stage R": 4, "Sleep stage ?": None, "Movement time": None}
#: How often a stage (row) was followed by a stage (column) from one 30-s epoch to the next: 25 healthy nights, five
#: scorers each (Dreem Open Dataset, Healthy; Guillot et al. 2020), epochs without a score left out.
TRANSITIONS = np.array([[15195, 2542, 251, 4, 89],
                        [852, 5134, 2990, 4, 340],
                        [1361, 1299, 54035, 1157, 561],
                        [227, 42, 891, 16655, 6],
                        [438, 299, 256, 1, 21507]])


def simulate_hypnogram(n_epochs: int, rng: np.random.Generator) -> np.ndarray:
    """One night as a first-order chain with the transitions of real nights: int8 (n_epochs,), indices into `STAGES`.

    It starts awake. What the chain lacks: sleep cycles of about 90 minutes, N3 early and REM late in the night, and
    bouts whose chance to end changes with their age. Shares of the stages and the mean length of their bouts are kept.
    """
    limits = np.cumsum(TRANSITIONS / TRANSITIONS.sum(axis=1, keepdims=True), axis=1)
    limits[:, -1] = 1.0
    stages = np.zeros(n_epochs, np.int8)
    for epoch, draw in enumerate(rng.random(n_epochs - 1), start=1):
        stages[epoch] = np.searchsorted(limits[stages[epoch - 1]], draw, side="right")
    return stages
