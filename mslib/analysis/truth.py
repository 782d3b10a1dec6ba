"""Truth of a subject against the estimates of preprocessing; how brains look beside real ones; example slices."""

from __future__ import annotations

from collections.abc import Mapping

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from mslib.prep import SliceStack
from mslib.prep.images import apply_points

LPS = np.array([-1.0, -1.0, 1.0])
#: Median, lowest and highest value of real patients (open_ms_data: 24 RRMS, 2 SPMS), from the description of the expert
#: masks of all 30 patients (Lesjak et al. 2017; see DATA.md).
REAL_RANGES = {"lesion_load_ml": {"RRMS": (14.9, 0.66, 52.6), "SPMS": (45.3, 40.7, 50.0)},
               "lesion_count": {"RRMS": (82, 15, 350), "SPMS": (215, 106, 324)}}
#: The same of `appearance` in two real patients (open_ms_data, 07 and 26) after the same preprocessing.
REAL_APPEARANCE = {name: {"brains": (round((low + high) / 2, 4), low, high)} for name, (low, high) in {
    "parenchyma_ml": (947, 979),
    "grey_T1w": (0.673, 0.687), "grey_T2w": (1.379, 1.410), "grey_FLAIR": (1.165, 1.212),
    "lesion_T1w": (0.651, 0.693), "lesion_T2w": (1.847, 1.962), "lesion_FLAIR": (1.425, 1.598),
    "csf_T1w": (0.104, 0.116), "csf_T2w": (2.706, 2.731), "csf_FLAIR": (0.355, 0.392),
    "variation_T1w": (0.054, 0.061), "variation_T2w": (0.105, 0.127), "variation_FLAIR": (0.080, 0.085)}.items()}


def lesion_load(mask: nib.Nifti1Image) -> float:
    """Volume in mL of the non-zero voxels of a mask."""
    return np.count_nonzero(np.asanyarray(mask.dataobj) > 0) * float(np.prod(mask.header.get_zooms()[:3]) / 1000)


