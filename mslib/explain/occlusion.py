"""Occlusion: what the score loses while a window of one modality is covered."""

from __future__ import annotations

import keras
import numpy as np

from .baselines import baseline_images
from .incremental import obstacle, occlusion_losses
from .model import logits_of

ENGINES = ("auto", "incremental", "full")


def occlusion(model: keras.Model, images, targets, *, window: int = 11, stride: int = 5, baseline="zero",
              seed: int = 0, batch_size: int = 64, engine: str = "auto") -> np.ndarray:
    """What the score loses when a window of one modality is covered (Zeiler and Fergus 2014), overlaps averaged.

    Parameters and result as in `mslib.explain.perturbation`.

    Parameters
    ----------
    window, stride : int
        Size and step of the window along every axis of space.
    engine : {"auto", "incremental", "full"}
        ``full`` predicts the whole net for every window. ``incremental`` computes only what a window can change
        (`mslib.explain.incremental`): exact, the maps are equal up to rounding (1e-4 of the largest value of the map,
        where full passes in float32 are that exact themselves). ``auto``: incremental for the nets that it can do, a
        chain of convolutions, ReLUs and pools with a dense end; else full.

    Raises
    ------
    ValueError
        Unknown engine; ``incremental`` for a net that it cannot do: the layer is named.
    """
    losses_of = _losses_of(model, engine)
    base = baseline_images(images, baseline, seed)
    places = [(*place, modality) for place in windows(images.shape[1:-1], window, stride)
              for modality in range(images.shape[-1])]
    maps = np.empty(images.shape, np.float32)
    for i in range(len(images)):
        total, times = np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
        for place, loss in zip(places, losses_of(model, images[i], base[i], places, int(targets[i]), batch_size)):
            total[place] += loss
            times[place] += 1
        maps[i] = total / np.maximum(times, 1)
    return maps


def windows(shape, window: int, stride: int):
    """Slices of the windows over the axes of space, cut at the far edges."""
    starts = [range(0, max(1, -(-(size - window) // stride) * stride + 1), stride) for size in shape]
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(shape)):
        yield tuple(slice(int(start), int(start) + window) for start in corner)


def full_losses(model: keras.Model, image, base, places, target: int, batch_size: int = 64) -> np.ndarray:
    """What a score loses, (windows,) in float64, when a window is covered: one pass of the whole net a window.

    `places` holds for every window its slices of space and its modality.
    """
    def batches():
        yield image[None]
        for start in range(0, len(places), batch_size):
            covered = np.repeat(image[None], len(places[start:start + batch_size]), 0)
            for picture, place in zip(covered, places[start:start + batch_size]):
                picture[place] = base[place]
            yield covered

    scores = logits_of(model, batches())[:, target]
    return scores[0] - scores[1:]


def _losses_of(model, engine):
    """The engine's function, chosen before anything is computed."""
    if engine not in ENGINES:
        raise ValueError(f"occlusion: engine must be one of {', '.join(ENGINES)} (got {engine!r})")
    fault = None if engine == "full" else obstacle(model)
    if fault and engine == "incremental":
        raise ValueError(f"occlusion: engine 'incremental' cannot do this net: {fault}; engine='full' can")
    return full_losses if fault or engine == "full" else occlusion_losses
