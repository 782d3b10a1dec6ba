"""Jobs of notebook 05: relevance of every sequence by LRP, slice by slice, kept per subject."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mslib.explain import lrp, relevance_flow
from mslib.nets.repeats import train_repeat
from mslib.prep import plane_to_volume
from mslib.study import StudyConfig, atomic_path, progress, stamped_folder, write_json, write_table
from mslib.study.provenance import file_sha256, made_by

from .cohort import qc_path, subject_folder, usable_subjects
from .depth import headline_layers
from .explained import explained_subjects, stack_of, volume_subjects
from .finetuning import load_slices
from .maps import example_maps, images_of, net, target_of, weights_path
from .predictions import read_predictions, tested
from .relevance_scores import relevance_table, spread_slices
from .words import nets_folder


def judged_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """Everyone whom no explained net has trained or stopped on, controls too (real patients: all explained ones)."""
    if config.cohort.source == "open_ms":
        return explained_subjects(config, run_dir)
    fresh = set(tested(read_predictions(nets_folder(config, run_dir), config.model.backbones[0], "subject"))["subject"])
    return [person for person in usable_subjects(config, run_dir)
            if person.cohort == "independent" or person.id in fresh]


def _facts(config, run_dir, people, weights) -> dict:
    return {"weights": file_sha256(weights), "input": config.model.input,
            "settings": json.loads(config.relevance.model_dump_json()), "groups": config.groups,
            "code": made_by("mslib.jobs.relevance_scores"),
            "subjects": {person.id: file_sha256(qc_path(run_dir, person.id)) for person in people}}


def _kept(path, make) -> pd.DataFrame:
    """A table as its file has it; made and written where it is not there."""
    if not path.exists():
        write_table(path, make(), float_format="%.7g")
    return pd.read_csv(path, dtype={"subject": str})


def _of_subject(model, person, config, run_dir, rule, count) -> pd.DataFrame:
    stack = stack_of(run_dir, person.id)
    index = spread_slices(stack, count)
    known = {"lesion": stack["lesion"][index], "brain": stack["brain"][index]} if person.lesion_mask else {}
    table = relevance_table(model, images_of(stack, index, config), np.full(len(index), target_of(person, config)),
                            config.sequences, rule, **known)
    table.insert(0, "slice", index)
    return table.assign(subject=person.id, group=person.group, cohort=person.cohort)


def make_relevance(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Relevance shares of every judged subject's slices, for one net; finished subjects are taken up.

    Returns
    -------
    pandas.DataFrame
        As `relevance_table`, with ``subject, group, cohort, slice, backbone``.
    """
    people, own = judged_subjects(config, run_dir), config.relevance
    model = net(config, run_dir, backbone)
    folder = stamped_folder(Path(run_dir) / "relevance" / backbone / "slices",
                            _facts(config, run_dir, people, weights_path(config, run_dir, backbone)))
    tables = [_kept(folder / f"sub-{person.id}.csv", lambda person=person: _of_subject(
        model, person, config, run_dir, own.rule, own.slices_per_subject))
        for person in progress(people, desc=f"{backbone}: relevance", unit="subject")]
    return pd.concat(tables, ignore_index=True).assign(backbone=backbone)


