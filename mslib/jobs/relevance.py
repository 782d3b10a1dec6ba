"""Jobs of notebook 05: relevance of every sequence by LRP, slice by slice, kept per subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mslib.explain import lrp, relevance_flow
from mslib.study import StudyConfig, progress, stamped_folder, write_table
from mslib.study.provenance import file_sha256, made_by

from .cohort import qc_path, stack_path, subject_folder
from .depth import headline_layers
from .explained import explained_subjects, fresh_subjects, stack_of, volume_subjects
from .maps import example_maps, images_of, net, target_of, weights_path
from .relevance_scores import scored_relevance, spread_slices
from .second_net import second_net
from .volumes import keep_volume


def judged_subjects(config: StudyConfig, run_dir: str | Path) -> list:
    """All of `mslib.jobs.explained.fresh_subjects`, controls too (real patients: all explained ones)."""
    chosen = explained_subjects if config.cohort.source == "open_ms" else fresh_subjects
    return chosen(config, run_dir)


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
    table, _ = scored_relevance(model, images_of(stack, index, config), np.full(len(index), target_of(person, config)),
                                config.sequences, rule, **known)
    table.insert(0, "slice", index)
    return table.assign(subject=person.id, group=person.group, cohort=person.cohort)


def make_relevance(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """Relevance shares of every judged subject's slices, for one net; finished subjects are taken up.

    Returns
    -------
    pandas.DataFrame
        As of `mslib.jobs.relevance_scores.scored_relevance`, with ``subject, group, cohort, slice, backbone``.
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
    model, weights = second_net(config, run_dir, backbone)
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
    model, rule, paths = net(config, run_dir, backbone), config.relevance.rule, []
    people = volume_subjects(config, run_dir)[: config.relevance.volumes]
    for person in progress(people, desc=f"{backbone}: relevance volumes", unit="subject"):
        def of_sequences(stack, person=person):
            targets = np.full(len(stack["images"]), target_of(person, config))
            relevance = lrp(model, images_of(stack, slice(None), config), targets, rule)
            return {name: relevance[..., m] for m, name in enumerate(config.sequences)}

        facts = {"MadeOf": _facts(config, run_dir, [person], weights_path(config, run_dir, backbone))}
        told = {"Description": "Layer-wise relevance for the patient's own class, raw, signed",
                "Units": "logit per pixel of the slice", "Rule": rule, "Backbone": backbone}
        paths.append(keep_volume(volume_file(backbone, run_dir, person.id), person, stack_path(run_dir, person.id),
                                 of_sequences, "Sequences", facts, told))
    return paths
