"""Training with `keras.Model.fit`: balanced epochs, re-estimated batch norm, best epoch kept, resumed after a kill."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mslib.study.config import Augmentation
from mslib.study.errors import StudyError
from mslib.study.files import write_json, write_table
from mslib.study.progress import progress

from .data import SliceSet, balanced_draw
from .splits import bootstrap_rows
from .vgg import has_batch_norm

#: Batches that re-estimate the running statistics of batch norm before every validation.
REFRESH_BATCHES = 20


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int  #: at most; fewer where the validation loss has not fallen for `patience` epochs
    slices_per_subject: int  #: of an epoch, over training subjects, drawn in equal shares of the classes
    learning_rate: float  #: peak of `learning_rates`
    batch_size: int
    weight_decay: float  #: of kernels (AdamW); biases and batch norm have none
    patience: int
    seed: int  #: of draws and augmentation; weights at random are the caller's (`keras.utils.set_random_seed`)
    augmentation: Augmentation | None = None  #: default: slices stay as they are
    channels: list[int] | None = None  #: as in `SliceSet.batch`
    area_weight: float = 1.0  #: of the squared error of the areas beside the cross-entropy of the class
    #: "subject" or "slice": draw this part of the training anew, with replacement, so that trainings of several seeds
    #: differ as if other people had taken part. Default: everybody is trained on.
    bootstrap: str | None = None

    def drawn(self, table: pd.DataFrame, train: np.ndarray) -> np.ndarray:
        """Rows to train on, of the training part: all, or some several times."""
        return train if self.bootstrap is None else bootstrap_rows(table, train, self.bootstrap, self.seed)


def choose_precision(wanted: str) -> str:
    """For ``auto`` bfloat16 where the CPU computes with it natively, else float32; an explicit wish is obeyed."""
    if wanted != "auto":
        return wanted
    known = Path("/proc/cpuinfo")
    flags = known.read_text(encoding="ascii", errors="replace") if known.is_file() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def add_in_order() -> None:
    """Keep TensorFlow from rewriting traced functions of this process, so that two trainings of one seed agree.

    Where memory peaks above 0.2 GB, its memory optimizer turns a sum of three arrays (here in the gradient of a batch
    norm) into additions to one array in whatever order threads arrive. The last bit of float32 then depends on timing,
    after one in a few hundred steps also that of a bfloat16 gradient, and from there the trainings part. Without the
    rewriting a step takes as long.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def learning_rates(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate of every step: a tenth of them rises from a twentieth of the peak, then half a cosine falls."""
    warmup = max(1, steps // 10)
    return keras.optimizers.schedules.CosineDecay(peak / 20, max(1, steps - warmup), alpha=0.01, warmup_target=peak,
                                                  warmup_steps=warmup)


def make_augmenter(settings: Augmentation):
    """A traced function that moves, scales and re-tones a batch: (images, seed pair) to images.

    Rotation, translation and scaling as in Hong and Zhang 2021 (ranges from the configuration), plus a gain and
    a gamma per sequence, which stand for scanner differences. Bilinear; what comes in from outside is 0.
    """

    @tf.function(reduce_retracing=True)
    def augment(images, seed):
        shape = tf.shape(images)
        n, height, width = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)

        def uniform(size, limit, salt):
            return tf.random.stateless_uniform(size, seed + salt, -limit, limit)

        angle = uniform((n,), np.deg2rad(settings.rotation_deg), 1)
        zoom = tf.exp(uniform((n,), np.log1p(settings.scale), 2))
        shift_x = uniform((n,), settings.translation, 3) * width
        shift_y = uniform((n,), settings.translation, 4) * height
        cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        transform = tf.stack([cos, -sin, centre_x - cos * centre_x + sin * centre_y + shift_x,
                              sin, cos, centre_y - sin * centre_x - cos * centre_y + shift_y,
                              tf.zeros(n), tf.zeros(n)], axis=1)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=images, transforms=transform, output_shape=shape[1:3], interpolation="BILINEAR",
            fill_mode="CONSTANT", fill_value=0.0)
        per_sequence = (n, 1, 1, images.shape[-1])
        gain = 1 + uniform(per_sequence, settings.gain, 5)
        gamma = tf.exp(uniform(per_sequence, np.log1p(settings.gamma), 6))
        return tf.clip_by_value(gain * tf.pow(tf.maximum(moved, 1e-6), gamma), 0.0, 1.0)

    return augment


class Batches(keras.utils.PyDataset):
    """Slices at `index` in that order, in batches, with their targets."""

    def __init__(self, slices: SliceSet, index: np.ndarray, batch_size: int, channels: list[int] | None):
        super().__init__()
        self.slices, self.index, self.size, self.channels = slices, index, batch_size, channels

    def __len__(self):
        return -(-len(self.index) // self.size)

    def __getitem__(self, number):
        index = self.index[number * self.size:(number + 1) * self.size]
        return self.slices.batch(index, self.channels), self.slices.targets(index)


class BalancedBatches(Batches):
    """Augmented whole batches of a balanced draw, which depend on seed, epoch and number of the batch alone.

    StudyError: an epoch has fewer slices than one batch.
    """

    def __init__(self, slices: SliceSet, train: np.ndarray, recipe: Recipe):
        super().__init__(slices, train, recipe.batch_size, recipe.channels)
        self.train, self.seed, self.epoch = recipe.drawn(slices.table, train), recipe.seed, 0
        self.wanted = recipe.slices_per_subject * slices.table["subject"].iloc[train].nunique()
        self.classes = slices.table["target"].to_numpy()
        self.augment = make_augmenter(recipe.augmentation) if recipe.augmentation else None
        self.draw(0)
        if not len(self):
            raise StudyError(f"training: an epoch has about {self.wanted} slices, fewer than training.batch_size "
                             f"{self.size}; raise slices_per_subject or lower the batch size")

    def draw(self, epoch: int) -> None:
        """Draw the slices of an epoch (counted from 0)."""
        rng = np.random.default_rng([self.seed, epoch])
        self.epoch, self.index = epoch, balanced_draw(self.classes, self.train, self.wanted, rng)

    def __len__(self):
        return len(self.index) // self.size

    def __getitem__(self, number):
        images, targets = super().__getitem__(number)
        if self.augment:
            seed = tf.constant([self.seed + self.epoch, number * self.size])
            images = self.augment(tf.constant(images), seed).numpy()
        return images, targets


def refresh_batch_norm(model: keras.Model, slices: SliceSet, train: np.ndarray, recipe: Recipe) -> None:
    """Re-estimate the running statistics of batch norm on un-augmented slices, drawn from the rows `train`.

    They lag behind the weights while the learning rate is high; evaluating or folding with stale ones costs accuracy.
    A forward pass in training mode moves them by 1 - momentum, and nothing else; its slices are the same every time.
    """
    rng, classes = np.random.default_rng([recipe.seed, 77]), slices.table["target"].to_numpy()
    for _ in range(REFRESH_BATCHES):
        drawn = balanced_draw(classes, train, recipe.batch_size, rng)
        _forward(model)(tf.constant(slices.batch(drawn, recipe.channels)))


@lru_cache(maxsize=1)
def _forward(model):
    """A pass in training mode, traced once for all trainings of a network."""
    return tf.function(lambda images: model(images, training=True), reduce_retracing=True)


def first_reaching(model: keras.Model, path: Path, border: float) -> keras.callbacks.Callback:
    """Keeps the weights of the first epoch whose validation accuracy reaches a border; none where none does."""
    def keep(epoch, logs):
        if logs["val_accuracy"] >= border and not path.is_file():
            model.save_weights(str(path))

    return keras.callbacks.LambdaCallback(on_epoch_end=keep)


class History(keras.callbacks.Callback):
    """A row of ``history.csv`` per epoch after `rows`, a progress bar, the end where the loss no longer falls."""

    def __init__(self, path: Path, rows: list[dict], batches: BalancedBatches, recipe: Recipe, label: str):
        super().__init__()
        self.path, self.rows, self.batches, self.patience, self.label = path, rows, batches, recipe.patience, label
        steps = len(batches)
        self.bar = progress(total=steps * recipe.epochs, initial=steps * len(rows), desc=label, unit="batch")

    def on_epoch_begin(self, epoch, logs=None):
        """Hook of Keras."""
        self.batches.draw(epoch)

    def on_train_batch_end(self, batch, logs=None):
        """Hook of Keras."""
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Hook of Keras."""
        prefix = f"{self.model.output_names[0]}_" if len(self.model.outputs) > 1 else ""
        values = {f"{part}{name}": float(logs[f"{part}{prefix}{name}"])
                  for part in ("", "val_") for name in ("loss", "accuracy")}
        for kind, name in (("loss", "loss"), ("validation loss", "val_loss")):
            if not np.isfinite(values[name]):
                raise StudyError(f"{self.label}: the {kind} of epoch {epoch + 1} is {values[name]}; "
                                 "lower training learning_rate")
        logs.update(values)  # of the class alone: by its loss the best epoch is kept
        self.rows.append({"epoch": epoch + 1, "steps": len(self.batches), **values})
        write_table(self.path, pd.DataFrame(self.rows))
        self.bar.set_postfix(loss=f"{values['loss']:.2f}", validation=f"{values['val_accuracy']:.2f}")
        self.model.stop_training = _stopped(self.rows, self.patience)


def _stopped(rows, patience):
    """No better validation loss for `patience` epochs."""
    losses = [row["val_loss"] for row in rows]
    return len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])


