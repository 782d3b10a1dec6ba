"""A brain mask for images that come without one."""

from __future__ import annotations

import functools

import numpy as np
import SimpleITK as sitk

from mslib.cohort.acquisition import to_sitk

from .images import as_image
from .registration import climb, pyramid_level, register_rigid

LEVELS_MM = (6.0, 4.0)


@functools.cache
def _template() -> tuple[sitk.Image, sitk.Image]:
    """ICBM152 T1 template and brain mask at 2 mm as SimpleITK images (LPS)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # 1.5 s, and seldom needed

    loaded = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2)
    image, mask = (to_sitk(np.asarray(one.dataobj, np.float32), one.affine) for one in loaded)
    return image, sitk.Cast(mask > 0.5, sitk.sitkUInt8)


def brain_mask(image) -> sitk.Image:
    """Brain of a T1w image (path or SimpleITK image, whole head or skull-stripped) by the ICBM152 template's mask.

    By affine registration of the template that nilearn ships. Coarse (4 mm) and meant for bias correction, registration
    and scaling, not for volumetry. A uint8 image, 1 in the brain, on the image's grid; StudyError: image unreadable, or
    not overlapping the template under any start.
    """
    image = as_image(image)
    template, mask = _template()
    wide = sitk.BinaryDilate(mask, (1, 1, 1))
    rigid = register_rigid(template, image, wide, levels_mm=LEVELS_MM[:1])
    affine = sitk.AffineTransform(rigid.transform.GetMatrix(), rigid.transform.GetTranslation(),
                                  rigid.transform.GetCenter())
    for spacing in LEVELS_MM:
        affine = climb(pyramid_level(template, image, wide, spacing), affine, spacing / 2)
    soft = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), image, affine.GetInverse(), sitk.sitkLinear, 0.0)
    return sitk.Cast(soft >= 0.5, sitk.sitkUInt8)
