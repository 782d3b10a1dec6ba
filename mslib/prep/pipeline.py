"""One subject from raw images to BIDS derivatives."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from mslib.cohort.phantom import save_nifti
from mslib.study import StudyError, atomic_path, write_json, write_table, write_text
from mslib.study.config import Prep

from .images import affine_of, array_of, as_image, bounding_box, checked_mask, reduce_to, reoriented_grid
from .intensity import STEP, correct_bias, estimate_bias, scale_intensity
from .qc import (
    QC_MM,
    contrast_doubts,
    edge_agreement,
    label_doubts,
    quality_row,
    registration_figure,
    solid_doubts,
)
from .registration import Registration, brain_mask, register_rigid
from .slices import save_stack, slice_stack

COARSE_MM, FINE_MM = (6.0, 3.0), (1.5,)
RIM_MM = 3.0
PACKAGES = ("mslib", "SimpleITK", "numpy", "scipy", "nibabel", "nilearn", "pillow")
RULES = {
    "bias": "one smooth log field a sequence, from the classes that all sequences share inside the brain mask",
    "registration": "rigid, Mattes mutual information, T2w and FLAIR onto T1w",
    "resampling": "one linear interpolation from the image as scanned to the output grid",
    "intensity": "percentiles of the brain to 0 and 1, clipped, 0 outside the brain, multiples of 2**-14",
    "masks": "at least half of the voxel; where the T1w grid is kept only reordered",
}
#: What is meant by the names of files, for descriptions.tsv.
DESCRIPTIONS = {
    "preproc": "bias-corrected, on the grid of the output, scaled to 0 to 1 in the brain, 0 outside",
    "brain": "voxels of the brain", "logbias": "natural logarithm of the bias field, on a thinned grid",
    "slices": "slices as the networks see them (NumPy arrays)", "qc": "numbers and flags of quality control",
    "registration": "edges of T1w over the other sequences before and after registration"}
#: Files that BIDS has no names for.
IGNORED = "*_xfm.tfm\n*_desc-logbias_*\n*_desc-slices.npz\n*_desc-qc.json\nsub-*/figures\n"


def output_paths(out: str | Path, subject: str, sequences) -> dict[str, Path]:
    """Paths of a subject's derivatives by short name: sequences, brain, lesion, xfm_<sequence>, bias_<sequence>, ..."""
    sub = f"sub-{subject}"
    names = {"brain": "space-T1w_desc-brain_mask.nii.gz", "lesion": "space-T1w_label-lesion_mask.nii.gz",
             "slices": "space-T1w_desc-slices.npz", "qc": "desc-qc.json"}
    for number, sequence in enumerate(sequences):
        names |= {sequence: f"space-T1w_desc-preproc_{sequence}.nii.gz",
                  f"bias_{sequence}": f"space-T1w_desc-logbias_{sequence}.nii.gz"}
        if number:
            names[f"xfm_{sequence}"] = f"from-T1w_to-{sequence}_mode-points_xfm.tfm"
    paths = {short: Path(out) / sub / "anat" / f"{sub}_{name}" for short, name in names.items()}
    return paths | {"figure": Path(out) / sub / "figures" / f"{sub}_desc-registration_qc.png"}


def describe_derivatives(out: str | Path, raw: str | Path) -> Path:
    """Write what the derivative dataset `out` holds beside its subjects; gives its description.

    `raw`: the BIDS dataset that it is made of. The variable MSLIB_CONTAINER names the container's image, if any.
    """
    out = Path(out)
    near = Path(raw).is_relative_to(out.parents[1])  # both move together
    link = os.path.relpath(raw, out) if near else Path(raw).resolve().as_uri()
    maker = {"Name": "mslib", "Version": version("mslib")}
    if container := os.environ.get("MSLIB_CONTAINER"):
        maker["Container"] = {"Type": "docker", "Tag": container}
    write_text(out / ".bidsignore", IGNORED)
    write_text(out / "README", "Derivatives of mslib.prep in the T1w space of each subject. Where they come from says "
                               "dataset_description.json, what desc- means descriptions.tsv.\n")
    rows = [(f"desc-{name}", text) for name, text in DESCRIPTIONS.items()]
    write_table(out / "descriptions.tsv", pd.DataFrame(rows, columns=["desc_id", "description"]))
    return write_json(out / "dataset_description.json", {
        "Name": "mslib preprocessing", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [maker],
        "SourceDatasets": [{"URL": link}], "DatasetLinks": {"raw": link}})


