"""Rigid registration of two sequences of one head by mutual information."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from mslib.study import StudyError

from .images import apply_points, as_image, checked_mask, one_thread_each, reduce_to

LEVELS_MM = (6.0, 3.0, 1.5)
SAMPLES, BINS, SEED = 20000, 32, 1  # points per level, bins of the histogram, of the jitter (0: the wall clock)
COARSE_ANGLE_DEG = 15.0
LEVER_MM = 60.0  # a turn of 1/60 radian moves the cortex about 1 mm
IMPLAUSIBLE_MM = 30.0
IMPLAUSIBLE_DEG = 25.0


@dataclass(frozen=True)
class Registration:
    """Outcome of a rigid registration.

    `transform`: points of the fixed image to points of the moving image (mm, LPS), as resampling the moving image
    into the fixed grid uses; `metric_start`, `metric_end`: Mattes mutual information (nats, larger is better) at header
    alignment (NaN where headers put the images apart) and at the result, at the finest level; `motion_mm`,
    `motion_deg`: mean displacement of the mask's points, angle of the rotation; `overlap`: share of the mask's points
    inside the moving image; `flags`: reasons to doubt the result.
    """

    transform: sitk.Euler3DTransform
    metric_start: float
    metric_end: float
    motion_mm: float
    motion_deg: float
    overlap: float
    flags: list[str]


def _method(level: dict) -> sitk.ImageRegistrationMethod:
    """Mattes mutual information over jittered points of the mask; one thread, so that sums have one order."""
    one_thread_each()
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricFixedMask(level["mask"])
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(min(1.0, SAMPLES / max(len(level["positions"]), 1)), SEED)
    # Gradients of the images as they are: of smoothed ones, they do not lead to the maximum, and take longer.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    return method


def _metric(level: dict, transform: sitk.Transform) -> float:
    """Mutual information in nats at `transform`; NaN if too few points of the mask lie in the moving image."""
    method = _method(level)
    method.SetInitialTransform(transform)
    try:
        return -method.MetricEvaluate(level["fixed"], level["moving"])
    except RuntimeError:
        return math.nan


def _rescaled(thing, factor: float):
    """An image, or a rigid or affine transform, of a space in which all lengths are multiplied by `factor`."""
    image = isinstance(thing, sitk.Image)
    thing = type(thing)(thing)
    for part in ("Origin", "Spacing") if image else ("Center", "Translation"):
        getattr(thing, f"Set{part}")([factor * value for value in getattr(thing, f"Get{part}")()])
    return thing


def climb(level: dict, start: sitk.Transform, step_mm: float) -> sitk.Transform:
    """Follow the gradient of mutual information from a rigid or affine transform, with steps of `step_mm` at first.

    Lengths count in levers, so that a step of the optimiser, which adds angles and lengths, is one of the brain.
    """
    fixed, moving, mask = (_rescaled(level[name], 1 / LEVER_MM) for name in ("fixed", "moving", "mask"))
    method, transform = _method(level | {"mask": mask}), _rescaled(start, 1 / LEVER_MM)
    method.SetInitialTransform(transform, inPlace=True)
    step = step_mm / LEVER_MM
    method.SetOptimizerAsRegularStepGradientDescent(step, step / 100, 60, 0.5, 1e-6)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return start
    return _rescaled(transform, LEVER_MM)


def pyramid_level(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, spacing_mm: float) -> dict:
    """Images, mask and mask points (mm) at one resolution."""
    small = reduce_to(sitk.Cast(mask, sitk.sitkFloat32), spacing_mm) >= 0.5
    indices = np.argwhere(sitk.GetArrayViewFromImage(small) > 0)[:, ::-1]
    matrix = np.array(small.GetDirection()).reshape(3, 3) * small.GetSpacing()
    return {"fixed": reduce_to(fixed, spacing_mm), "moving": reduce_to(moving, spacing_mm), "mask": small,
            "positions": indices @ matrix.T + small.GetOrigin()}


def _overlap(level: dict, transform: sitk.Transform) -> float:
    """Share of the mask's points that fall inside the moving image."""
    moving = level["moving"]
    matrix = np.array(moving.GetDirection()).reshape(3, 3) * moving.GetSpacing()
    voxels = np.linalg.solve(matrix, (apply_points(transform, level["positions"]) - moving.GetOrigin()).T).T
    return float(np.mean(np.all((voxels >= -0.5) & (voxels <= np.array(moving.GetSize()) - 0.5), axis=1)))


