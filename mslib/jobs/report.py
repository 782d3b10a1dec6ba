"""The report of a study: what notebook 07 puts together for readers."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mslib.show.figure import label_of
from mslib.show.report import Panel, Section, build_report, compressed
from mslib.show.viewers import write_viewer
from mslib.study import StudyConfig, progress
from mslib.study.provenance import versions

from .claims import metrics, yardstick_accuracy
from .cohort import exclusions, faults, subject_folder, usable_subjects
from .depth import last_convolution
from .explained import volume_path, volume_subjects
from .methods import TERMS, methods_text
from .panels import attribution_panels, figure_panel, relevance_panels
from .predictions import predictions_path, read_predictions
from .record import interval_text
from .sleep_report import sleep_finding, sleep_section
from .words import LIFT, attribution, nets_folder, study_kind, weights_sentence

#: Bytes of the co-registration pictures of all subjects together (base64 adds a third).
PICTURES_BYTES = 800_000
#: What a reader of one sentence has to know about the weights.
PRETRAINED = ("The nets were pre-trained on further simulated subjects of the same groups and told the area, not the "
              "place, of lesions in their slices.")


def _training(run_dir, config) -> list[Panel]:
    panels = []
    for backbone in config.model.backbones:
        name = backbone.upper()
        panels += figure_panel(run_dir, f"accuracy_{backbone}", f"{name}: accuracy under every protocol",
                               "Accuracy with its 95 % interval, slices left and subjects right; dotted: chance.",
                               "The independent cohort close to the subject-wise split; permuted labels at chance.",
                               f"Accuracies of {name} per protocol with intervals, chance as a dotted line")
        panels += figure_panel(run_dir, f"confusion_{backbone}", f"{name}: confusion matrices",
                               "True class in rows, predicted class in columns.", "Counts on the diagonal.",
                               f"Confusion matrices of {name}")
        panels += figure_panel(run_dir, f"learning_curves_{backbone}", f"{name}: learning curves",
                               "Loss and accuracy per epoch; dashed: training, solid: validation.",
                               "Training and validation move together.",
                               f"Learning curves of {name}, training dashed and validation solid")
    return panels


def _layers(config, run_dir) -> list[Panel]:
    shown = metrics(run_dir)["03_gradcam_layers"].get("shown", "")
    lesions = any(person.lesion_mask for person in usable_subjects(config, run_dir))
    good = "Heat on outlined lesions; blank maps are marked." if lesions else "No lesion outlines are known here."
    return [
        *figure_panel(run_dir, "figure3_layers", "Figure 3, published layout", "Grad-CAM of three layers per net.",
                      good, "Grad-CAM maps of three layers of each net over three FLAIR slices", shown),
        *figure_panel(run_dir, "figure4_layers", "Figure 4, published layout",
                      "Grad-CAM of three more layers of VGG19.", good,
                      "Grad-CAM maps of three more layers of VGG19 over three FLAIR slices", shown),
        *figure_panel(run_dir, "layer_grid", "Every layer", "All layers of blocks 4 and 5, shallow to deep.",
                      good, "Grid of Grad-CAM maps of every layer over three FLAIR slices", shown),
        *figure_panel(run_dir, "depth_curves", "Measures over depth",
                      "How well heat meets lesions (where they are known), and how far it spreads.",
                      "Above the dotted chance line; for the spread, below it.",
                      "Curves of the measures over the layers, chance as a dotted line"),
        *figure_panel(run_dir, "percentile_groups", "95th percentile by group", "One dot per patient.",
                      "Whatever the groups are: the published claim is SPMS above RRMS.", "Dots per group"),
        *figure_panel(run_dir, "lobes", "Heat per lobe",
                      "Bars: share of the heat. Dotted lines: share of the brain, which even heat would reach.",
                      "Bars beyond the dotted lines are emphasis.",
                      "Bars of heat per lobe and group, the brain's share as dotted lines"),
        *figure_panel(run_dir, "randomisation", "Cascading randomisation", "Likeness to the original map.",
                      "Near 0 at the right end; the table of claims says where it is not.",
                      "Curves of likeness per randomised layer")]


def _registration(config, run_dir) -> list[Panel]:
    """Error figure, then the before and after picture of every subject and the numbers of all."""
    title = ("Distance to the transforms of the data's authors" if config.cohort.source == "open_ms"
             else "Error against known truth")
    panels = figure_panel(run_dir, "registration_errors", title,
                          "Error before and after, one dot per image.", "Below the red lines (dashed: target of the "
                          "median, dotted: of the worst).",
                          "Registration errors before and after, targets as red lines")
    panels += figure_panel(run_dir, "figure1_examples", "Figure 1: example slices", "Three sequences by group, after "
                           "co-registration; known lesions outlined.", "The same anatomy at the same place in every "
                           "row.", "Example slices of three sequences and the groups")
    people = usable_subjects(config, run_dir)
    for person in progress(people, desc="pictures for the report", unit="subject"):
        path = subject_folder(run_dir, person.id) / "figures" / f"sub-{person.id}_desc-registration_qc.png"
        picture = compressed(path, PICTURES_BYTES // len(people))
        panels.append(Panel(f"sub-{person.id} ({person.group})", "Edges of T1w over T2w and FLAIR, before and after.",
                            "After: edges follow ventricles and folds.", picture,
                            f"Registration of subject {person.id} before and after"))
    quality = pd.read_csv(Path(run_dir) / "tables" / "registration_quality.csv", dtype={"subject": str})
    return [*panels, Panel("All subjects in numbers", good="No flags.", table=quality.fillna(""))]


def split_table(config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Subjects per group and part of the split of subjects, and of the independent cohort; empty without training."""
    place = nets_folder(config, run_dir), config.model.backbones[0], "subject"
    if config.cohort.source == "open_ms" or not predictions_path(*place).is_file():
        return pd.DataFrame()
    parts = read_predictions(*place).groupby("subject")["part"].first()
    people = usable_subjects(config, run_dir)
    part = ["independent" if one.cohort == "independent" else parts.get(one.id, "train") for one in people]
    table = pd.crosstab(pd.Series([one.group for one in people], name="group"), pd.Series(part))
    order = ["train", "validation", "test", "independent"]
    return table.reindex(index=config.groups, columns=order, fill_value=0).reset_index()