def compare_rules(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Shares of the same few slices of every judged subject by several rules; column ``rule``."""
    people, own = judged_subjects(config, run_dir), config.relevance
    model = net(config, run_dir, backbone)
    folder = stamped_folder(Path(run_dir) / "relevance" / backbone / "rules",
                            _facts(config, run_dir, people, weights_path(config, run_dir, backbone)))
    tables = []
    for rule in progress(own.compared, desc=f"{backbone}: rules", unit="rule"):
        tables.append(_kept(folder / f"{rule}.csv", lambda rule=rule: pd.concat(
            [_of_subject(model, person, config, run_dir, rule, own.compared_slices)
             for person in progress(people, desc=rule, unit="subject")],
            ignore_index=True)).assign(rule=rule))
    return pd.concat(tables, ignore_index=True).assign(backbone=backbone)


def repeat_relevance(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Shares by the study's rule of a net trained from another seed, on the slices of `compare_rules`."""
    people, own = judged_subjects(config, run_dir), config.relevance
    model = train_repeat(backbone, load_slices(config, run_dir, "study"), config, run_dir)
    weights = Path(run_dir) / "relevance" / backbone / "repeat1" / "weights.weights.h5"
    folder = stamped_folder(Path(run_dir) / "relevance" / backbone / "repeated",
                            _facts(config, run_dir, people, weights))
    return _kept(folder / "shares.csv", lambda: pd.concat(
        [_of_subject(model, person, config, run_dir, own.rule, own.compared_slices)
         for person in progress(people, desc=f"{backbone} repeat: relevance", unit="subject")],
        ignore_index=True)).assign(backbone=backbone)


def flow_table(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Relevance that reaches every layer, as a share of the logits' sum, over one middle slice of each judged subject.

    Returns
    -------
    pandas.DataFrame
        ``backbone, layer`` (deep to shallow), ``sum`` (signed), ``absolute``, ``images``.
    """
    people = judged_subjects(config, run_dir)
    images = []
    for person in people:
        stack = stack_of(run_dir, person.id)
        images.append(images_of(stack, spread_slices(stack, 1), config))
    flow = relevance_flow(net(config, run_dir, backbone), np.concatenate(images), None, config.relevance.rule)
    rows = [{"layer": layer, **{key: float(values.sum()) for key, values in one.items()}}
            for layer, one in reversed(flow.items())]
    table = pd.DataFrame(rows)
    return table.assign(**{key: table[key] / table["sum"].iloc[0] for key in ("sum", "absolute")},
                        images=len(people), backbone=backbone)


def headline_panels(config: StudyConfig, run_dir: str | Path, backbone: str, best: str | None) -> dict:
    """Grad-CAM of three layers and the relevance of every sequence for one slice of the example patient.

    Parameters
    ----------
    backbone : str
    best : str or None
        Layer that has to be among the three.

    Returns
    -------
    dict
        ``flair, lesion`` (H, W), ``maps`` (layer to map), ``extra`` (as `mslib.show.plot_headline` takes it),
        ``example`` (of `mslib.jobs.maps.example_maps`). Maps and relevance are for the patient's own class.
    """
    model = net(config, run_dir, backbone)
    example = example_maps(model, backbone, config, run_dir)
    layers = [layer.name for layer in model.layers if layer.name in example]
    chosen = headline_layers(layers, best, 3)
    images = images_of(stack_of(run_dir, str(example["subject"])), example["slices"][1:2], config)
    relevance = lrp(model, images, config.groups.index(str(example["group"])), config.relevance.rule)[0]
    return {"flair": example["flair"][1], "lesion": example["lesion"][1],
            "maps": {layer: example[layer][1] for layer in chosen}, "example": example,
            "extra": [(f"LRP {name}", relevance[..., m], "diverging") for m, name in enumerate(config.sequences)]}


def volume_file(backbone: str, run_dir: str | Path, subject: str) -> Path:
    """Where a subject's relevance volume of a net lies."""
    return subject_folder(run_dir, subject) / "anat" / f"sub-{subject}_space-T1w_desc-{backbone}lrp_relevance.nii.gz"


def write_relevance(config: StudyConfig, run_dir: str | Path, backbone: str) -> list[Path]:
    """Relevance of all slices of the first patients in T1w space: 4-D over sequences, a JSON file names them."""
    model, paths = net(config, run_dir, backbone), []
    people = volume_subjects(config, run_dir)[: config.relevance.volumes]
    for person in progress(people, desc=f"{backbone}: relevance volumes", unit="subject"):
        path = volume_file(backbone, run_dir, person.id)
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        made_of = _facts(config, run_dir, [person], weights_path(config, run_dir, backbone))
        paths.append(path)
        if path.exists() and sidecar.exists() and json.loads(sidecar.read_text(encoding="utf-8")).get(
                "MadeOf") == made_of:
            continue
        stack = stack_of(run_dir, person.id)
        index = np.arange(len(stack["images"]))
        relevance = lrp(model, images_of(stack, index, config), np.full(len(index), target_of(person, config)),
                        config.relevance.rule)
        reference = path.with_name(f"sub-{person.id}_space-T1w_desc-preproc_T1w.nii.gz")
        parts = [plane_to_volume(relevance[..., m], stack, reference) for m in range(relevance.shape[-1])]
        image = nib.Nifti1Image(np.stack([np.asarray(part.dataobj, np.float32) for part in parts], -1),
                                parts[0].affine)
        with atomic_path(path) as temporary:
            image.to_filename(temporary)
        write_json(sidecar, {"Description": "Layer-wise relevance for the patient's own class, raw, signed",
                             "Units": "logit per pixel of the slice", "Sequences": list(config.sequences),
                             "Rule": config.relevance.rule, "Class": person.group, "Backbone": backbone,
                             "Sources": [reference.name], "MadeOf": made_of})
    return paths
