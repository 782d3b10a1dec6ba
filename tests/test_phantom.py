"""The simulated cohort: laws, identical nuisance in all groups, anatomy, lesions, truth, BIDS, repeatability."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats
from shared_cases import contents, real_data

from mslib.analysis.truth import REAL_APPEARANCE, appearance
from mslib.cohort import (
    acquisition,
    anatomy,
    draw_participants,
    lesions,
    render,
    simulate_subject,
    template,
    write_dataset,
)
from mslib.cohort.phantom import subject_files
from mslib.study import read_json, read_table

COUNTS = {"control": 100, "RRMS": 100, "SPMS": 100}
VOXEL = 3.0


@pytest.fixture(scope="module")
def people():
    return draw_participants(COUNTS, 3275)


@pytest.fixture(scope="module")
def control(people):
    """A control with large ventricles, without noise."""
    person = next(p for p in people if p.group == "control")
    return render(dataclasses.replace(person, disease=dataclasses.replace(person.disease, ventricle_factor=3.0)), VOXEL)


@pytest.fixture(scope="module")
def head():
    return anatomy.make_head(template(VOXEL), np.random.default_rng(3), VOXEL, 1.4, 0.03)


def scan_of(**changes):
    still = acquisition.SequenceNuisance(30, 0.2, (0, 0, 0), (0, 0, 0), 1.0, 0.0, 500)
    return dataclasses.replace(still, **changes)


def test_ids_tell_nothing_and_the_draw_repeats(people):
    assert people == draw_participants(COUNTS, 3275)
    assert people != draw_participants(COUNTS, 3276)
    assert [p.id for p in people][:2] == ["001", "002"]
    rank = stats.spearmanr(range(300), [list(COUNTS).index(p.group) for p in people])
    assert rank.pvalue > 0.05
    assert len({p.seed for p in people}) == 300
    further = draw_participants({"RRMS": 2}, 3275, prefix="T")
    assert [p.id for p in further] == ["T01", "T02"]
    assert not {p.seed for p in further} & {p.seed for p in people}


@pytest.mark.parametrize(("group", "load", "ventricle", "loss", "dark"),
                         [("control", 0, 1.0, 0.004, 0), ("RRMS", 12.4, 1.4, 0.03, 0.2), ("SPMS", 39, 2.0, 0.06, 0.5)])
def test_group_laws(group, load, ventricle, loss, dark):
    states = [p.disease for p in draw_participants({group: 400}, 5)]
    assert np.median([s.load_ml for s in states]) == pytest.approx(load, rel=0.15)  # of the truncated law
    assert np.median([s.ventricle_factor for s in states]) == pytest.approx(ventricle, rel=0.06)
    assert np.mean([s.brain_loss for s in states]) == pytest.approx(loss, abs=0.005)
    assert np.mean([s.black_hole_share for s in states]) == pytest.approx(dark, abs=0.02)
    if group == "control":
        assert np.mean([bool(s.spots_mm3) for s in states]) == pytest.approx(0.4, abs=0.06)
    else:
        assert stats.spearmanr([s.load_ml for s in states], [s.ventricle_factor for s in states])[0] == \
            pytest.approx(0.5, abs=0.1)


def nuisance_accuracy(people, *extra):
    """Cross-validated accuracy of telling the groups by age, sex and scanner, and its 95 % interval."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    def numbers(scan):
        return [scan.snr, scan.bias, scan.gain, scan.in_plane, scan.slice_mm, np.linalg.norm(scan.translation_mm),
                np.linalg.norm(scan.rotation_deg)]

    table = [[p.age, p.sex == "F", *(value for scan in p.nuisance.values() for value in numbers(scan))] for p in people]
    group = np.array([p.group for p in people])
    right = cross_val_predict(RandomForestClassifier(50, min_samples_leaf=3, random_state=0),
                              np.column_stack([np.array(table, float), *extra]), group,
                              cv=StratifiedKFold(5, shuffle=True, random_state=0)) == group
    return stats.binomtest(int(right.sum()), len(people)).proportion_ci(0.95)


def test_nuisance_alone_does_not_tell_the_groups(people):
    interval = nuisance_accuracy(people)
    assert interval.low < 1 / 3 < interval.high
    assert nuisance_accuracy(people, [p.disease.load_ml for p in people]).low > 0.6  # the test can see a difference


def test_volumes_sum_to_the_load_and_follow_the_real_law():
    rng = np.random.default_rng(0)
    loads = [p.disease.load_ml for p in draw_participants({"RRMS": 60}, 2)]
    numbers = [lesions.draw_number(rng, load) for load in loads]
    volumes = [lesions.draw_volumes(rng, load, number) for load, number in zip(loads, numbers)]
    for load, drawn in zip(loads, volumes):
        assert drawn.sum() == pytest.approx(1000 * load, rel=0.02)
        assert drawn.min() >= 3
    logs = np.log(np.concatenate(volumes))
    assert logs.mean() == pytest.approx(3.27, abs=0.2) and logs.std() == pytest.approx(1.37, abs=0.25)
    assert np.median([lesions.draw_number(rng, 15) for _ in range(400)]) == pytest.approx(82, rel=0.1)