def _accuracy_sentence(config, run_dir) -> str:
    """Accuracy of every net on the independent cohort; empty where nothing was trained, or there is no such cohort."""
    recorded = {backbone: metrics(run_dir).get(f"02_finetuning_{backbone}", {}) for backbone in config.model.backbones}
    accuracy = {backbone: numbers["accuracy"][backbone]["independent"]["subject"]
                for backbone, numbers in recorded.items()
                if "independent" in numbers.get("accuracy", {}).get(backbone, {})}
    if not accuracy or config.cohort.source == "open_ms":
        return ""
    numbers = recorded[next(iter(accuracy))]
    number = sum(person.cohort == "independent" for person in usable_subjects(config, run_dir))
    simulated = config.cohort.source == "simulated"
    known = {"chance": numbers.get("chance", {}).get("independent"),
             "logistic regression on true lesion load and ventricle volume":
                 (yardstick_accuracy(numbers, "independent") or [None])[0]}
    beside = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
    seen = " (never trained on, but looked at while the training was being worked out)" if simulated else ""
    named = " and ".join(f"{backbone.upper()} in {interval_text(*of_net, name=_interval(config))}"
                         for backbone, of_net in accuracy.items())
    return (f"On {number} independent {'simulated ' if simulated else ''}subjects{seen} the group is named rightly by "
            f"{named} of them{beside and f' ({beside})'}; ")


def _interval(config):
    return f"{config.statistics.confidence * 100:g} % interval"


def _place(config, run_dir, backbone) -> str:
    maps = metrics(run_dir)["03_gradcam_layers"]
    layer, size = maps["best_layer_auprc"][backbone], f"{maps['patients']} patients, {maps['slices']} slices"
    if layer is None:
        return f"Grad-CAM of {backbone.upper()} was drawn ({size}), but no lesion outlines are known to hold it against"
    value, low, high, chance = maps["auprc"][backbone][layer]
    blank = maps["blank"][backbone][layer]
    size += f", {blank} of them left out: blank maps" if blank else ""
    return (f"the highest mean AUPRC of Grad-CAM of {backbone.upper()} against lesions is "
            f"{interval_text(value, low, high, name=_interval(config))}, at {layer} (1 would be perfect, chance "
            f"{chance:.2g}; {size}, the layer chosen on the same ones)")


