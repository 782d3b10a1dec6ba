"""Networks against keras.applications, folding, weights from files, splits, slices, and simulated slices."""

import os
import shutil

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tensorflow as tf
from attribution_cases import randomise
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from scipy import ndimage
from scipy.stats import spearmanr
from shared_cases import refused
from skimage.measure import block_reduce

from mslib.cohort import acquisition, draw_participants, render, template
from mslib.explain import layer_cams
from mslib.nets import pretraining
from mslib.nets.data import SliceSet, balanced_draw, channels_of, evenly, gather
from mslib.nets.known_rule import spread
from mslib.nets.simulated import cause_slices, cut, noise_left, scan_slices
from mslib.nets.splits import assign_parts, bootstrap_rows, refuse_leakage, split_subjects
from mslib.nets.train import make_augmenter
from mslib.nets.vgg import build_classifier, build_trainable, convolution_names, fold_batch_norm, load_half, save_half
from mslib.prep import scale_intensity, select_slices, slice_stack
from mslib.study import StudyError, write_json
from mslib.study.config import Augmentation, Pretraining, Split
from mslib.study.provenance import file_sha256

BACKBONES = ("vgg16", "vgg19")
SHAPE = (48, 40, 3)
STILL = Augmentation(rotation_deg=0, translation=0, scale=0, gain=0, gamma=0)


@pytest.fixture(scope="module", autouse=True)
def few_graphs():
    yield
    keras.backend.clear_session()


def images(n=2, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (n, *shape)).astype("float32")


def peer(backbone):
    """Network of keras.applications with biases that are not 0."""
    model = getattr(keras.applications, backbone.upper())(weights=None, include_top=False, input_shape=SHAPE)
    return randomise(model, 0, 0.1)


