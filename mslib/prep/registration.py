"""Registration by mutual information: two sequences of one head, rigid; the template's brain mask, affine."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from mslib.cohort.acquisition import to_sitk
from mslib.study import StudyError

from .images import apply_points, as_image, checked_mask, matrix_of, reduce_to

SAMPLES, BINS, SEED = 20000, 32, 1  # points per level, bins of the histogram, of the jitter (0: the wall clock)
COARSE_ANGLE_DEG = 15.0
LEVER_MM = 60.0  # a turn of 1/60 radian moves the cortex about 1 mm
IMPLAUSIBLE_MM, IMPLAUSIBLE_DEG = 30.0, 25.0


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
    """Mattes mutual information over jittered points of the mask.

    One thread per image, in the whole process: sums depend on the number of threads in the last digits. Subjects are
    worked on side by side instead.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
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


def _climb(level: dict, start: sitk.Transform, step_mm: float) -> sitk.Transform:
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


def _level(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, spacing_mm: float) -> dict:
    """Images, mask and mask points (mm) at one resolution."""
    small = reduce_to(sitk.Cast(mask, sitk.sitkFloat32), spacing_mm) >= 0.5
    indices = np.argwhere(sitk.GetArrayViewFromImage(small) > 0)[:, ::-1]
    return {"fixed": reduce_to(fixed, spacing_mm), "moving": reduce_to(moving, spacing_mm), "mask": small,
            "positions": indices @ matrix_of(small).T + small.GetOrigin()}


def _overlap(level: dict, transform: sitk.Transform) -> float:
    """Share of the mask's points that fall inside the moving image."""
    moving = level["moving"]
    points = apply_points(transform, level["positions"]) - moving.GetOrigin()
    voxels = np.linalg.solve(matrix_of(moving), points.T).T
    return float(np.mean(np.all((voxels >= -0.5) & (voxels <= np.array(moving.GetSize()) - 0.5), axis=1)))


def _foreground_centre(image: sitk.Image) -> np.ndarray:
    """Centre of gravity (mm) of the voxels above Otsu's threshold; the image's where there is none (no contrast)."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.OtsuThreshold(image, 0, 1))
    if shape.HasLabel(1):
        return np.array(shape.GetCentroid(1))
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _first_guess(level: dict, step_mm: float) -> sitk.Euler3DTransform:
    """Best end of three climbs, from the best starts by mutual information times overlap.

    Starts are header alignment and centre-of-gravity alignment, each unrotated and turned about one axis.
    """
    def score(transform):
        value = _metric(level, transform)
        return -math.inf if math.isnan(value) else value * _overlap(level, transform)

    centre = level["positions"].mean(axis=0)
    shift = _foreground_centre(level["moving"]) - _foreground_centre(level["fixed"])
    turns = math.radians(COARSE_ANGLE_DEG) * np.vstack([np.zeros(3), np.kron(np.eye(3), [[-1], [1]])])
    starts = [sitk.Euler3DTransform(centre.tolist(), *turn.tolist(), tuple(move))
              for move in (np.zeros(3), shift) for turn in turns]
    ends = [_climb(level, start, step_mm) for start in sorted(starts, key=score, reverse=True)[:3]]
    return max(ends, key=score)


def register_rigid(fixed, moving, mask=None, *, initial=None, levels_mm=(6.0, 3.0, 1.5)) -> Registration:
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
    levels_mm : sequence of float
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
        level = _level(fixed, moving, mask, spacing)
        transform = _first_guess(level, spacing / 2) if transform is None else _climb(level, transform, spacing / 4)
    return _outcome(level, transform)


def _outcome(level: dict, transform: sitk.Euler3DTransform) -> Registration:
    """Diagnostics of `transform` at the finest level."""
    start, end, overlap = _metric(level, sitk.Euler3DTransform()), _metric(level, transform), _overlap(level, transform)
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


@functools.cache
def _template() -> tuple[sitk.Image, sitk.Image]:
    """ICBM152 T1 template and brain mask at 2 mm as SimpleITK images (LPS)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # 1.5 s, and seldom needed

    loaded = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2)
    image, mask = (to_sitk(np.asarray(one.dataobj, np.float32), one.affine) for one in loaded)
    return image, sitk.Cast(mask > 0.5, sitk.sitkUInt8)


def brain_mask(image) -> sitk.Image:
    """Brain of a T1w image (path or SimpleITK image, whole head or skull-stripped) by the ICBM152 template's mask.

    By affine registration of the template that nilearn ships. Coarse (4 mm), not for volumetry. A uint8 image, 1 in the
    brain, on the image's grid; StudyError: image unreadable, or not overlapping the template under any start.
    """
    image = as_image(image)
    template, mask = _template()
    wide = sitk.BinaryDilate(mask, (1, 1, 1))
    rigid = register_rigid(template, image, wide, levels_mm=(6.0,)).transform
    affine = sitk.AffineTransform(rigid.GetMatrix(), rigid.GetTranslation(), rigid.GetCenter())
    for spacing in (6.0, 4.0):
        affine = _climb(_level(template, image, wide, spacing), affine, spacing / 2)
    soft = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), image, affine.GetInverse(), sitk.sitkLinear, 0.0)
    return sitk.Cast(soft >= 0.5, sitk.sitkUInt8)
