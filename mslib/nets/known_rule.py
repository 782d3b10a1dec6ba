"""Networks with a known decision rule: marks are drawn on control slices so that one sequence decides the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

from mslib.study.errors import StudyError
from mslib.study.files import write_weights
from mslib.study.progress import progress

from .data import SliceSet, evenly
from .train import BalancedBatches, Recipe, compiled, refresh_batch_norm, reset
from .vgg import build_classifier, build_trainable, fold_batch_norm, load_weights

ROLES = ("decisive", "correlated", "irrelevant")
#: How often the mark of a sequence shows the class, in the order of `ROLES`.
AGREEMENT = (1.0, 0.7, 0.5)
#: With the shortcut no mark shows the class: a mark that did so in 80 % of slices was learnt instead of the corner.
SHORTCUT_AGREEMENT = (0.5, 0.5, 0.5)
#: Radius of a mark and period of its stripes, mm; amplitude of the stripes as a share of the brain's range.
RADIUS_MM, PERIOD_MM, AMPLITUDE = 20.0, 10.0, (0.3, 0.45)
#: Side of the shortcut's square in the corner of the picture, mm, and its intensity (the brain's range is 1).
SHORTCUT_MM, SHORTCUT_VALUE = 16.0, 0.3
SHORTCUT = "shortcut"
#: Slices count whose brain has at least this share of the largest one's area: marks then fit in.
WIDE = 0.7


@dataclass(frozen=True)
class Marked:
    """Slices with marks: their ``target`` is the class of the decisive sequence's mark."""

    slices: SliceSet
    marks: np.ndarray  #: bool (n, H, W, M): where each sequence's mark is
    shown: np.ndarray  #: int (n, M): class that each sequence's mark shows
    brain: np.ndarray  #: bool (n, H, W)
    corner: np.ndarray  #: bool (n,): whether the shortcut is there


@dataclass(frozen=True)
class Experiment:
    """One known rule: which sequence decides, and whether a shortcut does so instead of its mark."""

    name: str
    decisive: int
    shortcut: bool = False

    def marked(self, slices: SliceSet, pixel_mm: float, seed: int) -> Marked:
        """Slices with this experiment's marks, as in `draw_marks`."""
        rule = {"agreement": SHORTCUT_AGREEMENT, "shortcut": 1.0} if self.shortcut else {}
        return draw_marks(slices, self.decisive, pixel_mm, seed, **rule)


def experiments(sequences: Sequence[str]) -> list[Experiment]:
    """Each sequence decides once; last, a shortcut beside the mark of the last sequence."""
    marks = [Experiment(sequence, number) for number, sequence in enumerate(sequences)]
    return [*marks, Experiment(SHORTCUT, len(sequences) - 1, shortcut=True)]


def roles(decisive: int, sequences: int = 3) -> list[int]:
    """Sequences in the order of `ROLES`."""
    return [(decisive + step) % sequences for step in range(sequences)]


