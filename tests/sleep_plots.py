"""Figures of sleep staging as the tests draw them."""

import numpy as np
import pandas as pd

from mslib import show

STAGES, MODALITIES = ["W", "N1", "N2", "N3", "REM"], ["EEG", "EOG", "EMG"]
RNG = np.random.default_rng(11)
SIGNAL = RNG.normal(0, 1, (300, 3))
RELEVANCE = np.zeros((300, 3))
RELEVANCE[100:120, 0], RELEVANCE[200:210, 1] = 1.0, -1.0


def night(**changes):
    given = {"hours": np.arange(20) / 120, "scored": np.arange(20) // 4, "predicted": np.full(20, 2),
             "shares": np.tile([50.0, 30.0, 20.0], (20, 1))} | changes
    return show.plot_night(**given, stages=STAGES, modalities=MODALITIES, title="Simulated night", caption="n = 1")


def relevant_epochs(**changes):
    one = {"signal": SIGNAL, "relevance": RELEVANCE, "title": "SIM01N1, 0.50 h"} | changes
    return show.plot_relevant_epochs({"N2": one}, ["N2", "REM"], MODALITIES, rate=10.0)


def table(**changes):
    rows = [{"stage": stage, "modality": modality, "value": 30.0, "low": 20.0, "high": 40.0}
            for stage in STAGES[:-1] for modality in MODALITIES]
    return pd.DataFrame(rows).assign(**changes)


def stage_shares():
    panels = {"correct": table(), "AUC": table(value=0.8, low=np.nan, high=np.nan)}
    return show.plot_stage_shares(panels, STAGES, MODALITIES,
                                  units={"AUC": "AUC"}, chance={"AUC": 0.5})


def effects():
    fitted = table(term="drug", p_fdr=[0.01, 0.5, np.nan] * 4, detectable=3.0)
    fitted.loc[5, ["value", "low", "high"]] = np.nan
    return show.plot_effects(fitted, {"drug": "drug less placebo"}, STAGES, MODALITIES)


SLEEP_PLOTS = [night, relevant_epochs, stage_shares, effects]
