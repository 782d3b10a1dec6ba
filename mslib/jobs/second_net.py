"""The net of a study trained a second time, from another seed: what of its maps depends on chance?"""

from __future__ import annotations

import json
from pathlib import Path

import keras

from mslib.nets.repeats import load_repeat, train_repeat
from mslib.study import StudyConfig
from mslib.study.provenance import made_by

from .finetuning import load_slices


def second_net(config: StudyConfig, run_dir: str | Path, backbone: str) -> tuple[keras.Model, Path]:
    """The second net, trained where that has not been done, and its weights.

    One that is finished is taken up without loading the cohort where its stamp is that of the first net, which holds
    the digest of the slices; in doubt the cohort is loaded, and decides.

    Returns
    -------
    model : keras.Model
    weights : Path
    """
    folder = Path(run_dir) / "relevance" / backbone / "repeat1"
    weights = folder / "weights.weights.h5"
    if weights.is_file() and _belongs(folder, Path(run_dir) / "nets" / backbone / "subject"):
        return load_repeat(backbone, config, weights), weights
    return train_repeat(backbone, load_slices(config, run_dir, "study"), config, run_dir), weights


def _belongs(second: Path, first: Path) -> bool:
    """Whether today's code trained the second net from what the first was trained from (settings, slices, weights)."""
    stamps = [folder / "stamp.json" for folder in (second, first)]
    if not all(stamp.is_file() for stamp in stamps):
        return False
    found, known = (json.loads(stamp.read_text(encoding="utf-8")) for stamp in stamps)
    return found == known | {"repeat": 1, "repeat_code": made_by("mslib.nets.repeats")}


def has_second_net(config: StudyConfig) -> bool:
    """Whether this study trains nets; one that explains those of another has no second."""
    return config.cohort.source != "open_ms"
