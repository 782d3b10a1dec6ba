"""Training that resumes: balanced epochs, re-estimated batch norm, best checkpoint, folded result."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mslib.study import StudyError, atomic_path, progress, write_table
from mslib.study.config import Augmentation, Schedule, StudyConfig

from .data import SliceSet, balanced_draw, channels_of, make_augmenter


@dataclass(frozen=True)
class Recipe:
    """What `fit` needs besides net and slices (no augmentation: slices stay as they are)."""

    schedule: Schedule
    augmentation: Augmentation | None
    batch_size: int
    weight_decay: float
    patience: int
    seed: int
    channels: list[int] | None = None
    facts_weight: float = 1.0

    @classmethod
    def of(cls, schedule: Schedule, config: StudyConfig, **changes) -> Recipe:
        """A schedule with the settings that all trainings of a study share, and `changes` of them."""
        training = config.training
        shared = {"augmentation": training.augmentation if schedule.augmented and not schedule.frozen_blocks else None,
                  "batch_size": schedule.batch_size or training.batch_size, "weight_decay": training.weight_decay,
                  "patience": training.patience, "seed": config.seed, "facts_weight": training.facts_weight,
                  "channels": None if schedule.frozen_blocks else channels_of(config)}
        return cls(schedule, **shared | changes)


def choose_precision(wanted: str) -> str:
    """bfloat16 where the CPU computes with it natively, else float32; an explicit wish is obeyed.

    Parameters
    ----------
    wanted : {"auto", "float32", "bfloat16"}
    """
    if wanted != "auto":
        return wanted
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def stream(model: keras.Model, slices: SliceSet, index: np.ndarray, channels=None, label: str = "predict",
           dtype: str = "float32", batch_size: int = 64) -> np.ndarray:
    """Output of a net in evaluation mode for the slices at `index`, streamed in batches, with a bar.

    Parameters
    ----------
    model : keras.Model
    slices : SliceSet
    index : ndarray of int
    channels : list of int, optional
        As in `SliceSet.batch`.
    label : str
        Text of the bar.
    dtype : str
        Type that the output is kept in.
    batch_size : int

    Returns
    -------
    ndarray, shape (len(index), ...)
    """
    forward = tf.function(lambda images: tf.cast(model(images, training=False), tf.float32), reduce_retracing=True)
    parts = [forward(tf.constant(slices.batch(index[start:start + batch_size], channels))).numpy().astype(dtype)
             for start in progress(range(0, len(index), batch_size), desc=label, unit="batch")]
    return np.concatenate(parts)


def refresh_batch_norm(model: keras.Model, slices: SliceSet, index: np.ndarray, recipe: Recipe,
                       n_batches: int = 20) -> None:
    """Re-estimate the running statistics of batch norm on un-augmented training slices.

    They lag behind the weights while the learning rate is high; evaluating or folding with stale ones costs
    accuracy. A forward pass in training mode moves them by 1 - momentum, and nothing else.
    """
    forward = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
    rng = np.random.default_rng([recipe.seed, 77])
    targets = slices.table["target"].to_numpy()
    for _ in range(n_batches):
        forward(tf.constant(slices.batch(balanced_draw(targets, index, recipe.batch_size, rng), recipe.channels)))


def _optimizer(recipe, steps):
    warmup = max(1, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.schedule.learning_rate / 20, max(1, steps - warmup), alpha=0.01,
        warmup_target=recipe.schedule.learning_rate, warmup_steps=warmup)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _weight_arrays(model):
    return {f"weight_{i:03d}": weight for i, weight in enumerate(model.get_weights())}


def _save_weights(path, model, **more):
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **_weight_arrays(model), **more)


def _save_state(folder, model, optimizer, history):
    # The state last: a history that is one epoch ahead of it is cut when the training goes on.
    write_table(folder / "history.csv", pd.DataFrame(history))
    slots = {f"slot_{i:03d}": variable.numpy() for i, variable in enumerate(optimizer.variables)}
    _save_weights(folder / "state.npz", model, **slots)


def _load_weights(path, model):
    with np.load(path, allow_pickle=False) as stored:
        model.set_weights([stored[key] for key in sorted(stored) if key.startswith("weight_")])


def _load_state(folder, model, optimizer):
    """Epochs done so far; none if there is no whole state (a damaged one is named and left out)."""
    path = folder / "state.npz"
    try:
        history = pd.read_csv(folder / "history.csv").to_dict("records")
        with np.load(path, allow_pickle=False) as stored:
            slots = [stored[key] for key in sorted(stored) if key.startswith("slot_")]
        _load_weights(path, model)
    except FileNotFoundError:
        return []
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError, pd.errors.ParserError) as error:
        print(f"{path}: damaged state of an earlier run ({error}); this training starts again")
        return []
    for variable, value in zip(optimizer.variables, slots, strict=True):
        variable.assign(value)
    return history[: int(slots[0]) // max(1, int(history[0]["steps"]))]


def _evaluate(model, slices, index, recipe):
    logits = stream(model, slices, index, recipe.channels)
    targets = slices.table["target"].to_numpy()[index]
    loss = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True).numpy().mean()
    return float(loss), float((logits.argmax(1) == targets).mean())


def _run_epoch(trainer, augment, slices, order, recipe, epoch, bar):
    """Mean loss of the classes and accuracy (running, as the weights change) of one epoch."""
    losses, accuracies = [], []
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        index = order[start:start + recipe.batch_size]
        images = augment(tf.constant(slices.batch(index, recipe.channels)), tf.constant([recipe.seed + epoch, start]))
        values = trainer.train_on_batch(images, slices.truth(index), return_dict=True)
        losses.append(float(values.get(f"{trainer.output_names[0]}_loss", values["loss"])))
        accuracies.append(float(next(value for name, value in values.items() if name.endswith("accuracy"))))
        bar.update()
    return float(np.mean(losses)), float(np.mean(accuracies))


def _trainer(model, facts_head, optimizer, facts_weight=1.0):
    """The compiled net; with a head for known facts on its pooled features where there is one."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if facts_head is None:
        trainer, settings = model, {"loss": loss, "metrics": ["accuracy"]}
    else:
        pooled = model.get_layer("gap").output
        trainer = keras.Model(model.input, [model.output, facts_head(pooled)])
        settings = {"loss": [loss, "mse"], "loss_weights": [1.0, facts_weight], "metrics": [["accuracy"], []]}
    trainer.compile(optimizer, **settings)
    optimizer.build(trainer.trainable_variables)
    return trainer