def _mask_on(grid: sitk.Image, mask: sitk.Image, reordered: bool) -> np.ndarray:
    """T1w mask on the output grid, which is the T1w grid `reordered` or another: at least half of the voxel."""
    if reordered:
        return array_of(sitk.DICOMOrient(mask, "RAS")) > 0
    soft = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), grid, sitk.Transform(), sitk.sitkLinear, 0.0)
    return array_of(soft) >= 0.5


def align(images: dict, mask: sitk.Image) -> tuple[dict[str, Registration], dict[str, sitk.Image]]:
    """Register every image to the first one, and estimate the log bias fields of all (`estimate_bias`).

    The first search uses the images as they are; the fields are estimated of all images together where that places
    them, and the corrected images decide the end. `images`: by sequence, 3-D, float32; `mask`: brain, non-zero inside,
    on the grid of the first. StudyError: mask empty or on another grid, images that do not overlap under any start.
    """
    first, *others = images
    small = {name: reduce_to(image, FINE_MM[-1]) for name, image in images.items()}
    # Widened, so that the contrast at the brain's outline counts.
    wide = reduce_to(sitk.Cast(mask, sitk.sitkFloat32), FINE_MM[-1]) >= 0.5
    wide = sitk.BinaryDilate(wide, [round(RIM_MM / spacing) for spacing in wide.GetSpacing()])
    rough = {name: register_rigid(small[first], small[name], wide, levels_mm=COARSE_MM).transform for name in others}
    fields = dict(zip(images, estimate_bias(list(images.values()), mask, [sitk.Transform(), *rough.values()])))
    even = correct_bias(small[first], fields[first])
    return {name: register_rigid(even, correct_bias(small[name], fields[name], start.GetInverse()), wide,
                                 initial=start, levels_mm=FINE_MM) for name, start in rough.items()}, fields


def _on_grid(images: dict, registrations: dict[str, Registration], log_fields: dict, grid: sitk.Image,
             brain: np.ndarray, percentiles, reduce_mm: float = 0.0) -> dict[str, np.ndarray]:
    """The corrected and scaled images on the output grid by one interpolation, 0 outside the brain.

    Before that voxels are averaged together until they come near `reduce_mm`.
    """
    box, volumes = bounding_box(brain), {}
    for name, image in images.items():
        place = registrations[name].transform if name in registrations else sitk.Transform()
        piece = sitk.Resample(reduce_to(image, reduce_mm), grid[box[0], box[1], box[2]], place, sitk.sitkLinear, 0.0)
        values = np.zeros(brain.shape, np.float32)
        values[box] = array_of(correct_bias(piece, log_fields[name]))
        volumes[name] = scale_intensity(values, brain, percentiles)
    return volumes


