"""Bias fields (intensity non-uniformity) of the aligned sequences of one head, estimated together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from mslib.study import StudyError

from .images import bounding_box, checked_mask

VOXEL_MM = 5.0  # between the voxels that the fit sees
SPREAD = 0.02   # added to the SD of a class's logarithms: less is noise


def _splines(n: int, voxel_mm: float, knots_mm: float) -> np.ndarray:
    """Cubic B-splines about `knots_mm` apart at the centres of `n` voxels, (n, splines)."""
    spans = max(1, round(n * voxel_mm / knots_mm))
    away = np.abs((np.arange(n)[:, None] + 0.5) * spans / n - np.arange(-1, spans + 2))
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None)**3 / 6)


def _roughness(sizes: Sequence[int]) -> np.ndarray:
    """Quadratic form that sums the squared second differences of spline coefficients along each axis."""
    total = 0.0
    for axis, size in enumerate(sizes):
        parts = [np.eye(n) for n in sizes]
        second = np.diff(np.eye(size), 2, axis=0)
        parts[axis] = second.T @ second
        total = total + np.kron(np.kron(parts[0], parts[1]), parts[2])
    return total


def fit_log_fields(values: np.ndarray, inside: np.ndarray, voxel_mm: Sequence[float], *, classes: int = 12,
                   rounds: int = 30, knots_mm: float = 60.0, roughness: float = 0.1) -> np.ndarray:
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
    classes, rounds : int
    knots_mm : float
        Distance between the splines' knots.
    roughness : float
        Weight of the squared second differences of the coefficients, relative to that of the data.

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
    Van Leemput et al. 1999, IEEE Trans Med Imaging 18(10):885-896 (there: polynomials, and tissue classes that start
    from an atlas).
    """
    bases = [_splines(n, mm, knots_mm) for n, mm in zip(values.shape, voxel_mm)]
    pairs = [np.einsum("ni,nj->nij", basis, basis).reshape(len(basis), -1) for basis in bases]
    sizes = [basis.shape[1] for basis in bases]
    smooth = roughness * _roughness(sizes) + 1e-9 * np.eye(int(np.prod(sizes)))
    seen = inside & (values > 0).all(axis=-1)
    logs = np.log(values[seen], dtype=float)
    n, channels = logs.shape
    if n < 50 * classes:
        raise StudyError(f"only {n} voxels of the brain have a signal in every sequence (at least {50 * classes})")
    logs -= np.median(logs, axis=0)
    member = np.eye(classes)[logs[:, 0].argsort(kind="stable").argsort() * classes // n]
    fields, grid = np.zeros((*seen.shape, channels)), np.zeros((2, *seen.shape))
    for _ in range(rounds):
        even = logs - fields[seen]
        size = member.sum(axis=0) + 1e-6
        mean = member.T @ even / size[:, None]
        score, precision = np.empty((n, classes)), np.empty((classes, channels, channels))
        for k in range(classes):
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


def estimate_bias(images: Sequence[sitk.Image], mask, transforms: Sequence[sitk.Transform]) -> list[sitk.Image]:
    """Log bias fields of all sequences of a head on one thinned grid, about 5 mm a voxel, over the box of `mask`.

    Voxels are picked, not averaged: averages mix tissues. The thick axis of 2-D series is thinned less or not at all.

    Parameters
    ----------
    images : sequence of SimpleITK.Image
    mask : SimpleITK.Image
        Brain, non-zero inside, on the grid of the first image.
    transforms : sequence of SimpleITK.Transform
        Points of the mask's grid to points of each image.

    Raises
    ------
    StudyError
        Mask empty or on another grid than the first image, too few voxels (`fit_log_fields`).
    """
    mask = checked_mask(mask, images[0])
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