def _foreground_centre(image: sitk.Image) -> np.ndarray:
    """Centre of gravity (mm) of the voxels above Otsu's threshold."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.OtsuThreshold(image, 0, 1))
    if shape.HasLabel(1):
        return np.array(shape.GetCentroid(1))
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _starts(level: dict) -> list[sitk.Euler3DTransform]:
    """Header alignment and centre-of-gravity alignment, each unrotated and turned about one axis."""
    centre = level["positions"].mean(axis=0)
    shift = _foreground_centre(level["moving"]) - _foreground_centre(level["fixed"])
    turns = [np.zeros(3)] + [sign * row for row in np.eye(3) for sign in (-1, 1)]
    angle = math.radians(COARSE_ANGLE_DEG)
    return [sitk.Euler3DTransform(centre.tolist(), *(angle * turn).tolist(), tuple(move))
            for move in (np.zeros(3), shift) for turn in turns]


def _coarse(level: dict, step_mm: float):
    """Best of three climbs from the best three starts; score is mutual information times overlap."""
    def score(transform):
        value = _metric(level, transform)
        return -math.inf if math.isnan(value) else value * _overlap(level, transform)

    starts = sorted(_starts(level), key=score, reverse=True)[:3]
    ends = [climb(level, start, step_mm) for start in starts]
    return max(ends, key=score)


def register_rigid(fixed, moving, mask=None, *, initial=None, levels_mm=LEVELS_MM) -> Registration:
    """Find the rigid motion that maximises Mattes mutual information, from coarse to fine.

    Starts from the better of header alignment and centre-of-gravity alignment over a small grid of rotations.

    Parameters
    ----------
    fixed, moving : path or SimpleITK.Image
        Three-dimensional images; their headers place them in the scanner's space (mm, LPS).
    mask : path or SimpleITK.Image, optional
        Non-zero where the fixed image counts, on its grid. Default: above Otsu's threshold, holes filled.
    initial : SimpleITK.Transform, optional
        Rigid transform to go on from; the search for a start is then left out.
    levels_mm : sequence of float, default (6, 3, 1.5)
        Working voxel size per level. Slices thicker than that are kept as they are.

    Raises
    ------
    StudyError
        Unreadable image, mask empty or on another grid, images that do not overlap under any start.

    References
    ----------
    Mattes et al. 2003, IEEE Trans Med Imaging 22(1):120-128.
    """
    fixed, moving = as_image(fixed), as_image(moving)
    mask = sitk.BinaryFillhole(sitk.OtsuThreshold(fixed, 0, 1)) if mask is None else checked_mask(mask, fixed)
    transform = initial and sitk.Euler3DTransform(initial)
    for spacing in levels_mm:
        level = pyramid_level(fixed, moving, mask, spacing)
        if transform is None:
            transform = _coarse(level, spacing / 2)
        else:
            transform = climb(level, transform, spacing / 4)
    return _outcome(level, transform)


def _outcome(level: dict, transform: sitk.Euler3DTransform) -> Registration:
    """Diagnostics of `transform` at the finest level."""
    start = _metric(level, sitk.Euler3DTransform())
    end = _metric(level, transform)
    overlap = _overlap(level, transform)
    if math.isnan(end) or overlap == 0:
        raise StudyError("images do not overlap: no part of the brain lies in the moving image under any start")
    moved = apply_points(transform, level["positions"]) - level["positions"]
    motion = float(np.linalg.norm(moved, axis=1).mean())
    trace = np.trace(np.array(transform.GetMatrix()).reshape(3, 3))
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (trace - 1) / 2))))
    doubts = {"no mutual information at the result": end <= 0,
              f"mutual information fell from {start:.3f} to {end:.3f}": 0 < end < start,
              f"motion of {motion:.1f} mm is more than {IMPLAUSIBLE_MM:g} mm": motion > IMPLAUSIBLE_MM,
              f"rotation of {angle:.1f} degrees is more than {IMPLAUSIBLE_DEG:g} degrees": angle > IMPLAUSIBLE_DEG,
              f"only {overlap:.0%} of the brain lies inside the moving image": overlap < 0.9}
    return Registration(transform, start, end, motion, angle, overlap, [one for one, holds in doubts.items() if holds])
