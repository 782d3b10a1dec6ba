"""The template brain and what changes it: head pose and size, individual folds, ventricular widening, atrophy.

All points are millimetres in the RAS space of the ICBM152 2009a template that nilearn ships (Fonov et al. 2011,
NeuroImage 54:313). The template is skull-stripped, hence so is every image of the phantom. It is an average of many
people: larger than a brain, with sulci half filled. Here it becomes signed distances to the surfaces of parenchyma,
white matter and ventricles. A person's pose, size, deformation and smooth noise move these surfaces, and volumes
known beforehand place them: men's brains are larger (Allen et al. 2002, Am J Phys Anthropol 118:341), from the age of
35 they lose 0.2 % a year (Hedman et al. 2012, Hum Brain Mapp 33:1987).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mslib.study import StudyError, atomic_path, read_arrays

CENTRE = np.array([0.0, -17.0, 5.0])       # middle of the template brain's bounding box, mm
GRID_MM = np.array([168.0, 208.0, 180.0])  # extent of the T1w image: holds any pose of any head of the phantom
POSE_DEG = 3.0                             # largest tilt of the head in the T1w image
PARENCHYMA_ML = {"F": 1160.0, "M": 1280.0}  # at `AGE`, median
AGE, AGEING = 42, 0.002                    # years; share lost a year
PARENCHYMA_SHARE = 0.85                    # of the brain mask, median: patients 07 and 26 of open_ms_data .86 and .83
SIZE_SD, ROOM_SD, PROPORTION_SD = 0.07, 0.015, 0.02  # of the logarithms of parenchyma, mask, and each axis
LATTICE_MM = 5.0                           # spacing of the knots on which deformations are integrated
DEFORMATION_MM = {48.0: 8.0, 20.0: 5.0, 10.0: 2.2}  # spacing of control values and amplitude of the velocity
FALLOFF_MM = 20.0                          # how far the ventricle's widening is felt
FOLDS_MM = 9.0                             # spacing of the control values of what follows
SULCUS_MM, CORTEX_MM, VENTRICLE_MM = 1.3, 1.6, 1.5  # amplitudes: surfaces of parenchyma, white matter, ventricles
THINNEST_MM, THICKEST_MM = 1.4, 3.2        # cortex; what lies farther from white matter is a sulcus
RECESSION_MM = np.linspace(-3.0, 6.0, 181)  # shifts of the surface of the parenchyma that are tried


@dataclass(frozen=True)
class Template:
    """Maps (X, Y, Z) float32 on a common RAS grid: signed distances in mm and a direction.

    `hull`, `pial`, `white`: depth below the surface of the brain mask, of the parenchyma, of white matter (in deep
    grey matter and brainstem, where tissues mix: the share of white matter less a half); `ventricle`, `cortex`:
    distance from the lateral and third ventricles, from cortical grey matter; `normal` (3, X, Y, Z): away from the
    ventricle, at most a unit vector. `volumes`: ventricles, brain mask (mL).
    """

    hull: np.ndarray
    pial: np.ndarray
    white: np.ndarray
    ventricle: np.ndarray
    cortex: np.ndarray
    normal: np.ndarray
    affine: np.ndarray
    volumes: np.ndarray


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels (float32) to the surface of `mask`, negative inside; the surface lies between voxels."""
    image = sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(mask.astype(np.uint8)), squaredDistance=False)
    return sitk.GetArrayFromImage(image) - np.float32(0.5)


def _depth(share: np.ndarray, surface: float, per_mm: float) -> np.ndarray:
    """Depth (mm) below the surface where `share` passes `surface`, shallower where the share is low.

    The second half keeps what averaging has filled: a sulcus that the template only hints at opens before its banks.
    """
    distance = -ndimage.gaussian_filter(_signed_distance(share > surface), 0.5)
    return (distance + (share - surface) / per_mm) / 2


