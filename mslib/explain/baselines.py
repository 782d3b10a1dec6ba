"""Baselines by name: what an image is compared with, and what takes the place of removed values."""

from __future__ import annotations

import numpy as np
from joblib import Parallel, cpu_count, delayed
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

BASELINES = ("zero", "mean", "blurred", "noise")
#: What may take the place of removed values: every baseline, and what their neighbourhood suggests.
REPLACEMENTS = (*BASELINES, "inpainted")
#: In-painted images that are worth a process.
INPAINTED_EACH = 8
#: Blur of a blurred baseline, as a share of the image's size along an axis.
BLUR = 0.1


def baseline_images(images, baseline="zero", seed: int = 0) -> np.ndarray:
    """One baseline per image, float32 of the shape of `images`.

    Parameters
    ----------
    images : array-like, (N, ..., M)
    baseline : {"zero", "mean", "blurred", "noise"}, float, or array-like
        ``mean``: each modality's mean over the image. ``blurred``: Gaussian, SD a tenth of the size. ``noise``: normal,
        with the mean and SD of each modality of the image; the draws (`seed`) are the same for every image. A number
        fills everything; an array has the shape of `images` or of one image.

    Raises
    ------
    ValueError
        Unknown name, or an array of another shape or with values that are not finite.
    """
    images = np.asarray(images, np.float32)
    space = tuple(range(1, images.ndim - 1))
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise ValueError(f"baseline: must be a number, an array or one of {', '.join(BASELINES)} "
                             f"(got {baseline!r})")
        mean = images.mean(space, keepdims=True)
        made = {"zero": lambda: np.zeros_like(images), "mean": lambda: mean + np.zeros_like(images),
                "blurred": lambda: ndimage.gaussian_filter(
                    images, [0, *(BLUR * size for size in images.shape[1:-1]), 0], mode="nearest"),
                "noise": lambda: mean + images.std(space, keepdims=True) * np.random.default_rng(seed).standard_normal(
                    images.shape[1:])}
        return made[baseline]().astype(np.float32)
    given = np.asarray(baseline, np.float32)
    if given.ndim and given.shape not in (images.shape, images.shape[1:]):
        raise ValueError(f"baseline: must have the shape of the images {images.shape} or of one of them "
                         f"(got {given.shape})")
    if not np.isfinite(given).all():
        raise ValueError("baseline: holds NaN or infinity")
    return np.broadcast_to(given, images.shape).copy()


def replace_removed(images, removed, baseline="zero", seed: int = 0) -> np.ndarray:
    """Images whose removed values are replaced.

    `removed`: bool, of the shape of `images`, as is the result, float32. `baseline` as in `baseline_images`, or
    ``inpainted``: each modality from its own values that stay around, within their range (Damelin and Hoang 2018,
    `skimage.restoration.inpaint_biharmonic`). ValueError: shapes differ, values are not finite, an unknown name, or no
    value of a modality stays to in-paint from.
    """
    images, removed = np.asarray(images, np.float32), np.asarray(removed)
    if removed.shape != images.shape or removed.dtype != bool:
        raise ValueError(f"removed: must be bool of the shape of the images {images.shape} (got {removed.dtype} "
                         f"{removed.shape})")
    if not np.isfinite(images).all():
        raise ValueError("images: hold NaN or infinity")
    if isinstance(baseline, str) and baseline not in REPLACEMENTS:
        raise ValueError(f"baseline: must be a number, an array or one of {', '.join(REPLACEMENTS)} "
                         f"(got {baseline!r})")
    if not isinstance(baseline, str) or baseline != "inpainted":
        return np.where(removed, baseline_images(images, baseline, seed), images)
    where = np.argwhere(removed.any(tuple(range(1, images.ndim - 1))))
    whole = [(i, modality) for i, modality in where if removed[i, ..., modality].all()]
    if whole:
        raise ValueError(f"baseline: nothing of modality {whole[0][1]} of image {whole[0][0]} stays to in-paint from")
    # Processes of their own for many images; the function of skimage alone goes there, not this package.
    workers = max(1, min(cpu_count(), len(where) // INPAINTED_EACH))
    made = Parallel(n_jobs=workers)(
        delayed(inpaint_biharmonic)(*(np.ascontiguousarray(array[i, ..., modality]) for array in (images, removed)))
        for i, modality in where)
    replaced = images.copy()
    for (i, modality), one in zip(where, made, strict=True):
        replaced[i, ..., modality] = one
    return replaced
