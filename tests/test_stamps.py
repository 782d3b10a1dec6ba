"""What was made under other settings, code or data is made anew; what was made under the same is taken up."""

import json
import shutil

import joblib
import keras
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mslib.cohort import acquisition, phantom
from mslib.jobs.cohort import participants
from mslib.nets import further as further_module
from mslib.nets import gather, protocols, train_protocol
from mslib.nets.further import FURTHER_SEED, further_size, further_slices
from mslib.prep import scale_intensity, slice_stack
from mslib.study import StudyConfig, StudyError, write_text
from mslib.study.files import stamped_folder

GROUPS = ["control", "RRMS", "SPMS"]
MM = 8.0
FACTS = {"seed": 1, "settings": {"groups": GROUPS, "share": 0.1, "none": None}}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Stamped folders


def test_a_new_folder_holds_its_stamp(tmp_path, capsys):
    folder = stamped_folder(tmp_path / "nets" / "a", FACTS)
    assert folder == tmp_path / "nets" / "a" and capsys.readouterr().err == ""
    assert list(content(folder)) == ["stamp.json"]
    assert json.loads((folder / "stamp.json").read_text(encoding="utf-8")) == FACTS


def test_the_same_facts_keep_the_content(tmp_path, capsys):
    folder = stamped_folder(tmp_path / "a", FACTS)
    write_text(folder / "below" / "result.txt", "kept")
    before = content(folder)
    assert stamped_folder(str(folder), dict(reversed(FACTS.items()))) == folder
    assert content(folder) == before and capsys.readouterr().err == ""


@pytest.mark.parametrize("facts", [FACTS | {"seed": 2}, FACTS | {"code": "abc"}, {"seed": 1},
                                   FACTS | {"settings": FACTS["settings"] | {"share": 0.2}}])
def test_other_facts_empty_the_folder_and_say_so(tmp_path, capsys, facts):
    folder = stamped_folder(tmp_path / "a", FACTS)
    write_text(folder / "below" / "result.txt", "stale")
    write_text(tmp_path / "beside.txt", "not ours")
    stamped_folder(folder, facts)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{folder}: was made with other settings, code or data; made anew"]
    assert list(content(folder)) == ["stamp.json"]
    assert (tmp_path / "beside.txt").read_text() == "not ours"
    stamped_folder(folder, facts)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stamp", [None, "", '{"seed": 1'])
def test_a_folder_without_a_whole_stamp_is_emptied(tmp_path, capsys, stamp):
    folder = tmp_path / "a"
    write_text(folder / "result.txt", "of unknown origin")
    if stamp is not None:
        write_text(folder / "stamp.json", stamp)
    stamped_folder(folder, FACTS)
    assert "made anew" in capsys.readouterr().err
    assert list(content(folder)) == ["stamp.json"]


def test_a_stamp_of_other_bytes_is_another_stamp(tmp_path, capsys):
    folder = stamped_folder(tmp_path / "a", FACTS)
    (folder / "stamp.json").write_bytes(b"\xff\xfe\x00")
    stamped_folder(folder, FACTS)
    assert "made anew" in capsys.readouterr().err
    assert json.loads((folder / "stamp.json").read_text(encoding="utf-8")) == FACTS


def test_a_folder_without_files_is_new(tmp_path, capsys):
    """Snakemake makes the folders of a job's outputs before the job."""
    (tmp_path / "a" / "anat").mkdir(parents=True)
    stamped_folder(tmp_path / "a", FACTS)
    assert capsys.readouterr().err == "" and (tmp_path / "a" / "anat").is_dir()


def test_a_file_in_the_place_of_the_folder_is_told_in_one_line(tmp_path):
    write_text(tmp_path / "a", "a file")
    with pytest.raises(StudyError) as caught:
        stamped_folder(tmp_path / "a", FACTS)
    assert str(caught.value) == f"{tmp_path / 'a'}: is a file where a folder is needed; remove it and run again"
    assert (tmp_path / "a").read_text() == "a file"


def test_a_folder_that_cannot_be_emptied_is_told_in_one_line(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "old", "")
    monkeypatch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(StudyError, match=r"a: cannot be emptied \(Permission denied\); remove it by hand$"):
        stamped_folder(tmp_path / "a", FACTS)


# Further simulated subjects


def tiny(seed, **training):
    """Three further subjects on pixels of 8 mm."""
    return StudyConfig(study="tiny", seed=seed, model={"image_size": (128, 112), "pixel_mm": 1.5},
                       training={"pretraining_subjects": 3, "pretraining_pixel_mm": MM} | training)


