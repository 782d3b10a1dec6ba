"""The protocols of notebook 02: which slices train, which are tested, with which labels."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from mslib.study import StudyConfig, StudyError, stamped_folder, write_json, write_table
from mslib.study.provenance import ROOT, file_sha256, made_by

from .data import SliceSet, channels_of
from .frozen import frozen_activations, split_net
from .further import further_slices
from .heads import SLICES_OUTSIDE, fit_subject_head, subject_features
from .pretraining import pretrained_weights, training_rows
from .splits import permute_groups, refuse_leakage, split_slices, split_subjects
from .training import Recipe, choose_precision, finish, fit, stream
from .vgg import build_classifier, build_trainable, fold_batch_norm

#: Protocol name to (split unit, labels permuted between subjects).
PROTOCOLS = {"subject": ("subject", False), "slice": ("slice", False),
             "subject_permuted": ("subject", True), "slice_permuted": ("slice", True)}


def assign_parts(protocol: str, slices: SliceSet, config: StudyConfig) -> pd.Series:
    """Part (``train``, ``validation``, ``test``) of every slice under a protocol."""
    table = slices.table
    if PROTOCOLS[protocol][0] == "slice":
        return split_slices(table["group"], config.training.split, config.seed)
    groups = table.groupby("subject")["group"].first()
    parts = table["subject"].map(split_subjects(groups, config.training.split, config.seed))
    refuse_leakage(table["subject"], parts)
    return parts


def _schedule(protocol, config):
    if PROTOCOLS[protocol][1]:
        return config.training.permuted
    return getattr(config.training, protocol)


def _start(backbone, config, run_dir, shape, shrink):
    """The net before fine-tuning, the origin of its weights in words, and the arithmetic of its training."""
    weights, n_classes = config.model.weights, len(config.groups)
    precision = choose_precision(config.training.precision)
    if weights in ("scratch", "simulated"):
        model = build_trainable(backbone, n_classes, shape, precision)
        if weights == "scratch":
            return model, "trained from scratch", precision
        model.set_weights(pretrained_weights(backbone, config, run_dir, shrink))
        return model, (f"pre-trained on {config.training.pretraining_subjects} further simulated subjects of the same "
                       "groups, outside every cohort of the study"), precision
    origin = "ImageNet (keras.applications)" if weights == "imagenet" else f"file {Path(weights).name}"
    weights = weights if weights == "imagenet" else ROOT / weights
    return build_classifier(backbone, n_classes, shape, weights), origin, "float32"


def _finished(model):
    return fold_batch_norm(model) if any(isinstance(layer, keras.layers.BatchNormalization)
                                         for layer in model.layers) else model


def training_facts(protocol: str, config: StudyConfig, slices: SliceSet) -> dict:
    """What decides a fitted net: settings, its own schedule and not the other protocols', code, slices."""
    others = {"training": {"subject", "slice", "permuted"}, "model": {"backbones"}}
    settings = config.model_dump_json(include={"seed", "groups", "sequences", "model", "training"}, exclude=others)
    facts = {"settings": json.loads(settings), "schedule": _schedule(protocol, config).model_dump(),
             "code": made_by("mslib.nets.protocols"), "slices": slices.digest()}
    given = ROOT / config.model.weights
    return facts | {"weights": file_sha256(given)} if given.is_file() else facts


def _fit(model, slices, index, folder, recipe, channels, label):
    """Train all of the net, or what lies above its frozen blocks."""
    blocks = recipe.schedule.frozen_blocks
    trained = model
    if blocks:
        lower, trained = split_net(model, blocks)
        kept = folder.with_name(f"frozen{blocks}_shrink{recipe.schedule.shrink}")
        slices = frozen_activations(lower, slices, kept, channels, f"{model.name} blocks 1 to {blocks}")
    fit(trained, slices, index["train"], index["validation"], folder, recipe, label)


def _fit_head(model, slices, train, config, run_dir, channels):
    """Fit the last layer to the training subjects, and to those further ones that the net was pre-trained on.

    The net is the plain one in float32 that is reported: what bfloat16 rounds differently would not be learnt away.
    """
    label = f"{model.name} pooled features"
    own, others = subject_features(model, slices, train, channels, label), None
    if config.model.weights == "simulated":
        further = further_slices(config, run_dir)
        others = subject_features(model, further, training_rows(further, config), channels, f"{label}, further",
                                  SLICES_OUTSIDE)
    return fit_subject_head(model, own, others, config.seed)


