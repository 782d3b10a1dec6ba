"""The template brain and what changes it: head pose, smooth individual shape, ventricular widening, atrophy.

All points are millimetres in the RAS space of the ICBM152 2009a template that nilearn ships (Fonov et al. 2011,
NeuroImage 54:313). The template is skull-stripped, hence so is every image of the phantom.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mslib.study import StudyError, atomic_path, read_arrays

CENTRE = np.array([0.0, -17.0, 5.0])      # middle of the template brain's bounding box, mm
GRID_MM = np.array([168.0, 208.0, 180.0])  # extent of the T1w image: holds any pose of any head of the phantom
COMPRESSED = 0.22                          # share of the ventricle's growth that costs tissue (rest: sulcal fluid)
FALLOFF_MM = 20.0                          # how far the ventricle's widening is felt
RECESSION_MM = np.linspace(-1.5, 4.0, 23)  # shifts of the outer surface for which the lost volume is tabulated
SHAPE_MM = 28.0                            # spacing of the control points of individual shape
POSE_DEG = 3.0                             # largest tilt of the head in the T1w image


@dataclass(frozen=True)
class Template:
    """Maps (X, Y, Z) float32 on a common RAS grid; distances in mm, positive outside what they are named after.

    `ventricle`: signed distance to the lateral and third ventricles; `depth`: to the outer surface of the
    parenchyma, positive inside it; `cortex`: to cortical grey matter; `normal` (3, X, Y, Z): unit vector away
    from the ventricle. `ventricle_levels`: distance (mm) that encloses 0, 0.1, 0.2 ... mL; `loss_levels`:
    parenchyma (mL) lost when its outer surface recedes by `RECESSION_MM`; `volumes`: ventricles, parenchyma (mL).
    """

    gm: np.ndarray
    wm: np.ndarray
    brain: np.ndarray
    ventricle: np.ndarray
    depth: np.ndarray
    cortex: np.ndarray
    normal: np.ndarray
    affine: np.ndarray
    ventricle_levels: np.ndarray
    loss_levels: np.ndarray
    volumes: np.ndarray


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the surface of `mask`, negative inside; the surface lies between voxels."""
    outside = ndimage.distance_transform_edt(~mask) - 0.5
    return np.where(mask, 0.5 - ndimage.distance_transform_edt(mask), outside).astype(np.float32)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def receded(fluid: np.ndarray, depth: np.ndarray, shift_mm: float) -> np.ndarray:
    """CSF fraction after the outer surface of the parenchyma has moved inwards by `shift_mm`."""
    rim = np.clip(0.5 + shift_mm - depth, 0, 1) - np.clip(0.5 - depth, 0, 1)
    return np.clip(fluid + rim, 0, 1)


