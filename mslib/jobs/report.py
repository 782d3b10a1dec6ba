"""The report of a study: what notebook 07 puts together for readers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mslib.show.report import Panel, Section, build_report
from mslib.show.viewers import write_viewer
from mslib.study import StudyConfig
from mslib.study.provenance import versions

from .claims import metrics
from .cohort import exclusions, faults, subject_folder, usable_subjects
from .maps import volume_path, volume_subjects
from .record import interval_text

METHODS = (
    "Images were corrected for their bias field (N4, SimpleITK), T2w and FLAIR were aligned rigidly to T1w by mutual "
    "information, every image was resampled once, intensities were scaled to [0, 1] by robust percentiles inside the "
    "brain, and the slices with most brain were kept. VGG16 and VGG19 with global average pooling were trained on the "
    "three sequences as channels. Class activation maps come from one forward and one backward pass over all layers of "
    "blocks 4 and 5; measures against lesion masks are means over slices with 95 % intervals by bootstrap over "
    "subjects. The explained nets are those of the subject-wise split; maps are shown of subjects outside their "
    "training and validation parts.")


def _figure(run_dir, name, title, see, good, alt) -> list[Panel]:
    path = Path(run_dir) / "figures" / f"{name}.png"
    return [Panel(title, see, good, path, alt)] if path.exists() else []


def _training(run_dir, config) -> list[Panel]:
    panels = []
    for backbone in config.model.backbones:
        name = backbone.upper()
        panels += _figure(run_dir, f"accuracy_{backbone}", f"{name}: accuracy under every protocol",
                          "Accuracy with its 95 % interval, slices left and subjects right.",
                          "The independent cohort close to the subject-wise split; permuted labels at chance.",
                          f"Accuracies of {name} per protocol with intervals")
        panels += _figure(run_dir, f"confusion_{backbone}", f"{name}: confusion matrices",
                          "True class in rows, predicted class in columns.", "Counts on the diagonal.",
                          f"Confusion matrices of {name}")
        panels += _figure(run_dir, f"learning_curves_{backbone}", f"{name}: learning curves",
                          "Loss and accuracy per epoch.", "Training and validation move together.",
                          f"Learning curves of {name}")
    return panels


def _layers(run_dir) -> list[Panel]:
    return [
        *_figure(run_dir, "figure3_layers", "Figure 3, published layout", "Grad-CAM of three layers per net.",
                 "Heat on outlined lesions.", "Grad-CAM maps of three layers of both nets over three slices"),
        *_figure(run_dir, "figure4_layers", "Figure 4, published layout", "Grad-CAM of three more layers of VGG19.",
                 "Heat on outlined lesions.", "Grad-CAM maps of three layers of VGG19 over three slices"),
        *_figure(run_dir, "layer_grid", "Every layer", "All layers of blocks 4 and 5, shallow to deep.",
                 "Heat on outlined lesions; blank maps are marked.", "Grid of Grad-CAM maps of every layer"),
        *_figure(run_dir, "depth_curves", "Measures over depth",
                 "How well heat meets lesions, and how far it spreads.", "Above the dotted chance line.",
                 "Curves of five measures over the layers"),
        *_figure(run_dir, "percentile_groups", "95th percentile by group", "One dot per patient.",
                 "Whatever the groups are: the published claim is SPMS above RRMS.", "Dots per group with means"),
        *_figure(run_dir, "lobes", "Heat per lobe", "Bars of the share of the heat; ticks: share of the brain.",
                 "Bars beyond ticks are emphasis.", "Bars of heat per lobe and group"),
        *_figure(run_dir, "randomisation", "Cascading randomisation", "Likeness to the original map.",
                 "It falls towards 0 as layers are randomised.", "Curves of likeness per randomised layer")]


def _registration(config, run_dir) -> list[Panel]:
    """Error figure, then the before and after picture of a few subjects and the numbers of all."""
    panels = _figure(run_dir, "registration_errors", "Error against known truth",
                     "Error before and after, one dot per image.", "Below the dashed targets.",
                     "Registration errors before and after")
    panels += _figure(run_dir, "figure1_examples", "Figure 1: example slices", "Three sequences by group, after "
                      "co-registration, lesions outlined.", "The same anatomy at the same place in every row.",
                      "Example slices of three sequences and the groups")
    for person in usable_subjects(config, run_dir)[:6]:
        path = subject_folder(run_dir, person.id) / "figures" / f"sub-{person.id}_desc-registration_qc.png"
        panels.append(Panel(f"sub-{person.id} ({person.group})", "Edges of T1w over T2w and FLAIR, before and after.",
                            "After: edges follow ventricles and folds.", path,
                            f"Registration of subject {person.id} before and after"))
    quality = pd.read_csv(Path(run_dir) / "tables" / "registration_quality.csv", dtype={"subject": str})
    return [*panels, Panel("All subjects in numbers", good="No flags.", table=quality.fillna(""))]


def lead_sentence(config: StudyConfig, run_dir: str | Path) -> str:
    """The study's result in one sentence, with numbers and intervals."""
    found = metrics(run_dir)
    maps = found["03_gradcam_layers"]
    backbone = config.model.backbones[-1]
    layer = maps["best_layer_auprc"][backbone]
    value, low, high, chance = maps["auprc"][backbone][layer]
    place = (f"Grad-CAM of {backbone.upper()} meets lesions best at {layer}: AUPRC {interval_text(value, low, high)}, "
             f"chance {chance:.2f} ({maps['patients']} patients, {maps['slices']} slices)")
    accuracy = found.get(f"02_finetuning_{backbone}", {}).get("accuracy", {}).get(backbone, {})
    if "independent" not in accuracy:
        return place + "."
    n_independent = sum(config.cohort.simulated.independent.values())
    return (f"On {n_independent} independent simulated subjects {backbone.upper()} is right "
            f"in {interval_text(*accuracy['independent']['subject'])} of subjects; {place}.")