@lru_cache(maxsize=1)
def compiled(model: keras.Model, learning_rate: float, weight_decay: float, area_weight: float, steps: int,
             spared: tuple[str, ...] = ("bias", "gamma", "beta")) -> keras.Model:
    """A model that shares the layers of `model`, ready for `reset` and `fit`; traced once for trainings alike.

    `spared` are variables without weight decay, `steps` those of the whole training.
    """
    add_in_order()
    optimizer = keras.optimizers.AdamW(learning_rates(learning_rate, steps), weight_decay=weight_decay, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=list(spared))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = keras.Model(model.input, model.output)
    if len(model.outputs) == 1:
        trainer.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    else:
        trainer.compile(optimizer, [loss, "mse"], loss_weights=[1.0, area_weight],
                        metrics=[["accuracy"], []], jit_compile=False)
    optimizer.build(trainer.trainable_variables)
    return trainer


def reset(trainer: keras.Model) -> None:
    """Forget an earlier training: the state of the optimizer, not the weights."""
    for variable in trainer.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    trainer._initial_epoch = None  # where `BackupAndRestore` notes the epoch that a resumed training begins with


def _restore(backup, trainer, folder, steps, label):
    """Rows of the epochs that an earlier call has finished, their weights and optimizer loaded; none without a backup.

    A damaged backup is removed, and the training begins anew. The steps of the optimizer tell how many epochs are
    finished: a kill between the two files of a Keras backup leaves its number of epochs one behind its weights, and the
    history may be an epoch ahead of both.
    """
    reset(trainer)
    if not Path(backup.backup_dir).exists():
        return []
    start = trainer.get_weights()
    try:
        backup.set_model(trainer)
        backup.on_train_begin()
        done = int(trainer.optimizer.iterations) // steps
        rows = pd.read_csv(folder / "history.csv", float_precision="round_trip").to_dict("records")[:done]
        if len(rows) < done or not (folder / "best.weights.h5").is_file():
            raise ValueError("its history or best weights are missing")
        write_json(Path(backup.backup_dir, "training_metadata.json"), {"epoch": done, "batch": 0})
        return rows
    except (OSError, ValueError, KeyError) as error:
        print(f"{label}: damaged backup in {folder} ({' '.join(str(error).split())[:200]}); this training starts again",
              file=sys.stderr)
        shutil.rmtree(backup.backup_dir)
        trainer.set_weights(start)
        reset(trainer)
        return []


