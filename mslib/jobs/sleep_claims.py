"""The published claims on sleep staging (Ellis et al. 2021), each decided by an interval, beside the planted truth."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mslib.measure import bootstrap_subjects
from mslib.sleep import STAGES
from mslib.study import StudyConfig

from .claims import LEVEL
from .record import interval_text
from .sleep import settings
from .sleep_tables import OVERALL
from .verdicts import FAILS, HOLDS, undecided, untestable, verdict

#: Claim, stage, pairs (more, less) that all have to hold.
ORDERINGS = (
    ("Overall relevance EEG > EOG > EMG", OVERALL, (("EEG", "EOG"), ("EOG", "EMG"))),
    ("Awake: EEG and EOG above EMG", "W", (("EEG", "EMG"), ("EOG", "EMG"))),
    ("NREM1: EEG and EOG above EMG", "N1", (("EEG", "EMG"), ("EOG", "EMG"))),
    ("NREM2: EEG highest", "N2", (("EEG", "EOG"), ("EEG", "EMG"))),
    ("NREM3: EEG highest", "N3", (("EEG", "EOG"), ("EEG", "EMG"))),
    ("REM: EOG highest", "REM", (("EOG", "EEG"), ("EOG", "EMG"))))
#: Column beside the verdicts: what classifiers on one modality alone can tell.
INFORMATION = "in the information of single modalities"
#: Published as "consistent when right, inconsistent when wrong"; what can be tested is the difference.
CONSISTENT = "Relevance is more consistent over folds when right than when wrong"
#: Claim, effect, stages (all where none is named).
EFFECT_CLAIMS = (("Medication goes with the relevance of EEG and EOG in NREM2", "drug", ("EEG", "EOG"), ("N2",)),
                 ("Sex goes with the relevance of EEG", "woman", ("EEG",), STAGES),
                 ("Age goes with the relevance of EOG", "decade", ("EOG",), STAGES))


#: Effects that the simulator of nights plants.
PLANTED = ("drug", "decade")


def together(verdicts: list[str]) -> str:
    """The verdict on a claim of several parts: holds if all do, not if one does not, else the first open reason."""
    if FAILS in verdicts:
        return FAILS
    return next((one for one in verdicts if one != HOLDS), HOLDS)


def _row(claim, evidence, holds, information=""):
    return {"published claim": claim, "net": "sleep", "our evidence": evidence, "holds?": holds,
            INFORMATION: information}


def _difference(part: pd.DataFrame, more: str, less: str, config: StudyConfig):
    """Mean over subjects of the difference of two shares, percentage points, with interval."""
    values = (part[more] - part[less]).dropna()
    return bootstrap_subjects(values.to_numpy(), part.loc[values.index, "subject"], n=config.statistics.bootstrap,
                              confidence=config.statistics.confidence, seed=config.seed)


def information_order(known: pd.DataFrame, stage: str, pairs) -> str:
    """Whether single modalities tell a stage in the claimed order (AUC; all stages: balanced accuracy of the five).

    A difference smaller than its scatter over folds (SD) is not called an order.
    """
    measure, name = ("balanced_accuracy", "balanced accuracy") if stage == OVERALL else ("auc", "AUC")
    worth = known[known["stage"] == stage].set_index("modality")[[measure, f"{measure}_sd"]].set_axis(
        ["mean", "sd"], axis=1)
    modalities = list(dict.fromkeys(one for pair in pairs for one in pair))
    if worth["mean"].reindex(modalities).isna().any():
        return "not measured"
    more, less = (worth.loc[list(side)].reset_index(drop=True) for side in zip(*pairs))
    apart, scatter = more["mean"] - less["mean"], np.hypot(more["sd"], less["sd"])
    order = "no" if (apart < -scatter).any() else "yes" if (apart > scatter).all() else "not separable"
    told = ", ".join(f"{one} {worth['mean'][one]:.2f}" for one in modalities)
    return f"{order} ({name} {told})"


def ordering_claims(subjects: pd.DataFrame, known: pd.DataFrame, config: StudyConfig) -> list[dict]:
    """The published orderings, of right epochs.

    Parameters
    ----------
    subjects : pandas.DataFrame
        Of `mslib.jobs.sleep_tables.subject_shares`.
    known : pandas.DataFrame
        Of `mslib.jobs.sleep_tables.information`.
    """
    rule, rows = settings(config).rule, []
    mine = subjects[(subjects["rule"] == rule) & (subjects["kind"] == "absolute") & subjects["right"]]
    for claim, stage, pairs in ORDERINGS:
        part, told, found = mine[mine["stage"] == stage], [], []
        for more, less in pairs:
            one = _difference(part, more, less, config)
            told.append(f"{more} minus {less} {interval_text(*one, 1)}")
            found.append(verdict(one.low, one.high))
        evidence = (f"share of the relevance in percentage points, right epochs, {part['subject'].nunique()} subjects: "
                    f"{'; '.join(told)}")
        rows.append(_row(claim, evidence, together(found), information_order(known, stage, pairs)))
    return rows


def consistency_claim(found: dict) -> dict:
    """Shares agree between folds when the net is right, and not when it is wrong."""
    told = (f"SD between folds {found['right']:.1f} percentage points where right, {found['wrong']:.1f} where wrong, "
            f"as many epochs of the same subjects and stages ({found['epochs']} of each kind); difference "
            f"{interval_text(found['difference'], found['low'], found['high'], 1)}")
    if np.isnan(found["right"]):
        return _row(CONSISTENT, "",
                    untestable("too few folds with right and wrong epochs"))
    return _row(CONSISTENT, told,
                verdict(found["low"], found["high"]))


def effect_claims(fitted: pd.DataFrame, simulated: bool) -> list[dict]:
    """Published relations of relevance to medication, sex and age.

    Parameters
    ----------
    fitted : pandas.DataFrame
        Of `mslib.jobs.sleep_effects.fit_effects`.
    simulated : bool
        Effects were planted: what is found was put in.
    """
    rows, recovery = [], "; planted in these simulated nights: recovered or not, no confirmation" if simulated else ""
    for claim, term, modalities, stages in EFFECT_CLAIMS:
        part = fitted[(fitted["term"] == term) & fitted["modality"].isin(modalities) & fitted["stage"].isin(stages)]
        part = part.dropna(subset=["p_fdr"])
        if part.empty:
            rows.append(_row(claim, "", untestable("not known of these nights, the same for all, or too few subjects")))
            continue
        first = part.sort_values("p_fdr").groupby("modality", sort=False).head(1)
        told = "; ".join(f"{row.modality} in {row.stage} {interval_text(row.estimate, row.low, row.high, 2)} points, "
                         f"corrected p {row.p_fdr:.2g}, a single test has a power of 80 % from {row.detectable:.1f} on"
                         for row in first.itertuples())
        if (first["p_fdr"] <= LEVEL).all():
            holds = HOLDS
        else:
            missing = first[first["p_fdr"] > LEVEL]
            holds = undecided("corrected p above 5 % for " + ", ".join(missing["modality"]))
        which = "" if len(stages) == 1 else " (strongest stage, corrected for all)"
        planted = recovery if term in PLANTED else ""
        rows.append(_row(claim, f"mixed model{which}: {told}{planted}", holds, ""))
    return rows


def sleep_claims(subjects: pd.DataFrame, known: pd.DataFrame, consistent: dict, fitted: pd.DataFrame,
                 config: StudyConfig) -> pd.DataFrame:
    """All claims on sleep staging as a table."""
    rows = [*ordering_claims(subjects, known, config), consistency_claim(consistent),
            *effect_claims(fitted, config.sleep.source == "simulated")]
    return pd.DataFrame(rows)
