"""The scanner: grid, head movement between sequences, bias field, gain and Rician noise. Blind to the group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from .anatomy import CENTRE, GRID_MM, random_vector, spline_field

# Half the range of a bias field over the brain, lowest and highest: BrainWeb's levels 20 % and 40 %. Three real 3 T
# sessions of open_ms_data agree: the fields that N4 finds span 0.09 to 0.17 (nine scans, 1st to 99th percentile).
BIAS_RANGE = (0.10, 0.20)
KNOTS_MM = 90.0  # between the control points of the bias field


@dataclass(frozen=True)
class SequenceNuisance:
    """What differs from scan to scan and is not disease (mm, degrees).

    `snr`: mean brain signal over the noise SD; `bias`: the bias field spans 1 - bias to 1 + bias over the brain;
    `translation_mm`, `rotation_deg`: movement of the head from the T1w to this scan (rotation vector);
    `in_plane`, `slice_mm`: voxel size, `in_plane` as a multiple of the cohort's; `gain`: scanner units.
    """

    snr: float
    bias: float
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    in_plane: float = 1.0
    slice_mm: float = 0.0
    gain: float = 1.0


def draw_nuisance(rng: np.random.Generator, misplacement_mm: float = 5.0, misplacement_deg: float = 5.0,
                  thick_slice_share: float = 0.4) -> dict[str, SequenceNuisance]:
    """Draw the nuisance of one subject, by sequence; the law knows no group.

    `misplacement_mm` and `misplacement_deg` are the longest shift and the largest turn of the head between T1w and
    another sequence, `thick_slice_share` is the share of subjects whose T2w and FLAIR have slices of 3 to 4 mm.
    """
    thick = rng.random() < thick_slice_share
    scans = {}
    for name in ("T1w", "T2w", "FLAIR"):
        slices = rng.uniform(3, 4)
        own = {"snr": float(rng.uniform(20, 45)), "bias": float(rng.uniform(*BIAS_RANGE))}
        if name != "T1w":
            own |= {"translation_mm": tuple(random_vector(rng, misplacement_mm).tolist()),
                    "rotation_deg": tuple(random_vector(rng, misplacement_deg).tolist()),
                    "in_plane": float(rng.choice([0.9, 0.95, 1.0, 1.05, 1.1])),
                    "slice_mm": round(float(slices), 2) if thick else 0.0}
        scans[name] = SequenceNuisance(**own, gain=float(np.exp(rng.uniform(np.log(300), np.log(900)))))
    return scans


def bias_field(rng: np.random.Generator, brain: np.ndarray, voxel_mm, strength: float) -> np.ndarray:
    """Smooth multiplicative field (float32) that spans 1 - `strength` to 1 + `strength` over the brain.

    BrainWeb states its levels in this way: 20 % is a range of 0.90 to 1.10 over the brain area, 40 % one of 0.80 to
    1.20 (its FAQ; Collins et al. 1998, IEEE Trans Med Imaging 17(3):463-468). Outside the brain, where there is no
    signal, the field goes on beyond that range. `brain` is bool, (X, Y, Z), on the scan's grid of `voxel_mm` (3).
    """
    finest = float(np.min(voxel_mm))
    squeeze = [max(4, round(n * v / finest)) for n, v in zip(brain.shape, voxel_mm)]
    field = spline_field(rng, squeeze, KNOTS_MM / finest)
    field = field[np.ix_(*(np.linspace(0, m - 1, n).round().astype(int) for m, n in zip(squeeze, brain.shape)))]
    low, high = float(field[brain].min()), float(field[brain].max())
    return 1 + strength * (2 * field - low - high) / (high - low)


def rician(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    """Magnitude of `image` plus complex Gaussian noise of SD `sigma` (Gudbjartsson and Patz 1995)."""
    power = np.zeros(image.shape, np.float32)
    for part in (image, 0.0):
        power += np.square(np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32) + part)
    return np.sqrt(power, out=power)


def rigid_transform(scan: SequenceNuisance) -> sitk.Euler3DTransform:
    """Movement T1w -> scan as an ITK transform of points (LPS, about the middle of the brain)."""
    flip = np.diag([-1.0, -1.0, 1.0])
    matrix = flip @ Rotation.from_rotvec(scan.rotation_deg, degrees=True).as_matrix() @ flip
    transform = sitk.Euler3DTransform()
    transform.SetCenter((flip @ CENTRE).tolist())
    transform.SetMatrix(matrix.ravel().tolist())
    transform.SetTranslation((flip @ np.array(scan.translation_mm)).tolist())
    return transform


def to_sitk(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Volume (X, Y, Z) with a positive diagonal RAS affine as a SimpleITK image (LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing(np.diag(affine)[:3].tolist())
    image.SetOrigin((affine[:3, 3] * [-1, -1, 1]).tolist())
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def acquire(volume: np.ndarray, affine: np.ndarray, scan: SequenceNuisance,
            voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free scan of the moved head on the sequence's own grid, and the grid's affine (4, 4; RAS).

    Thick slices are the mean of thin ones (box profile). Integers, for masks, take the value of the nearest voxel.
    """
    thickness = max(scan.slice_mm, voxel_mm)
    parts = max(1, round(thickness / voxel_mm))
    size = np.array([scan.in_plane * voxel_mm] * 2 + [thickness])
    shape = np.ceil(GRID_MM / size).astype(int)
    grid_affine = np.diag([*size, 1.0])
    grid_affine[:3, 3] = CENTRE - (shape - 1) / 2 * size
    fine = grid_affine.copy()
    fine[2, 2] = thickness / parts
    fine[2, 3] -= thickness * (1 - 1 / parts) / 2
    grid = to_sitk(np.zeros(shape * [1, 1, parts], np.uint8), fine)
    kind = sitk.sitkLinear if volume.dtype.kind == "f" else sitk.sitkNearestNeighbor
    moved = sitk.Resample(to_sitk(volume, affine), grid, rigid_transform(scan).GetInverse(), kind, 0.0)
    array = sitk.GetArrayViewFromImage(moved)
    if parts > 1:
        array = array.reshape(shape[2], parts, *array.shape[1:]).mean(axis=1)
    return np.ascontiguousarray(array.T), grid_affine
