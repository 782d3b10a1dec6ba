"""A small head of known motion and bias for the tests of `mslib.prep` (not the study's simulator)."""

import functools
import math

import numpy as np
import SimpleITK as sitk
from nilearn import datasets

from mslib.cohort.acquisition import to_sitk
from mslib.prep.images import apply_points

CONTRAST = {"T1w": (0.25, 0.65, 1.0), "T2w": (1.0, 0.55, 0.4), "FLAIR": (0.12, 0.75, 0.6)}  # CSF, grey, white


@functools.cache
def tissues(mm: int) -> tuple[sitk.Image, sitk.Image, sitk.Image, sitk.Image]:
    """Brain mask, CSF, grey and white matter of the ICBM152 template, voxels of 1 mm averaged together."""
    loaded = [load(resolution=1) for load in (datasets.load_mni152_brain_mask, datasets.load_mni152_gm_template,
                                              datasets.load_mni152_wm_template)]
    mask, grey, white = (sitk.BinShrink(to_sitk(np.asarray(one.dataobj, np.float32), one.affine), [mm] * 3)
                         for one in loaded)
    inside = sitk.Cast(mask > 0.5, sitk.sitkFloat32)
    csf = sitk.Clamp(inside - grey - white, lowerBound=0.0, upperBound=1.0)
    return mask > 0.5, csf * inside, grey * inside, white * inside


def grid_like(image: sitk.Image, spacing) -> sitk.Image:
    """Empty image over the field of view of `image` with other voxels."""
    size = [max(1, round(n * s / t)) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    shift = [(t / s - 1) / 2 for s, t in zip(image.GetSpacing(), spacing)]
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(shift))
    return grid


def log_field(grid: sitk.Image, strength: float, rng: np.random.Generator) -> sitk.Image:
    """Smooth logarithm of a bias field: a random quadratic, scaled to +-`strength` over the grid."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.GetSize()[::-1]), indexing="ij")
    terms = [x, y, z, x * y, y * z, x * z, x * x, y * y, z * z]
    field = sum(c * t for c, t in zip(rng.normal(size=len(terms)), terms))
    field = strength * (field - field.mean()) / np.abs(field - field.mean()).max()
    image = sitk.GetImageFromArray(field.astype(np.float32))
    image.CopyInformation(grid)
    return image


def motion(rng: np.random.Generator, mm: float, degrees: float, centre=(0.0, 18.0, 10.0)) -> sitk.Euler3DTransform:
    """Random rigid motion of `mm` and `degrees` about each axis at most."""
    angles = np.radians(rng.uniform(-degrees, degrees, 3))
    return sitk.Euler3DTransform(centre, *angles.tolist(), rng.uniform(-mm, mm, 3).tolist())


def scan(maps, sequence: str, truth: sitk.Transform, spacing, bias: float, noise: float, seed: int):
    """Image of a head whose fixed-space points p are found at truth(p), and its log bias field.

    Thick slices are averages over their thickness.
    """
    rng = np.random.default_rng(seed)
    _, *parts = maps
    ideal = sum(weight * part for weight, part in zip(CONTRAST[sequence], parts))
    fine = [min(s, t) for s, t in zip(maps[0].GetSpacing(), spacing)]
    factors = [max(1, math.floor(t / f + 1e-6)) for t, f in zip(spacing, fine)]
    fine = [t / k for t, k in zip(spacing, factors)]
    moved = sitk.Resample(ideal, grid_like(maps[0], fine), truth.GetInverse(), sitk.sitkLinear, 0.0)
    image = sitk.BinShrink(moved, factors)
    field = log_field(image, bias, rng)
    values = sitk.GetArrayFromImage(image * sitk.Exp(field)) * 1000
    values = np.hypot(values + rng.normal(0, noise * 1000, values.shape), rng.normal(0, noise * 1000, values.shape))
    output = sitk.GetImageFromArray(values.astype(np.float32))
    output.CopyInformation(image)
    return output, field


def target_error(found: sitk.Transform, truth: sitk.Transform, mask: sitk.Image, step: int = 4) -> float:
    """Mean distance in mm between two transforms over the mask's points."""
    indices = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[::step ** 3, ::-1]
    points = np.array([mask.TransformIndexToPhysicalPoint(index.tolist()) for index in indices])
    return float(np.linalg.norm(apply_points(found, points) - apply_points(truth, points), axis=1).mean())
