"""Nets whose reason is known: marks are drawn on control slices so that one sequence alone decides the class.

An open rebuild of the synthetic experiment of Jin et al. 2022: in the deciding sequence the mark always shows the
class, in a second one it does so with probability 0.7, in the third never more than by chance. All marks are of one
kind, striped discs whose stripes run from left to right or from front to back, so that no class is "nothing there".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

from mslib.study import StudyConfig, stamped_folder
from mslib.study.config import Schedule
from mslib.study.provenance import made_by

from .data import SliceSet
from .training import Recipe, finish, fit
from .vgg import build_classifier, build_trainable, fold_batch_norm, load_weights

#: How often the mark of the deciding, the agreeing and the idle sequence shows the class.
AGREEMENT = (1.0, 0.7, 0.5)
#: Radius of a mark and period of its stripes, mm; amplitude of the stripes as a share of the brain's range.
RADIUS_MM, PERIOD_MM, AMPLITUDE = 20.0, 10.0, (0.3, 0.45)
#: Side of the shortcut's square in the corner of the picture, mm, and its brightness (the brain's range is 1).
SHORTCUT_MM, SHORTCUT_VALUE = 16.0, 0.3
CLASSES = ("left-right", "front-back")


@dataclass(frozen=True)
class Marked:
    """Slices with marks.

    Attributes
    ----------
    slices : SliceSet
        ``target``: class of the deciding sequence's mark.
    marks : ndarray of bool, (n, H, W, M)
        Where each sequence's mark is.
    shown : ndarray of int, (n, M)
        Class that each sequence's mark shows.
    brain : ndarray of bool, (n, H, W)
    corner : ndarray of bool, (n,)
        Whether the shortcut is there.
    """

    slices: SliceSet
    marks: np.ndarray
    shown: np.ndarray
    brain: np.ndarray
    corner: np.ndarray


def roles(deciding: int, modalities: int = 3) -> list[int]:
    """Modalities in the order deciding, agreeing, idle."""
    return [(deciding + step) % modalities for step in range(modalities)]


def shortcut_mask(shape: tuple[int, int], pixel_mm: float) -> np.ndarray:
    """Where the shortcut is drawn: a square in the upper left corner, in the air.

    Returns
    -------
    ndarray of bool, (H, W)
    """
    side = max(2, round(SHORTCUT_MM / pixel_mm))
    mask = np.zeros(shape, bool)
    mask[1:1 + side, 1:1 + side] = True
    return mask


def _mark(shape, centre, kind, phase, pixel_mm):
    """Stripes (-1 to 1) within a disc with a soft edge, and the disc."""
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    distance = np.hypot(rows - centre[0], columns - centre[1]) * pixel_mm
    disc = 1 / (1 + np.exp(distance - RADIUS_MM))
    along = rows if kind == 0 else columns
    return disc * np.cos(2 * np.pi * along * pixel_mm / PERIOD_MM + phase), disc > 0.5


def _places(brain, pixel_mm):
    """Centres at which a mark lies inside the brain (the deepest point where it is too small for that)."""
    depth = ndimage.distance_transform_edt(np.pad(brain, 1))[1:-1, 1:-1] * pixel_mm
    return np.argwhere(depth >= min(RADIUS_MM + 2, depth.max()))


def plant(slices: SliceSet, deciding: int, pixel_mm: float, seed: int, agreement=AGREEMENT,
          shortcut: float | None = None) -> Marked:
    """Draw a mark on every sequence of every slice.

    Parameters
    ----------
    slices : SliceSet
        Images without lesions (controls), 0 outside the brain.
    deciding : int
        Index of the deciding sequence; the next one (cyclically) agrees, the third is idle.
    pixel_mm : float
    seed : int
    agreement : (float, float, float)
        Probability that the mark of the deciding, agreeing and idle sequence shows the class.
    shortcut : float, optional
        Probability that a grey square in the corner of the deciding sequence tells the class (drawn for class 1 and
        not for class 0). Default: never drawn.

    Returns
    -------
    Marked
        Both classes equally often.
    """
    rng = np.random.default_rng([seed, 41])
    images = slices.images.astype(np.float32)
    n, modalities = len(images), images.shape[-1]
    target = rng.permutation(np.arange(n) % 2)
    brain = (images > 0).any(-1)
    shown, marks = np.zeros((n, modalities), int), np.zeros(images.shape, bool)
    for i in range(n):
        places = _places(brain[i], pixel_mm)
        for role, modality in enumerate(roles(deciding, modalities)):
            shown[i, modality] = target[i] if rng.random() < agreement[role] else 1 - target[i]
            stripes, marks[i, ..., modality] = _mark(brain[i].shape, places[rng.integers(len(places))],
                                                     shown[i, modality], rng.uniform(0, 2 * np.pi), pixel_mm)
            images[i, ..., modality] += stripes * rng.uniform(*AMPLITUDE) * brain[i]
    corner = np.zeros(n, bool)
    if shortcut is not None:
        corner = (rng.random(n) < shortcut) == (target == 1)
        images[..., deciding] += SHORTCUT_VALUE * corner[:, None, None] * shortcut_mask(brain.shape[1:], pixel_mm)
    planted = SliceSet(np.clip(images, 0, 1).astype(np.float16), slices.table.assign(target=target))
    return Marked(planted, marks & brain[..., None], shown, brain, corner)


def narrowed(model: keras.Model, divisor: int) -> keras.Model:
    """The same net with a fraction of the channels in every convolution, weights drawn anew."""
    def narrow(layer):
        config = layer.get_config()
        if "filters" in config:
            config["filters"] //= divisor
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=narrow)


def _plain(backbone, shape, divisor):
    return narrowed(build_classifier(backbone, len(CLASSES), shape), divisor)


def train_planted(marked: Marked, parts: np.ndarray, config: StudyConfig, folder: str | Path, seed: int,
                  label: str) -> keras.Model:
    """A narrow VGG16 that tells the classes of planted marks apart; a finished one is taken up.

    Parameters
    ----------
    marked : Marked
        Of training and validation.
    parts : ndarray of str, (n,)
        ``train`` or ``validation`` of every slice.
    config : StudyConfig
        ``attribution.planted`` says how long.
    folder : path
        Keeps ``weights.weights.h5``.
    seed : int
        Of weights and order.
    label : str
        Text of the bar.

    Returns
    -------
    keras.Model
        Plain net (batch norm folded), (N, H, W, M) to two logits.

    Raises
    ------
    StudyError
        Too few slices, or a loss that is no number.
    """
    settings, shape = config.attribution.planted, marked.slices.images.shape[1:]
    facts = {"settings": json.loads(settings.model_dump_json()), "seed": seed, "slices": marked.slices.digest(),
             "parts": "".join(part[0] for part in parts), "batch_size": config.training.batch_size,
             "code": made_by("mslib.nets.planted")}
    path = stamped_folder(folder, facts) / "weights.weights.h5"
    plain = _plain("vgg16", shape, settings.narrow)
    if not path.exists():
        keras.utils.set_random_seed(seed)
        trained = narrowed(build_trainable("vgg16", len(CLASSES), shape, "float32"), settings.narrow)
        schedule = Schedule(epochs=settings.epochs, slices_per_subject=settings.slices_per_subject,
                            learning_rate=settings.learning_rate, augmented=False)
        recipe = Recipe.of(schedule, config, patience=settings.epochs, seed=seed, channels=None)
        index = [np.flatnonzero(parts == part) for part in ("train", "validation")]
        fit(trained, marked.slices, *index, path.parent, recipe, label)
        finish(fold_batch_norm(trained, plain), path)
    load_weights(plain, path)
    return plain