@pytest.fixture(scope="module", params=BACKBONES)
def peer_file(request, tmp_path_factory):
    """A weight file in the format of keras.applications (legacy HDF5), and the network that it was written from."""
    model = peer(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return request.param, model, path


def part(model, layer, x):
    return keras.Model(model.input, model.get_layer(layer).output)(x, training=False).numpy()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_plain_network_is_that_of_keras_applications(backbone):
    """Layer by layer; a narrow one has a part of its channels, and takes any size."""
    ours, theirs = build_classifier(backbone, 3, SHAPE), peer(backbone)
    assert [layer.name for layer in ours.layers][1:-2] == [layer.name for layer in theirs.layers][1:]
    for layer in theirs.layers[1:]:
        same = ours.get_layer(layer.name)
        assert type(same) is type(layer)
        assert [w.shape for w in same.weights] == [w.shape for w in layer.weights]
        same.set_weights(layer.get_weights())
    x = images()
    expected = theirs(x, training=False).numpy()
    np.testing.assert_allclose(part(ours, "block5_pool", x), expected, rtol=1e-5, atol=1e-5 * expected.max())
    kernel, bias = ours.get_layer("logits").get_weights()
    np.testing.assert_allclose(ours(x).numpy(), expected.mean((1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)
    narrow = build_classifier(backbone, 4, (None, None, 3), narrow=4)
    assert narrow(images(1, (32, 64, 3))).shape == narrow(images(1, (64, 32, 3))).shape == (1, 4)
    for name in convolution_names(backbone):
        assert 4 * narrow.get_layer(name).filters == theirs.get_layer(name).filters


def test_folding_keeps_the_outputs():
    keras.utils.set_random_seed(3)
    trained = build_trainable("vgg19", 3, SHAPE, "float32", narrow=8)
    rng = np.random.default_rng(3)
    for layer in trained.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.set_weights([rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n, p=[0.1, 0.9]), rng.normal(0, 0.3, n),
                               rng.normal(0, 0.3, n), rng.uniform(0.3, 3, n)])
        elif isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([layer.get_weights()[0], rng.normal(0, 0.1, layer.filters)])
    plain, x = fold_batch_norm(trained), images()
    for ours, theirs in (("block3_conv3", "block3_conv3_relu"), ("block5_pool", "block5_pool"), ("logits", "logits")):
        expected = part(trained, theirs, x)
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(part(plain, ours, x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert not [layer for layer in plain.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_folding_a_bfloat16_network_gives_the_float32_network(shallow):
    half, full = (build_trainable("vgg16", 3, SHAPE, precision, narrow=8) for precision in ("bfloat16", "float32"))
    full.set_weights(half.get_weights())
    assert {w.dtype for w in half.weights} == {"float32"}
    assert half.get_layer("block1_conv1").compute_dtype == "bfloat16"
    x = images()
    np.testing.assert_allclose(fold_batch_norm(half)(x), fold_batch_norm(full)(x), rtol=1e-6)


def test_weight_file_of_keras_applications(peer_file):
    """Folded preprocessing equals `preprocess_input` wherever zero padding at the border is out of reach."""
    backbone, theirs, path = peer_file
    ours, x = build_classifier(backbone, 3, SHAPE, path), images()
    prepared = getattr(keras.applications, backbone).preprocess_input(255 * x)
    for layer, margin in (("block1_conv1", 1), ("block1_conv2", 2), ("block2_conv2", 4)):
        expected, found = part(theirs, layer, prepared), part(ours, layer, x)
        inside = np.s_[:, margin:-margin, margin:-margin]
        np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=2e-5 * expected.max())
        assert np.abs(found - expected).max() > 1e-2 * expected.max(), "the border should differ, as documented"
    for layer in theirs.layers[2:]:
        for a, b in zip(ours.get_layer(layer.name).get_weights(), layer.get_weights()):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("peer_file", ["vgg16"], indirect=True)
def test_imagenet_comes_from_keras(peer_file, monkeypatch, tmp_path):
    """Or from the folder of all data; where the download fails, the message names the ways out."""
    backbone, _, path = peer_file
    asked = []
    monkeypatch.setenv("MSLIB_DATA", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda name, *_, **__: asked.append(name) or str(path))
    found = build_classifier(backbone, 3, SHAPE, "imagenet").get_layer("block1_conv1").get_weights()[0]
    expected = build_classifier(backbone, 3, SHAPE, path).get_layer("block1_conv1").get_weights()[0]
    np.testing.assert_array_equal(found, expected)
    assert asked == [path.name]

    def unreachable(*_, **__):
        raise Exception("URL fetch failure on a host:\n [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    with refused("two ways out", f"'{path.name}'", "'scratch'", error=StudyError):
        build_classifier(backbone, 3, SHAPE, "imagenet")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / path.name).symlink_to(path)
    given = build_classifier(backbone, 3, SHAPE, "imagenet").get_layer("block1_conv1").get_weights()[0]
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("peer_file", ["vgg16"], indirect=True)
def test_weight_files_that_do_not_fit(peer_file, tmp_path):
    _, _, path = peer_file
    (tmp_path / "text.h5").write_text("no weights")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:100_000])
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["note"] = "nothing in it"
    for net, file, words in (("vgg19", path, "is not a weight file of"), ("vgg16", tmp_path / "absent.h5", "must be"),
                             ("vgg16", tmp_path / "text.h5", "is not an HDF5"),
                             ("vgg16", tmp_path / "cut.h5", "is not"), ("vgg16", tmp_path / "empty.h5", "is not")):
        with refused(words, str(file), error=StudyError):
            build_classifier(net, 3, SHAPE, file)
    with refused("['vgg16', 'vgg19']", "got 'vgg61'", error=StudyError):
        build_classifier("vgg61", 3, SHAPE)


def test_own_weight_file(tmp_path, shallow):
    model = build_classifier("vgg16", 2, SHAPE)
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    np.testing.assert_array_equal(build_classifier("vgg16", 2, SHAPE, path)(images()), model(images()))
    (tmp_path / "text.weights.h5").write_text("no weights")
    for classes, file in ((3, path), (2, tmp_path / "absent.weights.h5"), (2, tmp_path / "text.weights.h5")):
        with refused(str(file), f"vgg16 with {classes} classes", error=StudyError):
            build_classifier("vgg16", classes, SHAPE, file)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A network and its file as `weights/` holds it."""
    keras.utils.set_random_seed(2)
    model, path = build_classifier("vgg16", 3, SHAPE), tmp_path_factory.mktemp("shipped") / "vgg16_simulated.h5"
    save_half(path, model, [layer.name for layer in model.layers if layer.weights], GROUPS)
    write_json(path.with_suffix(".json"), {"sha256": file_sha256(path)})
    return model, path


def test_maps_of_weights_stored_as_float16(shipped):
    """Rank correlation with those of the original; the last layer is taken where the classes are the same ones."""
    model, path = shipped
    stored, other = build_classifier("vgg16", 3, SHAPE), build_classifier("vgg16", 3, SHAPE)
    load_half(stored, path, GROUPS)
    load_half(other, path, GROUPS[::-1])
    x, targets = images(4), np.array([0, 1, 2, 0])
    layers = ["block3_conv3", "block4_conv3", "block5_conv3", "block5_pool"]
    full, half = (layer_cams(one, x, targets, layers, ["layercam"])["layercam"] for one in (model, stored))
    for layer in full:
        for a, b in zip(full[layer], half[layer]):
            assert np.ptp(a) < 1e-3 * a.max() or spearmanr(a.ravel(), b.ravel()).statistic > 0.999, layer
    assert stored.get_layer("block1_conv1").get_weights()[0].dtype == np.float32 and path.stat().st_size < 30e6
    kernels = [one.get_layer("logits").get_weights()[0] for one in (model, stored, other)]
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-3)
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01
    np.testing.assert_array_equal(stored.get_layer("block3_conv1").get_weights()[0],
                                  other.get_layer("block3_conv1").get_weights()[0])


def test_shipped_files_that_are_absent_changed_or_of_another_network(shipped, tmp_path):
    _, path = shipped
    for name in (path.name, path.with_suffix(".json").name):
        shutil.copy(path.parent / name, tmp_path)
    with open(tmp_path / path.name, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"changed")
    for net, file, words in (("vgg16", tmp_path / "absent.h5", "is absent"),
                             ("vgg16", tmp_path / path.name, "is not the file of its card"),
                             ("vgg19", path, "must hold weights of vgg19 (got vgg16)")):
        with refused(words, str(file), error=StudyError):
            load_half(build_classifier(net, 3, SHAPE, narrow=16), file, GROUPS)


def people(**counts):
    return pd.Series({f"{group}{i:02d}": group for group, n in counts.items() for i in range(n)})


def test_shares_of_a_split():
    for n in range(3, 41):
        sizes = split_subjects(people(a=n), Split(), seed=1).value_counts()[["train", "validation", "test"]].to_numpy()
        assert sizes.min() >= 1 and sizes.sum() == n
        assert np.abs(sizes - n * np.array([0.75, 0.10, 0.15])).max() < (1 if n >= 10 else 2), (n, sizes)


def test_split_of_the_default_cohort():
    groups = people(control=19, RRMS=10, SPMS=9)
    parts = split_subjects(groups, Split(), seed=3275)
    assert set(parts.groupby(groups).nunique()) == {3}
    table = pd.crosstab(groups, parts)[["train", "validation", "test"]]
    assert table.loc[["control", "RRMS", "SPMS"]].to_numpy().tolist() == [[14, 2, 3], [8, 1, 1], [7, 1, 1]]
    assert parts.equals(split_subjects(groups, Split(), seed=3275))
    assert not parts.equals(split_subjects(groups, Split(), seed=3276))
    shuffled = groups.sample(frac=1, random_state=0)
    assert split_subjects(shuffled, Split(), seed=3275)[groups.index].equals(parts)
    with refused("group SPMS", "at least 3", "found 2", error=StudyError):
        split_subjects(people(control=5, SPMS=2), Split(), seed=0)


def table_of(groups, n_slices=20):
    return pd.DataFrame({"subject": np.repeat(groups.index, n_slices), "slice": np.tile(range(n_slices), len(groups)),
                         "group": np.repeat(groups.to_numpy(), n_slices)})


def test_one_leaking_slice_is_enough():
    table = table_of(people(control=6))
    parts = table["subject"].map(split_subjects(people(control=6), Split(), seed=0))
    refuse_leakage(table["subject"], parts)
    parts.iloc[25] = "test" if parts.iloc[25] != "test" else "train"
    with refused("sub-control01: is in", "at once", "one part", error=StudyError):
        refuse_leakage(table["subject"], parts)


@pytest.mark.parametrize("kind", ["honest", "published", "cause"])
def test_parts_of_a_kind(kind):
    table = table_of(people(control=8, RRMS=8))
    parts = assign_parts(kind, table, Split(), 3275)
    per_subject = parts.groupby(table["subject"]).nunique()
    assert set(parts) == {"train", "validation", "test"}
    assert per_subject.min() > 1 if kind == "published" else per_subject.max() == 1
    shares = pd.crosstab(table["group"], parts, normalize="index")[["train", "validation", "test"]].to_numpy()
    assert np.abs(shares - [0.75, 0.10, 0.15]).max() < (0.01 if kind == "published" else 0.03)


def test_slices_of_several_subjects():
    stacks = {name: images(n, (4, 4, 3), n).astype("float16") for name, n in (("b", 3), ("a", 2))}
    slices = gather(stacks, pd.Series({"a": "SPMS", "b": "control"}), ["control", "RRMS", "SPMS"])
    assert slices.table.to_dict("list") == {
        "subject": ["a", "a", "b", "b", "b"], "slice": [0, 1, 0, 1, 2], "target": [2, 2, 0, 0, 0],
        "group": ["SPMS"] * 2 + ["control"] * 3}
    np.testing.assert_array_equal(slices.batch(np.array([4, 0])), np.stack([stacks["b"][2], stacks["a"][0]]))
    one = slices.batch(np.array([1]), channels=channels_of("FLAIR", ("T1w", "T2w", "FLAIR")))
    assert one.dtype == "float32" and np.ptp(one, axis=-1).max() == 0
    np.testing.assert_array_equal(one[..., 0], stacks["a"][1:2, ..., 2])
    index, areas = np.array([4, 0]), np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(slices.targets(index), [0, 2])
    targets, found = SliceSet(slices.images, slices.table, areas).targets(index)
    np.testing.assert_array_equal(targets, [0, 2])
    np.testing.assert_array_equal(found, [[8, 9], [0, 1]])


@pytest.mark.parametrize("factor,size", [(2, (9, 7)), (3, (11, 10))])
def test_larger_pixels_are_block_means(factor, size):
    """More slices than are averaged at a time; rows and columns that fill no block are cut at the end."""
    x = images(515, (*size, 3)).astype("float16")
    table, areas = table_of(people(a=5), 103), np.arange(515, dtype="float32")[:, None]
    slices = SliceSet(x, table, areas).shrunk(factor)
    whole = x[:, :size[0] // factor * factor, :size[1] // factor * factor].astype("float64")
    expected = block_reduce(whole, (1, factor, factor, 1), np.mean)
    assert slices.images.dtype == np.float16 and slices.images.shape == expected.shape
    np.testing.assert_allclose(slices.images, expected, rtol=6e-4)
    assert slices.table is table and slices.areas is areas and slices.shrunk(1) is slices


def test_slices_are_spread_over_subjects():
    table = table_of(people(b=1, a=2), 5)
    chosen = spread(SliceSet(np.arange(15), table), 5)
    assert chosen.table[["subject", "slice"]].to_numpy().tolist() == [
        ["a00", 1], ["a00", 3], ["a01", 1], ["a01", 3], ["b00", 1], ["b00", 3]]
    assert chosen.images.tolist() == [6, 8, 11, 13, 1, 3]
    for n, count, expected in ((5, 1, [2]), (4, 1, [2]), (1, 1, [0]), (9, 3, [1, 4, 7]), (3, 8, [0, 1, 2]), (0, 2, [])):
        np.testing.assert_array_equal(evenly(np.arange(n) * 7, count), np.array(expected) * 7)


def test_few_slices_of_many_people_lie_at_every_height():
    subject, height = np.divmod(evenly(np.arange(100), 10, staggered=True), 10)
    assert subject.tolist() == list(range(10)) == height.tolist()
    for n, count in ((7, 3), (5, 5), (3, 8), (0, 2), (76, 24), (9, 1)):
        chosen = evenly(np.arange(n), count, staggered=True)
        assert len(set(chosen)) == len(chosen) == min(n, count) and (np.diff(chosen) > 0).all()


@pytest.mark.parametrize("unit", ["subject", "slice"])
def test_a_bootstrap_sample_keeps_group_sizes_and_whole_units(unit):
    table = table_of(people(a=4, b=6), 5)
    rows = np.flatnonzero(table["subject"] != "a00")
    drawn = bootstrap_rows(table, rows, unit, seed=3)
    assert set(drawn) < set(rows) and (table.iloc[drawn].groupby("group").size() == [15, 30]).all()
    counts = np.bincount(drawn, minlength=len(table))
    if unit == "subject":  # every slice of a subject as often as the others
        assert (counts.reshape(-1, 5) == counts[::5, None]).all()
    share = np.mean([np.isin(rows, bootstrap_rows(table, rows, unit, seed)).mean() for seed in range(200)])
    size = {"subject": (3, 6), "slice": (15, 30)}[unit]  # a unit is missed with (1 - 1/n)^n
    expected = 1 - sum(n * (1 - 1 / n) ** n for n in size) / sum(size)
    assert share == pytest.approx(expected, abs=0.03)
    np.testing.assert_array_equal(drawn, bootstrap_rows(table, rows, unit, seed=3))
    assert not np.array_equal(drawn, bootstrap_rows(table, rows, unit, seed=4))


def test_balanced_draw():
    targets = np.repeat([0, 1, 2], [100, 40, 5])
    index = np.flatnonzero(np.arange(len(targets)) != 3)
    drawn = balanced_draw(targets, index, 90, np.random.default_rng(0))
    assert np.bincount(targets[drawn]).tolist() == [30, 30, 30]
    assert set(drawn) <= set(index)
    for value in (0, 1):
        assert len(np.unique(drawn[targets[drawn] == value])) == 30
    assert set(drawn[targets[drawn] == 2]) <= set(range(140, 145))
    assert np.abs(np.diff(targets[drawn])).sum() > 20, "classes follow one another in random order"
    np.testing.assert_array_equal(drawn, balanced_draw(targets, index, 90, np.random.default_rng(0)))


def smooth():
    """Blobs that stay away from the border."""
    noise = np.random.default_rng(5).uniform(0, 1, (4, *SHAPE))
    noise *= np.pad(np.ones((28, 20)), 10)[..., None]
    noise = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return (noise / noise.max()).astype("float32")


def augment(settings, x, seed=(1, 2)):
    return make_augmenter(settings)(tf.constant(x), tf.constant(seed)).numpy()


def test_augmentation_is_deterministic_and_stays_in_range():
    x = images(3)
    np.testing.assert_allclose(augment(STILL, smooth()), smooth(), atol=2e-6)
    first = augment(Augmentation(), x)
    np.testing.assert_array_equal(first, augment(Augmentation(), x))
    other = augment(Augmentation(), x, (1, 3))
    assert np.abs(first - other).mean() > 1e-3
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1
    assert np.abs(first[0] - augment(Augmentation(), np.repeat(x[:1], 3, 0))[1]).mean() > 1e-3, "each its own change"


def random_values(seed, salt, limit, n):
    return tf.random.stateless_uniform((n,), np.array(seed) + salt, -limit, limit).numpy()


@pytest.mark.parametrize("ranges", [{"rotation_deg": 30.0}, {"rotation_deg": 20.0, "translation": 0.1, "scale": 0.2}])
def test_augmentation_against_scipy(ranges):
    """Rotation and zoom about the centre, then a shift: the same image as `scipy.ndimage.affine_transform` gives."""
    settings, seed, x = STILL.model_copy(update=ranges), (11, 7), smooth()
    found = augment(settings, x, seed)
    n, height, width, _ = x.shape
    angle = random_values(seed, 1, np.deg2rad(settings.rotation_deg), n)
    zoom = np.exp(random_values(seed, 2, np.log1p(settings.scale), n))
    shift = np.stack([random_values(seed, 4, settings.translation, n) * height,
                      random_values(seed, 3, settings.translation, n) * width], 1)
    centre = np.array([height - 1, width - 1]) / 2
    for i in range(n):
        c, s = np.cos(angle[i]) / zoom[i], np.sin(angle[i]) / zoom[i]
        matrix = np.array([[c, s], [-s, c]])
        offset = centre - matrix @ centre + shift[i]
        expected = np.stack([ndimage.affine_transform(x[i, ..., k], matrix, offset, order=1, mode="grid-constant")
                             for k in range(3)], -1)
        np.testing.assert_allclose(found[i], expected, atol=2e-4)
    assert np.abs(found - x).max() > 0.1


def test_tones_reach_their_ranges():
    toned = augment(STILL.model_copy(update={"gain": 0.2, "gamma": 0.3}), np.full((400, 1, 1, 1), 0.5, "float32"))
    assert 0.5 ** 1.3 * 0.8 <= toned.min() < 0.36 and 0.64 < toned.max() <= 0.5 ** (1 / 1.3) * 1.2


GROUPS = ["control", "RRMS", "SPMS"]
SEQUENCES = ("T1w", "T2w", "FLAIR")
PERCENTILES = (0.5, 99.8)
SMALL = {"mm": 4.0, "size": (48, 42), "n_slices": 135, "percentiles": PERCENTILES, "sequences": SEQUENCES}
RECIPE = Pretraining(people=6, slices_per_person=5, variation=2.0, area_weight=3.0, image_size=(48, 42), pixel_mm=4.0,
                     stages=[{"epochs": 1, "slices_per_subject": 4, "learning_rate": 1e-3, "batch_size": 8}])


def test_the_pretraining_cohort_is_nobody_of_a_study():
    seeds = {person.seed for person in pretraining.pretraining_people(RECIPE.model_copy(update={"people": 90}))}
    study = {person.seed for person in draw_participants(dict.fromkeys(GROUPS, 30), 3275)}
    assert len(seeds) == len(study) == 90 and not seeds & study


def test_people_are_made_one_by_one_with_the_areas_that_their_slices_show(tmp_path):
    """A folder that was left off is filled; areas are those of the masks, rendered again."""
    maps, people = template(4.0), pretraining.pretraining_people(RECIPE)
    for number in pretraining.missing_people(RECIPE, tmp_path)[:2]:
        pretraining.make_person(number, RECIPE, tmp_path, maps)
    before = (tmp_path / f"{people[0].id}.json").stat().st_mtime_ns
    assert pretraining.missing_people(RECIPE, tmp_path) == [2, 3, 4, 5]
    for number in (2, 3, 4, 5):
        pretraining.make_person(number, RECIPE, tmp_path, maps)
    slices, held = pretraining.read_cohort(RECIPE, tmp_path)
    assert (tmp_path / f"{people[0].id}.json").stat().st_mtime_ns == before
    assert isinstance(slices.images, np.memmap) and slices.images.shape == (30, 48, 42, 3)
    assert slices.images.reshape(6, -1).max(1).min() > 0.9 and slices.images.min() == 0
    assert slices.table["subject"].tolist() == [person.id for person in people for _ in range(5)]
    assert slices.table[held].groupby("group")["subject"].nunique().to_dict() == dict.fromkeys(GROUPS, 1)
    again = render(people[1], 4.0, maps, variation=2.0)
    for column, mask in enumerate((again.lesions, again.black_holes, again.ventricles)):
        every = mask.sum((0, 1)) * 16.0
        found = np.expm1(slices.areas[5:10, column]) * 20
        assert all(np.isclose(every, area, rtol=1e-3, atol=1e-2).any() for area in found)
    assert (slices.areas[:, 1] <= slices.areas[:, 0] + 1e-6).all() and slices.areas[:, 2].max() > 1


def test_only_lesions_tell_the_versions_of_cause_apart():
    """Bit for bit: the same noise, field and scale; lesions and their halo alone differ."""
    person = draw_participants({"SPMS": 1}, 5)[0]
    made = cause_slices(person, 6, template=template(4.0), **SMALL)
    free, sick = made["images"].astype("float32")
    rendered = render(person, 4.0, template(4.0))
    window = select_slices(rendered.brain, 34)[made["slices"]]
    same = np.all([rendered.images[name] == rendered.lesion_free[name] for name in SEQUENCES], axis=0)
    far = ndimage.binary_erosion(same, np.ones((5, 5, 5)), border_value=1)  # as far as scanning blurs
    equal = cut(far[:, :, window], rendered.brain, SMALL["size"])
    assert len(free) == 6 and (made["areas_mm2"] >= 20).all() and equal[made["brain"]].mean() > 0.2
    np.testing.assert_array_equal(free[equal], sick[equal])
    np.testing.assert_allclose(made["lesions"].sum((1, 2)) * 16.0, made["areas_mm2"])
    assert (sick - free)[made["lesions"]][:, 2].mean() > 0.1, "lesions are bright on FLAIR"
    assert not sick[~made["brain"]].any()


@pytest.mark.parametrize("interpolated", [False, True])
def test_noise_left_against_noise_that_is_preprocessed(interpolated):
    """White noise interpolated at a random offset, then cut into slices of 2 mm pixels."""
    rng = np.random.default_rng(8)
    noise = rng.standard_normal((120, 120, 60))
    noise = ndimage.shift(noise, rng.uniform(0, 1, 3), order=1)[5:-5, 5:-5, 5:-5] if interpolated else noise
    stack = slice_stack([noise + 8], np.ones(noise.shape, bool), np.eye(4), n_slices=40, image_size=(32, 32),
                        pixel_mm=2.0)
    found = noise.std(), (stack.images.astype(float) - 8).std()
    np.testing.assert_allclose(found, noise_left(interpolated, 2.0), rtol=0.3 if interpolated else 0.1)


def test_images_look_like_those_of_the_preprocessing():
    """The same person scanned at 1 mm with noise, scaled and cut: mean, spread, sharpness and bright area agree."""
    person = next(p for p in draw_participants({"RRMS": 40}, 5) if p.nuisance["T1w"].snr < 30)
    rendered = render(person, template=template())
    window = select_slices(rendered.brain, 135)
    fast = cut(scan_slices([rendered.images], rendered.brain, person, window, SEQUENCES, 1.0, PERCENTILES,
                           np.random.default_rng(4))[0], rendered.brain, (192, 168))
    for channel, name in ((0, "T1w"), (1, "T2w")):
        image, scan = rendered.images[name], person.nuisance[name]
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
        scaled = scale_intensity(noisy, rendered.brain, PERCENTILES)
        slow = slice_stack([scaled], rendered.brain, rendered.affine, image_size=(192, 168), pixel_mm=1.0).images
        pairs = []
        for found in (slow[..., 0].astype("float32"), fast[..., channel].astype("float32")):
            inside = ndimage.binary_erosion(found > 0.02, np.ones((1, 5, 5)))
            detail = np.abs(found - ndimage.uniform_filter(found, (1, 3, 3)))[inside]
            pairs.append([found[inside].mean(), found[inside].std(), np.median(detail), np.percentile(detail, 90)])
        ratio = np.divide(*pairs)
        assert (np.abs(ratio[:2] - 1) < 0.1).all() and (np.abs(ratio[2:] - 1) < 0.25).all(), (name, size, ratio)