def drawn(seed):
    return phantom.draw_participants(dict.fromkeys(GROUPS, 1), seed + FURTHER_SEED, prefix="P")


def first_seed_without_spots():
    return next(seed for seed in range(100) if not any(person.disease.spots_mm3 for person in drawn(seed)))


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """No further processes: they would load TensorFlow again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(further_module, "Parallel", lambda n_jobs, **options: joblib.Parallel(n_jobs=1, **options))
        yield


@pytest.fixture(scope="module")
def further(tmp_path_factory, in_this_process):
    """Further subjects, of whom the control has no spots: configuration, run folder, slices."""
    config, run = tiny(first_seed_without_spots()), tmp_path_factory.mktemp("run")
    return config, run, further_slices(config, run)


@pytest.mark.parametrize("size,pixel,coarse,expected", [
    ((128, 112), 1.5, 8.0, (24, 20)), ((128, 112), 1.5, 1.5, (128, 112)), ((128, 112), 1.5, 3.0, (64, 56)),
    ((64, 56), 3.0, 2.0, (96, 84))])
def test_size_of_further_slices(size, pixel, coarse, expected):
    config = StudyConfig(study="a", model={"image_size": size, "pixel_mm": pixel},
                         training={"pretraining_pixel_mm": coarse})
    found = further_size(config)
    assert found == expected
    for n, before in zip(found, size):
        assert n % 2 == 0 and abs(n * coarse - before * pixel) <= coarse, "the same field of view to one pixel"


def test_further_slices_look_like_preprocessed_ones(further):
    config, _, slices = further
    assert slices.images.dtype == np.float16 and slices.images.shape[1:] == (24, 20, 3)
    assert set(slices.table["group"]) == set(GROUPS) and slices.table["subject"].nunique() == 3
    assert (slices.table["target"] == slices.table["group"].map(GROUPS.index)).all()
    assert slices.table.groupby("subject").size().le(round(config.prep.n_slices / MM)).all()
    assert slices.images.min() == 0 and 0.9 < slices.images.max() <= 1
    assert slices.facts.shape == (len(slices.table), 2) and slices.facts.dtype == np.float32


def test_further_subjects_are_nobody_of_the_study(further):
    config = further[0]
    seeds = {person.seed for person in participants(config)}
    assert not seeds & {person.seed for person in drawn(config.seed)}
    assert len(seeds) == len(participants(config))


def test_facts_are_the_lesion_areas(further):
    """Against masks rendered again: area per slice, and lesion volume from areas times slice thickness."""
    config, run, slices = further
    for person in drawn(config.seed):
        of_person = (slices.table["subject"] == person.id).to_numpy()
        rendered = phantom.render(person, MM, phantom.template(cache=run / "further" / "template.npz"))
        present = np.flatnonzero(rendered.brain.any((0, 1)))
        assert of_person.sum() <= len(present)
        found = np.expm1(slices.facts[of_person]) * 20
        for column, mask in enumerate((rendered.lesions, rendered.black_holes)):
            areas = mask.sum((0, 1)) * MM**2
            windows = np.lib.stride_tricks.sliding_window_view(areas, of_person.sum())
            assert np.isclose(windows, found[:, column], rtol=1e-4, atol=1e-3).all(1).any(), (person.id, column)
    sick = slices.table["group"].ne("control").to_numpy()
    assert not slices.facts[~sick].any(), "a control without spots has neither lesions nor black holes"
    assert slices.facts[sick, 0].max() > np.log1p(MM**2 / 20)
    assert (slices.facts[:, 1] <= slices.facts[:, 0]).all() and slices.facts[sick, 1].any()


def test_bright_flair_goes_with_the_lesion_fact(further):
    """Facts belong to their own slices: where lesions are, FLAIR has pixels brighter than tissue."""
    _, _, slices = further
    brightest = np.sort(slices.images[..., 2].reshape(len(slices.images), -1).astype("float32"), 1)[:, -4:].mean(1)
    sick = slices.table["group"].ne("control").to_numpy()
    order = [ndimage.gaussian_filter1d(x, 1) for x in (brightest[sick], slices.facts[sick, 0])]
    assert np.corrcoef(order)[0, 1] > 0.5


def test_a_second_call_reads_the_file(further, monkeypatch):
    config, run, slices = further
    monkeypatch.setattr(further_module, "_further_subject", None)
    before = content(run / "further")
    again = further_slices(config, run)
    assert content(run / "further") == before
    assert set(before) == {"images.npy", "slices.npz", "stamp.json", "template.npz"}
    assert again.digest() == slices.digest()
    np.testing.assert_array_equal(again.images, slices.images)
    np.testing.assert_array_equal(again.facts, slices.facts)
    pd.testing.assert_frame_equal(again.table, slices.table)
    more_epochs = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 4})})
    assert further_slices(more_epochs, run).digest() == slices.digest(), "how nets train does not decide the slices"


@pytest.mark.parametrize("interpolated", [False, True])
def test_noise_left_against_noise_that_is_preprocessed(interpolated):
    """White noise interpolated at a random offset, then cut into slices of 2 mm pixels."""
    rng = np.random.default_rng(8)
    noise = rng.standard_normal((120, 120, 60))
    noise = ndimage.shift(noise, rng.uniform(0, 1, 3), order=1)[5:-5, 5:-5, 5:-5] if interpolated else noise
    stack = slice_stack([noise + 8], np.ones(noise.shape, bool), np.eye(4), n_slices=40, image_size=(32, 32),
                        pixel_mm=2.0)
    found = noise.std(), (stack["images"].astype(float) - 8).std()
    np.testing.assert_allclose(found, further_module.noise_left(interpolated, 2.0), rtol=0.3 if interpolated else 0.1)


def test_images_look_like_those_of_the_preprocessing(further):
    """The same person scanned at 1 mm with noise, scaled and cut: mean, spread, sharpness and bright area agree."""
    cache = further[1] / "further" / "template.npz"
    person = next(p for p in phantom.draw_participants({"RRMS": 40}, 5) if p.nuisance.T1w.snr < 30)
    config = StudyConfig(study="a", model={"image_size": (96, 84), "pixel_mm": 2.0})
    fast = further_module._further_subject(person, config, 2.0, cache)["images"].astype("float32")
    rendered = phantom.render(person, template=phantom.template(cache=cache))
    for channel, name in ((0, "T1w"), (1, "T2w")):
        image, scan = rendered.images[name], getattr(person.nuisance, name)
        size = np.ones(3)
        if name != "T1w":
            image, affine = acquisition.acquire(image, rendered.affine, scan, 1.0)
            size = np.diag(affine)[:3]
        mean = rendered.images[name][rendered.brain].mean()
        noisy = acquisition.rician(np.random.default_rng(1), image, mean / scan.snr)
        if name != "T1w":
            grid = acquisition.to_sitk(rendered.brain.astype("float32"), rendered.affine)
            back = sitk.Resample(acquisition.to_sitk(noisy, affine), grid, acquisition.rigid_transform(scan),
                                 sitk.sitkLinear, 0.0)
            noisy = sitk.GetArrayFromImage(back).T
        scaled = scale_intensity(noisy, rendered.brain, config.prep.percentiles)
        slow = slice_stack([scaled], rendered.brain, rendered.affine, image_size=(96, 84), pixel_mm=2.0)["images"]
        pairs = []
        for images in (slow[..., 0].astype("float32"), fast[..., channel]):
            inside = ndimage.binary_erosion(images > 0.02, np.ones((1, 5, 5)))
            detail = np.abs(images - ndimage.uniform_filter(images, (1, 3, 3)))[inside]
            pairs.append([images[inside].mean(), images[inside].std(), np.median(detail), np.percentile(detail, 90)])
        ratio = np.divide(*pairs)
        assert (np.abs(ratio[:2] - 1) < 0.1).all() and (np.abs(ratio[2:] - 1) < 0.25).all(), (name, size, ratio)


def test_images_are_those_of_each_subject_and_stay_on_disk(further, monkeypatch):
    """Against subjects made one by one; the file is numpy's own format."""
    config, run, slices = further
    made = [further_module._further_subject(person, config, MM, run / "further" / "template.npz")
            for person in drawn(config.seed)]
    np.testing.assert_array_equal(slices.images, np.concatenate([one["images"] for one in made]))
    assert isinstance(slices.images, np.memmap) and not slices.images.flags.writeable
    assert slices.table.groupby("subject").size().tolist() == [len(one["images"]) for one in made]
    np.testing.assert_array_equal(np.load(run / "further" / "images.npy"), slices.images)