def trained_net(protocol: str, backbone: str, slices: SliceSet, parts: pd.Series, config: StudyConfig,
                run_dir: str | Path, folder: Path, seed: int, label: str) -> tuple[keras.Model, dict]:
    """The plain net of a protocol, trained or taken up unfinished, and what is to be recorded of it.

    Parameters
    ----------
    protocol : str
        Of `PROTOCOLS`.
    backbone : {"vgg16", "vgg19"}
    slices : SliceSet
        At the pixels of the protocol's schedule, with the labels to be learnt.
    parts : pandas.Series
        From `assign_parts`.
    config : StudyConfig
    run_dir : path
        Of the study: pre-trained weights and further subjects.
    folder : Path
        For the state of an unfinished training.
    seed : int
        Of draws, augmentation and what starts at random.
    label : str
        Text of the bars.

    Returns
    -------
    model : keras.Model
        Batch norm folded.
    record : dict
        For ``net.json``.
    """
    schedule, channels = _schedule(protocol, config), channels_of(config)
    index = {part: np.flatnonzero(parts == part) for part in ("train", "validation")}
    keras.utils.set_random_seed(seed)
    shape = (*slices.images.shape[1:3], len(config.sequences))
    model, origin, precision = _start(backbone, config, run_dir, shape, schedule.shrink)
    recipe = Recipe.of(schedule, config, seed=seed)
    _fit(model, slices, index, folder, recipe, channels, label)
    plain = _finished(model)
    with_head = config.training.subject_head and protocol == "subject"
    penalty = _fit_head(plain, slices, index["train"], config, run_dir, channels) if with_head else None
    return plain, {
        "backbone": backbone, "protocol": protocol, "weights": origin, "training_precision": precision,
        "input": config.model.input, "pixel_mm": config.model.pixel_mm * schedule.shrink, "epochs": schedule.epochs,
        "slices_per_subject": schedule.slices_per_subject, "learning_rate": schedule.learning_rate,
        "frozen_blocks": schedule.frozen_blocks, "augmented": recipe.augmentation is not None,
        "batch_size": recipe.batch_size, "subject_head": penalty}


def train_protocol(protocol: str, backbone: str, slices: SliceSet, config: StudyConfig,
                   run_dir: str | Path) -> pd.DataFrame:
    """Train one net under one protocol (or take up a finished or unfinished earlier run).

    Parameters
    ----------
    protocol : {"subject", "slice", "subject_permuted", "slice_permuted"}
    backbone : {"vgg16", "vgg19"}
    slices : SliceSet
        The study cohort.
    config : StudyConfig
    run_dir : path
        Writes ``nets/<backbone>/<protocol>/``: ``weights.weights.h5`` (folded, plain net), ``history.csv``,
        ``predictions.csv`` (slices of validation and test), ``net.json`` (origin of weights, precision).

    Returns
    -------
    pandas.DataFrame
        The predictions: ``subject, slice, group, target, part, logit_<class>``.
    """
    if protocol not in PROTOCOLS:
        raise StudyError(f"protocol: must be one of {list(PROTOCOLS)} (got {protocol!r})")
    folder = stamped_folder(Path(run_dir) / "nets" / backbone / protocol, training_facts(protocol, config, slices))
    predictions = folder / "predictions.csv"
    weights = folder / "weights.weights.h5"
    if all(path.exists() for path in (predictions, folder / "net.json", weights)):
        return pd.read_csv(predictions, dtype={"subject": str})
    if PROTOCOLS[protocol][1]:
        groups = slices.table.groupby("subject")["group"].first()
        permuted = permute_groups(groups, config.seed)
        table = slices.table.assign(group=slices.table["subject"].map(permuted))
        table["target"] = table["group"].map({name: i for i, name in enumerate(config.groups)}).astype(int)
        slices = SliceSet(slices.images, table)
    parts = assign_parts(protocol, slices, config)
    slices = slices.shrunk(_schedule(protocol, config).shrink)
    plain, record = trained_net(protocol, backbone, slices, parts, config, run_dir, folder, config.seed,
                                f"{backbone} {protocol}")
    shown = slices.table.assign(part=parts.to_numpy())
    shown = shown[shown["part"] != "train"].reset_index()
    logits = stream(plain, slices, shown["index"].to_numpy(), channels_of(config))
    table = pd.concat([shown.drop(columns="index"), logit_table(logits, config.groups)], axis=1)
    write_table(predictions, table)
    write_json(folder / "net.json", record)
    finish(plain, weights)
    return pd.read_csv(predictions, dtype={"subject": str})


def logit_table(logits: np.ndarray, groups: list[str]) -> pd.DataFrame:
    """Logits as columns ``logit_<class>``."""
    return pd.DataFrame(logits, columns=[f"logit_{group}" for group in groups]).round(5)


def load_net(run_dir: str | Path, backbone: str, config: StudyConfig, protocol: str = "subject") -> keras.Model:
    """The fitted plain net of a protocol, at the configured image size.

    Raises
    ------
    StudyError
        Not trained yet (says which study to run first).
    """
    path = Path(run_dir) / "nets" / backbone / protocol / "weights.weights.h5"
    if not path.is_file():
        raise StudyError(f"{path}: no fitted {backbone}; run the study that trains it first "
                         f"(snakemake --config study={Path(run_dir).name})")
    shape = (*config.model.image_size, len(config.sequences))
    return build_classifier(backbone, len(config.groups), shape, path)


def net_facts(run_dir: str | Path, backbone: str, protocol: str) -> dict:
    """Origin of the weights, arithmetic of the training and input of a fitted net."""
    return json.loads((Path(run_dir) / "nets" / backbone / protocol / "net.json").read_text(encoding="utf-8"))


def predict_cohort(model: keras.Model, slices: SliceSet, config: StudyConfig) -> pd.DataFrame:
    """Predictions of a fitted net for every slice of another cohort."""
    logits = stream(model, slices, np.arange(len(slices.table)), channels_of(config))
    return pd.concat([slices.table, logit_table(logits, config.groups)], axis=1)

