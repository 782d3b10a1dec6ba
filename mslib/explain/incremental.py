"""Exact incremental inference for occlusion: only what a window can change is computed, layer by layer.

Nakandala et al. 2019 (SIGMOD): the whole image passes once; a covered window changes a rectangle of every layer and
nothing outside it. Here the *change* itself travels: a convolution is linear, so that only changed cells enter it.
Cells of several windows stand below each other, one row of channels a cell, so that rectangles of any size share one
matrix product. Up to rounding the scores are those of full passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from .rules import is_plain_relu

MOVERS = (keras.layers.Conv2D, keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
ENDS = (keras.layers.GlobalAveragePooling2D, keras.layers.Flatten)
IDLE = (keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.GaussianNoise, keras.layers.GaussianDropout)
#: Bytes of the largest array of a pass: the fastest of 8, 16, 32 and 64 MiB where the last cache held 32 MiB.
PASS_BYTES = 2**24


def areas(boxes) -> np.ndarray:
    """Cells of rectangles (windows, 2 axes, first and behind)."""
    return (boxes[..., 1] - boxes[..., 0]).prod(1)


@dataclass(frozen=True)
class Change:
    """What covered windows change at one layer.

    ``values``, (P, C), or (windows, features) behind the layer that ends the space: new minus old, all cells of the
    first window before those of the second. ``boxes``, (windows, 2 axes, 2): first cell of the rectangle and the one
    behind its last. ``window, place``, (P,) and (P, 2): window, and row and column, of each cell.
    """

    values: tf.Tensor
    boxes: np.ndarray
    window: np.ndarray
    place: np.ndarray

    @classmethod
    def inside(cls, boxes, values=None):
        """Cells of rectangles; `values` come later where they need the places."""
        counts = areas(boxes)
        window = np.repeat(np.arange(len(boxes)), counts)
        within = np.arange(len(window)) - (counts.cumsum() - counts)[window]
        place = boxes[window, :, 0] + np.stack(np.divmod(within, (boxes[:, 1, 1] - boxes[:, 1, 0])[window]), 1)
        return cls(values, boxes, window, place)


class Slide:
    """Where a sliding kernel reads: geometry of a convolution or a pool over an input of `size`."""

    def __init__(self, layer, size):
        kernel = layer.kernel_size if isinstance(layer, keras.layers.Conv2D) else layer.pool_size
        self.kernel, self.strides, self.size = np.array(kernel), np.array(layer.strides), np.array(size)
        if layer.padding == "same":
            self.out = -(-self.size // self.strides)
            self.before = np.maximum((self.out - 1) * self.strides + self.kernel - self.size, 0) // 2
        else:
            self.out, self.before = (self.size - self.kernel) // self.strides + 1, np.zeros(2, int)

    def reach(self, boxes):
        """Rectangles of outputs that read any cell of `boxes`, cut at the borders (may be empty)."""
        first = -((self.kernel - 1 - self.before - boxes[..., 0]) // self.strides)
        behind = (boxes[..., 1] - 1 + self.before) // self.strides + 1
        first = np.clip(first, 0, self.out)
        return np.stack([first, np.clip(behind, first, self.out)], -1)

    def read(self, cells):
        """Row and column that every output cell reads, (P, k) of each axis; some lie outside the map."""
        return [cells.place[:, axis, None] * self.strides[axis] - self.before[axis] + np.arange(self.kernel[axis])
                for axis in (0, 1)]

    def changed(self, cells, change):
        """For every output cell and tap (P, taps): is the cell it reads a changed one, and the number of its row."""
        (low_y, low_x), (high_y, high_x) = change.boxes.T[..., cells.window, None]
        y, x = self.read(cells)
        within = ((y >= low_y) & (y < high_y))[:, :, None] & ((x >= low_x) & (x < high_x))[:, None]
        counts = areas(change.boxes)
        first = (counts.cumsum() - counts)[cells.window, None]
        row = (first + (y - low_y) * (high_x - low_x))[:, :, None] + (x - low_x)[:, None]
        return within.reshape(len(row), -1), row.reshape(len(row), -1)

    def on_map(self, cells):
        """For every output cell and tap: does it read the map, not its padding, and the cell's number in the map."""
        y, x = self.read(cells)
        within = ((y >= 0) & (y < self.size[0]))[:, :, None] & ((x >= 0) & (x < self.size[1]))[:, None]
        number = (y * self.size[1])[:, :, None] + x[:, None]
        return within.reshape(len(number), -1), number.reshape(len(number), -1)


