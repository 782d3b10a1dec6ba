"""The simulated cohort: laws, nuisance, lesions, truth, BIDS; heads that fold nowhere; the Bloch equation."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats
from shared_cases import contents, real_data

from mslib import cohort
from mslib.analysis.truth import REAL_APPEARANCE, appearance
from mslib.cohort import acquisition, anatomy, contrast, lesions
from mslib.cohort.contrast import SEQUENCES, TISSUES, Tissue, signal, vary
from mslib.cohort.phantom import subject_files
from mslib.study import StudyError, read_json, read_table

COUNTS = {"control": 100, "RRMS": 100, "SPMS": 100}
VOXEL = 3.0


@pytest.fixture(scope="module")
def people():
    return cohort.draw_participants(COUNTS, 3275)


@pytest.fixture(scope="module")
def control(people):
    """A control with large ventricles, without noise."""
    person = next(p for p in people if p.group == "control")
    return cohort.render(replace(person, disease=replace(person.disease, ventricle_factor=3.0)), VOXEL)


@pytest.fixture(scope="module")
def maps():
    return cohort.template(VOXEL)


def head_of(maps, seed, *change):
    return anatomy.make_head(maps, np.random.default_rng(seed), maps.affine[0, 0], *change)


@pytest.fixture(scope="module")
def head(maps):
    return head_of(maps, 3, 1.4, 0.03)


def scan_of(**changes):
    still = acquisition.SequenceNuisance(30, 0.2, (0, 0, 0), (0, 0, 0), 1.0, 0.0, 500)
    return replace(still, **changes)


def test_ids_tell_nothing_and_the_draw_repeats(people):
    assert people == cohort.draw_participants(COUNTS, 3275)
    assert people != cohort.draw_participants(COUNTS, 3276)
    assert [p.id for p in people][:2] == ["001", "002"]
    rank = stats.spearmanr(range(300), [list(COUNTS).index(p.group) for p in people])
    assert rank.pvalue > 0.05
    assert len({p.seed for p in people}) == 300
    further = cohort.draw_participants({"RRMS": 2}, 3275, prefix="T")
    assert [p.id for p in further] == ["T01", "T02"]
    assert not {p.seed for p in further} & {p.seed for p in people}


@pytest.mark.parametrize(("group", "load", "ventricle", "loss", "dark"),
                         [("control", 0, 1.0, 0.004, 0), ("RRMS", 12.4, 1.4, 0.03, 0.2), ("SPMS", 39, 2.0, 0.06, 0.5)])
def test_group_laws(group, load, ventricle, loss, dark):
    states = [p.disease for p in cohort.draw_participants({group: 400}, 5)]
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
    loads = [p.disease.load_ml for p in cohort.draw_participants({"RRMS": 60}, 2)]
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
    person, = cohort.draw_participants({"RRMS": 1}, 1)
    rendered, images = cohort.render(person, 1.0, variation=0), {}
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
    people = cohort.draw_participants({"control": 1, "RRMS": 1, "SPMS": 1}, 7)
    people += cohort.draw_participants({"RRMS": 1}, 8, "T")
    for person in people:
        cohort.simulate_subject(person, root, VOXEL)
    return cohort.write_dataset(people, root)


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
    people = cohort.draw_participants({"control": 1, "RRMS": 1, "SPMS": 1}, 7)
    for person in people[:0:-1]:
        cohort.simulate_subject(person, tmp_path / "again", VOXEL)
    again = contents(tmp_path / "again")
    assert again and all(before[name] == value for name, value in again.items())
    other = cohort.simulate_subject(replace(people[0], seed=1), tmp_path / "other", VOXEL)
    assert other["T1w"].read_bytes() not in before.values()


def tissue_ml(head):
    return float((head.gm + head.wm).sum()) * head.affine[0, 0] ** 3 / 1000


def test_ventricles_and_brain_change_as_ordered():
    maps = cohort.template(2.0)
    plain = head_of(maps, 4, 1.0, 0.0)
    for factor, loss in ((2.0, 0.0), (4.0, 0.12), (0.4, -0.02)):
        head = head_of(maps, 4, factor, loss)
        assert head.ventricle_fraction.sum() / plain.ventricle_fraction.sum() == pytest.approx(factor, rel=0.1)
        assert tissue_ml(head) / tissue_ml(plain) == pytest.approx(1 - loss, abs=0.002)
        fluid = head.brain - head.gm - head.wm
        assert min(part.min() for part in (head.gm, head.wm, fluid)) > -1e-6
        assert head.brain.sum() / plain.brain.sum() == pytest.approx(1, abs=0.03)  # disease leaves the skull as it is


def test_volumes_are_those_of_men_and_women_and_shrink_with_age(maps):
    people = cohort.draw_participants({"control": 4, "RRMS": 3, "SPMS": 4}, 3)
    heads = [head_of(maps, p.seed, p.disease.ventricle_factor, p.disease.brain_loss, p.sex, p.age) for p in people]
    sick = np.array([tissue_ml(head) for head in heads])
    own = sick / [1 - person.disease.brain_loss for person in people]
    assert np.mean((sick > 1000) & (sick < 1450)) >= 0.9 and sick.min() > 880 and sick.max() < 1550
    assert 0.04 < np.log(own).std() < 0.12
    for head in heads:  # no head reaches the edge of the image
        mask = head.volume(head.brain)
        assert not any(mask.take([0, -1], axis).any() for axis in range(3))
    woman, man, old = (tissue_ml(head_of(maps, 1, 1.0, 0.0, *who)) for who in (("F", 42), ("M", 42), ("F", 62)))
    assert (man / woman, old / woman) == pytest.approx((1.1, 0.96), abs=0.005)


def test_people_differ_in_shape_and_nothing_folds(maps):
    """Jacobian of the map to the template, and what is left of it after the best affine map."""
    for seed, factor in enumerate((4.0, 0.4)):
        head = head_of(maps, seed, factor, 0.0)
        interior = ndimage.binary_erosion(head.volume(np.ones(len(head.inside)), bool))
        jacobian = np.stack([np.stack(np.gradient(head.volume(part), VOXEL))[:, interior] for part in head.points])
        assert np.linalg.det(jacobian.transpose(2, 0, 1)).min() > 0
        where = np.stack((*np.unravel_index(head.inside, head.shape), np.ones(len(head.inside))))
        affine = np.linalg.lstsq(where.T, head.points.T, rcond=None)[0]
        residual = head.points - affine.T @ where
        assert np.sqrt((residual**2).sum(0).mean()) > 3


def test_a_stored_template_is_the_template(maps, tmp_path):
    cache = anatomy.write_template(tmp_path / "coarse.npz", VOXEL)
    stored = cohort.template(VOXEL, cache)
    assert all(np.array_equal(getattr(maps, name), value) for name, value in vars(stored).items())
    with pytest.raises(StudyError, match=r"coarse\.npz: must hold the template at 2 mm \(got 3 mm\)"):
        cohort.template(2.0, cache)
    (tmp_path / "cut.npz").write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(StudyError, match=r"cut\.npz: is absent or damaged"):
        cohort.template(VOXEL, tmp_path / "cut.npz")


def ratio(sequence, tissue):
    return signal(SEQUENCES[sequence], TISSUES[tissue]) / signal(SEQUENCES[sequence], TISSUES["white"])


def bloch(tissue, tr, te, ti, repetitions=8, step=0.5):
    """Longitudinal magnetisation stepped through inversions and perfect 90-degree read-outs, then T2 decay."""
    m, read = tissue.pd, 0.0
    for _ in range(repetitions):
        if ti:
            m = -m
        for k in range(round(tr / step)):
            if k == round(ti / step):
                read, m = abs(m), 0.0
            m += step * (tissue.pd - m) / tissue.t1
    return read * np.exp(-te / tissue.t2)


@pytest.mark.parametrize("name", TISSUES)
def test_signals_are_the_bloch_equation_in_steady_state(name):
    spin_echo, inversion = {"RepetitionTime": 6.5, "EchoTime": 0.084}, SEQUENCES["FLAIR"]
    assert signal(spin_echo, TISSUES[name]) == pytest.approx(bloch(TISSUES[name], 6500, 84, 0), rel=2e-3)
    # The read-out saturates, so Mz before the inversion is PD (1 - exp(-(TR - TI) / T1)): the same closed form.
    assert signal(inversion, TISSUES[name]) == pytest.approx(bloch(TISSUES[name], 12000, 101, 2870), rel=5e-3, abs=2e-4)


def test_inversion_recovery_is_null_at_ln2_t1():
    null = {"RepetitionTime": 1e3, "EchoTime": 0.01, "InversionTime": np.log(2)}
    assert signal(null, Tissue(1000, 100, 1)) == pytest.approx(0, abs=1e-9)


def test_order_of_tissues():
    assert ratio("T1w", "csf") < ratio("T1w", "black_hole") < 0.54 < ratio("T1w", "lesion") < ratio("T1w", "cortex") < 1
    assert 1 < ratio("T2w", "deep_grey") < ratio("T2w", "cortex") < ratio("T2w", "lesion") < ratio("T2w", "csf")
    assert ratio("FLAIR", "csf") < 0.4 < 1 < ratio("FLAIR", "deep_grey") < ratio("FLAIR", "cortex")
    assert ratio("FLAIR", "cortex") < ratio("FLAIR", "black_hole") < ratio("FLAIR", "lesion")


def test_people_vary_by_seed_and_as_much_as_asked():
    assert vary(np.random.default_rng(1)) == vary(np.random.default_rng(1)) != vary(np.random.default_rng(2))
    assert vary(np.random.default_rng(1), 0.0) == (TISSUES, SEQUENCES)
    found = {}
    for variation in (1.0, 3.0):
        drawn = [vary(np.random.default_rng(seed), variation) for seed in range(300)]
        found[variation] = np.std(np.log([[tissues["white"].t1, protocols["FLAIR"]["EchoTime"]]
                                          for tissues, protocols in drawn]), axis=0)
    np.testing.assert_allclose(found[1.0], [contrast.PERSON_SPREAD, contrast.PROTOCOL_SPREAD], rtol=0.2)
    np.testing.assert_allclose(found[3.0], 3 * found[1.0], rtol=1e-6)


def rendered(head, load, found=None):
    none = lesions.make_lesions(head, np.random.default_rng(0), 0.0, None, 0.0)
    return contrast.scans(head, found or none, np.random.default_rng(3), load)


def test_lesions_change_nothing_but_themselves_and_their_halo(head):
    found = lesions.make_lesions(head, np.random.default_rng(5), 20.0, lesions.SHARES["RRMS"], 0.3)
    sick, free, _ = rendered(head, 20.0, found)
    other, same, _ = rendered(head, 20.0)
    share = found.share.ravel()[head.inside]
    for name in SEQUENCES:
        assert np.array_equal(free[name], same[name]) and np.array_equal(other[name], same[name])
        assert np.array_equal(sick[name][share == 0], free[name][share == 0])
    change = sick["FLAIR"] - free["FLAIR"]
    assert np.median(change[share > 0.6]) > 3 * np.median(change[(share > 0) & (share < 0.3)]) > 0


def test_diffuse_change_grows_with_the_load_and_controls_have_none(head):
    levels = [rendered(head, load)[1] for load in (0.0, 10.0, 50.0)]
    none = contrast.diffuse_share(head, 0.0, np.zeros(head.inside.size, np.float32))
    assert not none.any()
    near, far = ((head.wm > 0.9) & place for place in (head.ventricle < 5, head.ventricle > 30))
    change = {name: [[np.median(one[name][place] / levels[0][name][place]) for place in (near, far)] for one in levels]
              for name in SEQUENCES}
    for name, sign in (("T1w", -1), ("T2w", 1), ("FLAIR", 1)):
        (start, _), (some, some_far), (much, _) = change[name]
        assert start == 1 and 0 < sign * (some - 1) < sign * (much - 1) < 0.2
        assert abs(some_far - 1) < abs(some - 1) / 3
