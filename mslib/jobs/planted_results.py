"""What the methods say of planted nets: maps, layers, the shortcut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mslib.explain import METHODS, attribute, layer_cams, postprocess
from mslib.measure import bootstrap_subjects, feature_importance_score, feature_portions
from mslib.nets import SliceSet
from mslib.nets.planted import shortcut_mask
from mslib.study import StudyConfig, write_json
from mslib.study.provenance import file_sha256

from .attribution_checks import randomisation_scores
from .attribution_scores import SIGMA
from .attributions import kept_maps
from .planted import Experiment, control_slices, experiments, explained_set, has_planted, planted_folder, planted_net

#: Layers whose Grad-CAM is held against the truth.
SWEPT = ("block3_conv", "block4_conv", "block5_conv")


def planted_maps(experiment: Experiment, slices: dict[str, SliceSet], config: StudyConfig, run_dir: str | Path,
                 repeat: int = 0) -> dict:
    """Maps of a planted net by all methods, with the truth; keys as in `mslib.jobs.attributions.all_patient_maps`.

    Besides: ``features``, (N, H, W, M), where each sequence's mark is; ``corner``, (N,), whether the shortcut is there.
    """
    model, marked = planted_net(experiment, slices, config, run_dir, repeat), explained_set(experiment, slices, config)
    images, targets = marked.slices.images.astype("float32"), marked.slices.table["target"].to_numpy()
    folder = planted_folder(run_dir, experiment, repeat)
    facts = {"weights": file_sha256(folder / "weights.weights.h5"), "slices": marked.slices.digest()}
    maps, seconds = kept_maps(model, images, targets, marked.brain, config, folder / "maps", facts,
                              METHODS, f"planted net, {experiment.name} {repeat + 1}: attributions")
    return {"model": model, "maps": maps, "seconds": seconds, "images": images, "targets": targets,
            "brain": marked.brain, "features": marked.marks, "corner": marked.corner, "folder": folder, "facts": facts,
            "subjects": marked.slices.table["subject"].tolist()}


def repeated_experiment(config: StudyConfig) -> Experiment:
    """The experiment that is trained from a second seed: the last sequence decides."""
    return experiments(config)[len(config.sequences) - 1]


def make_planted(config: StudyConfig, run_dir: str | Path) -> None:
    """The job of the planted nets, which need no net of the study: trained, explained by every method, and randomised.

    Notebook 04 takes them up; their names in ``planted/nets.json`` say that they are done.
    """
    made = []
    if has_planted(config):
        slices, repeated = control_slices(config, run_dir), repeated_experiment(config)
        for experiment in experiments(config):
            for repeat in range(config.attribution.planted.seeds if experiment == repeated else 1):
                one = planted_maps(experiment, slices, config, run_dir, repeat)
                if experiment == repeated and not repeat:
                    randomisation_scores(one, config)
                made.append(planted_folder(run_dir, experiment, repeat).name)
    write_json(Path(run_dir) / "planted" / "nets.json", made)


def layer_sweep(one: dict, features, importance, config: StudyConfig, label: str) -> pd.DataFrame:
    """MSFI of Grad-CAM and Guided Grad-CAM at every convolution of blocks 3 to 5.

    Parameters
    ----------
    one : dict
        From `planted_maps` or `all_patient_maps`.
    features : ndarray of bool, (N, H, W, M)
    importance : ndarray, (M,)
    label : str
        Column ``backbone``: whose net it is.

    Returns
    -------
    pandas.DataFrame
        ``backbone, method, layer, measure, value, low, high, chance, blank``.
    """
    model, images, targets, brain = (one[key] for key in ("model", "images", "targets", "brain"))
    layers = [layer.name for layer in model.layers if layer.name.startswith(SWEPT)]
    cams = layer_cams(model, images, targets, layers, ("gradcam",))["gradcam"]
    guided = attribute("guided_backprop", model, images, targets)
    even = feature_portions(np.repeat(brain[..., None], images.shape[-1], -1).astype(float), features, brain)
    chance, rows = feature_importance_score(even, importance).mean(), []
    for layer, cam in cams.items():
        for method, raw in (("gradcam", np.repeat(cam[..., None], images.shape[-1], -1)),
                            ("guided_gradcam", guided * cam[..., None])):
            portions = feature_portions(postprocess(raw, SIGMA), features, brain)
            score = feature_importance_score(portions, importance)
            found = bootstrap_subjects(score, one["subjects"], n=config.statistics.bootstrap,
                                       confidence=config.statistics.confidence, seed=config.seed)
            rows.append({"backbone": label, "method": method, "layer": layer, "measure": "msfi",
                         "value": found.estimate, "low": found.low, "high": found.high, "chance": chance,
                         "blank": int(np.isnan(portions).all(1).sum())})
    return pd.DataFrame(rows)


def shortcut_table(one: dict, config: StudyConfig) -> pd.DataFrame:
    """Share of every map's positive attribution that lies on the shortcut, of slices that show it.

    Returns
    -------
    pandas.DataFrame
        By method: ``value``, ``low``, ``high`` (subject bootstrap), ``chance`` (its share of the picture), ``blank``
        (maps without positive attribution), ``slices`` and ``subjects`` that show it, ``exposed``: the lower limit
        lies above chance.
    """
    square = shortcut_mask(one["images"].shape[1:3], config.model.pixel_mm)
    shown, rows = one["corner"], []
    names = np.asarray(one["subjects"])[shown]
    for method, maps in one["maps"].items():
        heat = np.maximum(maps[shown], 0).sum(-1)
        total = heat.sum((1, 2))
        share = np.divide(heat[:, square].sum(1), total, out=np.full(len(heat), np.nan), where=total > 0)
        found = bootstrap_subjects(share, names, n=config.statistics.bootstrap,
                                   confidence=config.statistics.confidence, seed=config.seed)
        rows.append({"method": method, "value": found.estimate, "low": found.low, "high": found.high,
                     "chance": square.mean(), "blank": int((total <= 0).sum()), "slices": int(shown.sum()),
                     "subjects": len(set(names)), "exposed": bool(found.low > square.mean())})
    return pd.DataFrame(rows).set_index("method")