def test_locations_meet_their_shares():
    rng = np.random.default_rng(1)
    for group, shares in lesions.SHARES.items():
        volumes = lesions.draw_volumes(rng, 30, 120)
        where = lesions.assign_locations(rng, volumes, shares)
        got = np.bincount(where, weights=volumes, minlength=4) / volumes.sum()
        assert np.abs(got - shares).max() < 0.06, group


def test_lesions_lie_in_white_matter_at_their_place_and_hold_the_load(head):
    found = lesions.make_lesions(head, np.random.default_rng(3), 15.0, lesions.SHARES["RRMS"], 0.3)
    labels, dark, mask = found.labels, found.black_holes, found.labels > 0
    assert mask.sum() * VOXEL**3 / 1000 == pytest.approx(15, rel=0.03)
    assert not (dark & ~mask).any() and dark.sum() / mask.sum() == pytest.approx(0.3, abs=0.1)
    assert (head.volume(head.wm)[mask] > 0.44).all()
    wall = ndimage.minimum(head.volume(head.ventricle), labels, range(1, labels.max() + 1))
    size = np.bincount(labels.ravel(), minlength=labels.max() + 1)[1:]
    assert size[wall < 4].sum() / size.sum() == pytest.approx(0.63, abs=0.12)
    darkness = (found.dark_share / np.maximum(found.share, 1e-6))[mask]  # black holes: the dark end of a continuum
    assert darkness[dark[mask]].mean() > 0.5 > 0.3 > darkness[~dark[mask]].mean()
    assert np.unique(darkness.round(2)).size > 30


def test_a_lesion_fades_and_its_mask_ends_at_half_of_its_core(head):
    field = lesions.LesionField(head, np.random.default_rng(0))
    volumes = (4000, 900, 200, 60)
    taken = [field.place(volume, 2, k + 1) for k, volume in enumerate(volumes)]
    mask, open_to = field.label > 0, field.white > 0.45
    assert taken == np.diff(np.round(np.cumsum((0, *volumes)) / VOXEL**3)).tolist(), "what rounding leaves is not lost"
    assert field.profile[mask].min() >= 0.5 > field.profile[open_to & ~mask].max() - 1e-6
    assert field.profile.max() == 1 and np.unique(field.profile[mask].round(2)).size > 20
    outside = ndimage.distance_transform_edt(~mask) * VOXEL
    rings = [np.mean(field.profile[open_to & (outside > low) & (outside <= low + VOXEL)]) for low in (0, VOXEL, 15)]
    assert rings[0] > rings[1] > rings[2] == 0


@pytest.mark.real
def test_numbers_and_volumes_beside_real_masks():
    paths = sorted(real_data("open_ms_data/cross_sectional/MNI").glob("*/GOLD*.nii.gz"))
    if len(paths) < 5:
        pytest.skip("real lesion masks are absent")
    rng, inside, real, drawn = np.random.default_rng(0), 0, [], []
    for path in paths:
        mask = np.asarray(nib.load(path).dataobj) > 0
        size = np.bincount(ndimage.label(mask)[0].ravel())[1:]  # faces join, as in the published statistics
        real.extend(np.log(size[size >= 3]))
        load = mask.sum() / 1000
        numbers = [lesions.draw_number(rng, load) for _ in range(200)]
        inside += np.percentile(numbers, 2.5) <= (size >= 3).sum() <= np.percentile(numbers, 97.5)
        drawn.extend(np.log(lesions.draw_volumes(rng, load, numbers[0])))
    assert inside >= 0.8 * len(paths)
    assert stats.ks_2samp(real, drawn).statistic < 0.2


def test_brains_look_like_real_ones():
    """A patient of typical tissue at 1 mm, with noise and the blur of two interpolations, measured as real ones."""
    person, = draw_participants({"RRMS": 1}, 1)
    rendered, images = render(person, 1.0, variation=0), {}
    assert rendered.volumes["lesion_ml"] == pytest.approx(person.disease.load_ml, rel=0.05)
    for name, image in rendered.images.items():
        noisy = acquisition.rician(np.random.default_rng(0), image, 0.03 * image[rendered.brain].mean())
        images[name] = noisy if name == "T1w" else ndimage.gaussian_filter(noisy, np.sqrt(2 / 6))
    found = appearance(images, rendered.brain, rendered.lesions)
    for name, ranges in REAL_APPEARANCE.items():
        near = {"grey": 1.1, "lesion": 1.2}.get(name.split("_")[0], 1.35)
        assert ranges["brains"][1] / near < found[name] < ranges["brains"][2] * near, (name, found[name])


def test_no_move_no_thickness_is_the_identity_and_thick_slices_are_means(control):
    image = control.images["T2w"]
    scan, affine = acquisition.acquire(image, control.affine, scan_of(), VOXEL)
    assert np.allclose(affine, control.affine) and np.allclose(scan, image, atol=1e-5)
    scan, affine = acquisition.acquire(image, control.affine, scan_of(slice_mm=2 * VOXEL), VOXEL)
    assert affine[2, 2] == 2 * VOXEL
    assert np.allclose(scan, image.reshape(*scan.shape[:2], -1, 2).mean(3), atol=1e-4)


