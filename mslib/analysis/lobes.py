"""Lobes of the brain from labelled coordinates that ship with nilearn, so that nothing has to be downloaded."""

from __future__ import annotations

from functools import lru_cache

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.datasets import fetch_coords_dosenbach_2010
from scipy.spatial import cKDTree

#: Lobe of every region name of Dosenbach et al. 2010 (Science 329:1358), numbers at their ends left out.
LOBES = {
    "frontal": {"ACC", "SMA", "aPFC", "dACC", "dFC", "dlPFC", "frontal", "mFC", "mPFC", "pre-SMA",
                "precentral gyrus", "sup frontal", "vFC", "vPFC", "vent aPFC", "vlPFC", "vmPFC"},
    "temporal": {"TPJ", "fusiform", "inf temporal", "sup temporal", "temporal"},
    "parietal": {"IPL", "IPS", "angular gyrus", "parietal", "post cingulate", "post parietal", "precuneus",
                 "sup parietal"},
    "occipital": {"occipital", "post occipital"},
    "insula and deep grey": {"ant insula", "basal ganglia", "mid insula", "post insula", "thalamus"},
    "cerebellum": {"inf cerebellum", "lat cerebellum", "med cerebellum"},
}
#: Where a subject's brain is put, mm (RAS): centre in plane and top of the ICBM152 brain's bounding box.
TEMPLATE_PLACE = np.array([0.0, -17.0, 82.0])


@lru_cache(maxsize=1)
def _coordinates() -> tuple[cKDTree, np.ndarray]:
    atlas = fetch_coords_dosenbach_2010()
    points = np.array([[row["x"], row["y"], row["z"]] for row in atlas.rois.to_records()], float)
    names = [str(label).rstrip("0123456789 ") for label in atlas.labels]
    lobe = np.array([next(i for i, key in enumerate(LOBES) if name in LOBES[key]) for name in names])
    return cKDTree(points), lobe


def brain_top(mask: nib.Nifti1Image) -> float:
    """Height of the highest voxel of a brain mask, mm (RAS)."""
    return float(nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0))[:, 2].max())


def lobe_labels(brain: np.ndarray, affine: np.ndarray, top_mm: float | None = None, index=slice(None)) -> np.ndarray:
    """Lobe of the brain pixels of a stack's slices at `index`, as index into `LOBES`, -1 outside.

    That of the nearest of 160 labelled coordinates; the brain is put in place by its bounding box (centre in plane,
    top). `brain`: bool (n, H, W), the whole stack; `affine`: (column, row, slice) to mm (RAS), as of
    `mslib.prep.SliceStack`; `top_mm`: `brain_top`, which a stack may not reach; default: that of the stack.
    """
    ends = np.array([np.flatnonzero(brain.any(axis))[[0, -1]] for axis in ((0, 1), (0, 2), (1, 2))])
    centre, reach = (nib.affines.apply_affine(affine, point) for point in (ends.mean(1), ends.T))
    labels = np.full(brain[index].shape, -1, np.int8)
    slices, rows, columns = np.nonzero(brain[index])
    points = nib.affines.apply_affine(affine, np.stack([columns, rows, np.arange(len(brain))[index][slices]], 1))
    points = points - [*centre[:2], reach[:, 2].max() if top_mm is None else top_mm] + TEMPLATE_PLACE
    tree, lobe = _coordinates()
    labels[slices, rows, columns] = lobe[tree.query(points)[1]]
    return labels


def lobe_shares(maps: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Share of every map's sum inside the brain that each lobe (column) holds; NaN where a map is blank there."""
    sums = np.stack([np.where(labels == i, maps, 0).sum((1, 2), dtype=float) for i in range(len(LOBES))], 1)
    total = sums.sum(1, keepdims=True)
    return pd.DataFrame(sums / np.where(total > 0, total, np.nan), columns=list(LOBES))
