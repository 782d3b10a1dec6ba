"""Jobs of notebook 06: relevance of EEG, EOG and EMG, per epoch of people whom the net has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mslib.explain import lrp, relevance_shares
from mslib.sleep import MODALITIES, STAGES, EpochSet
from mslib.sleep.folds import CrossValidation
from mslib.study import StudyConfig, atomic_path, progress, stamped_folder
from mslib.study.provenance import code_digest, file_sha256

from .sleep import draw_by_stage, net_of, settings, sleep_folder

#: Published variants of the rule (Ellis et al. 2021) that the study's own is held against: composite, parameters.
VARIANTS = {"epsilon_0.01": ("epsilon", {"epsilon": 0.01}), "epsilon_100": ("epsilon", {"epsilon": 100.0}),
            "alpha1_beta0": ("alpha1_beta0", {})}
#: Shares of all relevance by its size, and of positive relevance alone.
KINDS = ("absolute", "positive")
BATCH = 64


def relevance_of(model, epochs: EpochSet, rows, targets, rule: str, **parameters) -> np.ndarray:
    """Relevance (N, T, M) of epochs for a stage each."""
    return lrp(model, epochs.batch(rows), np.asarray(targets), rule, batch_size=BATCH, **parameters)


def _shares(model, epochs, chosen, name, rule, parameters) -> pd.DataFrame:
    """Shares of every modality of many epochs, streamed in batches."""
    rows, targets = chosen["epoch"].to_numpy(), chosen["predicted"].to_numpy()
    parts = {kind: [] for kind in KINDS}
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        found = relevance_shares(relevance_of(model, epochs, rows[part], targets[part], rule, **parameters), rule)
        for kind in KINDS:
            parts[kind].append(found[kind])
    table = chosen[["recording", "subject", "epoch", "onset", "stage", "predicted", "weight"]].assign(rule=name)
    for kind in KINDS:
        for column, modality in enumerate(MODALITIES):
            table[f"{kind}_{modality}"] = np.concatenate(parts[kind])[:, column]
    return table


def fold_relevance(config: StudyConfig, run_dir: str | Path, epochs: EpochSet, place: Path) -> pd.DataFrame:
    """Shares of every modality in the relevance for the stage that the net of a fold names, of its test epochs.

    Parameters
    ----------
    place : Path
        Folder of the fold; its name is also that of the folder of the results.

    Returns
    -------
    pandas.DataFrame
        One row per epoch and rule: ``recording, subject, epoch, onset, stage, predicted, weight`` (see
        `draw_by_stage`), ``rule``, ``absolute_EEG ... positive_EMG`` in percent. The study's rule has
        ``explained_per_stage`` epochs of every recording and stage, its variants ``compared_per_stage`` of these.
    """
    own, name = settings(config), place.name
    facts = {"weights": file_sha256(place / "weights.npz"), "rule": own.rule, "seed": config.seed,
             "explained": own.explained_per_stage, "compared": own.compared_per_stage,
             "variants": {key: list(value) for key, value in VARIANTS.items()},
             "code": code_digest("mslib.explain.lrp")}
    path = stamped_folder(sleep_folder(run_dir) / "relevance" / name, facts) / "shares.csv"
    if not path.exists():
        predictions = pd.read_csv(place / "predictions.tsv", sep="\t", dtype={"subject": str, "recording": str})
        drawn = draw_by_stage(predictions, own.explained_per_stage, config.seed)
        compared = draw_by_stage(drawn.rename(columns={"weight": "drawn"}), own.compared_per_stage, config.seed)
        compared["weight"] *= compared["drawn"]
        model = net_of(place)
        tables = [_shares(model, epochs, drawn, own.rule, own.rule, {})]
        for key, (rule, parameters) in VARIANTS.items():
            if key != own.rule:
                tables.append(_shares(model, epochs, compared, key, rule, parameters))
        with atomic_path(path) as temporary:
            pd.concat(tables).to_csv(temporary, index=False, lineterminator="\n", float_format="%.5g")
    return pd.read_csv(path, dtype={"subject": str, "recording": str})


def all_relevance(config: StudyConfig, run_dir: str | Path, epochs: EpochSet, found: CrossValidation) -> pd.DataFrame:
    """`fold_relevance` of every fold, joined; columns ``fold`` and ``right`` (the net names the stage scored)."""
    tables = [fold_relevance(config, run_dir, epochs, place).assign(fold=number)
              for number, place in enumerate(progress(found.folders, desc="sleep: relevance", unit="fold"))]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(right=table["stage"] == table["predicted"])


def typical_recording(found: CrossValidation) -> str:
    """The night of the first fold whose share of right epochs is the (lower) median: neither the best nor the worst."""
    first = found.predictions[found.predictions["fold"] == 0]
    right = (first["stage"] == first["predicted"]).groupby(first["recording"]).mean().sort_values(kind="stable")
    return str(right.index[(len(right) - 1) // 2])


def night_shares(config: StudyConfig, epochs: EpochSet, found: CrossValidation, recording: str) -> pd.DataFrame:
    """Shares of all epochs of one night, in the order of time."""
    own = settings(config)
    night = found.predictions[found.predictions["recording"] == recording].sort_values("onset")
    model = net_of(found.folders[int(night["fold"].iloc[0])])
    return _shares(model, epochs, night.assign(weight=1.0), own.rule, own.rule, {})


def example_epochs(config: StudyConfig, epochs: EpochSet, found: CrossValidation, recording: str) -> dict:
    """One epoch of every stage, rightly named with a typical (median) certainty, with its relevance.

    Epochs are those of one night; of a stage that the net never names rightly there, those of its fold.

    Returns
    -------
    dict of stage to dict
        ``signal`` and ``relevance``, (T, M); ``recording``, ``hour``, ``probability``. A stage that the net never
        names rightly is absent.
    """
    own = settings(config)
    fold = int(found.predictions.loc[found.predictions["recording"] == recording, "fold"].iloc[0])
    part = found.predictions[(found.predictions["fold"] == fold)
                             & (found.predictions["stage"] == found.predictions["predicted"])]
    logits = part[[f"logit_{stage}" for stage in STAGES]].to_numpy()
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    part = part.assign(probability=(exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1))
    model, chosen = net_of(found.folders[fold]), {}
    for number, stage in enumerate(STAGES):
        of_stage = part[part["stage"] == number]
        here = of_stage[of_stage["recording"] == recording]
        ranked = (here if len(here) else of_stage).sort_values("probability", kind="stable")
        if not len(ranked):
            continue
        one = ranked.iloc[(len(ranked) - 1) // 2]
        rows = [int(one["epoch"])]
        chosen[stage] = {"signal": epochs.batch(rows)[0],
                         "relevance": relevance_of(model, epochs, rows, [number], own.rule)[0],
                         "recording": one["recording"], "hour": one["onset"] / 3600,
                         "probability": one["probability"]}
    return chosen
