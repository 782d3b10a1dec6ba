"""Intensities of one head: bias fields of its aligned sequences, estimated together, and scaling to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import SimpleITK as sitk

from mslib.cohort.anatomy import cubic_spline
from mslib.study import StudyError

from .images import bounding_box

VOXEL_MM = 5.0           # between the voxels that the fit sees
CLASSES, ROUNDS = 12, 30
KNOTS_MM = 60.0          # between the knots of a field's splines
ROUGHNESS = 0.1          # weight of the coefficients' squared second differences, relative to that of the data
SPREAD = 0.02            # added to the SD of a class's logarithms: less is noise
STEP = 2.0 ** -14        # of scaled intensities: far below the noise, so that files compress


def _splines(n: int, voxel_mm: float) -> np.ndarray:
    """Cubic B-splines about `KNOTS_MM` apart at the centres of `n` voxels, (n, splines)."""
    spans = max(1, round(n * voxel_mm / KNOTS_MM))
    return cubic_spline((np.arange(n)[:, None] + 0.5) * spans / n - np.arange(-1, spans + 2))


def _roughness(sizes: Sequence[int]) -> np.ndarray:
    """Quadratic form that sums the squared second differences of spline coefficients along each axis."""
    bends = [np.diff(np.eye(n), 2, axis=0) for n in sizes]
    return sum(reduce(np.kron, [bend.T @ bend if k == axis else np.eye(sizes[k]) for k, bend in enumerate(bends)])
               for axis in range(3))


def fit_log_fields(values: np.ndarray, inside: np.ndarray, voxel_mm: Sequence[float]) -> np.ndarray:
    """Smooth log fields without which the sequences' intensities, taken together, fall into few classes.

    Expectation maximisation: voxels belong to classes that are Gaussian in the logarithms of all sequences; then each
    sequence's field is the spline nearest to what the classes, and the other sequences' residuals under the classes'
    covariance, leave unexplained: mixtures of tissues move all sequences together, fields do not. A class is what looks
    alike in all sequences (tissues, and the mixtures at their borders), so that a sequence of little contrast is helped
    by the others. Classes start as equal shares of the first sequence's intensities; no atlas is needed.

    Parameters
    ----------
    values : ndarray of shape (X, Y, Z, C)
        Intensities of C aligned sequences; voxels that are not positive in all of them are left out.
    inside : ndarray of bool, shape (X, Y, Z)
        The brain.
    voxel_mm : (float, float, float)

    Returns
    -------
    ndarray of shape (X, Y, Z, C)
        Natural logarithms of the fields, mean 0 over `inside`.

    Raises
    ------
    StudyError
        Fewer than 50 voxels a class.

    References
    ----------
    Van Leemput et al. 1999, IEEE Trans Med Imaging 18(10):885-896 (there: polynomials, and classes from an atlas).
    """
    bases = [_splines(n, mm) for n, mm in zip(values.shape, voxel_mm)]
    pairs = [np.einsum("ni,nj->nij", basis, basis).reshape(len(basis), -1) for basis in bases]
    sizes = [basis.shape[1] for basis in bases]
    smooth = ROUGHNESS * _roughness(sizes) + 1e-9 * np.eye(int(np.prod(sizes)))
    seen = inside & (values > 0).all(axis=-1)
    logs = np.log(values[seen], dtype=float)
    n, channels = logs.shape
    if n < 50 * CLASSES:
        raise StudyError(f"only {n} voxels of the brain have a signal in every sequence (at least {50 * CLASSES})")
    logs -= np.median(logs, axis=0)
    member = np.eye(CLASSES)[logs[:, 0].argsort(kind="stable").argsort() * CLASSES // n]
    fields, grid = np.zeros((*seen.shape, channels)), np.zeros((2, *seen.shape))
    for _ in range(ROUNDS):
        even = logs - fields[seen]
        size = member.sum(axis=0) + 1e-6
        mean = member.T @ even / size[:, None]
        score, precision = np.empty((n, CLASSES)), np.empty((CLASSES, channels, channels))
        for k in range(CLASSES):
            apart = even - mean[k]
            covariance = (member[:, k, None] * apart).T @ apart / size[k] + SPREAD**2 * np.eye(channels)
            precision[k] = np.linalg.inv(covariance)
            score[:, k] = np.log(size[k]) - (np.einsum("ni,ij,nj->n", apart, precision[k], apart, optimize=True)
                                             + np.linalg.slogdet(covariance)[1]) / 2
        member = np.exp(score - score.max(axis=1, keepdims=True))
        member /= member.sum(axis=1, keepdims=True)
        for c in range(channels):
            grid[0, seen] = member @ precision[:, c, c]
            known = logs - fields[seen]
            known[:, c] = logs[:, c]
            pull = np.einsum("nk,kj,nj->n", member, precision[:, c], known, optimize=True)
            grid[1, seen] = pull - member @ (precision[:, c] * mean).sum(axis=1)
            normal = np.einsum("xyz,xa,yb,zc->abc", grid[0], *pairs, optimize=True)
            normal = normal.reshape([s for size in sizes for s in (size, size)]).transpose(0, 2, 4, 1, 3, 5)
            normal = normal.reshape(smooth.shape)
            right = np.einsum("xyz,xa,yb,zc->abc", grid[1], *bases, optimize=True)
            weights = np.linalg.solve(normal + smooth * np.trace(normal) / len(normal), right.ravel())
            field = np.einsum("abc,xa,yb,zc->xyz", weights.reshape(sizes), *bases, optimize=True)
            fields[..., c] = field - field[inside].mean()
    return fields


def estimate_bias(images: Sequence[sitk.Image], mask: sitk.Image, transforms: Sequence[sitk.Transform]
                  ) -> list[sitk.Image]:
    """Log bias fields of all sequences of a head on one thinned grid, about 5 mm a voxel, over the box of `mask`.

    Voxels are picked, not averaged: averages mix tissues. The thick axis of 2-D series is thinned less or not at all.
    `mask`: brain, non-zero inside, on the grid of the first image; `transforms`: points of that grid to points of each
    image. StudyError: too few voxels (`fit_log_fields`).
    """
    factors = [max(1, round(VOXEL_MM / s)) for s in mask.GetSpacing()]
    z, y, x = bounding_box(sitk.GetArrayViewFromImage(mask) > 0, factors[::-1])
    thin = sitk.Shrink(mask[x, y, z], factors)
    values = np.stack([sitk.GetArrayFromImage(sitk.Resample(image, thin, transform, sitk.sitkLinear, 0.0,
                                                            sitk.sitkFloat32))
                       for image, transform in zip(images, transforms)], axis=-1)
    logs = fit_log_fields(values, sitk.GetArrayViewFromImage(thin) > 0, thin.GetSpacing()[::-1])
    fields = [sitk.GetImageFromArray(logs[..., c].astype(np.float32)) for c in range(len(images))]
    for field in fields:
        field.CopyInformation(thin)
    return fields


def correct_bias(image: sitk.Image, log_field: sitk.Image, transform: sitk.Transform | None = None) -> sitk.Image:
    """Divide `image` by a field, given by its logarithm on another grid; beyond it the value at its border goes on.

    `transform`: points of the image to points of the field (default: the same space).
    """
    # Smooth at its own grid, so that linear interpolation changes the field by less than 0.1 %.
    return image / sitk.Resample(sitk.Exp(log_field), image, transform or sitk.Transform(), sitk.sitkLinear, 1.0,
                                 sitk.sitkFloat32, True)


def scale_intensity(image: np.ndarray, mask: np.ndarray, percentiles: tuple[float, float] = (0.5, 99.8)):
    """Map two percentiles (in percent) of `image` inside `mask`, both (X, Y, Z), to 0 and 1, and clip; 0 outside.

    Outside the brain nothing depends on disease, but noise, coil and field of view depend on sites and scanners: a
    classifier must not see it. StudyError: no contrast inside the mask (the percentiles coincide).
    """
    inside = np.asarray(image, dtype=np.float32)[mask]
    low, high = np.percentile(inside, percentiles)
    if not high > low:
        raise StudyError(f"image: has no contrast inside the brain (percentiles {percentiles}: both {low:g})")
    scaled = np.zeros(mask.shape, np.float32)
    scaled[mask] = np.round(np.clip((inside - low) / (high - low), 0, 1) / STEP) * STEP
    return scaled
