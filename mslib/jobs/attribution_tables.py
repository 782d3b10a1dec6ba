"""Tables and sentences of notebook 04: every number that it prints is taken from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mslib.explain import METHODS
from mslib.measure import MIN_SUBJECTS, correlation_by_chance
from mslib.nets.spread import evenly
from mslib.study import StudyConfig

from . import planted, planted_results
from .attribution_advice import GAP_ABOVE, learnt_shortcut, sound_methods
from .attribution_checks import randomised_slices
from .attribution_scores import importance_of, importance_table, informativeness, mean_table, score_maps
from .attributions import method_parameters
from .explained import explained_slices, explained_subjects, stack_of
from .maps import images_of, net, target_of
from .verdicts import FAILS_ABOVE, sweep_repairs
from .words import interval_sentence, study_kind

#: Columns of the judgement with what is better (1: more), in the order of the figure.
BETTER = {"msfi": 1, "portion": 1, "iou": 1, "tau": 1, "delta_zero": 1, "delta_mean": 1, "delta_blurred": 1,
          "delta_noise": 1, "delta_inpainted": 1, "rho": 1, "random": -1, "repeat": 1}
LABELS = {"msfi": "MSFI", "portion": "portion", "iou": "IoU", "tau": "MI correlation", "rho": "informative (rho)",
          "random": "randomised", "repeat": "repeat", "delta_zero": "ΔAUPC zero", "delta_mean": "ΔAUPC mean",
          "delta_blurred": "ΔAUPC blurred", "delta_noise": "ΔAUPC noise", "delta_inpainted": "ΔAUPC in-painted"}
SCORES = ("msfi", "portion", "iou", "tau", "gap")


def planted_sentence(config: StudyConfig) -> str:
    """Whether planted nets belong to this study, and what is scaled down."""
    if not planted.has_planted(config):
        return "No planted nets here: nothing is trained in this study, or it has no controls. See study simulated."
    own = config.attribution
    return (f"Settings are scaled to the size of the pictures: {own.superpixels} superpixels per sequence (published "
            f"50), {own.samples} samples for LIME and Kernel SHAP (500 and 300), {own.permutations} permutations (25), "
            f"{own.steps} steps of Integrated Gradients (50).")


def settings_text(method: str, config: StudyConfig) -> str:
    """Parameters of a method in this study that are not its defaults, and its defaults that matter."""
    given = method_parameters(method, config, None, None)
    told = {name: value for name, value in {**METHODS[method].parameters, **given}.items()
            if name not in ("groups", "seed", "batch_size", "engine", "progress") and value is not None}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def planted_scores(truths: dict[str, dict], importance: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """`score_maps` of the nets with a deciding sequence, joined; column ``experiment``."""
    tables = []
    for name, one in truths.items():
        if name != planted.SHORTCUT:
            weights = importance_of(importance[importance["net"] == f"planted: {name}"], config)
            tables.append(score_maps(one["maps"], one["features"], one["brain"], weights, one["model"], one["images"],
                                     one["targets"], one["subjects"], config).assign(experiment=name))
    return pd.concat(tables, ignore_index=True)


def judgement(scores: pd.DataFrame, removal: pd.DataFrame, config: StudyConfig, random: pd.DataFrame | None = None,
              repeat: pd.DataFrame | None = None) -> pd.DataFrame:
    """The published table: one row per method, means with intervals of the scores.

    Parameters
    ----------
    scores, removal : DataFrame
        From `score_maps` and `removal_table`: columns ``delta_<fill>`` with limits.
    random, repeat : DataFrame, optional
        From `randomisation_scores` (its last step counts) and `repeat_scores`.
    """
    table = mean_table(scores, SCORES, config)
    for fill, part in removal.groupby("fill", sort=False):
        table = table.join(mean_table(part, ["delta"], config).add_suffix(f"_{fill}").rename(
            columns={f"delta_{end}_{fill}": f"delta_{fill}_{end}" for end in ("low", "high")}))
    table = table.join(informativeness(scores))
    for name in (f"{name}_chance" for name in SCORES if f"{name}_chance" in scores):
        table[name] = scores.groupby("method")[name].mean()
    if "gap" in table:
        table["adds_up"] = (table["gap"] <= GAP_ABOVE).where(table["gap"].notna())
    table["blank"] = scores.groupby("method")["blank"].sum()
    table["slices"] = scores.groupby("method").size()
    if random is not None:
        last = random[random["step"] == random["step"].max()]
        alike = last[["method", "subject"]].assign(random=last["likeness"])
        table = table.join(mean_table(alike, ["random"], config))
        table["passes"] = (table["random"] <= FAILS_ABOVE).where(table["random"].notna())
    if repeat is not None:
        table["repeat"] = repeat.groupby("method")["likeness"].mean()
    return table.reindex(list(METHODS))


def by_step(random: pd.DataFrame) -> pd.DataFrame:
    """Mean likeness by method and step of the randomisation."""
    return random.groupby(["method", "step", "random"], sort=False, as_index=False)["likeness"].mean()


def better(table: pd.DataFrame) -> dict[str, int]:
    """Columns of the figure, those that the table has."""
    return {name: sign for name, sign in BETTER.items() if name in table and table[name].notna().any()}


def chance_row(scores: pd.DataFrame) -> dict[str, float]:
    """What a map without knowledge reaches, by column."""
    rows = scores[scores["method"] == scores["method"].iloc[0]]
    known = {name: float(rows[f"{name}_chance"].mean()) for name in ("msfi", "portion")}
    zero = dict.fromkeys(["rho", *(name for name in BETTER if name.startswith("delta"))], 0.0)
    modalities = sum(name.startswith("share_") for name in scores)
    return known | zero | {"iou": float(scores["iou_chance"].mean()),
                           "tau": float(correlation_by_chance(modalities).mean())}


def one_net_sentence(one: dict, random: pd.DataFrame, name: str) -> str:
    """Which columns of the figure are of one planted net alone, and of how many slices."""
    return (f"ΔAUPC, randomised and repeat: the net in which {name} decides, n = {len(one['images'])} slices "
            f"(randomised: {randomised_slices(random)}; of subjects: {random['subject'].nunique()}).")


def score_caption(scores: pd.DataFrame, who: str) -> str:
    """What the table's figure shows, of how many."""
    rows = scores[scores["method"] == scores["method"].iloc[0]]
    right, undefined = rows["right"].mean(), int(rows["msfi_chance"].isna().sum())
    return (f"{who}; n = {len(rows)} slices, {rows['subject'].nunique()} subjects; the net is right about "
            f"{right:.0%} of them. Light: best of a column (bold), dark: worst (italics). "
            + ("Intervals are in the table (CSV)." if rows["subject"].nunique() >= MIN_SUBJECTS else
               f"No intervals: n < {MIN_SUBJECTS} subjects.")
            + f" MSFI and portion leave out {undefined} slices: nothing is to be marked there, or their net needs no "
              "sequence." * bool(undefined)
            + " A dash: not defined for the method, or for no map of it.")