def _sum_of(values, within, row):
    """Sum over the taps of the rows that they read."""
    segments = np.broadcast_to(np.arange(len(row))[:, None], row.shape)[within]
    return tf.sparse.segment_sum(values, row[within].astype(np.int32), segments.astype(np.int32), len(row))


class _Convolution:
    def __init__(self, layer, x):
        self.slide, kernel = Slide(layer, x.shape[1:3]), tf.convert_to_tensor(layer.kernel)
        self.taps, (n_in, self.filters) = int(np.prod(kernel.shape[:2])), kernel.shape[2:]
        # (channels, taps x filters): every changed cell is multiplied once with all taps
        self.weights = tf.reshape(tf.transpose(kernel, (2, 0, 1, 3)), (n_in, -1))
        self.old = tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper())
        if layer.use_bias:
            self.old = self.old + layer.bias
        self.bytes_per_cell = 4 * self.taps * self.filters

    def __call__(self, change):
        cells = Change.inside(self.slide.reach(change.boxes))
        within, row = self.slide.changed(cells, change)
        products = tf.reshape(change.values @ self.weights, (-1, self.filters))
        return replace(cells, values=_sum_of(products, within, row * self.taps + np.arange(self.taps)))


class _MaxPool:
    def __init__(self, layer, x):
        self.slide, channels = Slide(layer, x.shape[1:3]), x.shape[3]
        self.old = tf.nn.max_pool2d(x, layer.pool_size, layer.strides, layer.padding.upper())
        self.before = tf.concat([tf.reshape(x, (-1, channels)), tf.fill((1, channels), x.dtype.min)], 0)
        self.after = tf.reshape(self.old, (-1, channels))
        self.bytes_per_cell = 4 * channels

    def __call__(self, change):
        cells = Change.inside(self.slide.reach(change.boxes))
        on_map, number = self.slide.on_map(cells)
        within, row = self.slide.changed(cells, change)
        more = tf.concat([change.values, tf.zeros((1, change.values.shape[1]))], 0)
        new = (tf.gather(self.before, np.where(on_map, number, len(self.before) - 1))
               + tf.gather(more, np.where(within, row, len(change.values))))
        old = tf.gather(self.after, cells.place @ [self.slide.out[1], 1])
        return replace(cells, values=tf.reduce_max(new, 1) - old)


class _MeanPool:
    def __init__(self, layer, x):
        self.slide = Slide(layer, x.shape[1:3])
        self.old = tf.nn.avg_pool2d(x, layer.pool_size, layer.strides, layer.padding.upper())
        self.bytes_per_cell = 4 * x.shape[3]

    def __call__(self, change):
        cells = Change.inside(self.slide.reach(change.boxes))
        count = self.slide.on_map(cells)[0].sum(1, keepdims=True).astype(np.float32)  # padding does not count
        return replace(cells, values=_sum_of(change.values, *self.slide.changed(cells, change)) / count)


class _ReLU:
    """After a convolution (rows are cells of the map) or a dense layer (a row a window)."""

    def __init__(self, x):
        self.old, self.spatial = tf.nn.relu(x), len(x.shape) == 4
        self.before, self.columns = tf.reshape(x, (-1, x.shape[-1])), x.shape[2] if self.spatial else None

    def __call__(self, change):
        old = tf.gather(self.before, change.place @ [self.columns, 1]) if self.spatial else self.before
        return replace(change, values=tf.nn.relu(old + change.values) - tf.nn.relu(old))


class _Mean:
    def __init__(self, _, x):
        self.old, self.cells = tf.reduce_mean(x, (1, 2)), x.shape[1] * x.shape[2]

    def __call__(self, change):
        total = tf.math.unsorted_segment_sum(change.values, change.window, len(change.boxes))
        return replace(change, values=total / self.cells)


class _Flat:
    def __init__(self, _, x):
        self.old, self.shape = tf.reshape(x, (1, -1)), x.shape[1:]

    def __call__(self, change):
        index = np.concatenate([change.window[:, None], change.place], 1)
        whole = tf.scatter_nd(index, change.values, (len(change.boxes), *self.shape))
        return replace(change, values=tf.reshape(whole, (len(change.boxes), -1)))


class _Dense:
    def __init__(self, layer, x):
        self.weights = tf.convert_to_tensor(layer.kernel)
        self.old = x @ self.weights
        if layer.use_bias:
            self.old = self.old + layer.bias

    def __call__(self, change):
        return replace(change, values=change.values @ self.weights)