def lead_sentence(config: StudyConfig, run_dir: str | Path) -> str:
    """The study's result in one sentence, with numbers and intervals."""
    backbone = config.model.backbones[-1]
    text = f"{_accuracy_sentence(config, run_dir)}{_place(config, run_dir, backbone)}."
    if config.cohort.source == "open_ms":
        return f"Real patients, transfer from simulation: {text}"
    text = text[0].upper() + text[1:]
    return f"{text} {PRETRAINED}" if config.model.weights == "simulated" else text


def _attribution_finding(numbers) -> str:
    told = []
    if "planted_msfi" in numbers:
        best, scores = numbers["planted_best"], numbers["planted_msfi"]
        told = [f"against planted truth {label_of(best)} comes nearest (share of its heat inside the marks, "
                f"sequences weighed by importance: MSFI {scores[best]:.2f}; 1 would be perfect)" if best else
                "no planted net needs any sequence: nothing can be judged against planted truth",
                "like their map of a net with all weights random (one net): "
                + (", ".join(map(label_of, numbers["randomisation_fails"])) or "none"),
                "unlike it, and marking what the net needs whatever takes its place: "
                + (", ".join(f"{label_of(name)} (MSFI {scores[name]:.2f})" for name in numbers["sound"]) or "none")]
    for backbone, first in numbers["importance_first"].items():
        told.append(f"{backbone.upper()}, right about {numbers['importance_right'][backbone]:.0%} of the patients' "
                    "slices, gains most (exact Shapley value) from " + ", ".join(
                        f"{name} in {count}" for name, count in first.items()) + f" of {sum(first.values())} settings")
    return "; ".join(told) or "maps only: patients are too few to quote an importance"


def _relevance_finding(numbers, rule) -> str:
    told = []
    for backbone, of_net in numbers["shares"].items():
        beyond = numbers["over_brightness"][backbone]
        told.append(f"{backbone.upper()}: " + ", ".join(
            f"{name} {values[0]:.0f} % ({beyond[name][0]:.2f})" for name, values in of_net.items())
            + ", in sum against the class that the net names in {} of {} slices".format(*numbers["against"][backbone]))
    tested = [row for row in numbers.get("planted", []) if row["kind"] == LIFT]
    if tested:
        told.append("of planted nets this ratio names the deciding sequence in " + ", ".join(
            f"{row['first']} of {row['nets']} by {row['rule']}{' (used here)' if row['rule'] == rule else ''}"
            for row in tested))
    return ("share of the relevance, which follows brightness first (in brackets: over the sequence's share of the "
            f"brightness, 1 is what brightness alone would give): {'; '.join(told)}")


def findings(config: StudyConfig, run_dir: str | Path) -> dict[str, str]:
    """One line with numbers for every notebook that has run, by the notebook's stem (for the gallery)."""
    found, lines = metrics(run_dir), {}
    who = "scan sessions" if config.cohort.source == "open_ms" else "subjects"
    for name, numbers in found.items():
        if name == "00_cohort":
            covered, ranges = numbers.get("ranges_covered", (0, 0))
            lines[name] = f"{numbers['subjects']} {who}; faults listed: {numbers['faults']}" + (
                f"; ranges of real patients covered: {covered} of {ranges}" if ranges else "")
        elif name == "01_coregistration":
            against = ("distance to the transforms of the data's authors, which err themselves"
                       if config.cohort.source == "open_ms" else "error against known truth")
            errors = "; ".join(f"{sequence} median {error['median']:.2f} mm, worst {error['worst']:.2f} mm"
                               for sequence, error in numbers.get("error_mm", {}).items())
            lines[name] = f"{numbers['subjects']} {who}, {numbers['flagged']} flagged" + (
                f"; {against}: {errors}" if errors else "")
        elif name.startswith("02_finetuning_"):
            backbone = name.removeprefix("02_finetuning_")
            ours = numbers["accuracy"][backbone]
            told = [f"split of slices {interval_text(*ours['slice']['slice'])} of slices"] if "slice" in ours else []
            if "slice_permuted" in ours:
                told.append(f"with labels that mean nothing {interval_text(*ours['slice_permuted']['subject'])} of "
                            f"subjects (chance {numbers['chance']['slice_permuted']:.2f}; above it: leakage)")
            fresh = next((key for key in ("independent", "subject") if key in ours), None)
            titles = {"independent": "independent cohort", "subject": "split of subjects"}
            told += [f"{titles[fresh]} {interval_text(*ours[fresh]['subject'])} of subjects"] if fresh else []
            lines[name] = "accuracy: " + "; ".join(told)
        elif name == "03_gradcam_layers":
            lines[name] = "; ".join(_place(config, run_dir, backbone) for backbone in config.model.backbones)
        elif name == "04_multimodal_attribution":
            lines[name] = _attribution_finding(numbers)
        elif name == "05_modality_relevance":
            lines[name] = _relevance_finding(numbers, config.relevance.rule)
        elif name == "06_sleep_staging":
            lines[name] = sleep_finding(numbers)
        elif name == "07_summary":
            published = [row for row in numbers["claims"] if not row["published claim"].startswith("(")]
            verdicts = pd.Series([row["holds?"].split(":")[0] for row in published]).value_counts()
            lines[name] = "published claims, once per net: " + ", ".join(
                f"{verdict} {count}" for verdict, count in verdicts.sort_index().items())
    return lines


