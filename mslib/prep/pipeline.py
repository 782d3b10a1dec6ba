"""One subject from raw images to BIDS derivatives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mslib.cohort.phantom import save_nifti
from mslib.study import StudyError, atomic_path, write_json
from mslib.study.config import Prep

from .bias import correct_bias
from .images import affine_of, array_of, as_image, bounding_box, checked_mask, reduce_to, reoriented_grid
from .intensity import STEP, scale_intensity
from .masking import brain_mask
from .qc import edge_agreement, header_alignment, quality_row, registration_figure
from .registration import Registration, register_rigid
from .slices import save_stack, slice_stack

COARSE_MM, FINE_MM = (6.0, 3.0), (1.5,)
RIM_MM = 3.0
FIELD_MM = 4.0
PACKAGES = ("mslib", "SimpleITK", "numpy", "scipy", "nibabel", "nilearn", "matplotlib")
RULES = {
    "bias": "N4 on each image's own grid inside the brain mask",
    "registration": "rigid, Mattes mutual information, T2w and FLAIR onto T1w",
    "resampling": "one linear interpolation from the image as scanned to the output grid",
    "intensity": "percentiles of the brain to 0 and 1, clipped, 0 outside the brain, multiples of 2**-14",
    "masks": "at least half of the voxel; where the T1w grid is kept only reordered",
}


@dataclass(frozen=True)
class Aligned:
    """A bias-corrected image on its own grid, the natural logarithm of its bias field there, and how T1w finds it.

    `registration` is None for the image that the others are registered to.
    """

    image: sitk.Image
    log_field: sitk.Image
    registration: Registration | None


def output_paths(out: str | Path, subject: str, sequences, lesion: bool) -> dict[str, Path]:
    """BIDS-derivative paths of a subject, by short name."""
    anat = Path(out) / f"sub-{subject}" / "anat"
    paths = {name: anat / f"sub-{subject}_space-T1w_desc-preproc_{name}.nii.gz" for name in sequences}
    paths["brain"] = anat / f"sub-{subject}_space-T1w_desc-brain_mask.nii.gz"
    if lesion:
        paths["lesion"] = anat / f"sub-{subject}_space-T1w_label-lesion_mask.nii.gz"
    for name in sequences[1:]:
        paths[f"xfm_{name}"] = anat / f"sub-{subject}_from-T1w_to-{name}_mode-points_xfm.tfm"
    for name in sequences:
        paths[f"bias_{name}"] = anat / f"sub-{subject}_desc-logbias_{name}.nii.gz"
    paths["slices"] = anat / f"sub-{subject}_space-T1w_desc-slices.npz"
    paths["figure"] = anat.parent / "figures" / f"sub-{subject}_desc-registration_qc.png"
    paths["qc"] = anat / f"sub-{subject}_desc-qc.json"
    return paths


def _mask_for(mask: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """T1w mask on another grid: at least half of the voxel."""
    moved = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), grid, transform, sitk.sitkLinear, 0.0)
    return sitk.Cast(moved >= 0.5, sitk.sitkUInt8)


def align(images: dict, mask: sitk.Image, prep: Prep | None = None, *, seed: int = 0,
          threads: int = 2) -> dict[str, Aligned]:
    """Bias-correct every image on its own grid and register all others to the first one, in the order of `images`.

    The first search uses the images as they are; it places the mask for N4, and the corrected images decide the end.

    Parameters
    ----------
    images : dict of SimpleITK.Image
        Sequence to image (3-D, float32); the first one is the reference.
    mask : SimpleITK.Image
        Brain, non-zero inside, on the grid of the first image.
    prep : mslib.study.config.Prep, optional
        Settings of N4.
    seed : int
        Of the points that the registration draws.
    threads : int
        Images worked on at a time; the result does not depend on it.

    Raises
    ------
    StudyError
        Mask empty or on another grid, images that do not overlap under any start.
    """
    prep = prep or Prep()
    first, *others = images
    # Widened, so that the contrast at the brain's outline counts.
    wide = sitk.BinaryDilate(mask, [round(RIM_MM / spacing) for spacing in mask.GetSpacing()])
    with ThreadPoolExecutor(max_workers=threads) as pool:
        rough = {name: pool.submit(register_rigid, images[first], images[name], wide, levels_mm=COARSE_MM, seed=seed)
                 for name in others}
        reference = pool.submit(correct_bias, images[first], mask, prep.n4_shrink, prep.n4_iterations)
        t1w, field = reference.result()

        def finish(name):
            start = rough[name].result()
            inside = _mask_for(mask, images[name], start.transform.GetInverse())
            corrected, log_field = correct_bias(images[name], inside, prep.n4_shrink, prep.n4_iterations)
            found = register_rigid(t1w, corrected, wide, initial=start.transform, levels_mm=FINE_MM, seed=seed)
            return Aligned(corrected, log_field, found)

        done = dict(zip(others, pool.map(finish, others)))
    return {first: Aligned(t1w, field, None), **done}


def _on_grid(aligned: Aligned, grid: sitk.Image, brain: np.ndarray) -> np.ndarray:
    """The image on the output grid by one interpolation, computed in the box of the brain, 0 outside the box."""
    box = bounding_box(brain)
    transform = aligned.registration.transform if aligned.registration else sitk.Transform()
    piece = sitk.Resample(aligned.image, grid[box[0], box[1], box[2]], transform, sitk.sitkLinear, 0.0,
                          sitk.sitkFloat32)
    values = np.zeros(brain.shape, np.float32)
    values[box] = array_of(piece)
    return values


def _save_field(path: Path, field: sitk.Image) -> None:
    """Write a log bias field: smooth, so that coarse voxels hold it; whole multiples of `STEP` compress."""
    small = reduce_to(field, FIELD_MM)
    save_nifti(path, np.round(array_of(small) / STEP).astype(np.float32) * np.float32(STEP), affine_of(small))


def preprocess_subject(subject, out, prep: Prep | None = None, sequences=("T1w", "T2w", "FLAIR"),
                       image_size=(128, 112), pixel_mm=1.5, *, seed: int = 0, threads: int = 2) -> dict[str, Path]:
    """Correct, register, scale and cut one subject; write BIDS derivatives, the quality numbers last.

    Files are the same, byte for byte, on every run and for any number of threads.

    Parameters
    ----------
    subject : Subject
        Anything with ``id``, ``images`` (sequence to path), ``brain_mask`` and ``lesion_mask`` (path on the T1w
        grid, or None).
    out : path
        Derivative dataset; the subject's folder is made in it.
    prep : mslib.study.config.Prep, optional
    sequences : sequence of str
        The first is the one that the others are registered to.
    image_size, pixel_mm
        As in `slice_stack`.
    seed : int
        Of the points that the registration draws.
    threads : int
        Images worked on at a time.

    Returns
    -------
    dict
        Short name (sequence, brain, lesion, xfm_<sequence>, bias_<sequence>, slices, figure, qc) to path.

    Raises
    ------
    StudyError
        One line naming the subject: unreadable image, mask empty or on another grid, images that do not overlap,
        no contrast, output that cannot be written.
    """
    prep = prep or Prep()
    paths = output_paths(out, subject.id, sequences, subject.lesion_mask is not None)
    try:
        _make(subject, paths, prep, sequences, image_size, pixel_mm, seed, threads)
    except StudyError as error:
        raise StudyError(f"sub-{subject.id}: {error}") from error
    return paths


def _make(subject, paths, prep, sequences, image_size, pixel_mm, seed, threads) -> None:
    images = {name: as_image(subject.images[name]) for name in sequences}
    t1w = images[sequences[0]]
    given = subject.brain_mask is not None
    mask = checked_mask(subject.brain_mask if given else brain_mask(t1w, seed=seed), t1w)
    lesion = None if subject.lesion_mask is None else checked_mask(subject.lesion_mask, t1w, allow_empty=True)
    aligned = align(images, mask, prep, seed=seed, threads=threads)
    grid = reoriented_grid(t1w, prep.resample_mm)
    affine, brain = affine_of(grid), array_of(_mask_for(mask, grid, sitk.Transform())) > 0
    with ThreadPoolExecutor(max_workers=threads) as pool:
        volumes = dict(zip(sequences, pool.map(
            lambda name: scale_intensity(_on_grid(aligned[name], grid, brain), brain, prep.percentiles), sequences)))
        saved = [pool.submit(save_nifti, paths[name], volume, affine) for name, volume in volumes.items()]
        saved += [pool.submit(_save_field, paths[f"bias_{name}"], aligned[name].log_field) for name in sequences]
        save_nifti(paths["brain"], brain.astype(np.uint8), affine)
        if lesion is not None:
            lesion = array_of(_mask_for(lesion, grid, sitk.Transform())) > 0
            save_nifti(paths["lesion"], lesion.astype(np.uint8), affine)
        stack = slice_stack(list(volumes.values()), brain, affine, lesion, n_slices=prep.n_slices,
                            image_size=image_size, pixel_mm=pixel_mm)
        save_stack(paths["slices"], stack)
        for job in saved:
            job.result()
    parameters = {**prep.model_dump(mode="json"), "sequences": list(sequences), "image_size": list(image_size),
                  "pixel_mm": pixel_mm, "seed": seed, "levels_mm": [*COARSE_MM, *FINE_MM]}
    for name in sequences:
        sources = dict.fromkeys(Path(subject.images[one]).name for one in (name, sequences[0]))
        write_json(paths[name].with_name(paths[name].name.replace(".nii.gz", ".json")),
                   {"Sources": list(sources), "SkullStripped": True, "SpatialReference": "T1w", **RULES,
                    "parameters": parameters, "versions": {package: version(package) for package in PACKAGES}})
    _quality(subject.id, paths, aligned, volumes, brain, grid, len(stack.z_mm), prep, given)


def _quality(subject: str, paths, aligned, volumes, brain, grid, n_slices: int, prep: Prep, given: bool) -> None:
    """Transforms, picture and numbers."""
    first, *others = volumes
    for name in others:
        with atomic_path(paths[f"xfm_{name}"]) as temporary:
            sitk.WriteTransform(aligned[name].registration.transform, str(temporary))
    before = {name: header_alignment(aligned[name].image, grid, brain) for name in others}
    registration_figure(paths["figure"], volumes[first], brain, before, {name: volumes[name] for name in others},
                        grid.GetSpacing(), f"sub-{subject}: edges of {first} over the other sequences")
    agreement = {name: edge_agreement(volumes[first], volumes[name], brain) for name in others}
    millilitres = float(brain.sum()) * float(np.prod(grid.GetSpacing())) / 1000
    write_json(paths["qc"], quality_row(subject, {name: aligned[name].registration for name in others}, agreement,
                                        millilitres, n_slices, prep.n_slices, "given" if given else "template"))
