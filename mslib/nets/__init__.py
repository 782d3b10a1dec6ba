"""VGG16 and VGG19 with global average pooling: build, split, train, fold, predict."""

from .baseline import baseline_logits
from .data import SliceSet, gather
from .further import further_truth
from .protocols import PROTOCOLS, channels_of, load_net, net_facts, predict_cohort, train_protocol
from .splits import permute_groups, refuse_leakage, split_slices, split_subjects
from .training import choose_precision, fit, stream
from .vgg import build_classifier, build_trainable, fold_batch_norm

__all__ = ["PROTOCOLS", "SliceSet", "baseline_logits", "build_classifier", "build_trainable", "channels_of",
           "choose_precision", "fit", "fold_batch_norm", "further_truth", "gather", "load_net", "net_facts",
           "permute_groups", "predict_cohort", "refuse_leakage", "split_slices", "split_subjects", "stream",
           "train_protocol"]
