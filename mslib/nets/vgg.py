"""VGG16 and VGG19 with global average pooling: plain, or with batch norm that is folded away after training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers

from mslib.study import StudyError, atomic_path
from mslib.study.provenance import verified

#: Convolutions per block (Simonyan and Zisserman 2015, table 1, columns D and E).
CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
FILTERS = (64, 128, 256, 512, 512)
#: Channel means of ImageNet in the order blue, green, red (the "caffe" preprocessing VGG was trained with).
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


def convolution_names(backbone: str) -> list[str]:
    """Names of a backbone's convolutions, shallow to deep, as in `keras.applications`."""
    return [f"block{block}_conv{conv}"
            for block, n in enumerate(CONVOLUTIONS[backbone], start=1) for conv in range(1, n + 1)]


def last_convolution(backbone: str) -> str:
    """Name of the deepest convolution, ``block5_conv3`` of VGG16 and ``block5_conv4`` of VGG19."""
    return convolution_names(backbone)[-1]


def _network(backbone, n_classes, input_shape, batch_norm, precision, narrow):
    """A network at random."""
    if backbone not in CONVOLUTIONS:
        raise StudyError(f"backbone: must be one of {sorted(CONVOLUTIONS)} (got {backbone!r})")
    options = {"dtype": keras.DTypePolicy("float32" if precision == "float32" else "mixed_bfloat16")}
    inputs = x = keras.Input(input_shape, name="image")
    for block, (n, filters) in enumerate(zip(CONVOLUTIONS[backbone], FILTERS), start=1):
        for conv in range(1, n + 1):
            name = f"block{block}_conv{conv}"
            if batch_norm:
                x = layers.Conv2D(filters // narrow, 3, padding="same", kernel_initializer="he_normal", name=name,
                                  **options)(x)
                x = layers.BatchNormalization(momentum=0.85, epsilon=1e-3, name=f"{name}_bn", **options)(x)
                x = layers.ReLU(name=f"{name}_relu", **options)(x)
            else:
                x = layers.Conv2D(filters // narrow, 3, padding="same", activation="relu", name=name, **options)(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool", **options)(x)
    x = layers.GlobalAveragePooling2D(name="gap", dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(n_classes, name="logits", dtype="float32")(x), name=backbone)


def build_classifier(backbone: str, n_classes: int, input_shape: tuple[int | None, int | None, int],
                     weights: str | Path | None = None, precision: str = "float32", narrow: int = 1) -> keras.Model:
    """VGG + global average pooling + Dense with logit output: flat, plain, layer names of `keras.applications`.

    Simonyan and Zisserman 2015 (VGG); Lin et al. 2014 (global average pooling). Images (N, H, W, M) in [0, 1] go in.

    Parameters
    ----------
    backbone : {"vgg16", "vgg19"}
    input_shape : (height, width, channels)
        Height and width may be None: global average pooling makes the network independent of size.
    weights : None, "imagenet" or path
        None: random. ``imagenet``: the weights of `keras.applications` (three channels; from the folder ``weights``
        of ``MSLIB_DATA`` where that holds them, else downloaded), their preprocessing folded into the first
        convolution. A path: a ``.weights.h5`` of this network, or a ``..._notop.h5`` file of `keras.applications`.
    precision : {"float32", "bfloat16"}
        Of the convolutions; weights, pooling and logits stay float32.
    narrow : int
        Divisor of the channels of every convolution.

    Raises
    ------
    StudyError
        Unknown backbone; weights that cannot be had or do not fit, with the ways out.
    """
    model = _network(backbone, n_classes, input_shape, False, precision, narrow)
    if weights is None:
        return model
    if str(weights).endswith(".weights.h5"):
        load_weights(model, weights)
        return model
    base = _imagenet_base(backbone, None if weights == "imagenet" else Path(weights))
    for name in convolution_names(backbone):
        model.get_layer(name).set_weights(base.get_layer(name).get_weights())
    # Channels in RGB order and [0, 1] instead of BGR, 255 and mean-free: exact except at the outermost pixel, where
    # zero padding stands for black instead of the ImageNet mean.
    first = model.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    bias = bias - np.einsum("hwco,c->o", kernel, np.asarray(IMAGENET_MEAN_BGR, kernel.dtype))
    first.set_weights([kernel[:, :, ::-1, :] * 255.0, bias])
    return model


def build_trainable(backbone: str, n_classes: int, input_shape: tuple[int, int, int], precision: str,
                    narrow: int = 1) -> keras.Model:
    """The network of `build_classifier` with batch norm after every convolution, to be trained from scratch.

    `precision`, float32 or bfloat16, is that of the convolutions; weights, pooling and logits stay float32.
    """
    return _network(backbone, n_classes, input_shape, True, precision, narrow)


def has_batch_norm(model: keras.Model) -> bool:
    """Whether batch norm is there to be re-estimated and folded."""
    return any(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def plain_twin(model: keras.Model) -> keras.Model:
    """A network of `build_classifier` in float32, as wide as `model`, with the same classes and other weights."""
    return build_classifier(model.name, model.output_shape[-1], model.input_shape[1:],
                            narrow=FILTERS[0] // model.get_layer("block1_conv1").filters)


def fold_batch_norm(trained: keras.Model, plain: keras.Model | None = None) -> keras.Model:
    """Fold every batch norm of a network of `build_trainable` into the convolution before it.

    With batch norm ``gamma (x - mean) / s + beta``, ``s = sqrt(variance + epsilon)``, the folded kernel is
    ``K gamma / s`` and the folded bias ``(b - mean) gamma / s + beta``: the same function in evaluation mode.
    `plain`, by default a new network, takes the weights and is returned; those of a plain network as they are.
    """
    plain = plain or plain_twin(trained)
    if not has_batch_norm(trained):
        plain.set_weights(trained.get_weights())
        return plain
    for name in convolution_names(trained.name):
        kernel, bias = (np.asarray(w, "float64") for w in trained.get_layer(name).get_weights())
        norm = trained.get_layer(f"{name}_bn")
        gamma, beta, mean, variance = (np.asarray(w, "float64") for w in norm.get_weights())
        scale = gamma / np.sqrt(variance + norm.epsilon)
        plain.get_layer(name).set_weights([kernel * scale, (bias - mean) * scale + beta])
    plain.get_layer("logits").set_weights(trained.get_layer("logits").get_weights())
    return plain


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Load a ``.weights.h5``, or a ``.h5`` of `keras.applications`; StudyError where it is damaged or does not fit."""
    try:
        model.load_weights(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: is not a weight file of {model.name} with {model.output_shape[-1]} classes "
                         f"({' '.join(str(error).split())[:200]}); if an earlier run left it, delete it") from error


def save_half(path: str | Path, model: keras.Model, layers: Sequence[str], classes: Sequence[str]) -> None:
    """Write some layers of a plain network as float16 in HDF5, a group per layer; `classes` of its logits.

    The largest float16 is 65504 and weights are far below it; ValueError where one is not.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(backbone=model.name, classes=list(classes))
        for layer in layers:
            for name, values in zip(("kernel", "bias"), model.get_layer(layer).get_weights()):
                half = values.astype(np.float16)
                if not np.isfinite(half).all():
                    raise ValueError(f"{layer}: has weights that float16 cannot hold")
                file.create_dataset(f"{layer}/{name}", data=half, compression="gzip", shuffle=True, track_times=False)


def load_half(model: keras.Model, path: str | Path, classes: Sequence[str]) -> None:
    """Set the layers that a file of `save_half` holds, as float32; the logits where its classes are `classes`.

    StudyError where the file is absent, changed since its card (``.json`` beside it) was written, or of another
    network.
    """
    with h5py.File(verified(Path(path))) as file:
        if file.attrs["backbone"] != model.name:
            raise StudyError(f"{path}: must hold weights of {model.name} (got {file.attrs['backbone']})")
        for name, values in file.items():
            if name != "logits" or list(file.attrs["classes"]) == list(classes):
                model.get_layer(name).set_weights([values["kernel"][()], values["bias"][()]])


def _imagenet_base(backbone, path):
    application = getattr(keras.applications, backbone.upper())
    name = f"{backbone}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    if path is None and "MSLIB_DATA" in os.environ:  # data and weights then come from there, not from the network
        own = Path(os.environ["MSLIB_DATA"], "weights", name)
        path = own if own.is_file() else None
    if path is None:
        try:
            return application(weights="imagenet", include_top=False)
        except Exception as error:
            raise StudyError(
                f"model.weights: the ImageNet weights of {backbone} cannot be downloaded "
                f"({' '.join(str(error).split())[:120]}); two ways out: set model.weights to the path of "
                f"'{name}', or to 'scratch'") from error
    if not path.is_file():
        raise StudyError("model.weights: must be 'imagenet', 'simulated', 'scratch' or the path of a file "
                         f"(got '{path}')")
    if not h5py.is_hdf5(path):
        raise StudyError(f"{path}: is not an HDF5 weight file of {backbone}")
    base = application(weights=None, include_top=False)
    load_weights(base, path)
    return base
