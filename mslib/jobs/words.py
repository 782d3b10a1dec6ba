"""Sentences that depend on the study: who is studied, where the weights come from, what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

from mslib.measure import MIN_SUBJECTS
from mslib.study import StudyConfig

#: The class of people without the disease, by its name; a study without such a class has patients only.
CONTROL = "control"
#: Share of the relevance over share of the intensity: 1 where relevance follows brightness and nothing else.
LIFT = "over brightness"
NO_PLANTED = "Nothing was planted in this study: see this section in the results of study simulated."


def patient_groups(config: StudyConfig) -> list[str]:
    """Classes of patients: all of the study but the one named `CONTROL`."""
    return [group for group in config.groups if group != CONTROL]


def study_kind(config: StudyConfig) -> str:
    """Who is seen, and what may be concluded, for captions."""
    return {"simulated": "Simulated patients",
            "open_ms": "Real patients; nets trained on simulated ones (transfer from simulation, no accuracy claim)",
            "bids": "Patients of the study's own cohort"}[config.cohort.source]


def subjects_kind(config: StudyConfig) -> str:
    """Whose scans a figure shows."""
    return {"simulated": "Simulated subjects", "open_ms": "Scan sessions of real patients",
            "bids": "Subjects of the study's own cohort"}[config.cohort.source]


def attribution(config: StudyConfig) -> str:
    """Whose data a study of real patients shows, and what was done to them (their licence asks for both)."""
    if config.cohort.source != "open_ms":
        return ""
    return ("Data: open_ms_data (Lesjak et al. 2016 and 2017), CC-BY; corrected for bias fields, aligned, masked to "
            "the brain, scaled and resampled by this project.")


def nets_folder(config: StudyConfig, run_dir: str | Path) -> Path:
    """Run folder whose nets are explained: the study's own, or (real patients) the one they are taken from."""
    own = Path(run_dir)
    return own if config.cohort.source != "open_ms" else own.parent / config.explain.transfer_from


def net_records(config: StudyConfig, run_dir: str | Path, backbone: str) -> dict[str, dict]:
    """``net.json`` of every protocol that a net was trained under, by protocol; empty where none is there."""
    found = sorted((nets_folder(config, run_dir) / "nets" / backbone).glob("*/net.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def weights_sentence(config: StudyConfig, run_dir: str | Path) -> str:
    """Where the explained nets come from, and what follows for their maps."""
    origins = {backbone: net_records(config, run_dir, backbone).get("subject", {}).get("weights", "not recorded")
               for backbone in config.model.backbones}
    same = len(set(origins.values())) == 1
    told = next(iter(origins.values())) if same else "; ".join(f"{b.upper()} {o}" for b, o in origins.items())
    text = f"Origin of the nets' weights: {told}."
    if "simulated" in told:
        text += (" Those subjects carry the same class labels and, as extra targets, the area of lesions and of black "
                 "holes in every slice. That is more than ImageNet gives: accuracy and maps of these nets are not what "
                 "a cohort of this size alone would give.")
    return text


def lesion_sentence(measured: bool) -> str:
    """Whether heat could be held against lesions."""
    if measured:
        return "Lesion outlines are known: heat is measured against them, on every slice with lesions."
    return ("No explained patient has a lesion mask (derivatives/truth): maps, spread, percentile, lobes and "
            "randomisation are given over all slices, measures against lesions are left out.")


def interval_sentence(subjects: int, config: StudyConfig, whose: str | None = None) -> str:
    """What the intervals of a figure are, or why there are none.

    Parameters
    ----------
    subjects : int
    config : StudyConfig
    whose : str, optional
        Who the subjects are, told with their number. Default: patients, without it.
    """
    if subjects < MIN_SUBJECTS:
        return f"No interval: n < {MIN_SUBJECTS} {whose or 'subjects'}."
    drawn = f"{subjects} {whose}" if whose else "patients"
    return f"{config.statistics.confidence * 100:g} % interval (bootstrap over {drawn})."
