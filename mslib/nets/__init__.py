"""VGG16 and VGG19 with global average pooling; modules are imported when a name of theirs is used first."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["known_rule", "pretraining", "scope", "simulated"], {
    "data": ["SliceSet", "channels_of", "evenly", "gather", "predict"],
    "heads": ["fit_head", "fold_logits"],
    "protocols": ["cached", "fine_tune", "plain_network", "split_network", "start_network"],
    "splits": ["CAUSE_CLASSES", "CAUSE_SPLIT", "KINDS", "assign_parts", "permuted_labels", "prediction_table",
               "refuse_leakage", "split_subjects"],
    "train": ["Recipe", "choose_precision", "first_reaching", "fit"],
    "vgg": ["build_classifier", "build_trainable", "convolution_names", "fold_batch_norm", "last_convolution",
            "load_half", "load_weights", "save_half"]})
