"""Weights that a study starts from, looked at before anything long runs."""

from __future__ import annotations

from mslib.nets import build_classifier
from mslib.study import StudyConfig
from mslib.study.provenance import ROOT


def check_weights(config: StudyConfig) -> None:
    """Load given weights (ImageNet's, downloaded once, or a file) into every net of the study.

    Raises
    ------
    StudyError
        They cannot be had or do not fit, with the ways out.
    """
    weights = config.model.weights
    if weights in ("scratch", "simulated") or config.cohort.source == "open_ms":
        return
    shape = (*config.model.image_size, len(config.sequences))
    for backbone in config.model.backbones:
        build_classifier(backbone, len(config.groups), shape, weights if weights == "imagenet" else ROOT / weights)
