"""Do maps follow the net? Every method once more on nets with random weights; likeness to those of a second net."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from mslib.explain import METHODS, randomised_copy
from mslib.nets.spread import evenly
from mslib.study import StudyConfig
from mslib.study.provenance import made_by

from .attribution_scores import likeness
from .attributions import JOINT, kept_maps

#: Slices that the randomisation looks at.
RANDOMISED = 8
#: What is random at its steps (the deepest layers first), and the last layer that is.
STEPS = {"logits": "logits", "block 5 and logits": "block5_conv1", "all layers": "block1_conv1"}
#: The last of them, which decides whether a method passes.
ALL_LAYERS = "all layers"


def randomisation_scores(one: dict, config: StudyConfig, steps: Collection[str] = tuple(STEPS)) -> pd.DataFrame:
    """Likeness of every method's maps to the original while layers are set to random from the output down.

    Parameters
    ----------
    one : dict
        From `planted_maps` or `all_patient_maps`; maps are kept in its folder.
    config : StudyConfig
    steps : collection of str
        Some of `STEPS`.

    Returns
    -------
    pandas.DataFrame
        ``method, step, random, subject, likeness`` of `RANDOMISED` slices spread over the subjects; NaN where a map is
        flat.

    Raises
    ------
    ValueError
        A step that is none of `STEPS`.
    """
    if not set(steps) <= set(STEPS):
        raise ValueError(f"steps: must be a collection of some of {list(STEPS)} (got {steps!r})")
    index = evenly(np.arange(len(one["images"])), RANDOMISED)
    part = {key: one[key][index] for key in ("images", "targets", "brain")} | {"config": config}
    facts = one["facts"] | {"images": index.tolist()}
    before, tables = {method: maps[index] for method, maps in one["maps"].items()}, []
    if len(index) < len(one["images"]):  # made of the same images as those that they are held against
        joint = [method for method in METHODS if method in JOINT]
        before |= kept_maps(one["model"], **part, folder=Path(one["folder"]) / "chosen", facts=facts, methods=joint,
                            label="not randomised")[0]
    for step, (random, lowest) in enumerate(STEPS.items(), start=1):
        if random not in steps:
            continue
        net = randomised_copy(one["model"], lowest, config.seed)
        drawn = facts | {"lowest": lowest, "random_code": made_by("mslib.explain.randomisation")}
        maps, _ = kept_maps(net, **part, folder=Path(one["folder"]) / f"random{step}", facts=drawn, methods=METHODS,
                            label=f"randomised: {random}")
        for method, found in maps.items():
            tables.append(pd.DataFrame({"method": method, "step": step, "random": random,
                                        "subject": np.asarray(one["subjects"])[index],
                                        "likeness": likeness(before[method], found, part["brain"])}))
    return pd.concat(tables, ignore_index=True)


def randomised_slices(random: pd.DataFrame) -> int:
    """Of how many slices a table of `randomisation_scores` is."""
    return int(random.groupby(["method", "step"]).size().max())


def repeat_scores(maps: dict, others: dict, brain) -> pd.DataFrame:
    """Likeness of the maps of two nets that were trained alike from another seed: ``method, image, likeness``."""
    return pd.concat([pd.DataFrame({"method": method, "image": np.arange(len(own)),
                                    "likeness": likeness(own, others[method], brain)})
                      for method, own in maps.items()], ignore_index=True)