def write_report(config: StudyConfig, run_dir: str | Path, claims: pd.DataFrame) -> Path:
    """Write ``report.html``: summary, cohort, registration, training, layers, methods, faults."""
    cohort = pd.read_csv(Path(run_dir) / "tables" / "cohort.csv", dtype={"subject": str})
    sections = {
        "summary": Section([Panel("Published claims and our evidence", table=claims)], lead_sentence(config, run_dir)),
        "cohort": Section([*_figure(run_dir, "cohort", "Who was studied", "One dot per subject; black: real patients.",
                                    "Groups overlap as real ones do.", "Lesion load, volumes and age by group"),
                           Panel("Subjects", table=cohort.fillna(""))]),
        "registration": Section(_registration(config, run_dir)),
        "layers": Section(_layers(run_dir)), "methods": Section(intro=METHODS)}
    if config.cohort.source != "open_ms":
        sections["training"] = Section(_training(run_dir, config))
    problems = [*faults(run_dir), *(f"sub-{subject}: excluded: {reason}"
                                    for subject, reason in exclusions(config, run_dir).items())]
    return build_report(Path(run_dir) / "report.html", f"Where does the network look? Study {config.study}", sections,
                        simulated=config.cohort.source == "simulated", lead=lead_sentence(config, run_dir),
                        versions=versions() | {"seed": str(config.seed)}, faults=problems)


def write_viewers(config: StudyConfig, run_dir: str | Path, layer: str) -> list[Path]:
    """3-D viewers of a layer's Grad-CAM over FLAIR, one file per chosen patient."""
    backbone = config.model.backbones[-1]
    kind = "simulated" if config.cohort.source == "simulated" else "real"
    paths = []
    for person in volume_subjects(config, run_dir)[: config.explain.viewer_subjects]:
        volume = volume_path(backbone, run_dir, person.id)
        names = pd.read_json(volume.with_name(volume.name.replace(".nii.gz", ".json")), typ="series")["Layers"]
        background = volume.with_name(f"sub-{person.id}_space-T1w_desc-preproc_FLAIR.nii.gz")
        paths.append(write_viewer(
            Path(run_dir) / "viewers" / f"sub-{person.id}_{backbone}_{layer}.html", background, volume,
            index=list(names).index(layer), title=f"{backbone} {layer}, {person.group} ({kind})"))
    return paths
