"""The net of the subject-wise split trained once more from another seed: does what it shows depend on chance?"""

from __future__ import annotations

from pathlib import Path

import keras

from mslib.study import StudyConfig, stamped_folder
from mslib.study.provenance import made_by

from . import protocols
from .data import SliceSet
from .training import finish


def train_repeat(backbone: str, slices: SliceSet, config: StudyConfig, run_dir: str | Path,
                 repeat: int = 1) -> keras.Model:
    """A net trained as that of the subject-wise split but for its seed; a finished or unfinished one is taken up.

    Same subjects in every part, same schedule, same weights at the start where they are pre-trained or given: other
    draws of slices, other augmentation, other order (trained from scratch: other weights at the start, too).

    Parameters
    ----------
    backbone : {"vgg16", "vgg19"}
    slices : SliceSet
        The study cohort.
    config : StudyConfig
    run_dir : path
        Writes ``relevance/<backbone>/repeat<number>/``.
    repeat : int
        Added to the study's seed.

    Returns
    -------
    keras.Model
        Plain net (batch norm folded).
    """
    facts = protocols.training_facts("subject", config, slices) | {"repeat": repeat,
                                                                   "repeat_code": made_by("mslib.nets.repeats")}
    path = stamped_folder(Path(run_dir) / "relevance" / backbone / f"repeat{repeat}", facts) / "weights.weights.h5"
    if not path.exists():
        parts = protocols.assign_parts("subject", slices, config)
        small = slices.shrunk(config.training.subject.shrink)
        model, _ = protocols.trained_net("subject", backbone, small, parts, config, run_dir, path.parent,
                                         config.seed + repeat, f"{backbone} repeat {repeat}")
        finish(model, path)
    return load_repeat(backbone, config, path)


def load_repeat(backbone: str, config: StudyConfig, weights: Path) -> keras.Model:
    """A finished net of `train_repeat` from its weights."""
    shape = (*config.model.image_size, len(config.sequences))
    return protocols.build_classifier(backbone, len(config.groups), shape, weights)