@functools.cache
def _build() -> dict[str, np.ndarray]:
    """The maps at 1 mm, cropped to the brain and a margin."""
    from nilearn import datasets

    images = [load(resolution=1) for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template,
                                              datasets.load_mni152_brain_mask)]
    affine = images[0].affine.copy()
    gm, wm, brain = (np.pad(np.asarray(image.dataobj, np.float32), 6) for image in images)
    affine[:3, 3] -= 6
    box = tuple(slice(part.start - 6, part.stop + 6) for part in ndimage.find_objects((brain > 0).astype(np.uint8))[0])
    affine[:3, 3] += [part.start for part in box]
    gm, wm, inside = gm[box], wm[box], brain[box] > 0
    x, y, z = (axis + start for axis, start in zip(np.ogrid[tuple(map(slice, gm.shape))], affine[:3, 3]))
    solid = (gm + wm) * inside
    labels, _ = ndimage.label(inside & (solid < 0.5) & (abs(x) < 37) & (y > -60) & (y < 34) & (z > -5) & (z < 35))
    ventricle = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])  # the largest part
    distance = ndimage.gaussian_filter(_signed_distance(ventricle), 0.7)
    wall = ndimage.distance_transform_edt(distance < 2.5, return_distances=False, return_indices=True)
    solid, share = solid[tuple(wall)], (wm / np.maximum(gm + wm, 1e-3))[tuple(wall)]  # tissue up to the wall
    deep = ((abs(x) < 30) & (y > -38) & (y < 24) & (z > -16) & (z < 20)) | (
        (abs(x) < 20) & (y > -46) & (y < -8) & (z > -75) & (z < -8))
    compact = deep | ((abs(x) < 38) & (y > -42) & (y < 10) & (z < -6) & (z > -36)) | (
        (y < -36) & (z < -8 - 0.22 * abs(x) - 0.15 * np.maximum(-45 - y, 0)))  # hippocampus, amygdala; cerebellum
    mixed, compact = (ndimage.gaussian_filter(part.astype(np.float32), 3) for part in (deep, compact))
    white = _depth(share, 0.4, 0.2)
    slope = np.linalg.norm(np.gradient(ndimage.gaussian_filter(white, 1)), axis=0)
    bank = THICKEST_MM + 4 * np.clip(2.5 * slope - 1, 0, 1) + 20 * compact  # narrow: open along the middle only
    pial = np.minimum(_depth(solid, 0.75, 0.12), white + bank)
    white = mixed * (share - 0.5) + (1 - mixed) * white
    hull = -ndimage.gaussian_filter(_signed_distance(inside), 1) - 1
    cortex = _signed_distance((solid > 0.5) & (share < 0.5) & (mixed < 0.5) & (distance > 6))
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2)))
    return {"hull": hull, "pial": pial, "white": white, "ventricle": distance, "cortex": cortex,
            "normal": normal.astype(np.float32), "affine": affine,
            "volumes": np.array([ventricle.sum(), (hull > 0).sum()]) / 1000}


def _coarsen(maps: dict[str, np.ndarray], voxel_mm: float) -> dict[str, np.ndarray]:
    """Smooth and resample every map to `voxel_mm` (> 1)."""
    sigma = np.sqrt(voxel_mm**2 - 1) / 2.355
    shape = tuple(int(np.ceil(n / voxel_mm)) for n in maps["hull"].shape)

    def resample(volume):
        smooth = ndimage.gaussian_filter(volume, sigma)
        return ndimage.affine_transform(smooth, np.full(3, voxel_mm), (voxel_mm - 1) / 2, shape, order=1,
                                        mode="nearest")

    out = {name: resample(values) if values.ndim == 3 else values for name, values in maps.items()}
    affine = maps["affine"] @ np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = maps["affine"][:3, 3] + (voxel_mm - 1) / 2
    return out | {"normal": np.stack([resample(part) for part in maps["normal"]]), "affine": affine}


@functools.lru_cache(maxsize=2)
def template(voxel_mm: float = 1.0, cache: str | Path | None = None) -> Template:
    """The ICBM152 maps of the phantom, at `voxel_mm` (at least 1 mm: the template holds no finer detail).

    A `cache`, file of `write_template`, is read instead of making the maps (StudyError: absent, damaged or of another
    voxel size).
    """
    if cache is None:
        maps = _build()
        return Template(**(_coarsen(maps, voxel_mm) if voxel_mm > 1 else maps))
    stored = read_arrays(cache)
    if (found := float(stored.pop("voxel_mm"))) != voxel_mm:
        raise StudyError(f"{cache}: must hold the template at {voxel_mm:g} mm (got {found:g} mm)")
    return Template(**stored)


