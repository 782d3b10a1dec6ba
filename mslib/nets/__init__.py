"""VGG16 and VGG19 with global average pooling: build, split, train, fold, predict."""

from .data import SliceSet, channels_of, evenly, gather, predict
from .heads import fit_head, fold_logits
from .protocols import (
    CAUSE_CLASSES,
    CAUSE_SPLIT,
    KINDS,
    assign_parts,
    cached,
    fine_tune,
    permuted,
    plain_network,
    prediction_table,
    split_network,
    start_network,
)
from .splits import refuse_leakage, split_subjects
from .train import Recipe, choose_precision, fit
from .vgg import (
    build_classifier,
    build_trainable,
    convolution_names,
    fold_batch_norm,
    last_convolution,
    load_half,
    load_weights,
    save_half,
)

__all__ = ["CAUSE_CLASSES", "CAUSE_SPLIT", "KINDS", "Recipe", "SliceSet", "assign_parts", "build_classifier",
           "build_trainable", "cached", "channels_of", "choose_precision", "convolution_names", "evenly", "fine_tune",
           "fit", "fit_head", "fold_batch_norm", "fold_logits", "gather", "last_convolution", "load_half",
           "load_weights", "permuted", "plain_network", "predict", "prediction_table", "refuse_leakage", "save_half",
           "split_network", "split_subjects", "start_network"]
