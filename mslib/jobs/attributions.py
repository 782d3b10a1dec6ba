"""Jobs of notebook 04: the maps of all sixteen methods, kept per subject and method."""

from __future__ import annotations

import json
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.explain import METHODS, attribute, superpixels
from mslib.study import StudyConfig, StudyError, atomic_path, progress, stamped_folder, write_json
from mslib.study.provenance import code_digest, file_sha256

from .cohort import qc_path
from .explained import attributed_subjects, stack_of
from .maps import images_of, net, target_of, weights_path

#: Values change places between images: made for all patients together, not for one.
JOINT = ("feature_permutation",)
#: Window and step of the occlusion, pixels (Jin et al. 2022).
WINDOW, STRIDE = 11, 5


def method_parameters(method: str, config: StudyConfig, groups, shared) -> dict:
    """Settings of a method in this study.

    Parameters
    ----------
    groups : ndarray, (N, H, W, M)
        Superpixels of every image and modality.
    shared : ndarray, (H, W, M)
        Superpixels that all images share, each modality's own.
    """
    given, own = config.attribution, {"groups": groups}
    chosen = {"integrated_gradients": {"steps": given.steps},
              "occlusion": {"window": WINDOW, "stride": STRIDE},
              "feature_ablation": own, "lime": own | {"samples": given.samples},
              "kernel_shap": own | {"samples": given.samples},
              "shapley_sampling": own | {"permutations": given.permutations},
              "feature_permutation": {"groups": shared, "permutations": given.permutations}}.get(method, {})
    return chosen | ({"seed": config.seed} if "seed" in METHODS[method].parameters else {})


def groups_of(images, brain, config: StudyConfig) -> tuple[np.ndarray, np.ndarray]:
    """Superpixels of every image, and those that all images share; each modality's own in both."""
    segments = config.attribution.superpixels
    mean = images.mean(0, keepdims=True)
    return superpixels(images, segments, mask=brain), superpixels(mean, segments, mask=brain.any(0))[0]


def kept_maps(model: keras.Model, images, targets, brain, config: StudyConfig, folder: str | Path, facts: dict,
              methods, label: str) -> tuple[dict[str, np.ndarray], pd.Series]:
    """Maps of methods, each kept as ``<method>.npz`` as soon as it is made.

    Parameters
    ----------
    model : keras.Model
    images : ndarray of float32, (N, H, W, M)
    targets : ndarray of int, (N,)
    brain : ndarray of bool, (N, H, W)
    config : StudyConfig
    folder : path
    facts : dict
        What decides the maps beside code and settings of the methods.
    methods : iterable of str
    label : str
        Text of the bar.

    Returns
    -------
    maps : dict of str to ndarray of float32, (N, H, W, M)
    seconds : pandas.Series
        Per image, by method, when it was made.
    """
    settings = json.loads(config.attribution.model_dump_json(exclude={"planted", "patients", "shapley_slices", "fills",
                                                                      "levels"}))
    folder = stamped_folder(folder, facts | {
        "code": code_digest("mslib.explain.methods"), "settings": settings, "seed": config.seed,
        "parameters": {method: method_parameters(method, config, None, None) for method in METHODS}})
    groups = shared = None
    maps, seconds = {}, {}
    for method in progress(list(methods), desc=label, unit="method"):
        path = folder / f"{method}.npz"
        if not path.exists():
            if groups is None:
                groups, shared = groups_of(images, brain, config)
            start = time.perf_counter()
            found = attribute(method, model, images, targets, **method_parameters(method, config, groups, shared))
            spent = (time.perf_counter() - start) / len(images)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, maps=found, seconds=spent)
        with np.load(path, allow_pickle=False) as stored:
            maps[method], seconds[method] = stored["maps"], float(stored["seconds"])
    return maps, pd.Series(seconds, dtype=float)


