"""Maps of a patient's slices, kept as volumes in T1w space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from mslib.prep import load_stack, plane_to_volume
from mslib.study import atomic_path, write_json


def keep_volume(path: Path, person, stack_file: str | Path, make: Callable[[dict], dict[str, np.ndarray]], names: str,
                made_of: dict, told: dict, dtype=np.float32) -> Path:
    """Write maps of all slices as a 4-D volume with a JSON file beside it; one that is up to date is taken up.

    Parameters
    ----------
    path : path
        The volume, beside the subject's preprocessed T1w image.
    person : Subject
        Whose maps they are.
    stack_file : path
        Slice stack of the subject.
    make : callable
        Takes the stack, returns maps (n, H, W) by name; called only where they are needed.
    names : str
        Entry of the JSON file that holds the names of the maps, in the order of the last axis.
    made_of : dict
        What decides the maps; the volume is up to date where the JSON file has these entries.
    told : dict
        Further entries of the JSON file.
    dtype : dtype
        Of the file.

    Returns
    -------
    path
    """
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    if path.exists() and sidecar.exists():
        stored = json.loads(sidecar.read_text(encoding="utf-8"))
        if all(stored.get(key) == value for key, value in made_of.items()):
            return path
    stack = load_stack(stack_file)
    maps = make(stack)
    reference = path.with_name(f"sub-{person.id}_space-T1w_desc-preproc_T1w.nii.gz")
    volumes = [plane_to_volume(one, stack, reference) for one in maps.values()]
    image = nib.Nifti1Image(np.stack([np.asarray(v.dataobj, np.float32) for v in volumes], -1), volumes[0].affine)
    image.header.set_data_dtype(dtype)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
    write_json(sidecar, {**told, names: list(maps), "Class": person.group, "Sources": [reference.name], **made_of})
    return path
