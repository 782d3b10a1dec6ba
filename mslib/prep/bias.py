"""Bias field (intensity non-uniformity) correction by N4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from .images import as_image, bounding_box, checked_mask, one_thread_each

MARGIN_MM = 10.0


def correct_bias(image, mask, shrink: int = 6, iterations: Sequence[int] = (20, 20, 10)):
    """Estimate the bias field inside `mask` on a reduced grid and divide the whole image by it.

    Parameters
    ----------
    image, mask : path or SimpleITK.Image
        Image and, on its grid, a mask that is non-zero where the field is estimated.
    shrink : int, default 6
        Distance in mm between the voxels that the fit sees: the shrink factor of a 1 mm image. Voxels are picked,
        not averaged: averages mix tissues, and N4 estimates the field from the histogram of pure ones. The thick axis
        of 2-D series is thinned less or not at all.
    iterations : sequence of int, default (20, 20, 10)
        Iterations at most per fitting level; each level doubles the number of B-spline spans.

    Returns
    -------
    corrected : SimpleITK.Image
        ``image / exp(log_field)``, float32, on the image's grid.
    log_field : SimpleITK.Image
        Natural logarithm of the field with mean 0 inside the mask, float32, on the image's grid. Outside the
        box that the fit saw it continues with the value at the border.

    Raises
    ------
    StudyError
        Mask empty or on another grid, image unreadable.

    References
    ----------
    Tustison et al. 2010, IEEE Trans Med Imaging 29(6):1310-1320.
    """
    image = as_image(image)
    mask = checked_mask(mask, image)
    spacing = image.GetSpacing()
    factors = [max(1, round(shrink / s)) for s in spacing]
    margin = tuple(f * max(1, round(MARGIN_MM / (f * s))) for f, s in zip(factors, spacing))
    z, y, x = bounding_box(sitk.GetArrayViewFromImage(mask) > 0, margin[::-1])
    small, inside = (sitk.Shrink(part[x, y, z], factors) for part in (image, mask))
    inside = inside * (small > 0)
    one_thread_each()
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(iterations))
    n4.SetConvergenceThreshold(1e-4)
    n4.Execute(small, inside)
    field = n4.GetLogBiasFieldAsImage(small)
    values = sitk.GetArrayViewFromImage(field)[sitk.GetArrayViewFromImage(inside) > 0]
    field = sitk.Cast(field - float(values.mean()), sitk.sitkFloat32)
    # The field is smooth at the fit's grid, so that linear interpolation changes it by less than 0.1 %.
    log_field = sitk.Resample(field, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
    corrected = np.asarray(sitk.GetArrayViewFromImage(image)) / np.exp(sitk.GetArrayViewFromImage(log_field))
    output = sitk.GetImageFromArray(corrected)
    output.CopyInformation(image)
    return output, log_field