def test_truth_transform_brings_the_moved_scan_back(control):
    image, scan = control.images["FLAIR"], scan_of(translation_mm=(3, -2, 4), rotation_deg=(4, 2, -3), in_plane=0.9)
    moved, affine = acquisition.acquire(image, control.affine, scan, VOXEL)
    fixed, true = acquisition.to_sitk(image, control.affine), acquisition.rigid_transform(scan)

    def difference(transform):
        back = sitk.Resample(acquisition.to_sitk(moved, affine), fixed, transform, sitk.sitkLinear, 0.0)
        return np.abs(sitk.GetArrayFromImage(back) - image.T)[control.brain.T].mean()

    assert difference(true) < 0.5 * difference(sitk.Transform())
    flip = np.array([-1, -1, 1])
    shifted = true.TransformPoint((flip * anatomy.CENTRE).tolist())
    assert np.allclose(flip * shifted, anatomy.CENTRE + scan.translation_mm)


def test_noise_and_bias_field_have_their_strength():
    rng = np.random.default_rng(0)
    assert acquisition.rician(rng, np.zeros((40, 40, 40), np.float32), 2.0).mean() == \
        pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)
    brain = np.zeros((40, 50, 20), bool)
    brain[8:30, 10:42, 3:15] = True
    field = acquisition.bias_field(rng, brain, (2, 2, 4), 0.25)
    assert field.shape == brain.shape and field.dtype == np.float32
    assert (field[brain].min(), field[brain].max()) == pytest.approx((0.75, 1.25), abs=1e-5)
    assert field.min() < 0.75 or field.max() > 1.25
    assert max(np.abs(np.diff(field, axis=k)).max() for k in range(3)) < 0.05


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    people = [*draw_participants({"control": 1, "RRMS": 1, "SPMS": 1}, 7), *draw_participants({"RRMS": 1}, 8, "T")]
    for person in people:
        simulate_subject(person, root, VOXEL)
    return write_dataset(people, root)


def test_the_dataset_is_whole_and_says_that_it_is_simulated(dataset):
    assert (dataset / "README").read_text(encoding="utf-8").startswith("SIMULATED")
    table = read_table(dataset / "participants.tsv")
    assert list(table) == ["participant_id", "group", "age", "sex", "edss", "cohort"]
    assert table["cohort"].tolist() == ["study"] * 3 + ["independent"]
    assert all(path.exists() for name in ("001", "002", "003", "T01") for path in subject_files(dataset, name).values())
    assert read_json(dataset / "dataset_description.json")["Name"].startswith("SIMULATED")
    described = read_json(dataset / "participants.json")
    assert all(described[name]["Description"].startswith("simulated ") for name in table if name != "participant_id")
    images = sorted(dataset.glob("sub-*/anat/*.nii.gz"))
    assert len(images) == 12
    for image in images:
        sidecar = read_json(image.with_name(image.name.replace(".nii.gz", ".json")))
        assert sidecar["MagneticFieldStrength"] == 3 and 0 < sidecar["EchoTime"] < sidecar["RepetitionTime"]


def test_truth_tells_what_the_files_hold(dataset):
    for name in ("001", "002", "003"):
        files = subject_files(dataset, name)
        truth = read_json(files["truth"])
        mask = nib.load(files["lesion"])
        assert np.asarray(mask.dataobj).sum() * VOXEL**3 / 1000 == pytest.approx(truth["lesion_load_ml"])
        assert mask.shape == nib.load(files["T1w"]).shape
        field, scan = nib.load(files["FLAIR_bias"]), nib.load(files["FLAIR"])
        assert np.allclose(field.affine[:3, 3], scan.affine[:3, 3]) and field.shape[0] == -(-scan.shape[0] // 2)
        strength = truth["recipe"]["participant"]["nuisance"]["FLAIR"]["bias"]
        to_t1w = sitk.ReadTransform(str(files["FLAIR_xfm"])).GetInverse()
        brain, scan = (sitk.ReadImage(str(files[key]), sitk.sitkFloat32) for key in ("brain", "FLAIR_bias"))
        inside = sitk.GetArrayFromImage(sitk.Resample(brain, scan, to_t1w, sitk.sitkLinear, 0.0)) >= 0.5
        values = sitk.GetArrayFromImage(scan)[inside]
        assert (values.min(), values.max()) == pytest.approx((1 - strength, 1 + strength), abs=0.02)


def test_same_bytes_in_another_order_and_other_bytes_of_another_seed(dataset, tmp_path):
    before = contents(dataset)
    people = draw_participants({"control": 1, "RRMS": 1, "SPMS": 1}, 7)
    for person in people[:0:-1]:
        simulate_subject(person, tmp_path / "again", VOXEL)
    again = contents(tmp_path / "again")
    assert again and all(before[name] == value for name, value in again.items())
    other = simulate_subject(dataclasses.replace(people[0], seed=1), tmp_path / "other", VOXEL)
    assert other["T1w"].read_bytes() not in before.values()