def write_report(config: StudyConfig, run_dir: str | Path, claims: pd.DataFrame) -> Path:
    """Write ``report.html``: summary, cohort, registration, training, layers, methods, faults."""
    cohort = pd.read_csv(Path(run_dir) / "tables" / "cohort.csv", dtype={"subject": str})
    split = split_table(config, run_dir)
    terms = pd.DataFrame({"term": list(TERMS), "meaning": list(TERMS.values())})
    lead, origin = lead_sentence(config, run_dir), weights_sentence(config, run_dir)
    intro = f"{study_kind(config)}. {origin} {attribution(config)}".strip()
    sections = {
        "summary": Section([Panel("Published claims and our evidence", table=claims),
                            Panel("What the words mean", table=terms)], intro),
        "cohort": Section([*figure_panel(run_dir, "cohort", "Who was studied",
                                         "One dot per subject; black, where drawn: real patients.",
                                         "Groups overlap as real ones do.", "Lesion load, volumes and age by group"),
                           *([Panel("Split: subjects per part", table=split)] if len(split) else []),
                           Panel("Subjects", table=cohort.fillna(""))]),
        "registration": Section(_registration(config, run_dir)),
        "layers": Section(_layers(config, run_dir), origin),
        "attribution": Section(attribution_panels(run_dir, config.model.backbones), origin),
        "relevance": Section(relevance_panels(run_dir), origin),
        "methods": Section(intro=methods_text(config, run_dir))}
    if config.cohort.source != "open_ms":
        sections["training"] = Section(_training(run_dir, config), origin)
    if config.sleep and "06_sleep_staging" in metrics(run_dir):
        sections["sleep"] = sleep_section(run_dir, config, metrics(run_dir)["06_sleep_staging"])
    problems = [*faults(run_dir), *(f"sub-{subject}: excluded: {reason}"
                                    for subject, reason in exclusions(config, run_dir).items())]
    return build_report(Path(run_dir) / "report.html", f"Where does the network look? Study {config.study}", sections,
                        simulated=config.cohort.source == "simulated", lead=lead,
                        versions=versions() | {"seed": str(config.seed)}, faults=problems)


def write_viewers(config: StudyConfig, run_dir: str | Path, layer: str | None) -> list[Path]:
    """3-D viewers of a layer's Grad-CAM (default: the last convolution) over FLAIR, one file per chosen patient.

    A patient whose map is blank has no viewer, and is named.
    """
    backbone = config.model.backbones[-1]
    layer = layer or last_convolution(backbone)
    kind = "Simulated" if config.cohort.source == "simulated" else "Real"
    paths = []
    for person in volume_subjects(config, run_dir)[: config.explain.viewer_subjects]:
        volume = volume_path(backbone, run_dir, person.id)
        names = pd.read_json(volume.with_name(volume.name.replace(".nii.gz", ".json")), typ="series")["Layers"]
        if not np.asarray(nib.load(volume).dataobj[..., list(names).index(layer)]).max() > 0:
            print(f"sub-{person.id}: the Grad-CAM of {backbone} at {layer} is blank; no viewer")
            continue
        background = volume.with_name(f"sub-{person.id}_space-T1w_desc-preproc_FLAIR.nii.gz")
        paths.append(write_viewer(
            Path(run_dir) / "viewers" / f"sub-{person.id}_{backbone}_{layer}.html", background, volume,
            index=list(names).index(layer), title=f"{kind} {person.group}, {backbone} {layer}"))
    return paths
