"""The judgement of a study's nets on patients, where nothing was planted: lesions in the place of marks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mslib.study import StudyConfig

from .attribution_checks import ALL_LAYERS, randomisation_scores, randomised_slices, repeated_patients
from .attribution_scores import importance_of, removal_table, score_maps
from .attribution_tables import BETTER, LABELS, judgement


def lesion_features(patients: dict) -> np.ndarray:
    """Lesions as features of every sequence, (N, H, W, M)."""
    return np.repeat((patients["lesion"] & patients["brain"])[..., None], patients["images"].shape[-1], -1)


def judge_patients(patients: dict, importance: pd.DataFrame, config: StudyConfig, run_dir: str | Path,
                   backbone: str) -> dict[str, pd.DataFrame]:
    """All measures of one net's maps of patients.

    Parameters
    ----------
    patients : dict
        From `mslib.jobs.attributions.all_patient_maps`.
    importance : DataFrame
        From `mslib.jobs.attribution_tables.study_importance`, of one or several nets.
    config : StudyConfig
    run_dir : path
    backbone : str

    Returns
    -------
    dict of str to DataFrame
        ``scores`` (of `score_maps`), ``removal`` (of `removal_table`), ``random`` (of `randomisation_scores`, all
        layers), ``table`` (of `judgement`).
    """
    asked = [patients[key] for key in ("model", "images", "targets", "subjects")]
    weights = importance_of(importance[importance["net"] == backbone], config)
    scores = score_maps(patients["maps"], lesion_features(patients), patients["brain"], weights, *asked, config)
    removal = removal_table(patients["maps"], patients["brain"], *asked, config, backbone)
    random = randomisation_scores(patients, config, [ALL_LAYERS])
    table = judgement(scores, removal, config, random=random,
                      repeat=repeated_patients(patients, config, run_dir, backbone))
    return {"scores": scores, "removal": removal, "random": random, "table": table}


def of_nets(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of several nets below each other, the first column tells whose."""
    return pd.concat([table.assign(net=net)[["net", *table]] for net, table in tables.items()], ignore_index=True)


def checked_sentence(random: pd.DataFrame) -> str:
    """Of how many slices the randomisation of patients' maps is."""
    return f"Randomised (all layers): {randomised_slices(random)} of them."


def patient_sentence(patients: dict, config: StudyConfig, backbone: str) -> str:
    """Whose slice is shown, and whether the net is right about it."""
    said = int(np.asarray(patients["model"](patients["images"][:1], training=False)).argmax())
    target = int(patients["targets"][0])
    return (f"Slice {patients['slices'][0] + 1} of patient sub-{patients['subjects'][0]}, {config.groups[target]}; "
            f"{backbone.upper()} takes it for {config.groups[said]} ({'right' if said == target else 'wrong'}).")


def nets_agree(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Do two nets put the methods into the same order? Kendall's tau of each measure over the methods.

    Parameters
    ----------
    tables : dict of str to DataFrame
        By net, from `judgement`.

    Returns
    -------
    DataFrame
        ``net, other net, measure, tau, methods``; only measures that both nets have for three methods at least.
    """
    rows = []
    for (net, one), (other, two) in combinations(tables.items(), 2):
        for name in (name for name in BETTER if name in one and name in two):
            both = pd.concat([one[name], two[name]], axis=1).dropna().astype(float)
            if len(both) > 2:
                rows.append({"net": net, "other net": other, "measure": LABELS[name],
                             "tau": kendalltau(*both.to_numpy().T).statistic, "methods": len(both)})
    return pd.DataFrame(rows, columns=["net", "other net", "measure", "tau", "methods"])
