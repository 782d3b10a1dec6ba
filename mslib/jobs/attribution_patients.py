"""The judgement of a study's nets on patients, where nothing was planted: lesions in the place of marks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mslib.explain import METHODS
from mslib.measure import MIN_SUBJECTS
from mslib.study import StudyConfig, write_json
from mslib.study.provenance import file_sha256

from .attribution_advice import MUTE
from .attribution_checks import ALL_LAYERS, randomisation_scores, randomised_slices, repeat_scores
from .attribution_scores import importance_of, removal_table, score_maps
from .attribution_tables import BETTER, LABELS, judgement
from .attributions import all_patient_maps, kept_maps
from .second_net import has_second_net, second_net

#: Measures by which methods of two nets are not put into order: of a sequence that may be another one; of few slices.
NOT_ORDERED = ("portion", "rho")


def lesion_features(patients: dict) -> np.ndarray:
    """Lesions as features of every sequence, (N, H, W, M)."""
    return np.repeat((patients["lesion"] & patients["brain"])[..., None], patients["images"].shape[-1], -1)


def repeated_patients(patients: dict, config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame | None:
    """`repeat_scores` of the study's net and its second one on the patients' slices; None where there is no second.

    Parameters
    ----------
    patients : dict
        From `all_patient_maps`.
    """
    if not has_second_net(config):
        return None
    model, weights = second_net(config, run_dir, backbone)
    maps, _ = kept_maps(model, *(patients[key] for key in ("images", "targets", "brain")), config,
                        Path(patients["folder"]) / "repeat", patients["facts"] | {"weights": file_sha256(weights)},
                        METHODS, f"{backbone} trained again: attributions")
    return repeat_scores(patients["maps"], maps, patients["brain"])


def checked(patients: dict, config: StudyConfig, run_dir: str | Path, backbone: str) -> dict[str, pd.DataFrame | None]:
    """What needs more maps of the patients: ``random`` (all layers) and ``repeat``, as `judgement` takes them."""
    return {"random": randomisation_scores(patients, config, [ALL_LAYERS]),
            "repeat": repeated_patients(patients, config, run_dir, backbone)}


def check_patients(config: StudyConfig, run_dir: str | Path, backbone: str) -> None:
    """The job of one net's checks on patients, whose maps notebook 04 takes up.

    Its list of checks in ``attributions/<backbone>/checks.json`` says that it is done.
    """
    patients = all_patient_maps(config, run_dir, backbone)
    made = checked(patients, config, run_dir, backbone)
    write_json(Path(patients["folder"]) / "checks.json", [name for name, found in made.items() if found is not None])


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
    more = checked(patients, config, run_dir, backbone)
    return {"scores": scores, "removal": removal, "random": more["random"],
            "table": judgement(scores, removal, config, **more)}


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
        ``net, other net, measure, tau, chance, methods``. Delta-AUPC below `MUTE` in size count as 0, all alike.
        ``chance``: 95 % of orders drawn at random have a tau within it on either side (normal approximation, without
        ties). Left out: a measure that fewer than three methods have, or that does not differ between them, or of
        fewer than `MIN_SUBJECTS` slices.
    """
    rows = []
    for (net, one), (other, two) in combinations(tables.items(), 2):
        few = min(one["slices"].min(), two["slices"].min()) < MIN_SUBJECTS
        for name in (name for name in BETTER if name not in NOT_ORDERED and name in one and name in two and not few):
            both = pd.concat([one[name], two[name]], axis=1).dropna().to_numpy(float)
            if name.startswith("delta"):
                both = np.where(np.abs(both) < MUTE, 0, both)
            n = len(both)
            if n > 2 and np.ptp(both, axis=0).all():
                rows.append({"net": net, "other net": other, "measure": LABELS[name],
                             "tau": kendalltau(*both.T).statistic,
                             "chance": 1.96 * np.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))), "methods": n})
    return pd.DataFrame(rows)