STEPS = {keras.layers.Conv2D: _Convolution, keras.layers.MaxPooling2D: _MaxPool,
         keras.layers.AveragePooling2D: _MeanPool, keras.layers.GlobalAveragePooling2D: _Mean,
         keras.layers.Flatten: _Flat, keras.layers.Dense: _Dense}


def obstacle(model: keras.Model) -> str | None:
    """What keeps a net from incremental inference: one line that names the first such layer, or None.

    Fit is a chain of Conv2D (without dilation or groups), ReLU, MaxPooling2D, AveragePooling2D and dropout, then
    GlobalAveragePooling2D or Flatten, then Dense (with ReLUs between).
    """
    before, spatial = model.inputs[0], True
    if len(before.shape) != 4:
        return f"the input is not of images (N, H, W, M) (got {before.shape})"
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        name = f"layer '{layer.name}' ({type(layer).__name__})"
        try:
            chained = layer.input is before
        except (AttributeError, ValueError):  # Keras's answer for a layer that is called twice
            chained = False
        fault = "does not take the output of the layer before it alone" if not chained else _unfit(layer, spatial)
        if fault:
            return f"{name} {fault}"
        before, spatial = layer.output, spatial and not isinstance(layer, ENDS)
    return None if before is model.outputs[0] else f"{name} does not give the net's output"


def _unfit(layer, spatial):
    """What is wrong with a layer of a chain, before or behind the layer that ends the space."""
    allowed = (*MOVERS, *ENDS) if spatial else (keras.layers.Dense,)
    if type(layer) not in (*allowed, *IDLE, keras.layers.ReLU, keras.layers.Activation):
        return "is of no kind that is allowed here: " + ", ".join(kind.__name__ for kind in (*allowed, *IDLE))
    if layer.compute_dtype != "float32":
        return f"computes in {layer.compute_dtype}, not float32"
    if _activation(layer) not in ("relu", "linear"):
        return f"uses {_activation(layer)}, not ReLU"
    if getattr(layer, "data_format", None) == "channels_first":
        return "has its channels first"
    if isinstance(layer, keras.layers.Conv2D) and (tuple(layer.dilation_rate) != (1, 1) or layer.groups != 1):
        return "has dilation or groups"
    return None


def _activation(layer):
    if isinstance(layer, keras.layers.ReLU):
        return "relu" if is_plain_relu(layer) else "a ReLU with slope, threshold or ceiling"
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def occlusion_losses(model: keras.Model, image, base, places, target: int, batch_size: int = 64) -> np.ndarray:
    """What `full_losses` finds, by incremental inference.

    Memory: about two and a half times the activations of one image (VGG16 at 224 px: 0.13 GB), a copy of the kernels,
    and a pass of windows, as many as keep its largest array within `PASS_BYTES`, one at least.
    """
    steps = _prepare(model, image)
    boxes = _boxes(image, places)
    modality = np.array([place[2] for place in places])
    size = min(batch_size, max(1, PASS_BYTES // _bytes_per_window(steps, boxes)))
    losses = []
    for start in range(0, len(boxes), size):
        change = Change.inside(boxes[start:start + size])
        y, x, m = *change.place.T, modality[start:start + size][change.window]
        values = np.zeros((len(m), image.shape[2]), np.float32)
        values[np.arange(len(m)), m] = (base - image)[y, x, m]
        change = replace(change, values=tf.constant(values))
        for step in steps:
            change = step(change)
        losses.append(-change.values.numpy()[:, target].astype(np.float64))
    return np.concatenate(losses)


def _boxes(image, places):
    """Rectangles of windows, cut at the border."""
    return np.array([[side.indices(size)[:2] for side, size in zip(place[:2], image.shape)] for place in places])


def _prepare(model, image):
    """The net's steps, each with what it knows of the whole image."""
    x, steps = tf.constant(image[None]), []
    for layer in model.layers:
        if type(layer) in STEPS:
            steps.append(STEPS[type(layer)](layer, x))
            x = steps[-1].old
        if _activation(layer) == "relu":
            steps.append(_ReLU(x))
            x = steps[-1].old
    return steps


def _bytes_per_window(steps, boxes):
    """Bytes of the largest array that any one window asks for."""
    widest = 1
    for step in steps:
        if hasattr(step, "slide"):
            reached = step.slide.reach(boxes)
            cells = max(int(areas(each).max()) for each in (boxes, reached))
            widest, boxes = max(widest, cells * step.bytes_per_cell), reached
    return widest
