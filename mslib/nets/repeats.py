"""The net of the subject-wise split trained once more from another seed: does what it shows depend on chance?"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from mslib.study import StudyConfig, atomic_path, stamped_folder
from mslib.study.provenance import made_by

from . import protocols
from .data import SliceSet
from .training import Recipe


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
    schedule, seed = config.training.subject, config.seed + repeat
    facts = protocols.training_facts("subject", config, slices) | {"repeat": repeat,
                                                                   "repeat_code": made_by("mslib.nets.repeats")}
    path = stamped_folder(Path(run_dir) / "relevance" / backbone / f"repeat{repeat}", facts) / "weights.weights.h5"
    if not path.exists():
        parts = protocols.assign_parts("subject", slices, config)
        index = {part: np.flatnonzero(parts == part) for part in ("train", "validation")}
        small = slices.shrunk(schedule.shrink)
        keras.utils.set_random_seed(seed)
        shape = (*small.images.shape[1:3], len(config.sequences))
        model, _, _ = protocols._start(backbone, config, run_dir, shape, schedule.shrink)
        protocols._fit(model, small, index, path.parent, Recipe.of(schedule, config, seed=seed),
                       protocols.channels_of(config), f"{backbone} repeat {repeat}")
        with atomic_path(path) as temporary:
            protocols._finished(model).save_weights(str(temporary))
        for name in ("state.npz", "best.npz"):
            (path.parent / name).unlink(missing_ok=True)
    shape = (*config.model.image_size, len(config.sequences))
    return protocols.build_classifier(backbone, len(config.groups), shape, path)