def comparable(images: dict, mask: sitk.Image, registrations: dict[str, Registration], log_fields: dict,
               percentiles) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Corrected and co-registered images on cubes, scaled, the brain there, and the edge in mm: for quality control."""
    first = next(iter(images.values()))
    edge = max(QC_MM, float(np.prod(first.GetSpacing())) ** (1 / 3))
    grid = reoriented_grid(first, edge)
    brain = _mask_on(grid, mask, False)
    return _on_grid(images, registrations, log_fields, grid, brain, percentiles, edge), brain, edge


def preprocess_subject(subject, out, prep: Prep | None = None, sequences=("T1w", "T2w", "FLAIR"),
                       image_size=(192, 168), pixel_mm=1.0) -> dict[str, Path]:
    """Correct, register, scale and cut one subject; write BIDS derivatives (`output_paths`), the quality numbers last.

    One thread; files are the same, byte for byte, on every run.

    Parameters
    ----------
    subject : Subject
        Has ``id``, ``images`` (sequence to path), ``brain_mask`` and ``lesion_mask`` (path on the T1w grid, or None).
    out : path
        Derivative dataset; the subject's folder is made in it.
    sequences : sequence of str
        The first is the one that the others are registered to.
    image_size, pixel_mm
        As in `slice_stack`.

    Raises
    ------
    StudyError
        One line naming the subject: unreadable image, mask empty or on another grid, images that do not overlap,
        no contrast, output that cannot be written.
    """
    paths = output_paths(out, subject.id, sequences)
    try:
        _make(subject, paths, prep or Prep(), sequences, image_size, pixel_mm)
    except StudyError as error:
        raise StudyError(f"sub-{subject.id}: {error}") from error
    return paths


def _make(subject, paths: dict[str, Path], prep: Prep, sequences, image_size, pixel_mm: float) -> None:
    """Everything that `preprocess_subject` does."""
    images = {name: as_image(subject.images[name]) for name in sequences}
    first, t1w = next(iter(images.items()))
    given, reordered = subject.brain_mask is not None, prep.resample_mm is None
    mask = checked_mask(subject.brain_mask if given else brain_mask(t1w), t1w)
    lesion = None if subject.lesion_mask is None else checked_mask(subject.lesion_mask, t1w, allow_empty=True)
    registrations, log_fields = align(images, mask)
    grid = reoriented_grid(t1w, prep.resample_mm)
    affine, brain = affine_of(grid), _mask_on(grid, mask, reordered)
    volumes = _on_grid(images, registrations, log_fields, grid, brain, prep.percentiles)

    def uri(path):
        """BIDS URI of an image of the raw dataset."""
        parts, sub = Path(path).parts, f"sub-{subject.id}"
        return "bids:raw:" + "/".join(parts[parts.index(sub):] if sub in parts else parts[-1:])

    def sidecar(name, **facts):
        write_json(paths[name].with_suffix("").with_suffix(".json"), facts)

    for name, field in log_fields.items():
        save_nifti(paths[name], np.rint(volumes[name] / STEP).astype(np.int16), affine, STEP)
        stored = np.clip(np.rint(array_of(field) / STEP), -32767, 32767).astype(np.int16)  # logarithms of -2 to 2
        save_nifti(paths[f"bias_{name}"], stored, affine_of(field), STEP)
    reference = uri(subject.images[first])
    source = uri(subject.brain_mask) if given else reference
    save_nifti(paths["brain"], brain.astype(np.uint8), affine)
    sidecar("brain", Type="Brain", SpatialReference=reference, Sources=[source])
    if lesion is not None:
        lesion = _mask_on(grid, lesion, reordered)
        save_nifti(paths["lesion"], lesion.astype(np.uint8), affine)
        sidecar("lesion", Type="Lesion", SpatialReference=reference, Sources=[uri(subject.lesion_mask)])
    stack = slice_stack(list(volumes.values()), brain, affine, lesion, n_slices=prep.n_slices, image_size=image_size,
                        pixel_mm=pixel_mm)
    save_stack(paths["slices"], stack)
    parameters = {**prep.model_dump(mode="json"), "sequences": list(sequences), "image_size": list(image_size),
                  "pixel_mm": pixel_mm, "levels_mm": [*COARSE_MM, *FINE_MM]}
    for name in sequences:
        sidecar(name, Sources=list(dict.fromkeys([uri(subject.images[name]), reference])), SkullStripped=True,
                SpatialReference=reference, **RULES, parameters=parameters,
                versions={package: version(package) for package in PACKAGES})
    for name, found in registrations.items():
        with atomic_path(paths[f"xfm_{name}"]) as temporary:
            sitk.WriteTransform(found.transform, str(temporary))
    registration_figure(paths["figure"], volumes, images, grid, brain)
    compared, inside, edge = comparable(images, mask, registrations, log_fields, prep.percentiles)
    agreement = {name: edge_agreement(compared[first], compared[name], inside) for name in registrations}
    millilitres = float(brain.sum()) * float(np.prod(grid.GetSpacing())) / 1000
    doubts = label_doubts(images) + solid_doubts(compared, inside, edge)
    doubts += contrast_doubts(compared, inside) if first == "T1w" else []
    write_json(paths["qc"], quality_row(subject.id, registrations, agreement, millilitres, len(stack.z_mm),
                                        prep.n_slices, "given" if given else "template", doubts))


def unscaled_images(subject, out) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float]:
    """What `preprocess_subject` left in `out`, before scaling: a voxel without signal is 0.

    Given are the bias-corrected and co-registered images by sequence (float32, (X, Y, Z)), the brain, the lesions (the
    subject must have a mask of them), and the volume of a voxel in mm3.
    """
    paths = output_paths(out, subject.id, subject.images)
    brain, lesions = (sitk.ReadImage(str(paths[name])) for name in ("brain", "lesion"))
    images = {}
    for name, path in subject.images.items():
        place = sitk.ReadTransform(str(paths[f"xfm_{name}"])) if f"xfm_{name}" in paths else sitk.Transform()
        piece = sitk.Resample(as_image(path), brain, place, sitk.sitkLinear, 0.0)
        images[name] = array_of(correct_bias(piece, sitk.ReadImage(str(paths[f"bias_{name}"]), sitk.sitkFloat32)))
    return images, array_of(brain) > 0, array_of(lesions) > 0, float(np.prod(brain.GetSpacing()))
