"""Nets compiled for training, kept from one training to the next.

Tracing a training step of VGG takes ten seconds, longer than a small study trains for. Nets of one structure are
therefore trained in the same compiled copy, one after the other; each takes its own weights in and out again.
"""

from __future__ import annotations

from functools import cached_property

import keras
import numpy as np
import tensorflow as tf

from mslib.study.config import Schedule

#: The compiled copy of the structure that was trained last.
_KEPT: dict[tuple, Worker] = {}


def add_in_order() -> None:
    """Keep TensorFlow from rewriting traced functions of this process, so that two trainings of one seed agree.

    Where memory peaks above 0.2 GB, its memory optimizer turns a sum of three arrays (here in the gradient of a batch
    norm) into additions to one array in whatever order threads arrive. The last bit of float32 then depends on timing,
    after one in a few hundred steps also that of a bfloat16 gradient, and from there the trainings part. Without the
    rewriting a step takes as long.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


class Worker:
    """A net, the compiled model that trains it (with a head for known facts, where there is one), its optimizer.

    Parameters
    ----------
    model : keras.Model
        Its weights are trained.
    weight_decay : float
        Of kernels; biases and batch norm have none.
    facts_head : keras.layers.Layer, optional
        Layer on the pooled features that learns known numbers (squared error) beside the class.
    facts_weight : float
        Of that error beside the cross-entropy.
    """

    def __init__(self, model: keras.Model, weight_decay: float, facts_head=None, facts_weight: float = 1.0):
        add_in_order()
        self.model = model
        self.optimizer = keras.optimizers.AdamW(0.0, weight_decay=weight_decay, clipnorm=1.0)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if facts_head is None:
            self.trainer, settings = model, {"loss": loss, "metrics": ["accuracy"]}
        else:
            pooled = model.get_layer("gap").output
            self.trainer = keras.Model(model.input, [model.output, facts_head(pooled)])
            settings = {"loss": [loss, "mse"], "loss_weights": [1.0, facts_weight], "metrics": [["accuracy"], []]}
        self.trainer.compile(self.optimizer, **settings)
        self.optimizer.build(self.trainer.trainable_variables)

    @cached_property
    def forward(self):
        """Forward pass in training mode: moves the running statistics of batch norm by 1 - momentum, nothing else."""
        return tf.function(lambda images: self.model(images, training=True), reduce_retracing=True)

    def start_from(self, weights: list[np.ndarray]) -> None:
        """Take weights in and forget every earlier step."""
        self.model.set_weights(weights)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def step(self, images, truth, rate: float) -> tuple[float, float]:
        """One step at a learning rate; loss of the classes and accuracy of this batch, before the step."""
        self.optimizer.learning_rate = rate
        values = self.trainer.train_on_batch(images, truth, return_dict=True)
        loss = values.get(f"{self.trainer.output_names[0]}_loss", values["loss"])
        return float(loss), float(next(value for name, value in values.items() if name.endswith("accuracy")))


def worker_for(model: keras.Model, weight_decay: float, facts_head=None, facts_weight: float = 1.0) -> Worker:
    """A worker that holds the weights of `model`; parameters as in `Worker`.

    With a head for facts it trains `model` itself. Else it trains the kept copy of the model's structure, and the
    caller takes the weights out before the next call.
    """
    if facts_head is not None:
        return Worker(model, weight_decay, facts_head, facts_weight)
    key = (model.to_json().replace(model.layers[0].name, "input"), weight_decay)  # Keras may have numbered that name
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = Worker(keras.models.clone_model(model), weight_decay)
    _KEPT[key].start_from(model.get_weights())
    return _KEPT[key]


def learning_rates(schedule: Schedule, steps: int) -> np.ndarray:
    """Learning rate of every step: a tenth of them rises from a twentieth of the peak, then half a cosine falls.

    Parameters
    ----------
    schedule : Schedule
        Gives the peak.
    steps : int

    Returns
    -------
    ndarray of float, (steps,)
    """
    warmup = max(1, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        schedule.learning_rate / 20, max(1, steps - warmup), alpha=0.01, warmup_target=schedule.learning_rate,
        warmup_steps=warmup)
    return np.array([float(rate(step)) for step in range(steps)])