def write_template(path: str | Path, voxel_mm: float = 1.0) -> Path:
    """Write `template` as uncompressed ``.npz``, so that processes share the seconds of work."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, voxel_mm=voxel_mm, **vars(template(voxel_mm)))
    return Path(path)


def cubic_spline(distance: np.ndarray) -> np.ndarray:
    """Value of a cubic B-spline at a signed distance from its middle, in knots."""
    t = np.abs(distance)
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None)**3 / 6)


def _bases(shape, spacing: float) -> list[np.ndarray]:
    """Per axis (voxels, knots): cubic B-splines whose first knot lies one spacing before the first voxel."""
    knots = [np.arange(-1, int(np.ceil(n / spacing)) + 2) for n in shape]
    return [cubic_spline(np.arange(n)[:, None] / spacing - at).astype(np.float32) for n, at in zip(shape, knots)]


def _spline(control: np.ndarray, bases: list[np.ndarray]) -> np.ndarray:
    """The spline (X, Y, Z) over control values at the knots of `bases`."""
    x, y, z = bases
    return (y @ np.tensordot(x, control, 1)) @ z.T


def spline_field(rng: np.random.Generator, shape, spacing: float) -> np.ndarray:
    """A smooth random field (float32): cubic B-spline over unit normal control values `spacing` voxels apart.

    Its standard deviation is about 0.33, because the spline averages its control values.
    """
    bases = _bases(shape, spacing)
    return _spline(rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32), bases)


def random_vector(rng: np.random.Generator, longest: float) -> np.ndarray:
    """Uniform direction, uniform length up to `longest`."""
    direction = rng.standard_normal(3)
    return longest * rng.random() * direction / np.linalg.norm(direction)


@dataclass(frozen=True)
class Head:
    """One person's tissue fractions and distances at the `inside` voxels (flat indices) of the T1w grid.

    `points` are the template coordinates (3, n) in mm at which each voxel was sampled.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    inside: np.ndarray
    brain: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    ventricle: np.ndarray
    cortex: np.ndarray
    points: np.ndarray
    ventricle_fraction: np.ndarray

    def volume(self, values: np.ndarray, dtype=np.float32) -> np.ndarray:
        """Put per-voxel values into the grid, 0 outside the brain."""
        full = np.zeros(self.shape, dtype)
        full.ravel()[self.inside] = values
        return full