def fit(model: keras.Model, slices: SliceSet, train: np.ndarray, validation: np.ndarray, folder: str | Path,
        recipe: Recipe, label: str = "training", facts_head: keras.layers.Layer | None = None) -> pd.DataFrame:
    """Train, keep the epoch with the lowest validation loss, resume where an earlier call was stopped.

    Parameters
    ----------
    model : keras.Model
        Net of `build_trainable` (or a plain one); left with the best weights.
    slices : SliceSet
    train, validation : ndarray of int
        Rows of `slices`.
    folder : path
        ``state.npz`` (last epoch), ``best.npz``, ``history.csv``.
    recipe : Recipe
    label : str
        Text of the progress bar.
    facts_head : keras.layers.Layer, optional
        Layer on the pooled features that learns `slices.facts` (squared error) beside the class.

    Returns
    -------
    pandas.DataFrame
        One row per epoch: ``epoch, steps, loss, accuracy, val_loss, val_accuracy``.

    Raises
    ------
    StudyError
        A part without slices, fewer training slices than one batch, or a loss that is not a number.
    """
    if not len(train) or not len(validation):
        raise StudyError(f"{label}: training and validation need slices (got {len(train)} and {len(validation)})")
    folder, targets = Path(folder), slices.table["target"].to_numpy()
    wanted = recipe.schedule.slices_per_subject * slices.table["subject"].iloc[train].nunique()
    steps = len(balanced_draw(targets, train, wanted, np.random.default_rng(0))) // recipe.batch_size
    if not steps:
        raise StudyError(f"{label}: an epoch has about {wanted} slices, fewer than training.batch_size "
                         f"{recipe.batch_size}; raise slices_per_subject or lower the batch size")
    epochs = recipe.schedule.epochs
    optimizer = _optimizer(recipe, steps * epochs)
    trainer = _trainer(model, facts_head, optimizer, recipe.facts_weight)
    augment = make_augmenter(recipe.augmentation) if recipe.augmentation else _unchanged
    history = _load_state(folder, trainer, optimizer)
    if len(history) < epochs and history:
        print(f"{label}: goes on after epoch {len(history)} of {epochs}")
    bar = progress(total=steps * epochs, initial=steps * len(history), desc=label, unit="batch")
    while len(history) < epochs and not _stopped(history, recipe.patience):
        epoch = len(history)
        order = balanced_draw(targets, train, wanted, np.random.default_rng([recipe.seed, epoch]))
        trainer.reset_metrics()
        loss, accuracy = _run_epoch(trainer, augment, slices, order, recipe, epoch, bar)
        if not np.isfinite(loss):
            raise StudyError(f"{label}: the loss of epoch {epoch + 1} is {loss}; lower training learning_rate")
        refresh_batch_norm(model, slices, train, recipe)
        val_loss, val_accuracy = _evaluate(model, slices, validation, recipe)
        history.append({"epoch": epoch + 1, "steps": steps, "loss": loss, "accuracy": accuracy,
                        "val_loss": val_loss, "val_accuracy": val_accuracy})
        if not np.isfinite(val_loss):
            raise StudyError(f"{label}: the validation loss of epoch {epoch + 1} is {val_loss}; lower learning_rate")
        if val_loss <= min(row["val_loss"] for row in history):
            _save_weights(folder / "best.npz", model)
        _save_state(folder, trainer, optimizer, history)
        bar.set_postfix(loss=f"{loss:.2f}", validation=f"{val_accuracy:.2f}")
    bar.close()
    _load_weights(folder / "best.npz", model)
    return pd.DataFrame(history)


def _unchanged(images, seed):
    return images


def _stopped(history, patience):
    """No better validation loss for `patience` epochs."""
    losses = [row["val_loss"] for row in history]
    return len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])
