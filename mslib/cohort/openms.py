"""Real MS patients (Lesjak et al. 2016, 2017): download, conversion to BIDS, statistics of their lesions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from mslib.study import StudyError

from .openms_bids import Conversion, t1_to_others, to_bids
from .openms_files import BASE, base_address, fetch, registry
from .openms_patients import patient_table

#: Smaller components are left out, as in the published statistics of the database.
SMALLEST_LESION_MM3 = 3.0


def lesion_volumes(mask: np.ndarray, voxel_mm3: float) -> np.ndarray:
    """Volumes in mm^3 of the lesions of a mask (face-connected components of at least 3 mm^3)."""
    sizes = np.bincount(ndimage.label(mask)[0].ravel())[1:] * voxel_mm3
    return sizes[sizes >= SMALLEST_LESION_MM3 - 1e-6]


def lesion_statistics(source: str | Path) -> pd.DataFrame:
    """Lesions of every patient with a consensus mask, those without images included.

    Parameters
    ----------
    source : str or Path
        Folder that `fetch` filled.

    Returns
    -------
    DataFrame
        ``patient, ms_type, load_ml, lesions, ln_volume_mean, ln_volume_sd``: load of all lesion voxels in mL,
        number of lesions of at least 3 mm^3, mean and SD of ln(volume in mm^3) over them.

    Raises
    ------
    StudyError
        No mask, no table, or a mask that cannot be read.
    """
    table, rows = patient_table(source, "cross_sectional"), []
    for path in sorted((Path(source) / "cross_sectional" / "MNI").glob("patient*/GOLD_STANDARD_*.nii.gz")):
        number = int(path.parent.name.removeprefix("patient"))
        try:
            image = nib.load(path)
            mask = np.asanyarray(image.dataobj) > 0
        except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
            raise StudyError(f"{path}: cannot be read ({error}); fetch it again") from error
        voxel_mm3 = float(np.prod(image.header.get_zooms()))
        logs = np.log(lesion_volumes(mask, voxel_mm3))
        rows.append({"patient": number, "ms_type": table.loc[str(number), "ms_type"],
                     "load_ml": mask.sum() * voxel_mm3 / 1000, "lesions": len(logs),
                     "ln_volume_mean": logs.mean() if len(logs) else np.nan,
                     "ln_volume_sd": logs.std(ddof=1) if len(logs) > 1 else np.nan})
    if not rows:
        raise StudyError(f"{source}: holds no consensus lesion mask; fetch the patients first")
    return pd.DataFrame(rows)


__all__ = ["BASE", "Conversion", "base_address", "fetch", "lesion_statistics", "lesion_volumes", "registry",
           "t1_to_others", "to_bids"]
