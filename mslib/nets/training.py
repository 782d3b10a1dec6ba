"""Training that resumes: balanced epochs, re-estimated batch norm, best checkpoint, folded result."""

from __future__ import annotations

import sys
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
from .workers import Worker, learning_rates, worker_for


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
    parts = [np.asarray(model.predict_on_batch(slices.batch(index[start:start + batch_size], channels)))
             .astype("float32").astype(dtype)
             for start in progress(range(0, len(index), batch_size), desc=label, unit="batch")]
    return np.concatenate(parts)


def refresh_batch_norm(worker: Worker, slices: SliceSet, index: np.ndarray, recipe: Recipe,
                       n_batches: int = 20) -> None:
    """Re-estimate the running statistics of batch norm on un-augmented training slices.

    They lag behind the weights while the learning rate is high; evaluating or folding with stale ones costs
    accuracy.
    """
    rng = np.random.default_rng([recipe.seed, 77])
    targets = slices.table["target"].to_numpy()
    for _ in range(n_batches):
        drawn = balanced_draw(targets, index, recipe.batch_size, rng)
        worker.forward(tf.constant(slices.batch(drawn, recipe.channels)))


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
        print(f"{path}: damaged state of an earlier run ({error}); this training starts again", file=sys.stderr)
        return []
    for variable, value in zip(optimizer.variables, slots, strict=True):
        variable.assign(value)
    return history[: int(slots[0]) // max(1, int(history[0]["steps"]))]


def _evaluate(model, slices, index, recipe):
    logits = stream(model, slices, index, recipe.channels)
    targets = slices.table["target"].to_numpy()[index]
    loss = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True).numpy().mean()
    return float(loss), float((logits.argmax(1) == targets).mean())


def _run_epoch(worker, augment, slices, order, recipe, epoch, rates, bar):
    """Mean loss of the classes and accuracy (running, as the weights change) of one epoch."""
    found = []
    for rate, start in zip(rates, range(0, len(order) - recipe.batch_size + 1, recipe.batch_size), strict=True):
        index = order[start:start + recipe.batch_size]
        images = augment(tf.constant(slices.batch(index, recipe.channels)), tf.constant([recipe.seed + epoch, start]))
        found.append(worker.step(images, slices.truth(index), rate))
        bar.update()
    return np.mean(found, axis=0).tolist()


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
    rates = learning_rates(recipe.schedule, steps * epochs).reshape(epochs, steps)
    worker = worker_for(model, recipe.weight_decay, facts_head, recipe.facts_weight)
    augment = make_augmenter(recipe.augmentation) if recipe.augmentation else _unchanged
    history = _load_state(folder, worker.trainer, worker.optimizer)
    if len(history) < epochs and history:
        print(f"{label}: goes on after epoch {len(history)} of {epochs}", file=sys.stderr)
    bar = progress(total=steps * epochs, initial=steps * len(history), desc=label, unit="batch")
    while len(history) < epochs and not _stopped(history, recipe.patience):
        epoch = len(history)
        order = balanced_draw(targets, train, wanted, np.random.default_rng([recipe.seed, epoch]))
        loss, accuracy = _run_epoch(worker, augment, slices, order, recipe, epoch, rates[epoch], bar)
        if not np.isfinite(loss):
            raise StudyError(f"{label}: the loss of epoch {epoch + 1} is {loss}; lower training learning_rate")
        refresh_batch_norm(worker, slices, train, recipe)
        val_loss, val_accuracy = _evaluate(worker.model, slices, validation, recipe)
        history.append({"epoch": epoch + 1, "steps": steps, "loss": loss, "accuracy": accuracy,
                        "val_loss": val_loss, "val_accuracy": val_accuracy})
        if not np.isfinite(val_loss):
            raise StudyError(f"{label}: the validation loss of epoch {epoch + 1} is {val_loss}; lower learning_rate")
        if val_loss <= min(row["val_loss"] for row in history):
            _save_weights(folder / "best.npz", worker.model)
        _save_state(folder, worker.trainer, worker.optimizer, history)
        bar.set_postfix(loss=f"{loss:.2f}", validation=f"{val_accuracy:.2f}")
    bar.close()
    _load_weights(folder / "best.npz", model)
    return pd.DataFrame(history)


def finish(model: keras.Model, path: Path) -> None:
    """Save the weights of a finished training, then delete the state that it would have resumed from.

    Parameters
    ----------
    model : keras.Model
    path : Path
        ``.weights.h5`` in the folder of the training.
    """
    with atomic_path(path) as temporary:
        model.save_weights(str(temporary))
    for name in ("state.npz", "best.npz"):
        path.with_name(name).unlink(missing_ok=True)


def _unchanged(images, seed):
    return images


def _stopped(history, patience):
    """No better validation loss for `patience` epochs."""
    losses = [row["val_loss"] for row in history]
    return len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])
