"""VGG16 and VGG19 with global average pooling: build, split, train, fold, predict."""

from .baseline import baseline_logits
from .data import SliceSet, channels_of, evenly, gather, predict
from .protocols import (
    KINDS,
    assign_parts,
    chance_level,
    permuted,
    prediction_table,
    split_network,
    start_network,
    tested,
    train_network,
)
from .splits import split_subjects
from .train import Recipe, choose_precision, fit
from .vgg import build_classifier, build_trainable, convolution_names, fold_batch_norm, last_convolution, load_weights

__all__ = ["KINDS", "Recipe", "SliceSet", "assign_parts", "baseline_logits", "build_classifier", "build_trainable",
           "chance_level", "channels_of", "choose_precision", "convolution_names", "evenly", "fit", "fold_batch_norm",
           "gather", "last_convolution", "load_weights", "permuted", "predict", "prediction_table", "split_network",
           "split_subjects", "start_network", "tested", "train_network"]