def fullest_slice(person, config: StudyConfig, run_dir: str | Path) -> dict:
    """The slice of a patient that shows most lesion (without a mask: most brain).

    Returns
    -------
    dict
        ``images`` (1, H, W, M), ``brain`` and ``lesion`` (1, H, W), ``slice``.
    """
    stack = stack_of(run_dir, person.id)
    content = stack["lesion"] if stack["lesion"].any() else stack["brain"]
    index = int(content.sum(axis=(1, 2)).argmax())
    return {"images": images_of(stack, np.array([index]), config), "brain": stack["brain"][index][None],
            "lesion": stack["lesion"][index][None], "slice": index}


def _facts(config, run_dir, backbone, slices):
    return {"weights": file_sha256(weights_path(config, run_dir, backbone)), "input": config.model.input,
            "groups": config.groups, "slices": slices,
            "subjects": {name: file_sha256(qc_path(run_dir, name)) for name in slices}}


def patient_maps(model: keras.Model, backbone: str, person, config: StudyConfig, run_dir: str | Path):
    """Maps of one patient's fullest slice by every method that needs no other patient (one job per subject).

    Parameters
    ----------
    person : Subject

    Returns
    -------
    maps, seconds
        As `kept_maps`.
    """
    one = fullest_slice(person, config, run_dir)
    folder = Path(run_dir) / "attributions" / backbone / f"sub-{person.id}"
    facts = _facts(config, run_dir, backbone, {person.id: one["slice"]})
    return kept_maps(model, one["images"], np.array([target_of(person, config)]), one["brain"], config, folder, facts,
                     [name for name in METHODS if name not in JOINT], f"{backbone}: attributions of sub-{person.id}")


def attribute_subject(config: StudyConfig, run_dir: str | Path, backbone: str, subject: str) -> None:
    """The job of one patient; its list of methods in ``attributions/<backbone>/sub-<id>.json`` says that it is done."""
    people = {person.id: person for person in attributed_subjects(config, run_dir)}
    if subject not in people:
        raise StudyError(f"--subject: must be a patient of notebook 04, one of {', '.join(people)} (got {subject!r})")
    maps, _ = patient_maps(net(config, run_dir, backbone), backbone, people[subject], config, run_dir)
    write_json(Path(run_dir) / "attributions" / backbone / f"sub-{subject}.json", sorted(maps))


def all_patient_maps(config: StudyConfig, run_dir: str | Path, backbone: str) -> dict:
    """Maps of all attributed patients by all methods; what is finished is taken up.

    Returns
    -------
    dict
        ``model``, ``maps`` (by method, (N, H, W, M)), ``seconds`` (per image, by method), ``images``, ``targets``,
        ``brain``, ``lesion``, ``subjects`` and ``slices`` of N patients; ``folder`` that maps are kept in, ``facts``
        that decide them beside code and settings.
    """
    people, model = attributed_subjects(config, run_dir), net(config, run_dir, backbone)
    if len(people) < 2:
        raise StudyError(f"{run_dir}: notebook 04 needs two patients at least, because Feature Permutation takes "
                         f"values from one to the other (got {len(people)})")
    chosen = [fullest_slice(person, config, run_dir) for person in people]
    joined = {key: np.concatenate([one[key] for one in chosen]) for key in ("images", "brain", "lesion")}
    images, targets = joined["images"], np.array([target_of(person, config) for person in people])
    each = [patient_maps(model, backbone, person, config, run_dir)
            for person in progress(people, desc=f"{backbone}: patients", unit="subject")]
    folder = Path(run_dir) / "attributions" / backbone
    facts = _facts(config, run_dir, backbone, {person.id: one["slice"] for person, one in zip(people, chosen)})
    together, spent = kept_maps(model, images, targets, joined["brain"], config, folder / "together", facts, JOINT,
                                f"{backbone}: all patients")
    maps = {name: together[name] if name in JOINT else np.concatenate([own[name] for own, _ in each])
            for name in METHODS}
    seconds = pd.concat([pd.concat([one for _, one in each], axis=1).mean(1), spent]).reindex(list(METHODS))
    return {"model": model, "maps": maps, "seconds": seconds, "images": images, "targets": targets,
            "brain": joined["brain"], "lesion": joined["lesion"], "subjects": [person.id for person in people],
            "slices": [one["slice"] for one in chosen], "folder": folder, "facts": facts}