def planted_sweep(truths: dict[str, dict], importance: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """`layer_sweep` of the nets with a deciding sequence, joined."""
    tables = []
    for name, one in truths.items():
        if name != planted.SHORTCUT:
            weights = importance_of(importance[importance["net"] == f"planted: {name}"], config)
            tables.append(planted_results.layer_sweep(one, one["features"], weights, config, f"{name} decides"))
    return pd.concat(tables, ignore_index=True)


def sweep_sentence(sweep: pd.DataFrame) -> str:
    """Whether an earlier layer repairs Grad-CAM: its best layer against its last, over the planted nets."""
    told = []
    for method, name in (("gradcam", "Grad-CAM"), ("guided_gradcam", "Guided Grad-CAM")):
        repaired, numbers = sweep_repairs(sweep, method)
        told.append(f"{name}: {numbers}. An earlier layer {'repairs' if repaired else 'does not clearly repair'} it "
                    "(repairs: its interval lies above chance and above the last layer's in every net).")
    return "\n".join(told)


def study_importance(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Modality importance of a net of the study over slices of all explained patients (``shapley_slices`` of each)."""
    images, brain, targets, subjects = [], [], [], []
    for person in explained_subjects(config, run_dir):
        stack = stack_of(run_dir, person.id)
        chosen = evenly(explained_slices(person, stack), config.attribution.shapley_slices)
        images.append(images_of(stack, chosen, config))
        brain.append(stack["brain"][chosen])
        targets += [target_of(person, config)] * len(chosen)
        subjects += [person.id] * len(chosen)
    return importance_table(net(config, run_dir, backbone), np.concatenate(images), np.array(targets),
                            np.concatenate(brain), subjects, config, backbone)


def importance_caption(nets: pd.DataFrame, config: StudyConfig, run_dir: str | Path) -> str:
    """Whose slices the importance is of, and how many of them the nets name rightly."""
    people = explained_subjects(config, run_dir)
    right = nets[nets["worth"] == "accuracy"].groupby("net", sort=False)["all"].first()
    told = ", ".join(f"{name.upper()} {value:.0%}" for name, value in right.items())
    return (f"Exact Shapley values over the eight subsets of the sequences. Nets of the study: {study_kind(config)}, "
            f"n = {len(people)} patients, up to {config.attribution.shapley_slices} slices each (planted nets, "
            f"where there are any: slices of simulated controls); right about {told} of them. "
            f"{interval_sentence(len(people), config)} Cross-entropy: its negative, more is better.")


def seconds_table(patients: dict[str, dict], truths: dict[str, dict]) -> pd.DataFrame:
    """Seconds per slice by method, as they were when the maps were made (not comparable between machines).

    Parameters
    ----------
    patients : dict of str to dict
        By net, from `mslib.jobs.attributions.all_patient_maps`.
    truths : dict of str to dict
        By experiment, from `mslib.jobs.planted_results.planted_maps`; may be empty.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``patients_<net>``, ``planted``. Jobs that ran beside others took longer.
    """
    table = pd.DataFrame({f"patients_{net}": one["seconds"] for net, one in patients.items()})
    if truths:
        table["planted"] = next(iter(truths.values()))["seconds"]
    return table.rename_axis("method").reset_index()


def share_table(scores: pd.DataFrame, importance: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """Mean share of every sequence in the maps of each method; last, where it has intervals, the net's importance."""
    names = [f"share_{sequence}" for sequence in config.sequences]
    table = scores.groupby("method", sort=False)[names].mean().dropna(how="all")
    weights = np.clip(importance_of(importance, config), 0, None)
    if importance["low"].notna().any() and weights.any():
        table.loc["exact Shapley value of the sequence"] = weights / weights.sum()
    return table.reset_index()


def first_by_importance(nets: pd.DataFrame) -> dict[str, dict[str, int]]:
    """In how many settings (fill and value function) each sequence has a net's largest Shapley value above 0.

    None has where all sequences together gain nothing. Nets without intervals, of a handful of subjects, are left out.
    """
    def first(part):
        best = part.loc[part["value"] == part["value"].max(), "modality"]
        if min(part["value"].max(), (part["all"] - part["nothing"]).iloc[0]) <= 0:
            return "none"
        return best.iloc[0] if len(best) == 1 else "a tie"

    known, columns = nets[nets["low"].notna()], ["value", "modality", "all", "nothing"]
    return {net: own.groupby(["worth", "fill"])[columns].apply(first).value_counts().to_dict()
            for net, own in known.groupby("net", sort=False)}


def recorded(table, patients, nets, agreement, exposed, used, config: StudyConfig) -> dict:
    """Numbers of the notebook for the summary, the report and the gallery; `patients`: by net, from `judgement`."""
    found = {"patients": int(max(one["slices"].max() for one in patients.values())),
             "patient_msfi": {net: one["msfi"].to_dict() for net, one in patients.items()},
             "patient_randomisation_fails": {net: sorted(one.index[one["random"] > FAILS_ABOVE])
                                             for net, one in patients.items()},
             "importance_first": first_by_importance(nets),
             "importance_right": nets[nets["worth"] == "accuracy"].groupby("net")["all"].first().to_dict(),
             "importance": {backbone: dict(zip(config.sequences, importance_of(nets[nets["net"] == backbone], config)))
                            for backbone in config.model.backbones}}
    if table is not None:
        found |= {"planted_msfi": table["msfi"].to_dict(),
                  "planted_best": table["msfi"].idxmax() if table["msfi"].notna().any() else None,
                  "sound": list(sound_methods(table).index),
                  "randomisation_fails": sorted(table.index[table["random"] > FAILS_ABOVE]),
                  "fill_agreement": agreement["tau"].tolist(),
                  "shortcut_learnt": learnt_shortcut(used),
                  "exposes_shortcut": sorted(exposed.index[exposed["exposed"]]),
                  "use": {f"{row.experiment}, {row.tells}": row.value for row in used.itertuples()}}
    return found