def fit(model: keras.Model, slices: SliceSet, train: np.ndarray, validation: np.ndarray, recipe: Recipe,
        folder: str | Path, label: str = "training",
        callbacks: Iterable[keras.callbacks.Callback] = ()) -> pd.DataFrame:
    """Train, keep the epoch with the lowest validation loss, resume where an earlier call was stopped.

    Loshchilov and Hutter 2019 (AdamW, cosine decay).

    Parameters
    ----------
    model : keras.Model
        Network of `build_trainable` (or a plain one, or its upper part); left with the best weights. A second output
        learns `slices.areas` (squared error) beside the class.
    train, validation : ndarray of int
        Rows of `slices`.
    folder : path
        Of this training alone: ``backup/`` after every epoch, ``best.weights.h5``, ``history.csv``. A call with the
        same arguments goes on after the last whole epoch; to train anew, remove it.
    label : str
        Of the progress bar and of messages.

    Returns
    -------
    pandas.DataFrame
        One row per epoch: ``epoch`` (from 1), ``steps``, and of the class ``loss, accuracy, val_loss, val_accuracy``.

    Raises
    ------
    StudyError
        Fewer training slices than one batch, or a loss that is not a number.
    """
    batches, folder = BalancedBatches(slices, train, recipe), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = len(batches)
    trainer = compiled(model, recipe.learning_rate, recipe.weight_decay, recipe.area_weight, steps * recipe.epochs)
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), double_checkpoint=True, delete_checkpoint=False)
    rows, best = _restore(backup, trainer, folder, steps, label), folder / "best.weights.h5"
    if len(rows) < recipe.epochs and not _stopped(rows, recipe.patience):
        if rows:
            print(f"{label}: goes on after epoch {len(rows)} of {recipe.epochs}", file=sys.stderr)
        history = History(folder / "history.csv", rows, batches, recipe, label)
        keep = keras.callbacks.ModelCheckpoint(
            str(best), "val_loss", save_best_only=True, save_weights_only=True, mode="min",
            initial_value_threshold=min((row["val_loss"] for row in rows), default=None))
        refresh = [keras.callbacks.LambdaCallback(on_test_begin=lambda _: refresh_batch_norm(
            trainer, slices, batches.train, recipe))] if has_batch_norm(trainer) else []
        with history.bar:  # the backup last: what a kill leaves behind it is made again
            trainer.fit(batches, validation_data=Batches(slices, validation, 64, recipe.channels),
                        epochs=recipe.epochs, shuffle=False, verbose=0,
                        callbacks=[*refresh, history, *callbacks, keep, backup])
    trainer.load_weights(str(best))
    return pd.DataFrame(rows)