def test_a_stop_between_the_two_files_leaves_neither_behind(further, tmp_path, monkeypatch):
    config, _, slices = further
    monkeypatch.setattr(further_module.np, "savez", None)
    with pytest.raises(TypeError):
        further_slices(config, tmp_path)
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(further_module, "Parallel", lambda n_jobs, **options: joblib.Parallel(n_jobs=1, **options))
        assert further_slices(config, tmp_path).digest() == slices.digest()


def test_another_seed_makes_them_anew(further, capsys, tmp_path):
    config, run, slices = further
    shutil.copytree(run / "further", tmp_path / "further")
    other = further_slices(tiny(config.seed + 1), tmp_path)
    assert f"{tmp_path / 'further'}: was made with other settings" in capsys.readouterr().err
    assert other.digest() != slices.digest() and set(other.table["group"]) == set(GROUPS)
    assert not np.array_equal(other.facts.max(0), slices.facts.max(0))


# Fitted nets


def make_slices(per_group=3, n=60, seed=0):
    rng = np.random.default_rng(seed)
    groups = {f"{group}{i}": group for group in GROUPS for i in range(per_group)}
    stacks = {name: rng.uniform(0, 1, (n, 8, 8, 3)).astype("float16") for name in groups}
    return gather(stacks, pd.Series(groups), GROUPS)