def brain_points(mask: nib.Nifti1Image, n: int = 4000) -> np.ndarray:
    """About `n` points spread evenly through a brain mask: LPS, in mm, shape (n, 3)."""
    index = np.argwhere(np.asanyarray(mask.dataobj) > 0)
    return nib.affines.apply_affine(mask.affine, index[:: max(1, len(index) // n)]) * LPS


def registration_error(points: np.ndarray, true: sitk.Transform, estimated: sitk.Transform) -> dict[str, float]:
    """Mean distance (mm) between where transforms of T1w's `brain_points` put them and where they belong.

    ``before``: headers alone, and ``after``.
    """
    there = apply_points(true, points)
    return {"before": np.linalg.norm(points - there, axis=1).mean(),
            "after": np.linalg.norm(apply_points(estimated, points) - there, axis=1).mean()}


def field_at(field: nib.Nifti1Image, points: np.ndarray) -> np.ndarray:
    """Values of a volume at points (LPS, mm), linear between voxels, constant beyond its edge; shape (n,)."""
    voxels = nib.affines.apply_affine(np.linalg.inv(field.affine), points * LPS)
    return ndimage.map_coordinates(np.asarray(field.dataobj, np.float32), voxels.T, order=1, mode="nearest")


def bias_correlation(points: np.ndarray, true: sitk.Transform, field: nib.Nifti1Image,
                     log_field: nib.Nifti1Image) -> float:
    """Correlation of the logarithm of an image's true bias field with the log field estimated in T1w space.

    At `brain_points` of T1w; `true` maps them to points of the image, where its field is known.
    """
    return float(np.corrcoef(np.log(field_at(field, apply_points(true, points))), field_at(log_field, points))[0, 1])


def appearance(images: Mapping[str, np.ndarray], brain: np.ndarray, lesions: np.ndarray,
               voxel_mm3: float = 1.0) -> dict[str, float]:
    """How a brain looks: ``parenchyma_ml``, and per sequence ``grey_, lesion_, csf_`` and ``variation_``.

    Tissues are the three classes of the T1w intensities away from lesions (Otsu's thresholds). The first three are
    medians of their cores (eroded by a voxel) over that of white matter, NaN where cores of lesions hold fewer than 30
    voxels; the last is the SD of white matter by the median absolute deviation, as a share of its median. `images`, (X,
    Y, Z) by sequence: co-registered, bias-corrected, in units in which no signal is 0; `brain`, `lesions`: bool.
    """
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    images = {name: image[box] for name, image in images.items()}
    brain, lesions = brain[box], lesions[box] & brain[box]
    t1w, clear = images["T1w"], brain & ~ndimage.binary_dilation(lesions, iterations=2)
    tissue = np.digitize(t1w, threshold_multiotsu(np.minimum(t1w[clear], np.percentile(t1w[clear], 99.5)), 3))
    csf, grey, white = (ndimage.binary_erosion(clear & (tissue == k)) for k in range(3))
    core = ndimage.binary_erosion(lesions)
    found = {"parenchyma_ml": float((brain & (lesions | (tissue > 0))).sum() * voxel_mm3 / 1000)}
    for name, image in images.items():
        middle = np.median(image[white])
        found |= {f"grey_{name}": np.median(image[grey]) / middle, f"csf_{name}": np.median(image[csf]) / middle,
                  f"lesion_{name}": np.median(image[core]) / middle if core.sum() >= 30 else np.nan,
                  f"variation_{name}": 1.4826 * np.median(abs(image[white] - middle)) / middle}
    return {name: float(value) for name, value in found.items()}


def coverage(table: pd.DataFrame, ranges: Mapping = REAL_RANGES) -> pd.DataFrame:
    """Whether each simulated group covers the range of the real one; without measures and groups that `table` lacks.

    `table`: ``group`` and measures, one row per subject; `ranges`: measure to group to (median, low, high).
    """
    rows = []
    for measure, of_group in ranges.items():
        for group, (_, low, high) in of_group.items():
            values = table.loc[table["group"] == group, measure].dropna() if measure in table else []
            if len(values):
                rows.append({"measure": measure, "group": group, "low": values.min(), "high": values.max(),
                             "real_low": low, "real_high": high,
                             "covered": bool(values.min() <= low and values.max() >= high)})
    return pd.DataFrame(rows, columns=["measure", "group", "low", "high", "real_low", "real_high", "covered"])


def median_subjects(table: pd.DataFrame) -> dict[str, str]:
    """Per group the subject of median lesion load (the upper of two); an unknown load counts as none."""
    loads = table.reindex(columns=["subject", "group", "lesion_load_ml"]).fillna({"lesion_load_ml": 0.0})
    return {group: part["subject"].iloc[len(part) // 2]
            for group, part in loads.sort_values("lesion_load_ml", kind="stable").groupby("group")}


def fullest_slice(lesions: np.ndarray) -> int:
    """Slice with most lesion pixels from 10 below to 19 above the middle one; the middle one where there are none."""
    middle = len(lesions) // 2
    window = lesions[max(0, middle - 10): middle + 20].sum(axis=(1, 2))
    return max(0, middle - 10) + int(window.argmax()) if window.any() else middle


def group_examples(stacks: Mapping[str, SliceStack]) -> dict:
    """The fullest slice of one subject per group, as arguments of `mslib.show.plot_examples`."""
    chosen = {group: (stack, fullest_slice(stack.lesions)) for group, stack in stacks.items()}
    slices = [np.moveaxis(stack.images[index], -1, 0).astype(np.float32) for stack, index in chosen.values()]
    return {"slices": np.stack(slices, 1), "groups": list(chosen),
            "lesions": np.stack([stack.lesions[index] for stack, index in chosen.values()]),
            "z_mm": [float(stack.z_mm[index]) for stack, index in chosen.values()]}
