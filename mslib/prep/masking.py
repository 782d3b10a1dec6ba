"""A brain mask for images that come without one."""

from __future__ import annotations

import functools

import numpy as np
import SimpleITK as sitk

from mslib.cohort.acquisition import to_sitk

from .images import as_image
from .registration import LEVER_MM, mutual_information_setup, pyramid_level, register_rigid

LEVELS_MM = (6.0, 4.0)


@functools.cache
def _template(spacing_mm: int) -> tuple[sitk.Image, sitk.Image]:
    """ICBM152 T1 template and brain mask as SimpleITK images (LPS)."""
    from nilearn import datasets  # 1.5 s, and seldom needed

    loaded = [load(resolution=spacing_mm) for load in (datasets.load_mni152_template, datasets.load_mni152_brain_mask)]
    image, mask = (to_sitk(np.asarray(one.dataobj, np.float32), one.affine) for one in loaded)
    return image, sitk.Cast(mask > 0.5, sitk.sitkUInt8)


def brain_mask(image, seed: int = 0) -> sitk.Image:
    """Brain of a T1w image by affine registration of nilearn's ICBM152 template and its mask.

    Coarse (4 mm) and meant for bias correction, registration and scaling, not for volumetry.

    Parameters
    ----------
    image : path or SimpleITK.Image
        T1-weighted, whole head or skull-stripped.
    seed : int
        As in `register_rigid`.

    Returns
    -------
    SimpleITK.Image
        uint8, 1 in the brain, on the image's grid.

    Raises
    ------
    StudyError
        Image unreadable or not overlapping the template under any start.
    """
    image = as_image(image)
    template, mask = _template(2)
    wide = sitk.BinaryDilate(mask, (1, 1, 1))
    rigid = register_rigid(template, image, wide, levels_mm=LEVELS_MM[:1], seed=seed)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.transform.GetCenter())
    affine.SetMatrix(rigid.transform.GetMatrix())
    affine.SetTranslation(rigid.transform.GetTranslation())
    for spacing in LEVELS_MM:
        level = pyramid_level(template, image, wide, spacing)
        method = mutual_information_setup(level, 20000, 32, seed)
        method.SetInitialTransform(affine, inPlace=True)
        method.SetOptimizerAsPowell(numberOfIterations=4, maximumLineIterations=20, stepLength=spacing / 2,
                                    stepTolerance=0.1, valueTolerance=1e-4)
        method.SetOptimizerScales([LEVER_MM] * 9 + [1.0] * 3)
        method.Execute(level["fixed"], level["moving"])
    soft = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), image, affine.GetInverse(), sitk.sitkLinear, 0.0)
    return sitk.Cast(soft >= 0.5, sitk.sitkUInt8)