@pytest.fixture
def trainings(monkeypatch):
    """Labels of the trainings that have run; nets are small and none really trains."""
    made = []

    def small(backbone, n_classes, shape, precision):
        inputs = keras.Input(shape)
        pooled = keras.layers.GlobalAveragePooling2D()(inputs)
        return keras.Model(inputs, keras.layers.Dense(n_classes)(pooled), name=backbone)

    monkeypatch.setattr(protocols, "build_trainable", small)
    monkeypatch.setattr(protocols, "fit", lambda *args: made.append(args[6]))
    return made


CONFIG = StudyConfig(study="test", model={"image_size": (32, 32)}, training={"precision": "float32"})


def test_a_fitted_net_is_taken_up_when_nothing_changed(trainings, tmp_path, capsys):
    slices = make_slices()
    first = train_protocol("subject", "vgg16", slices, CONFIG, tmp_path)
    before = content(tmp_path)
    again = train_protocol("subject", "vgg16", make_slices(), CONFIG, tmp_path)
    assert trainings == ["vgg16 subject"] and content(tmp_path) == before
    pd.testing.assert_frame_equal(again, first)
    for name, value in (("study", "renamed"), ("statistics", CONFIG.statistics.model_copy(update={"bootstrap": 9})),
                        ("explain", CONFIG.explain.model_copy(update={"nifti_subjects": 1}))):
        train_protocol("subject", "vgg16", slices, CONFIG.model_copy(update={name: value}), tmp_path)
    assert trainings == ["vgg16 subject"], "what comes after training does not decide a net"
    assert "made anew" not in capsys.readouterr().err


def test_a_file_of_weights_counts_by_its_content(tmp_path):
    path = tmp_path / "own.weights.h5"
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"weights": str(path)})})
    found = []
    for data in (b"first", b"second", b"first"):
        path.write_bytes(data)
        found.append(protocols.training_facts("subject", config, make_slices()))
    assert found[0] == found[2] != found[1]


def changed_slices(what):
    slices = make_slices()
    if what == "data":
        slices.images[slices.table["subject"].eq("RRMS1")] *= np.float16(0.5)
    elif what == "labels":
        slices.table.loc[0, ["group", "target"]] = ["SPMS", 2]
    return slices


@pytest.mark.parametrize("what", ["seed", "schedule", "data", "labels", "code"])
def test_a_fitted_net_is_made_anew_when_something_changed(trainings, tmp_path, capsys, monkeypatch, what):
    train_protocol("slice", "vgg16", make_slices(), CONFIG, tmp_path)
    train_protocol("subject", "vgg16", make_slices(), CONFIG, tmp_path)
    kept = content(tmp_path / "nets" / "vgg16" / "subject")
    config = CONFIG
    if what == "seed":
        config = CONFIG.model_copy(update={"seed": CONFIG.seed + 1})
    elif what == "schedule":
        longer = CONFIG.training.model_copy(update={"slice": CONFIG.training.slice.model_copy(update={"epochs": 9})})
        config = CONFIG.model_copy(update={"training": longer})
    elif what == "code":
        monkeypatch.setattr(protocols, "made_by", lambda *_, **__: "other code")
    train_protocol("slice", "vgg16", changed_slices(what), config, tmp_path)
    assert trainings == ["vgg16 slice", "vgg16 subject", "vgg16 slice"]
    if what == "schedule":
        train_protocol("subject", "vgg16", make_slices(), config, tmp_path)
        assert trainings[3:] == [], "another protocol's schedule does not decide this net"
    folder = tmp_path / "nets" / "vgg16" / "slice"
    assert f"{folder}: was made with other settings, code or data; made anew" in capsys.readouterr().err
    assert content(tmp_path / "nets" / "vgg16" / "subject") == kept, "the other net is left alone"
    assert json.loads((folder / "net.json").read_text())["epochs"] == config.training.slice.epochs
