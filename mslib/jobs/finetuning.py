"""Jobs of notebook 02: slices of the cohorts, all protocols of one net, their evaluation, the baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mslib.measure import ClassificationReport, classification_report
from mslib.nets import (
    PROTOCOLS,
    SliceSet,
    baseline_logits,
    further_truth,
    gather,
    load_net,
    net_facts,
    predict_cohort,
    split_subjects,
    train_protocol,
)
from mslib.nets.training import Recipe
from mslib.study import StudyConfig, progress, stamped_folder, write_table
from mslib.study.provenance import file_sha256

from .cohort import usable_subjects
from .explained import stack_of
from .predictions import chance_level, predictions_path, read_predictions, tested
from .truth import truth_table

#: What readers see for each protocol.
TITLES = {"slice": "(a) slice-wise split", "subject": "(b) subject-wise split",
          "independent": "(c) independent cohort",
          "independent_further": "(c), yardstick fitted to the further subjects",
          "slice_permuted": "slice-wise, permuted labels", "subject_permuted": "subject-wise, permuted labels"}


def load_slices(config: StudyConfig, run_dir: str | Path, cohort: str) -> SliceSet:
    """Slices of one cohort (``study`` or ``independent``); excluded subjects are left out.

    float16, about 12 MB a subject at the default size.
    """
    people = [person for person in usable_subjects(config, run_dir) if person.cohort == cohort]
    stacks = {person.id: stack_of(run_dir, person.id)["images"]
              for person in progress(people, desc=f"load {cohort} cohort", unit="subject")}
    return gather(stacks, pd.Series({person.id: person.group for person in people}), config.groups)


def train_all(config: StudyConfig, run_dir: str | Path, backbone: str, slices: SliceSet) -> dict[str, pd.DataFrame]:
    """Predictions of one net under every protocol; finished protocols are taken up."""
    return {protocol: train_protocol(protocol, backbone, slices, config, run_dir) for protocol in PROTOCOLS}


def predict_independent(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Predictions of the subject-wise net for the independent cohort (no cohort, no rows)."""
    if not any(person.cohort == "independent" for person in usable_subjects(config, run_dir)):
        return pd.DataFrame()
    slices = load_slices(config, run_dir, "independent")
    weights = Path(run_dir) / "nets" / backbone / "subject" / "weights.weights.h5"
    facts = {"slices": slices.digest(), "net": file_sha256(weights), "input": config.model.input}
    path = predictions_path(run_dir, backbone, "independent")
    stamped_folder(path.parent, facts)
    if not path.exists():
        write_table(path, predict_cohort(load_net(run_dir, backbone, config), slices, config))
    return read_predictions(run_dir, backbone, "independent")


def evaluate(predictions: pd.DataFrame, config: StudyConfig) -> ClassificationReport:
    """Report of predictions at slice and subject level with subject-bootstrap intervals."""
    logits = predictions[[f"logit_{group}" for group in config.groups]].to_numpy()
    return classification_report(logits, predictions["target"].to_numpy(), predictions["subject"].to_numpy(),
                                 config.groups, config.statistics.bootstrap, config.statistics.confidence,
                                 config.seed)


def evaluate_all(predictions: dict[str, pd.DataFrame], config: StudyConfig) -> dict[str, ClassificationReport]:
    """Report per protocol, of the test part where a table holds several parts."""
    return {name: evaluate(tested(table), config) for name, table in predictions.items() if len(table)}


def baseline_predictions(config: StudyConfig, run_dir: str | Path) -> dict[str, pd.DataFrame]:
    """The logistic baseline on true lesion load and ventricle volume, for the subject-wise test part and (c).

    Returns
    -------
    dict of str to DataFrame
        ``subject`` and ``independent``, and ``independent_further``, fitted to the subjects that the nets were
        pre-trained on, where there are any; empty where the cohort has no known truth.
    """
    table = truth_table(config, run_dir)
    if not {"lesion_load_ml", "ventricle_volume_ml"} <= set(table):
        return {}
    study = table[table["cohort"] == "study"].set_index("subject")
    parts = split_subjects(study["group"], config.training.split, config.seed)
    train, independent = study[parts == "train"], table[table["cohort"] == "independent"]
    pairs = {"subject": (train, study[parts == "test"].reset_index()), "independent": (train, independent)}
    if config.model.weights == "simulated":
        pairs["independent_further"] = further_truth(config, run_dir), independent
    result = {}
    for name, (train, test) in pairs.items():
        if len(test):
            logits = baseline_logits(train, test, config.groups)
            target = test["group"].map({group: i for i, group in enumerate(config.groups)})
            result[name] = pd.DataFrame(logits, columns=[f"logit_{group}" for group in config.groups]).assign(
                subject=test["subject"].to_numpy(), target=target.to_numpy())
    return result


