"""The staging network: a 1-D CNN on EEG, EOG and EMG of 30 s, its training on one fold and its predictions."""

from __future__ import annotations

from collections.abc import Sequence

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
        self.epochs, self.index, self.weights, self.size = epochs, index, weights, size
        self.order, self.stages = index, epochs.table["stage"].to_numpy()

    def __len__(self):
        return -(-len(self.order) // self.size)

    def __getitem__(self, number):
        index = self.order[number * self.size:(number + 1) * self.size]
        stages = self.stages[index]
        return self.epochs.batch(index), stages, self.weights[stages].astype(np.float32)


def _fit(model, epochs, train, validation, passes, batch_size, learning_rate, patience, seed) -> pd.DataFrame:
    """Train with Adam and class weights on rows of the set; the history of `fit_fold`, the model as it was best."""
    weights = class_weights(epochs.table["stage"].to_numpy()[train])
    batches, held = (_Batches(epochs, rows, weights, batch_size) for rows in (train, validation))
    trainer = keras.Model(model.input, model.output)  # `model` stays plain: files of its weights hold no optimiser
    trainer.compile(keras.optimizers.Adam(learning_rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    metrics=["accuracy"], jit_compile=False)

    def draw(epoch, logs):  # order and dropout of a pass, from (seed, pass) alone
        batches.order = np.random.default_rng([seed, 5, epoch]).permutation(batches.index)
        for place, layer in enumerate(trainer.layers):
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign(np.random.SeedSequence([seed, place, epoch]).generate_state(2))

    best = keras.callbacks.EarlyStopping("val_loss", patience=patience, mode="min", restore_best_weights=True)
    found = trainer.fit(batches, validation_data=held, epochs=passes, verbose=0, shuffle=False,
                        callbacks=[keras.callbacks.LambdaCallback(draw), best])
    history = pd.DataFrame(found.history, columns=["loss", "accuracy", "val_loss", "val_accuracy"])
    if not np.isfinite(history).all(axis=None):
        raise ValueError(f"training: a loss is no number; allowed: a lower learning_rate than {learning_rate:g}")
    history.insert(0, "pass", history.index + 1)
    return history


def fit_fold(epochs: EpochSet, fold: Fold, number: int = 0, per_recording: int | None = 100, passes: int = 12,
             batch_size: int = 32, learning_rate: float = 1e-3, patience: int = 5, pool: int = 4,
             seed: int = 0) -> tuple[keras.Model, pd.DataFrame]:
    """Train the network of one fold of `make_folds` with Adam and class weights.

    Parameters
    ----------
    number : int
        Of the fold: gives each its own weights at random.
    per_recording : int or None
        Epochs of every recording that are drawn for training and validation; None takes all.
    passes, patience : int
        At most so many passes over the training epochs, and so many without a lower validation loss.
    pool : int
        As in `build_stager`.

    Returns
    -------
    model : keras.Model
        As it was when the validation loss was lowest.
    history : pandas.DataFrame
        One row per pass: ``pass, loss, accuracy, val_loss, val_accuracy`` (losses weighted by class).

    Raises
    ------
    ValueError
        A subject in two parts, or a loss that is not a number.
    """
    refuse_leak(fold)
    drawn, own_seed = epochs.draw(per_recording, seed), 1000 * seed + number
    subjects = epochs.table["subject"].iloc[drawn]
    train, validation = (drawn[subjects.isin(part)] for part in (fold.train, fold.validation))
    keras.utils.set_random_seed(own_seed)
    model = build_stager(*epochs.shape, pool=pool)
    return model, _fit(model, epochs, train, validation, passes, batch_size, learning_rate, patience, own_seed)


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
