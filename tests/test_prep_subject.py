"""One subject through preprocessing: contents, one resampling, bad input, quality control."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import prep_cases as cases
import pytest
import SimpleITK as sitk
from scipy import ndimage
from shared_cases import contents, refused

from mslib.prep import brain_mask, edge_agreement, load_stack, preprocess_subject, unscaled_images
from mslib.prep.images import checked_mask
from mslib.prep.pipeline import output_paths
from mslib.prep.qc import contrast_doubts
from mslib.study import StudyError
from mslib.study.config import Prep

SETTINGS = {"prep": Prep(n_slices=40), "image_size": (48, 40), "pixel_mm": 4.0}


def changed(subject, **parts):
    return SimpleNamespace(**vars(subject) | parts)


def _write(folder, maps, truths):
    """A raw subject of 3 mm whose axes are not in RAS order."""
    files = {}
    for number, (name, truth) in enumerate(truths.items()):
        image, _ = cases.scan(maps, name, truth, (3, 3, 3), bias=0.15, noise=0.02, seed=20 + number)
        files[name] = folder / f"sub-01_{name}.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(sitk.Cast(image, sitk.sitkInt16), "LPS"), str(files[name]))
    grid = sitk.ReadImage(str(files["T1w"]))
    brain = sitk.Resample(maps[0], grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    lesion = sitk.Image(brain.GetSize(), sitk.sitkUInt8)
    lesion.CopyInformation(brain)
    centre = lesion.TransformPhysicalPointToIndex((-25.0, 10.0, 25.0))   # LPS: the patient's right
    lesion[centre[0] - 2:centre[0] + 3, centre[1] - 2:centre[1] + 3, centre[2] - 2:centre[2] + 3] = 1
    for name, mask in (("brain", brain), ("lesion", lesion)):
        files[name] = folder / f"sub-01_{name}.nii.gz"
        sitk.WriteImage(mask, str(files[name]))
    return SimpleNamespace(id="01", group="RRMS", brain_mask=files["brain"], lesion_mask=files["lesion"],
                           images={name: files[name] for name in truths})


@pytest.fixture(scope="module")
def truths():
    rng = np.random.default_rng(3)
    return {"T1w": sitk.Transform(), "T2w": cases.motion(rng, 5, 4), "FLAIR": cases.motion(rng, 5, 4)}


@pytest.fixture(scope="module")
def done(tmp_path_factory, truths):
    folder = tmp_path_factory.mktemp("subject")
    subject = _write(folder, cases.tissues(3), truths)
    return subject, folder / "out", preprocess_subject(subject, folder / "out", **SETTINGS)


def test_derivatives(done, truths):
    subject, _, paths = done
    images = {name: nib.load(paths[name]) for name in ("T1w", "T2w", "FLAIR", "brain", "lesion")}
    for image in images.values():
        assert "".join(nib.aff2axcodes(image.affine)) == "RAS"
        np.testing.assert_allclose(image.affine, images["T1w"].affine)
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    brain = images["brain"].get_fdata() > 0
    for name in subject.images:
        values = images[name].get_fdata()
        assert images[name].get_data_dtype() == np.int16
        assert values.min() == 0 and values.max() == 1 and not values[~brain].any()
    lesion = nib.as_closest_canonical(nib.load(subject.lesion_mask)).get_fdata()
    np.testing.assert_array_equal(images["lesion"].get_fdata(), lesion)
    mask = sitk.ReadImage(str(subject.brain_mask))
    for name in ("T2w", "FLAIR"):
        found = sitk.ReadTransform(str(paths[f"xfm_{name}"]))
        assert cases.target_error(found, truths[name], mask, step=2) < 0.5


def test_slices_follow_the_volumes(done):
    _, _, paths = done
    stack = load_stack(paths["slices"])
    assert stack.images.shape == (40, 48, 40, 3)
    assert stack.lesions.any() and (stack.lesions <= stack.brain).all()
    _, rows, columns = np.nonzero(stack.lesions)
    assert columns.mean() < 20                                            # column 0 is the patient's right
    where = stack.affine @ [columns.mean(), rows.mean(), np.nonzero(stack.lesions)[0].mean(), 1]
    np.testing.assert_allclose(where[:3], (25, -10, 25), atol=4)          # RAS


@pytest.mark.parametrize("name", ["T1w", "T2w", "FLAIR"])
def test_an_image_is_the_raw_one_interpolated_once_over_the_saved_field(done, name):
    """Scaled; the reordered T1w is not interpolated at all."""
    subject, _, paths = done
    final = nib.load(paths[name])
    grid = sitk.DICOMOrient(sitk.ReadImage(str(subject.images["T1w"])), "RAS")
    raw, field = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (subject.images[name], paths[f"bias_{name}"]))
    if name == "T1w":
        values = sitk.GetArrayFromImage(sitk.DICOMOrient(raw, "RAS"))
    else:
        values = sitk.GetArrayFromImage(sitk.Resample(raw, grid, sitk.ReadTransform(str(paths[f"xfm_{name}"]))))
    voxels = np.linalg.inv(nib.load(paths[f"bias_{name}"]).affine) @ final.affine
    field = ndimage.affine_transform(sitk.GetArrayFromImage(field).T, voxels, output_shape=final.shape, order=1,
                                     mode="nearest")
    brain = nib.load(paths["brain"]).get_fdata() > 0
    expected = (values.T / np.exp(field))[brain]
    low, high = np.percentile(expected, SETTINGS["prep"].percentiles)
    np.testing.assert_allclose(final.get_fdata()[brain], np.clip((expected - low) / (high - low), 0, 1), atol=1e-3)
    assert np.std(field[brain]) > 0.02


def test_two_runs_agree_byte_for_byte(done, tmp_path):
    subject, out, _ = done
    preprocess_subject(subject, tmp_path / "again", **SETTINGS)
    first, second = contents(out), contents(tmp_path / "again")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    for name, content in first.items():
        if name.endswith(".json"):
            assert str(tmp_path).encode() not in content and str(out).encode() not in content
    sidecar = json.loads(first["sub-01/anat/sub-01_space-T1w_desc-preproc_FLAIR.json"])
    assert sidecar["Sources"] == ["bids:raw:sub-01_FLAIR.nii.gz", "bids:raw:sub-01_T1w.nii.gz"]
    assert sidecar["parameters"]["n_slices"] == 40 and sidecar["versions"]["SimpleITK"]


def test_isotropic_resampling_of_two_sequences_without_a_mask(done, tmp_path):
    subject, _, _ = done
    two = changed(subject, images={name: subject.images[name] for name in ("T1w", "T2w")}, brain_mask=None)
    settings = SETTINGS | {"prep": Prep(n_slices=40, resample_mm=4.0), "sequences": ("T1w", "T2w")}
    paths = preprocess_subject(two, tmp_path, **settings)
    image, lesion = nib.load(paths["T1w"]), nib.load(paths["lesion"])
    np.testing.assert_allclose(image.header.get_zooms(), 4.0)
    assert json.loads(paths["qc"].read_text())["mask"] == "template"
    voxels = [np.prod(i.header.get_zooms()) * i.get_fdata().sum() for i in (lesion, nib.load(subject.lesion_mask))]
    assert voxels[0] == pytest.approx(voxels[1], rel=0.35)
    centre = lesion.affine @ [*np.argwhere(lesion.get_fdata() > 0).mean(axis=0), 1]
    np.testing.assert_allclose(centre[:3], (25, -10, 25), atol=3)


def test_wrong_pair_is_flagged(done, tmp_path):
    """A FLAIR image of noise in labels gets flags, the right images get none; edges tell shifted images."""
    subject, _, paths = done
    assert json.loads(paths["qc"].read_text())["flags"] == []
    noise = sitk.ReadImage(str(subject.images["T1w"]), sitk.sitkFloat32)
    noise = sitk.AdditiveGaussianNoise(noise * 0, 200.0, 500.0, 1)
    labels = sitk.Cast(sitk.OtsuMultipleThresholds(noise, 3), sitk.sitkInt16)
    sitk.WriteImage(labels, str(tmp_path / "wrong.nii.gz"))
    other = changed(subject, images={"T1w": subject.images["T1w"], "FLAIR": tmp_path / "wrong.nii.gz"})
    made = preprocess_subject(other, tmp_path / "out", **SETTINGS, sequences=("T1w", "FLAIR"))
    flags = json.loads(made["qc"].read_text())["flags"]
    for words in ("edges do", "has 4 different", "fluid, grey and white matter by T1w"):
        assert any(flag.startswith(f"FLAIR: {words}") for flag in flags), words
    t1w, flair = (nib.load(paths[name]).get_fdata(dtype=np.float32) for name in ("T1w", "FLAIR"))
    brain = nib.load(paths["brain"]).get_fdata() > 0
    assert edge_agreement(t1w, flair, brain) > 4 > edge_agreement(t1w, np.roll(flair, 4, axis=1), brain)


@pytest.mark.parametrize("given,doubted", [
    ({}, set()), ({"T2w": "FLAIR", "FLAIR": "T2w"}, {"T2w", "FLAIR"}), ({"FLAIR": "T2w"}, {"FLAIR"}),
    ({"T1w": "T2w", "T2w": "T1w"}, {"T2w", "FLAIR"}), ({"T1w": "FLAIR", "FLAIR": "T1w"}, {"T2w"})])
def test_a_sequence_that_is_another_one_is_known_by_the_order_of_tissues_in_it(done, given, doubted):
    _, _, paths = done
    volumes = {name: nib.load(paths[given.get(name, name)]).get_fdata() for name in ("T1w", "T2w", "FLAIR")}
    found = {doubt.split(":")[0] for doubt in contrast_doubts(volumes, nib.load(paths["brain"]).get_fdata() > 0)}
    assert found & doubted or found == doubted


@pytest.mark.parametrize("half_mm,flagged", [((16, 16, 16), True), ((8, 40, 12), False), ((3, 3, 3), False)])
def test_what_is_bright_and_solid_is_flagged_and_what_is_long_and_thin_is_not(done, tmp_path, half_mm, flagged):
    """A stroke and confluent lesions of the same volume, drawn into FLAIR as scanned."""
    subject, _, _ = done
    image = nib.load(subject.images["FLAIR"])
    places = np.moveaxis(np.indices(image.shape), 0, -1) @ image.affine[:3, :3].T + image.affine[:3, 3]
    inside = (np.square((places - (25, -10, 25)) / half_mm).sum(-1) < 1)
    values = image.get_fdata()
    drawn = np.where(inside, 1.6 * np.median(values[values > values.mean()]), values).astype(np.int16)
    nib.save(nib.Nifti1Image(drawn, image.affine), tmp_path / "flair.nii.gz")
    other = changed(subject, images={"T1w": subject.images["T1w"], "FLAIR": tmp_path / "flair.nii.gz"})
    made = preprocess_subject(other, tmp_path / "out", **SETTINGS, sequences=("T1w", "FLAIR"))
    flags = json.loads(made["qc"].read_text())["flags"]
    assert [("FLAIR: is bright in a piece" in flag) for flag in flags] == [True] * flagged


def test_unscaled_images_are_corrected_and_in_place(tmp_path):
    """A pattern with a bias field, and the same pattern two voxels aside."""
    pattern = np.zeros((14, 12, 10), np.float32)
    pattern[4:9, 3:8, 2:7] = np.random.default_rng(0).uniform(1, 2, (5, 5, 5))
    field = np.linspace(-0.3, 0.3, 14, dtype=np.float32)[:, None, None] + np.zeros_like(pattern)
    affine = np.diag([2.0, 2, 2, 1])
    subject = SimpleNamespace(id="01", images={name: tmp_path / f"{name}.nii.gz" for name in ("T1w", "T2w")})
    paths = output_paths(tmp_path, "01", subject.images)
    paths["T1w"].parent.mkdir(parents=True)
    for (name, path), shift in zip(subject.images.items(), (0, 2)):
        nib.save(nib.Nifti1Image(np.roll(pattern * np.exp(field), shift, axis=0), affine), path)
        nib.save(nib.Nifti1Image(field, affine), paths[f"bias_{name}"])
    sitk.WriteTransform(sitk.Euler3DTransform((0.0, 0.0, 0.0), 0, 0, 0, (-4.0, 0.0, 0.0)), str(paths["xfm_T2w"]))  # LPS
    for name, level in (("brain", 0), ("lesion", 1.5)):
        nib.save(nib.Nifti1Image((pattern > level).astype(np.uint8), affine), paths[name])
    images, brain, lesions, voxel_mm3 = unscaled_images(subject, tmp_path)
    assert voxel_mm3 == 8 and np.array_equal(brain, pattern > 0) and np.array_equal(lesions, pattern > 1.5)
    for image in images.values():
        np.testing.assert_allclose(image, pattern, atol=1e-4)


@pytest.mark.parametrize("fault, text", [
    ("empty", r"sub-01: .*brain.*is empty"), ("grid", r"sub-01: .*brain.*another grid"),
    ("truncated", r"sub-01: .*T2w.*is not a readable image"),
    ("gone", r"sub-01: .*T2w.*is not a readable image \(No such file")])
def test_bad_input_is_one_line_with_the_subject(done, tmp_path, fault, text):
    subject, _, _ = done
    bad = changed(subject, images=dict(subject.images))
    mask = sitk.ReadImage(str(subject.brain_mask))
    if fault in ("empty", "grid"):
        bad.brain_mask = tmp_path / "brain.nii.gz"
        sitk.WriteImage(mask * 0 if fault == "empty" else mask[4:], str(bad.brain_mask))
    else:
        bad.images["T2w"] = tmp_path / "sub-01_T2w.nii.gz"
        if fault == "truncated":
            bad.images["T2w"].write_bytes(subject.images["T2w"].read_bytes()[:5000])
    with refused(match=text, error=StudyError):
        preprocess_subject(bad, tmp_path / "out", **SETTINGS)


def test_headers_of_mask_and_image_may_differ_by_a_tenth_of_a_millimetre():
    image, mask = (sitk.Image([4, 4, 4], sitk.sitkFloat32) + 1 for _ in range(2))
    for one in (image, mask):
        one.SetSpacing([2.0, 1.0, 1.0])
    mask.SetOrigin([0.09, 0.0, 0.0])
    assert checked_mask(mask, image).GetOrigin() == image.GetOrigin()
    mask.SetOrigin([0.11, 0.0, 0.0])
    with pytest.raises(StudyError, match="is on another grid"):
        checked_mask(mask, image)


def test_template_mask():
    maps, move = cases.tissues(3), cases.motion(np.random.default_rng(5), 8, 6)
    image, _ = cases.scan(maps, "T1w", move, (3, 3, 3), 0.1, 0.02, 9)
    truth = sitk.Resample(maps[0], image, move.GetInverse(), sitk.sitkNearestNeighbor)
    found, truth = (sitk.GetArrayViewFromImage(m) > 0 for m in (brain_mask(image), truth))
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