def schedule_table(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """How one net was trained under every protocol: start, pixels, epochs, slices, learning rate, trained slices."""
    stages = config.training.pretraining if config.model.weights == "simulated" else []
    recipes = [Recipe.of(stage, config) for stage in stages]
    rows = [{"protocol": f"pre-training, stage {number}",
             "starts from": "random weights" if number == 1 else "stage before",
             "pixel (mm)": config.training.pretraining_pixel_mm * stage.shrink, "frozen blocks": stage.frozen_blocks,
             "augmented": recipe.augmentation is not None,
             "epochs at most": stage.epochs, "slices per subject and epoch": stage.slices_per_subject,
             "batch": recipe.batch_size, "learning rate": stage.learning_rate, "last layer fitted to": "slices"}
            for number, (stage, recipe) in enumerate(zip(stages, recipes), start=1)]
    for protocol in PROTOCOLS:
        facts = net_facts(run_dir, backbone, protocol)
        rows.append({"protocol": TITLES[protocol], "starts from": facts["weights"], "pixel (mm)": facts["pixel_mm"],
                     "frozen blocks": facts["frozen_blocks"], "augmented": facts["augmented"],
                     "epochs at most": facts["epochs"], "slices per subject and epoch": facts["slices_per_subject"],
                     "batch": facts["batch_size"], "learning rate": facts["learning_rate"],
                     "last layer fitted to": "slices" if facts["subject_head"] is None else "subjects"})
    return pd.DataFrame(rows)


def chance_levels(predictions: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Accuracy without knowledge, by protocol title: share of the largest class of the tested rows."""
    return {TITLES[name]: chance_level(table) for name, table in predictions.items() if len(table)}


def accuracy_rows(reports: dict[str, ClassificationReport], backbone: str) -> pd.DataFrame:
    """Accuracy and balanced accuracy of every protocol as rows: protocol, backbone, level, measure, value, interval."""
    tables = [report.measures.assign(protocol=protocol) for protocol, report in reports.items()]
    rows = pd.concat(tables, ignore_index=True).rename(columns={"estimate": "value"})
    return rows.assign(backbone=backbone, title=rows["protocol"].map(TITLES))


def histories(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Learning curves of one net, all protocols; the kept epoch (of every stage of pre-training) is marked ``best``."""
    tables = []
    for protocol in ["pretraining", *PROTOCOLS]:
        path = Path(run_dir) / "nets" / backbone / protocol / "history.csv"
        if path.exists():
            table = pd.read_csv(path)
            stage = table["stage"] if "stage" in table else pd.Series(1, index=table.index)
            kept = table.groupby(stage)["val_loss"].idxmin()
            tables.append(table.assign(backbone=backbone, protocol=protocol, epoch=np.arange(len(table)) + 1,
                                       stage=stage, best=table.index.isin(kept)))
    return pd.concat(tables, ignore_index=True)


def accuracy_of(report: ClassificationReport, level: str) -> tuple[float, float, float]:
    """Accuracy of a report at a level (``slice`` or ``subject``) with its interval."""
    rows = report.measures
    row = rows[(rows["level"] == level) & (rows["measure"] == "accuracy")].iloc[0]
    return float(row["estimate"]), float(row["low"]), float(row["high"])


def accuracy_record(rows: pd.DataFrame) -> dict:
    """Accuracies as nested numbers: backbone, protocol, level, [value, low, high]."""
    result: dict = {}
    for row in rows[rows["measure"] == "accuracy"].itertuples():
        result.setdefault(row.backbone, {}).setdefault(row.protocol, {})[row.level] = [row.value, row.low, row.high]
    return result


def figure2_panels(config: StudyConfig, run_dir: str | Path) -> dict:
    """Arguments of `mslib.show.plot_confusions` for figure 2: nets side by side, one row per protocol, slices."""
    panels: dict = {"matrices": [], "classes": config.groups, "titles": [], "accuracies": [], "sizes": []}
    reports = {}
    for backbone in config.model.backbones:
        tables = {name: read_predictions(run_dir, backbone, name) for name in ("slice", "subject")}
        tables["independent"] = predict_independent(config, run_dir, backbone)
        reports[backbone] = evaluate_all(tables, config)
    for protocol in reports[config.model.backbones[0]]:
        for backbone, found in reports.items():
            report = found[protocol]
            panels["matrices"].append(report.slice_confusion.to_numpy())
            panels["titles"].append(f"{backbone.upper()} + GAP\n{TITLES[protocol]}")
            panels["accuracies"].append(accuracy_of(report, "slice"))
            n_slices = int(report.slice_confusion.to_numpy().sum())
            panels["sizes"].append(f"{n_slices:,} slices, {len(report.subjects)} subjects")
    return panels