def _loss_levels(solid: np.ndarray, distance: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Parenchyma lost (mL) at each of `RECESSION_MM`, away from the ventricles."""
    near = (distance > 2) & (depth > -3) & (depth < 6)
    fluid, depth = np.clip(1 - solid[near], 0, 1), depth[near]
    return np.array([(receded(fluid, depth, shift) - fluid).sum() / 1000 for shift in RECESSION_MM])


@functools.cache
def _build() -> dict[str, np.ndarray]:
    """The maps at 1 mm, cropped to the brain and a margin."""
    from nilearn import datasets

    images = [load(resolution=1) for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template,
                                              datasets.load_mni152_brain_mask)]
    affine = images[0].affine.copy()
    gm, wm, brain = (np.pad(np.asarray(image.dataobj, np.float32), 6) for image in images)
    affine[:3, 3] -= 6
    low, high = (bound(np.argwhere(brain > 0), axis=0) for bound in (np.min, np.max))
    box = tuple(slice(a - 6, b + 7) for a, b in zip(low, high))
    affine[:3, 3] += low - 6
    gm, wm, inside = gm[box], wm[box], brain[box] > 0
    x, y, z = (np.indices(gm.shape, np.float32).reshape(3, -1).T + affine[:3, 3]).T.reshape(3, *gm.shape)
    fluid = inside & (gm + wm < 0.5)
    ventricle = _largest(fluid & (abs(x) < 37) & (y > -60) & (y < 34) & (z > -5) & (z < 35))
    parenchyma = inside & ~fluid
    distance = ndimage.gaussian_filter(signed_distance(ventricle), 0.7)
    depth = ndimage.gaussian_filter(-signed_distance(parenchyma | ventricle), 0.5)
    deep_grey = (abs(x) < 34) & (y > -40) & (y < 26) & (z > -18) & (z < 22)
    cortex = signed_distance((gm > 0.5) & ~deep_grey & (distance > 6))
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.5)))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 0.3)
    return {"gm": gm * inside, "wm": wm * inside, "brain": inside.astype(np.float32), "ventricle": distance,
            "depth": depth, "cortex": cortex, "normal": normal.astype(np.float32), "affine": affine,
            "ventricle_levels": np.sort(distance[inside])[::100][:2000].astype(np.float32),
            "loss_levels": _loss_levels((gm + wm)[inside], distance[inside], depth[inside]),
            "volumes": np.array([ventricle.sum(), (gm + wm)[inside].sum()]) / 1000}


def _coarsen(maps: dict[str, np.ndarray], voxel_mm: float) -> dict[str, np.ndarray]:
    """Smooth and resample every map to `voxel_mm` (> 1)."""
    sigma = np.sqrt(voxel_mm**2 - 1) / 2.355
    shape = tuple(int(np.ceil(n / voxel_mm)) for n in maps["gm"].shape)

    def resample(volume):
        smooth = ndimage.gaussian_filter(volume, sigma)
        return ndimage.affine_transform(smooth, np.full(3, voxel_mm), (voxel_mm - 1) / 2, shape, order=1,
                                        mode="nearest")

    out = dict(maps)
    for name in ("gm", "wm", "brain", "ventricle", "depth", "cortex"):
        out[name] = resample(maps[name])
    out["normal"] = np.stack([resample(part) for part in maps["normal"]])
    out["affine"] = maps["affine"] @ np.diag([voxel_mm] * 3 + [1.0])
    out["affine"][:3, 3] = maps["affine"][:3, 3] + (voxel_mm - 1) / 2
    return out


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


def spline_field(rng: np.random.Generator, shape, spacing: float) -> np.ndarray:
    """A smooth random field (float32): cubic B-spline over unit normal control values `spacing` voxels apart.

    Its standard deviation is about 0.33, because the spline averages its control values.
    """
    bases = []
    for n in shape:
        knots = int(np.ceil(n / spacing)) + 3
        t = np.abs((np.arange(n)[:, None] / spacing) - (np.arange(knots)[None] - 1))
        basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t)**3 / 6, 0))
        bases.append(basis.astype(np.float32))
    control = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    for axis, basis in enumerate(bases):
        control = np.moveaxis(np.tensordot(basis, control, axes=(1, axis)), 0, axis)
    return control


def rotation(vector_rad: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about `vector_rad` by its length (Rodrigues)."""
    return Rotation.from_rotvec(vector_rad).as_matrix()


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
    csf: np.ndarray
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


def _template_points(maps: Template, rng, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Template voxel coordinates (3, X, Y, Z) of each voxel of the T1w grid, and the grid's affine (RAS)."""
    shape = tuple(int(n) for n in np.ceil(GRID_MM / voxel_mm))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = CENTRE - (np.array(shape) - 1) / 2 * voxel_mm
    axis = rng.standard_normal(3)
    turn = rotation(np.deg2rad(POSE_DEG) * rng.random() * axis / np.linalg.norm(axis))
    scale = np.clip(0.03 * rng.standard_normal(), -0.05, 0.05)
    size = np.exp(scale + 0.012 * np.clip(rng.standard_normal(3), -1.5, 1.5))
    voxel = maps.affine[0, 0]
    matrix = np.diag(1 / size) @ turn * voxel_mm / voxel
    origin = (CENTRE - maps.affine[:3, 3]) / voxel
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    index = np.empty((3, *shape), np.float32)
    for k in range(3):
        linear = [(matrix[k, j] * axes[j]).astype(np.float32).reshape([-1 if i == j else 1 for i in range(3)])
                  for j in range(3)]
        index[k] = linear[0] + linear[1] + linear[2] + np.float32(origin[k])
        index[k] += (6.0 / voxel) * spline_field(rng, shape, SHAPE_MM / voxel_mm)
    return index, affine


def make_head(maps: Template, rng: np.random.Generator, voxel_mm: float, ventricle_factor: float,
              brain_loss: float) -> Head:
    """One person's anatomy on the T1w grid.

    Parameters
    ----------
    maps : Template
    rng : numpy Generator
        Individual shape and head pose; the same for the same state, whatever the disease.
    ventricle_factor : float
        Volume of the ventricles as a multiple of the template's.
    brain_loss : float
        Share of the parenchyma lost (0.03 = 3 %), the ventricle's growth included; the rest is lost at the
        outer surface and in the sulci. Negative: a fuller brain.
    """
    index, affine = _template_points(maps, rng, voxel_mm)
    ventricle_ml, parenchyma_ml = maps.volumes
    shape = index.shape[1:]
    brain = _sample(maps.brain, index.reshape(3, -1))
    inside = np.flatnonzero(brain > 0.02)
    at = index.reshape(3, -1)[:, inside]
    voxel = maps.affine[0, 0]
    widened = float(np.interp(ventricle_factor * ventricle_ml * 10, np.arange(maps.ventricle_levels.size),
                              maps.ventricle_levels))
    lost = brain_loss * parenchyma_ml - COMPRESSED * (ventricle_factor - 1) * ventricle_ml
    recession = float(np.interp(lost, maps.loss_levels, RECESSION_MM))
    phi, depth = _sample(maps.ventricle, at), _sample(maps.depth, at)
    shift = widened * np.exp(-np.maximum(phi - widened, 0) / FALLOFF_MM) / voxel
    at = at - shift * np.stack([_sample(part, at) for part in maps.normal])
    gm, wm, cortex = (_sample(volume, at) for volume in (maps.gm, maps.wm, maps.cortex))
    brain = brain[inside]
    ventricle = np.clip(0.5 - (phi - widened) / max(voxel_mm, 1), 0, 1)
    fluid = np.clip(1 - gm - wm, 0, 1)
    csf = np.maximum(np.where(phi > widened + 2, receded(fluid, depth, recession), fluid), ventricle)
    solid = np.maximum(gm + wm, 1e-3)
    wm_share = wm / solid
    solid = (1 - csf) * brain
    points = at * voxel + maps.affine[:3, 3:].astype(np.float32)
    return Head(shape, affine, inside, brain, solid * (1 - wm_share), solid * wm_share, csf * brain, phi - widened,
                cortex, points, ventricle * brain)