def wide_slices(images: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Slices of one subject in which marks fit, (n, H, W, M) to (m, H, W, M), without what is not `brain`."""
    area = brain.sum(axis=(1, 2))
    wide = area >= WIDE * area.max()
    return images[wide] * brain[wide][..., None]


def spread(slices: SliceSet, count: int) -> SliceSet:
    """`count` slices or a few more, spread evenly over the subjects and over their slices."""
    subjects = slices.table["subject"].to_numpy()
    names = np.unique(subjects)
    index = np.concatenate([evenly(np.flatnonzero(subjects == name), -(-count // len(names))) for name in names])
    return SliceSet(slices.images[index], slices.table.iloc[index].reset_index(drop=True))


def shortcut_mask(shape: tuple[int, int], pixel_mm: float) -> np.ndarray:
    """Where the shortcut is drawn in slices of that shape: a square in the upper left corner, in the air."""
    side = max(2, round(SHORTCUT_MM / pixel_mm))
    mask = np.zeros(shape, bool)
    mask[1:1 + side, 1:1 + side] = True
    return mask


def _mark(shape, centre, kind, phase, pixel_mm):
    """Stripes (-1 to 1; left to right for class 0, front to back for class 1) in a disc with a soft edge; the disc."""
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    distance = np.hypot(rows - centre[0], columns - centre[1]) * pixel_mm
    disc = 1 / (1 + np.exp(distance - RADIUS_MM))
    along = rows if kind == 0 else columns
    return disc * np.cos(2 * np.pi * along * pixel_mm / PERIOD_MM + phase), disc > 0.5


def _places(brain, pixel_mm):
    """Centres at which a mark lies inside the brain (the deepest point where it is too small for that)."""
    depth = ndimage.distance_transform_edt(np.pad(brain, 1))[1:-1, 1:-1] * pixel_mm
    return np.argwhere(depth >= min(RADIUS_MM + 2, depth.max()))


def draw_marks(slices: SliceSet, decisive: int, pixel_mm: float, seed: int,
               agreement: tuple[float, float, float] = AGREEMENT, shortcut: float | None = None) -> Marked:
    """Draw a mark on every sequence of every slice; both classes get equally many.

    An open rebuild of the synthetic experiment of Jin et al. 2022. All marks are of one kind, striped discs whose
    stripes run from left to right or from front to back, so that no class is "nothing there".

    Parameters
    ----------
    slices : SliceSet
        Images without lesions (controls), 0 outside the brain.
    decisive : int
        Index of the decisive sequence; the next one (cyclically) is correlated, the third irrelevant.
    agreement : (float, float, float)
        Probability that the mark of a sequence shows the class, in the order of `ROLES`.
    shortcut : float, optional
        Probability that a grey square in the corner of the decisive sequence shows the class (drawn for class 1 and
        not for class 0). Default: never drawn.
    """
    rng = np.random.default_rng([seed, 41])
    images = slices.images.astype(np.float32)
    n, sequences = len(images), images.shape[-1]
    target = rng.permutation(np.arange(n) % 2)
    brain = (images > 0).any(-1)
    shown, marks = np.zeros((n, sequences), int), np.zeros(images.shape, bool)
    for i in range(n):
        places = _places(brain[i], pixel_mm)
        for role, sequence in enumerate(roles(decisive, sequences)):
            shown[i, sequence] = target[i] if rng.random() < agreement[role] else 1 - target[i]
            stripes, marks[i, ..., sequence] = _mark(brain[i].shape, places[rng.integers(len(places))],
                                                     shown[i, sequence], rng.uniform(0, 2 * np.pi), pixel_mm)
            images[i, ..., sequence] += stripes * rng.uniform(*AMPLITUDE) * brain[i]
    corner = np.zeros(n, bool)
    if shortcut is not None:
        corner = (rng.random(n) < shortcut) == (target == 1)
        images[..., decisive] += SHORTCUT_VALUE * corner[:, None, None] * shortcut_mask(brain.shape[1:], pixel_mm)
    marked = SliceSet(np.clip(images, 0, 1).astype(np.float16), slices.table.assign(target=target))
    return Marked(marked, marks & brain[..., None], shown, brain, corner)


def train_known_rules(tasks: Mapping[str, tuple[Marked, int]], recipe: Recipe, narrow: int,
                      folder: str | Path) -> dict[str, list[np.ndarray]]:
    """Weights of narrow VGG16s that tell the classes of marks apart, one after the other, traced once.

    Parameters
    ----------
    tasks : dict of name to (Marked, int)
        Marked training slices, as many for each network, and the seed of its weights and of the order of slices.
    recipe : Recipe
        All its epochs are trained, weight decay is of all variables; the seed is replaced.
    narrow : int
        Divisor of the channels.
    folder : path
        Keeps the weights of finished trainings: the same call goes on after them.

    Raises
    ------
    StudyError
        Fewer slices than one batch, or a loss that is not a number.
    """
    shape, model, trained = next(iter(tasks.values()))[0].slices.images.shape[1:], None, {}
    plain = build_classifier("vgg16", 2, shape, narrow=narrow)
    for name, (marked, seed) in progress(tasks.items(), desc="known rule: train", unit="network"):
        path, own = Path(folder) / f"{name}.weights.h5", replace(recipe, seed=seed)
        if path.is_file():
            load_weights(plain, path)
        else:
            batches = BalancedBatches(marked.slices, np.arange(len(marked.slices.images)), own)
            keras.utils.set_random_seed(seed)
            start = build_trainable("vgg16", 2, shape, "float32", narrow)
            model = model or start
            model.set_weights(start.get_weights())
            trainer = compiled(model, recipe.learning_rate, recipe.weight_decay, 0, len(batches) * recipe.epochs, ())
            reset(trainer)
            drawn = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _, draw=batches.draw: draw(epoch))
            losses = trainer.fit(batches, epochs=recipe.epochs, shuffle=False, verbose=0, callbacks=[drawn]).history
            if not np.isfinite(losses["loss"]).all():
                raise StudyError(f"known rule: the loss of {name} is not a number; lower "
                                 "attribution.known_rule.learning_rate")
            refresh_batch_norm(model, marked.slices, batches.train, own)
            fold_batch_norm(model, plain)
            write_weights(path, plain)
        trained[name] = plain.get_weights()
    return trained
