"""The staging network: a 1-D CNN on EEG, EOG and EMG of 30 s, its training on one fold and its predictions."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from .cohort import EpochSet, Fold, refuse_leak
from .stages import STAGES

#: Filters and kernel of the four pairs of convolutions (CVxTz EEG base CNN).
BLOCKS = ((16, 5), (32, 3), (32, 3), (256, 3))


def build_stager(n_samples: int = 3000, n_channels: int = 3, pool: int = 2) -> keras.Model:
    """The network of Ellis et al. (2021), the public CVxTz base CNN: (N, n_samples, n_channels) to (N, 5) logits.

    Four pairs of convolutions (16 filters of 5 samples; 32, 32 and 256 of 3) with max-pooling between them, global
    max-pooling, two dense layers of 64, one logit per stage; ReLU throughout. Dropout of 1 % follows the pools (whole
    channels), of 5 % the dense layers. `pool`, the width of the pools, is 2 in the public code; 4 costs a fifth and
    lets the last layer see 4 s instead of 0.7 s. ValueError: the epoch is too short for the pools.
    """
    length = n_samples
    for block, (_, kernel) in enumerate(BLOCKS):
        length = (length - 2 * (kernel - 1)) // (pool if block < len(BLOCKS) - 1 else 1)
    if pool < 1 or length < 1:
        raise ValueError(f"pool: {pool} leaves nothing of {n_samples} samples; allowed: shorter pools or longer epochs")
    layers = keras.layers
    signal = x = keras.Input((n_samples, n_channels), name="signal", dtype="float32")
    for block, (filters, kernel) in enumerate(BLOCKS, start=1):
        for conv in (1, 2):
            x = layers.Conv1D(filters, kernel, activation="relu", name=f"block{block}_conv{conv}")(x)
        if block < len(BLOCKS):
            x = layers.MaxPooling1D(pool, name=f"block{block}_pool")(x)
            x = layers.SpatialDropout1D(0.01, name=f"block{block}_drop")(x)
    x = layers.GlobalMaxPooling1D(name="global_pool")(x)
    x = layers.Dropout(0.01, name="global_drop")(x)
    for index in (1, 2):
        x = layers.Dense(64, activation="relu", name=f"dense{index}")(x)
        x = layers.Dropout(0.05, name=f"dense{index}_drop")(x)
    return keras.Model(signal, layers.Dense(len(STAGES), name="logits")(x), name="stager")


def class_weights(stages: np.ndarray) -> np.ndarray:
    """Weight of each stage, N / (present stages * its count), float (5,); 0 for a stage that is absent."""
    counts = np.bincount(stages, minlength=len(STAGES))
    return np.divide(counts.sum() / np.count_nonzero(counts), counts, out=np.zeros(len(STAGES)), where=counts > 0)


class _Batches(keras.utils.PyDataset):
    """Batches of signals, stages and weights, in the order of `order`."""

    def __init__(self, epochs, index, weights, size):
        super().__init__()
        self.epochs, self.index, self.weights, self.size = epochs, np.array(index), weights, size
        self.order, self.stages = self.index, epochs.table["stage"].to_numpy()

    def __len__(self):
        return -(-len(self.order) // self.size)

    def __getitem__(self, number):
        index = self.order[number * self.size:(number + 1) * self.size]
        stages = self.stages[index]
        return self.epochs.batch(index), stages, self.weights[stages].astype(np.float32)


class _Passes(keras.callbacks.Callback):
    """Order and dropout of a pass from (seed, pass) alone, a row of ``history.csv`` after it, and the end."""

    def __init__(self, path, rows, batches, patience, seed):
        super().__init__()
        self.path, self.rows, self.batches, self.patience, self.seed = path, rows, batches, patience, seed

    def on_epoch_begin(self, epoch, logs=None):
        """Hook of Keras."""
        self.batches.order = np.random.default_rng([self.seed, 5, epoch]).permutation(self.batches.index)
        for place, layer in enumerate(self.model.layers):
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign(np.random.SeedSequence([self.seed, place, epoch]).generate_state(2))

    def on_epoch_end(self, epoch, logs=None):
        """Hook of Keras."""
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        self.rows.append({"pass": epoch + 1, **{name: float(logs[name]) for name in names}})
        if not np.isfinite([logs["loss"], logs["val_loss"]]).all():
            raise ValueError(f"training: the loss of pass {epoch + 1} is no number; allowed: a lower learning_rate "
                             f"than {float(self.model.optimizer.learning_rate):g}")
        pd.DataFrame(self.rows).to_csv(self.path, index=False)
        self.model.stop_training = _stopped(self.rows, self.patience)


def _stopped(rows, patience):
    losses = [row["val_loss"] for row in rows]
    return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= patience


def _compiled(model, learning_rate):
    """A model that shares the layers of `model`, which stays plain: files of its weights hold no optimiser."""
    trainer = keras.Model(model.input, model.output)
    trainer.compile(keras.optimizers.Adam(learning_rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    metrics=["accuracy"], jit_compile=False)
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def _finished_passes(backup, trainer, folder, steps) -> list[dict]:
    """Rows of the passes that an earlier call finished, whose weights and optimiser are loaded; none without a backup.

    The optimiser counts them: a kill between the two files of a Keras backup leaves its own number one behind.
    """
    if not Path(backup.backup_dir).exists():
        return []
    backup.set_model(trainer)
    backup.on_train_begin()
    done = int(trainer.optimizer.iterations) // steps
    rows = pd.read_csv(folder / "history.csv", float_precision="round_trip").to_dict("records")[:done]
    if len(rows) < done or not (folder / "best.weights.h5").is_file():
        raise ValueError("its history or best weights are missing")
    Path(backup.backup_dir, "training_metadata.json").write_text(json.dumps({"epoch": done, "batch": 0}))
    return rows


def fit_stager(model: keras.Model, epochs: EpochSet, train: Sequence[int], validation: Sequence[int],
               folder: str | Path, passes: int, batch_size: int = 32, learning_rate: float = 1e-3, patience: int = 5,
               seed: int = 0) -> pd.DataFrame:
    """Train with Adam and class weights; the network is left as it was when the validation loss was lowest.

    Parameters
    ----------
    model : keras.Model
        Of `build_stager`.
    train, validation : sequence of int
        Rows of ``epochs.table``.
    folder : path
        Of this training alone: ``backup/`` after every pass, ``best.weights.h5``, ``history.csv``. A call with the same
        arguments goes on after the last whole pass, and ends as an unbroken one would; to train anew, remove it.
    passes, patience : int
        At most so many passes over the training rows, and so many without a lower validation loss.
    seed : int
        Of dropout and order (the initial weights are the caller's).

    Returns
    -------
    pandas.DataFrame
        One row per pass: ``pass, loss, accuracy, val_loss, val_accuracy`` (losses weighted by class).

    Raises
    ------
    ValueError
        No row to train on or to validate with, or a loss that is not a number.
    """
    if not len(train) or not len(validation):
        raise ValueError(f"training: needs epochs to train on and to validate with (got {len(train)} and "
                         f"{len(validation)})")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = class_weights(epochs.table["stage"].to_numpy()[np.asarray(train)])
    batches = _Batches(epochs, train, weights, batch_size)
    trainer, start = _compiled(model, learning_rate), model.get_weights()
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), double_checkpoint=True, delete_checkpoint=False)
    try:
        rows = _finished_passes(backup, trainer, folder, len(batches))
    except (OSError, ValueError, KeyError) as error:
        print(f"{folder}: damaged backup ({' '.join(str(error).split())[:200]}); this training starts again",
              file=sys.stderr)
        shutil.rmtree(backup.backup_dir)
        model.set_weights(start)
        trainer, rows = _compiled(model, learning_rate), []
    if len(rows) < passes and not _stopped(rows, patience):
        keep = keras.callbacks.ModelCheckpoint(
            str(folder / "best.weights.h5"), "val_loss", save_best_only=True, save_weights_only=True, mode="min",
            initial_value_threshold=min((row["val_loss"] for row in rows), default=None))
        # The backup last: whatever a kill leaves behind it is made again when the training goes on.
        trainer.fit(batches, epochs=passes, verbose=0, shuffle=False,
                    validation_data=_Batches(epochs, validation, weights, batch_size),
                    callbacks=[_Passes(folder / "history.csv", rows, batches, patience, seed), keep, backup])
    trainer.load_weights(str(folder / "best.weights.h5"))
    return pd.DataFrame(rows)


def fit_fold(epochs: EpochSet, fold: Fold, folder: str | Path, number: int = 0, per_recording: int | None = 100,
             passes: int = 12, pool: int = 4, seed: int = 0, **training) -> tuple[keras.Model, pd.DataFrame]:
    """Train the network of one fold of `make_folds`; the network and the history of `fit_stager`.

    `number`, of the fold, gives each its own weights at random; `per_recording` epochs of every recording are drawn for
    training and validation (None: all); `pool` as in `build_stager`, `folder`, `passes` and ``batch_size,
    learning_rate, patience`` as in `fit_stager`. ValueError as there, or for a subject in two parts, or of whom there
    is no recording.
    """
    refuse_leak(fold)
    subjects = epochs.table["subject"]
    strangers = sorted({subject for part in fold for subject in part} - set(subjects))
    if strangers:
        raise ValueError(f"fold: no recording of subject {strangers[0]!r}; allowed: "
                         f"{', '.join(sorted(set(subjects)))}")
    drawn = epochs.draw(per_recording, seed)
    train, validation = (drawn[subjects.iloc[drawn].isin(part)] for part in (fold.train, fold.validation))
    own_seed = 1000 * seed + number
    keras.utils.set_random_seed(own_seed)
    model = build_stager(*epochs.shape, pool=pool)
    return model, fit_stager(model, epochs, train, validation, folder, passes, seed=own_seed, **training)


def prediction_table(model: keras.Model, epochs: EpochSet, subjects: Sequence[str],
                     batch_size: int = 128) -> pd.DataFrame:
    """Every epoch of some subjects as the network stages it, read batch by batch.

    Columns ``recording, subject, onset, stage, epoch`` (row of the set), ``predicted, logit_W ... logit_REM``.
    """
    index = np.flatnonzero(epochs.table["subject"].isin(subjects))
    logits = np.concatenate([np.asarray(model.predict_on_batch(epochs.batch(index[start:start + batch_size])))
                             for start in range(0, len(index), batch_size)])
    table = epochs.table.iloc[index][["recording", "subject", "onset", "stage"]]
    return table.assign(epoch=index, predicted=logits.argmax(axis=1),
                        **{f"logit_{stage}": logits[:, column] for column, stage in enumerate(STAGES)})