def _sample(volume: np.ndarray, index: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(volume, index, order=1, mode="nearest", output=np.float32)


def _deformation(rng: np.random.Generator, depth: np.ndarray) -> np.ndarray:
    """Smooth displacement (3, X, Y, Z), in lattice steps, that folds nowhere; calmer where `depth` (mm) is small.

    A sum of random velocities is integrated by scaling and squaring (Ashburner 2007, NeuroImage 38:95).
    """
    calm = np.clip(0.4 + 0.6 * depth / 15, 0.4, 1)
    move = sum(np.float32(amplitude / LATTICE_MM) * (1 if mm > 30 else calm)
               * np.stack([spline_field(rng, depth.shape, mm / LATTICE_MM) for _ in range(3)])
               for mm, amplitude in DEFORMATION_MM.items()) / 2**5
    at = np.indices(depth.shape, np.float32)
    for _ in range(5):
        move = move + np.stack([_sample(part, at + move) for part in move])
    return move


def _lattice(maps: Template, rng: np.random.Generator, shape, voxel_mm: float, size: np.ndarray,
             ventricle_factor: float) -> np.ndarray:
    """Template indices (3, X, Y, Z) at the lattice's knots: pose, size, individual shape, widened ventricles."""
    voxel = maps.affine[0, 0]
    turn = Rotation.from_rotvec(random_vector(rng, np.deg2rad(POSE_DEG))).as_matrix()
    matrix = (np.diag(1 / size) @ turn / voxel).astype(np.float32)
    centre = ((CENTRE - maps.affine[:3, 3]) / voxel).astype(np.float32).reshape(3, 1, 1, 1)
    knots = np.ix_(*(LATTICE_MM * (np.arange(basis.shape[1]) - 1) - voxel_mm * (basis.shape[0] - 1) / 2
                     for basis in _bases(shape, LATTICE_MM / voxel_mm)))
    at = np.stack([sum(part * knot for part, knot in zip(row, knots)) for row in matrix]).astype(np.float32)
    at += np.tensordot(matrix, LATTICE_MM * _deformation(rng, _sample(maps.hull, at + centre)), 1)
    room_ml = np.clip(0.5 + _sample(maps.hull, at + centre) / LATTICE_MM, 0, 1).sum() * LATTICE_MM**3 / 1000
    at = centre + at * np.float32((room_ml / maps.volumes[1] / np.prod(size)) ** (1 / 3))  # the size that was ordered
    enclosed = int(ventricle_factor * maps.volumes[0] * 1000 / voxel**3)
    widening = np.partition(maps.ventricle, enclosed, axis=None)[enclosed]
    for _ in range(4):  # a flow, so that nothing folds: tissue moves away from the ventricle, less the farther it is
        step = widening / 4 / voxel * np.exp(-np.maximum(_sample(maps.ventricle, at), 0) / FALLOFF_MM)
        at -= step * np.stack([_sample(part, at) for part in maps.normal])
    return at


def _inside(maps: Template, lattice: np.ndarray, shape, voxel_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels in the brain mask: flat indices (n), template indices (3, n), share of the voxel within the mask (n)."""
    bases = _bases(shape, LATTICE_MM / voxel_mm)
    near = _spline(_sample(maps.hull, lattice), bases) > -3
    box = ndimage.find_objects(near.astype(np.uint8))[0]
    bases, candidates = [basis[part] for basis, part in zip(bases, box)], near[box]
    at = np.stack([_spline(part, bases)[candidates] for part in lattice])
    brain = np.clip(0.5 + _sample(maps.hull, at) / voxel_mm, 0, 1)
    near[box][candidates] = keep = brain > 0.02
    return np.flatnonzero(near), at[:, keep], brain[keep]


def _recession(pial: np.ndarray, weight: np.ndarray, voxel_mm: float, wanted_ml: float) -> float:
    """How far (mm) the surface of the parenchyma recedes so that `wanted_ml` are left of voxels of `weight`."""
    edges = np.arange(-8, 8.01, 0.05)
    depths = (edges[1:] + edges[:-1]) / 2
    counts = np.histogram(np.clip(pial, depths[0], depths[-1]), edges, weights=weight)[0] * voxel_mm**3 / 1000
    tissue = counts @ np.clip(0.5 + (depths[:, None] - RECESSION_MM) / voxel_mm, 0, 1)
    return float(np.interp(-wanted_ml, -tissue, RECESSION_MM))


def make_head(maps: Template, rng: np.random.Generator, voxel_mm: float, ventricle_factor: float,
              brain_loss: float, sex: str = "F", age: float = AGE) -> Head:
    """One person's anatomy on the T1w grid; `rng` draws size, shape and pose, the same whatever the disease.

    `ventricle_factor`: volume of the ventricles as a multiple of the template's, scaled to the size of the head;
    `brain_loss`: share of the person's own parenchyma that is lost (0.03 = 3 %; negative: a fuller brain), at the outer
    surface and in the sulci, so that it holds whatever room the ventricles take; `sex`: ``F`` or ``M``; `age` in years.
    """
    shape = tuple(int(n) for n in np.ceil(GRID_MM / voxel_mm))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = CENTRE - (np.array(shape) - 1) / 2 * voxel_mm
    draws = np.clip(rng.standard_normal(5), -1.8, 1.8)
    parenchyma_ml = PARENCHYMA_ML[sex] * np.exp(SIZE_SD * draws[0])
    room_ml = parenchyma_ml / PARENCHYMA_SHARE * np.exp(ROOM_SD * draws[1])
    size = (room_ml / maps.volumes[1]) ** (1 / 3) * np.exp(PROPORTION_SD * (draws[2:] - draws[2:].mean()))
    inside, at, brain = _inside(maps, _lattice(maps, rng, shape, voxel_mm, size, ventricle_factor), shape, voxel_mm)
    folds, thickness = (spline_field(rng, shape, FOLDS_MM / voxel_mm).ravel()[inside] for _ in range(2))

    wall = _sample(maps.ventricle, at) + np.float32(VENTRICLE_MM) * folds
    enclosed = int(ventricle_factor * maps.volumes[0] * np.prod(size) * 1000 / voxel_mm**3)
    wall -= np.partition(wall, enclosed)[enclosed]
    ventricle = np.clip(0.5 - wall / max(voxel_mm, 1), 0, 1) * brain

    pial = _sample(maps.pial, at) + np.float32(SULCUS_MM) * folds
    left_ml = parenchyma_ml * (1 - AGEING * (age - AGE)) * (1 - brain_loss)
    recession = np.float32(_recession(pial, brain - ventricle, voxel_mm, left_ml))
    pial -= recession
    solid = np.clip(0.5 + pial / voxel_mm, 0, 1) * (brain - ventricle)

    cortex = _sample(maps.cortex, at)
    white = _sample(maps.white, at)
    white += np.clip((5 - cortex) / 3, 0, 1) * (np.float32(CORTEX_MM) * thickness - recession / 2)
    white = np.minimum(white, pial - THINNEST_MM + 2 * np.maximum(cortex - 1, 0))
    share = np.clip(0.5 + white / max(voxel_mm, 1), 0, 1)
    points = at * np.float32(maps.affine[0, 0]) + maps.affine[:3, 3:].astype(np.float32)
    return Head(shape, affine, inside, brain, solid * (1 - share), solid * share, wall, cortex, points, ventricle)
