"""Jobs of notebook 03: Grad-CAM of every layer of the test patients, measured, and kept as volumes."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mslib.explain import cascading_randomisation, layer_cams, upsample_maps
from mslib.measure import measure_maps
from mslib.nets import channels_of, load_net
from mslib.nets.spread import evenly
from mslib.study import StudyConfig, StudyError, atomic_path, progress, stamped_folder, write_table
from mslib.study.provenance import file_sha256, made_by

from .cohort import qc_path, stack_path, subject_folder, usable_subjects
from .explained import (
    example_subject,
    explained_slices,
    explained_subjects,
    stack_of,
    volume_path,
    volume_subjects,
)
from .lobes import brain_top, lobe_labels, lobe_shares
from .volumes import keep_volume
from .words import nets_folder

#: Slices of the published figures, counted from 1 at the bottom of the 135 (Hong and Zhang 2021, figures 3 and 4).
PUBLISHED_SLICES = (57, 58, 59)
#: Sections of the settings that decide maps.
DECIDE = {"seed", "groups", "sequences", "cohort", "prep", "model", "explain"}


def weights_path(config: StudyConfig, run_dir: str | Path, backbone: str) -> Path:
    """Weights of the net that is explained."""
    return nets_folder(config, run_dir) / "nets" / backbone / "subject" / "weights.weights.h5"


def net(config: StudyConfig, run_dir: str | Path, backbone: str):
    """The net that is explained: that of the subject-wise split."""
    return load_net(nets_folder(config, run_dir), backbone, config)


def images_of(stack: dict, index: np.ndarray, config: StudyConfig) -> np.ndarray:
    """Slices of a stack as the net takes them, float32 (n, H, W, M)."""
    images = stack["images"][index].astype("float32")
    channels = channels_of(config)
    return images if channels is None else images[..., channels]


def target_of(person, config: StudyConfig) -> int:
    """Class of a patient; raises StudyError where the nets do not know it."""
    if person.group not in config.groups:
        raise StudyError(f"sub-{person.id}: group {person.group} is none of the nets' classes {config.groups}")
    return config.groups.index(person.group)


def _measure_subject(model, person, stack, config, top_mm=None) -> pd.DataFrame:
    """Measures of every explained slice, layer and method of one patient (the patient's own class)."""
    index = explained_slices(person, stack)
    if not len(index):
        return pd.DataFrame()
    targets = np.full(len(index), target_of(person, config))
    cams = layer_cams(model, images_of(stack, index, config), targets, methods=config.explain.methods, upsample=False)
    lesion, brain = stack["lesion"][index], stack["brain"][index]
    lobes = lobe_labels(stack, top_mm)[index]
    tables = []
    for method, of_layer in cams.items():
        for layer, raw in of_layer.items():
            heat = upsample_maps(raw, brain.shape[1:])
            table = measure_maps(heat, lesion & brain, brain)
            table.insert(0, "slice", index)
            if method == "gradcam":
                shares = [lobe_shares(h, b) for h, b in zip(heat, lobes)]
                even = [lobe_shares(b.astype(np.float32), where) for b, where in zip(brain, lobes)]
                table = pd.concat([table, pd.DataFrame(shares).add_prefix("lobe "),
                                   pd.DataFrame(even).add_prefix("brain ")], axis=1)
            tables.append(table.assign(layer=layer, method=method))
    return pd.concat(tables, ignore_index=True).assign(subject=person.id, group=person.group, cohort=person.cohort)


def measure_subject(model, backbone: str, person, config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Measures of one patient, taken up from ``maps/<backbone>/sub-<id>.csv`` where they are finished."""
    path = Path(run_dir) / "maps" / backbone / f"sub-{person.id}.csv"
    if not path.exists():
        mask = subject_folder(run_dir, person.id) / "anat" / f"sub-{person.id}_space-T1w_desc-brain_mask.nii.gz"
        table = _measure_subject(model, person, stack_of(run_dir, person.id), config, brain_top(nib.load(mask)))
        write_table(path, table, float_format="%.6g")
    try:
        return pd.read_csv(path, dtype={"subject": str})
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def example_maps(model, backbone: str, config: StudyConfig, run_dir: str | Path) -> dict[str, np.ndarray]:
    """Grad-CAM of all layers for the published slices of the example patient, kept as ``maps/<backbone>/example.npz``.

    Returns
    -------
    dict
        ``slices`` (indices from 0), ``flair``, ``lesion``, ``brain`` (3, H, W), ``subject``, ``group``, ``predicted``
        (the net's class of each slice), and one (3, H, W) map per layer.
    """
    path = Path(run_dir) / "maps" / backbone / "example.npz"
    if not path.exists():
        person = example_subject(config, run_dir)
        stack = stack_of(run_dir, person.id)
        n = len(stack["images"])
        index = np.array([min(n - 1, round((number - 1) * n / 135)) for number in PUBLISHED_SLICES])
        if config.cohort.source == "open_ms":
            busiest = int(stack["lesion"].sum(axis=(1, 2)).argmax())
            index = np.clip([busiest - 1, busiest, busiest + 1], 0, n - 1)
        images = images_of(stack, index, config)
        cams = layer_cams(model, images, np.full(len(index), target_of(person, config)))
        predicted = np.array(config.groups)[np.asarray(model(images, training=False)).argmax(axis=1)]
        with atomic_path(path) as temporary:
            np.savez(temporary, slices=index, subject=person.id, group=person.group, predicted=predicted,
                     flair=stack["images"][index][..., config.sequences.index("FLAIR")],
                     lesion=stack["lesion"][index], brain=stack["brain"][index], **cams["gradcam"])
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored}


def example_sentence(examples: dict[str, dict]) -> str:
    """Whose maps are shown, of which group, and whether each net is right about each slice (for captions)."""
    first = next(iter(examples.values()))
    group = str(first["group"])
    told = [f"{backbone.upper()} says " + ", ".join(
        f"{name} ({'right' if name == group else 'wrong'})" for name in map(str, one["predicted"]))
        for backbone, one in examples.items()]
    return (f"Patient sub-{first['subject']}, group {group}; heat for the class {group}. Class of the shown slices, "
            f"left to right: {'; '.join(told)}.")


def headline_sentence(backbone: str, one: dict, index: int) -> str:
    """What the picture of one slice and one net shows, and whether the net is right about that slice.

    Parameters
    ----------
    backbone : str
    one : dict
        From `example_maps`.
    index : int
        Which of its slices is shown.
    """
    group, predicted = str(one["group"]), str(one["predicted"][index])
    return (f"Slice {one['slices'][index] + 1} of patient sub-{one['subject']}, {group}. Left: FLAIR. Then Grad-CAM "
            f"of {backbone.upper()} for the class {group}, from shallow to deep, each scaled to its own maximum; "
            f"the net takes this slice for {predicted} ({'right' if predicted == group else 'wrong'}). Good: bright on "
            "lesions, dark elsewhere.")


def write_volume(model, backbone: str, person, config: StudyConfig, run_dir: str | Path) -> Path:
    """Grad-CAM of all slices in T1w space: 4-D over layers, with a JSON file that names them."""
    path = volume_path(backbone, run_dir, person.id)
    made_of = {"Weights": file_sha256(weights_path(config, run_dir, backbone)), "Code": made_by("mslib.jobs.maps"),
               "Subject": file_sha256(qc_path(run_dir, person.id))}

    def of_layers(stack):
        targets = np.full(len(stack["images"]), target_of(person, config))
        return layer_cams(model, images_of(stack, slice(None), config), targets)["gradcam"]

    told = {"Description": "Grad-CAM, raw values, not normalised; modality-blind", "Backbone": backbone}
    return keep_volume(path, person, stack_path(run_dir, person.id), of_layers, "Layers", made_of, told, np.int16)


def randomisation_table(model, backbone: str, config: StudyConfig, run_dir: str | Path) -> pd.DataFrame:
    """Cascading randomisation over explained slices spread evenly over the explained patients."""
    path = Path(run_dir) / "maps" / backbone / "randomisation.csv"
    if not path.exists():
        people = explained_subjects(config, run_dir)
        images, targets, brains, names = [], [], [], []
        each = max(1, config.explain.randomisation_slices // len(people))
        for person in people:
            stack = stack_of(run_dir, person.id)
            index = evenly(explained_slices(person, stack), each)
            images.append(images_of(stack, index, config))
            brains.append(stack["brain"][index])
            targets += [target_of(person, config)] * len(index)
            names += [person.id] * len(index)
        table = cascading_randomisation(model, np.concatenate(images), np.array(targets), seed=config.seed,
                                        mask=np.concatenate(brains),
                                        progress=partial(progress, desc=f"{backbone}: randomisation", unit="layer"))
        write_table(path, table.assign(subject=table["image"].map(dict(enumerate(names)))), float_format="%.5g")
    return pd.read_csv(path, dtype={"subject": str})


def map_facts(config: StudyConfig, run_dir: str | Path, backbone: str) -> dict:
    """What decides the maps of a net: its weights, settings, code, and the preprocessed subjects."""
    people = usable_subjects(config, run_dir)
    return {"weights": file_sha256(weights_path(config, run_dir, backbone)), "code": made_by("mslib.jobs.maps"),
            "settings": json.loads(config.model_dump_json(include=DECIDE)),
            "subjects": {person.id: file_sha256(qc_path(run_dir, person.id)) for person in people}}


def make_maps(config: StudyConfig, run_dir: str | Path, backbone: str) -> pd.DataFrame:
    """All of notebook 03's computation for one net; what is finished is taken up.

    Returns
    -------
    pandas.DataFrame
        One row per patient, slice, layer and method with the measures of `mslib.measure.measure_maps`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    model = net(config, run_dir, backbone)
    stamped_folder(Path(run_dir) / "maps" / backbone, map_facts(config, run_dir, backbone))
    people = explained_subjects(config, run_dir)
    tables = [measure_subject(model, backbone, person, config, run_dir)
              for person in progress(people, desc=f"{backbone}: maps and measures", unit="subject")]
    example_maps(model, backbone, config, run_dir)
    for person in progress(volume_subjects(config, run_dir), desc=f"{backbone}: volumes", unit="subject"):
        write_volume(model, backbone, person, config, run_dir)
    randomisation_table(model, backbone, config, run_dir)
    return pd.concat(tables, ignore_index=True)

