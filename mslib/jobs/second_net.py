"""The net of a study trained a second time, from another seed: what of its maps depends on chance?"""

from __future__ import annotations

from pathlib import Path

import keras

from mslib.nets.repeats import train_repeat
from mslib.study import StudyConfig

from .finetuning import load_slices


def second_net(config: StudyConfig, run_dir: str | Path, backbone: str) -> tuple[keras.Model, Path]:
    """The second net, trained where that has not been done, and its weights.

    Returns
    -------
    model : keras.Model
    weights : Path
    """
    model = train_repeat(backbone, load_slices(config, run_dir, "study"), config, run_dir)
    return model, Path(run_dir) / "relevance" / backbone / "repeat1" / "weights.weights.h5"


def has_second_net(config: StudyConfig) -> bool:
    """Whether this study trains nets; one that explains those of another has no second."""
    return config.cohort.source != "open_ms"
