"""What others take from notebook 06: rows of the claims, a section of the report, one line of the gallery."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mslib.show.report import Panel, Section, compressed
from mslib.study import StudyConfig

from .record import interval_text

#: Table of the claims in the run's folder of tables.
FILE = "sleep_claims.csv"
#: Figure, title, what one sees, what good looks like, the picture in words.
FIGURES = (
    ("sleep_confusion", "How well sleep is staged", "Rows: stage as scored; columns: as the net names it.",
     "Counts on the diagonal.", "Confusion matrix of the five stages of sleep"),
    ("sleep_night", "One night", "Hypnogram as scored and as named; beneath it the share of every modality.",
     "A band that changes with the stage.", "Hypnograms of one night above a band of the modalities' shares"),
    ("sleep_epochs", "One epoch of every stage", "Red samples speak for the stage, blue ones against it.",
     "Colour on what a sleep scorer would point at.", "Traces of EEG, EOG and EMG coloured by relevance, per stage"),
    ("sleep_shares", "Shares of the modalities by stage", "Right epochs above, wrong ones below.",
     "Intervals apart where one modality leads.", "Bars of the share of every modality per stage"),
    ("sleep_information", "What each modality knows", "Relevance above, information of single modalities below.",
     "No modality leads that knows least.", "Bars of relevance above bars of information"),
    ("sleep_effects", "Age, sex and medication", "Estimates of mixed models; grey: too small to be found reliably.",
     "Narrow grey bars.", "Estimates with intervals per stage, modality and effect"),
    ("sleep_ablation", "Taking a modality away", "Relevance above; below, right epochs lost under each replacement.",
     "Replacements that agree.", "Bars of relevance above bars of lost epochs"))
BYTES = 60_000


def sleep_rows(run_dir: str | Path, config: StudyConfig) -> list[dict]:
    """Rows for the table of notebook 07; none where the study has no nights or notebook 06 has not run."""
    path = Path(run_dir) / "tables" / FILE
    if config.sleep is None or not path.is_file():
        return []
    table = pd.read_csv(path, keep_default_na=False)
    kind = table.columns[-1]
    return [{"published claim": row["published claim"], "net": row["net"],
             "our evidence": row["our evidence"] + (f"; order {kind}: {row[kind]}" if row[kind] else ""),
             "holds?": row["holds?"]} for row in table.to_dict("records")]


def sleep_finding(numbers: dict) -> str:
    """One line with numbers for the gallery."""
    overall = numbers["shares"].get("overall", {})
    order = sorted(overall, key=lambda name: -(overall[name][0] or 0))
    shares = ", ".join(f"{name} {interval_text(*overall[name], digits=0)} %" for name in order)
    holds = sum(verdict == "holds" for verdict in numbers["claims"].values())
    return (f"{numbers['recordings']} {'simulated ' if numbers['source'] == 'simulated' else ''}nights, kappa "
            f"{interval_text(*numbers['scores']['kappa'])} over {numbers['folds']} folds; share of the relevance: "
            f"{shares or 'not measured'}; published claims that hold: {holds} of {len(numbers['claims'])}")


def methods_text(config: StudyConfig) -> str:
    """Methods of notebook 06 in words, from the study's settings."""
    own = config.sleep
    drawn = "all epochs" if own.epochs_per_recording is None else f"{own.epochs_per_recording} epochs"
    return (f"Nights: {own.source}. EEG, EOG and EMG at {own.rate:g} Hz, epochs of 30 s, standardised per recording "
            f"and channel. A 1-D CNN (Ellis et al. 2021; pools of {own.pool}) per fold, {own.folds} folds by "
            f"subject, {drawn} of every training and validation recording, at most {own.passes} passes of Adam "
            f"({own.learning_rate:g}), class weights, the weights of the lowest validation loss. Relevance: rule "
            f"{own.rule}, up to {own.explained_per_stage} epochs of every test recording and stage, for the stage that "
            "the net names. Effects: mixed models with a random intercept per subject, Benjamini-Hochberg over all "
            "tests.")


def sleep_section(run_dir: str | Path, config: StudyConfig, numbers: dict) -> Section:
    """Section of the report, from the figures that notebook 06 has left and the numbers that it recorded."""
    panels = []
    for name, title, see, good, alt in FIGURES:
        path = Path(run_dir) / "figures" / f"{name}.png"
        if path.exists():
            panels.append(Panel(title, see, good, compressed(path, BYTES), alt))
    rows = sleep_rows(run_dir, config)
    if rows:
        panels.append(Panel("Published claims on sleep staging", table=pd.DataFrame(rows)))
    panels.append(Panel("How it was done", text=methods_text(config)))
    kind = "Simulated nights" if numbers["source"] == "simulated" else "Real nights"
    faults = "".join(f"\n\nLeft out: {fault}" for fault in numbers["faults"])
    return Section(panels, f"{kind}. {sleep_finding(numbers)}. Shares by layer-wise relevance propagation, rule "
                           f"{numbers['rule']}.{faults}")
