"""Nets against keras.applications, folding, weights from files, splits, slices and their augmentation."""

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from scipy import ndimage
from skimage.measure import block_reduce

from mslib.nets import (
    SliceSet,
    baseline_logits,
    build_classifier,
    build_trainable,
    channels_of,
    fold_batch_norm,
    gather,
    permute_groups,
    refuse_leakage,
    split_slices,
    split_subjects,
)
from mslib.nets.data import balanced_draw, make_augmenter
from mslib.nets.protocols import assign_parts
from mslib.study import StudyConfig, StudyError
from mslib.study.config import Augmentation, Split

BACKBONES = ("vgg16", "vgg19")
APPLICATIONS = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}
SHAPE = (48, 40, 3)
STILL = Augmentation(rotation_deg=0, translation=0, scale=0, gain=0, gamma=0)


@pytest.fixture(scope="module", autouse=True)
def few_graphs():
    yield
    keras.backend.clear_session()


def images(n=2, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (n, *shape)).astype("float32")


def peer(backbone, seed=0):
    """Net of keras.applications with biases that are not 0."""
    keras.utils.set_random_seed(seed)
    model = APPLICATIONS[backbone](weights=None, include_top=False, input_shape=SHAPE)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
    return model


@pytest.fixture(scope="module", params=BACKBONES)
def peer_file(request, tmp_path_factory):
    """A weight file in the format of keras.applications (legacy HDF5), and the net that it was written from."""
    model = peer(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return request.param, model, path


def part(model, layer, x):
    return keras.Model(model.input, model.get_layer(layer).output)(x, training=False).numpy()


def one_line(caught, *words):
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for word in words:
        assert word in text


@pytest.mark.parametrize("backbone", BACKBONES)
def test_plain_net_is_that_of_keras_applications(backbone):
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


def test_plain_net_takes_any_size():
    model = build_classifier("vgg16", 4, (None, None, 3))
    assert model(images(1, (32, 64, 3))).shape == model(images(1, (64, 32, 3))).shape == (1, 4)
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folding_keeps_the_outputs(backbone):
    keras.utils.set_random_seed(3)
    trained = build_trainable(backbone, 3, SHAPE, "float32")
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


def test_folding_a_bfloat16_net_gives_the_float32_net():
    half, full = (build_trainable("vgg16", 3, SHAPE, precision) for precision in ("bfloat16", "float32"))
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


def test_imagenet_comes_from_keras(peer_file, monkeypatch):
    backbone, _, path = peer_file
    asked = []
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda name, *_, **__: asked.append(name) or str(path))
    found = build_classifier(backbone, 3, SHAPE, "imagenet").get_layer("block1_conv1").get_weights()[0]
    expected = build_classifier(backbone, 3, SHAPE, path).get_layer("block1_conv1").get_weights()[0]
    np.testing.assert_array_equal(found, expected)
    assert asked == [path.name]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_imagenet_without_network_names_the_ways_out(backbone, monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on a host:\n [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    with pytest.raises(StudyError) as caught:
        build_classifier(backbone, 3, SHAPE, "imagenet")
    one_line(caught, "two ways out", f"'{backbone}_weights_tf_dim_ordering_tf_kernels_notop.h5'", "'scratch'")


def test_weight_files_that_do_not_fit(peer_file, tmp_path):
    backbone, _, path = peer_file
    other = {"vgg16": "vgg19", "vgg19": "vgg16"}[backbone]
    (tmp_path / "text.h5").write_text("no weights")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:100_000])
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["note"] = "nothing in it"
    for net, file, words in ((other, path, "is not a weight file of"), (backbone, tmp_path / "absent.h5", "must be"),
                             (backbone, tmp_path / "text.h5", "is not an HDF5"),
                             (backbone, tmp_path / "cut.h5", "is not"), (backbone, tmp_path / "empty.h5", "is not")):
        with pytest.raises(StudyError) as caught:
            build_classifier(net, 3, SHAPE, file)
        one_line(caught, words, str(file))


def test_own_weight_file(tmp_path):
    model = build_classifier("vgg16", 2, SHAPE)
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    np.testing.assert_array_equal(build_classifier("vgg16", 2, SHAPE, path)(images()), model(images()))
    (tmp_path / "text.weights.h5").write_text("no weights")
    for net, classes, file in (("vgg16", 3, path), ("vgg19", 2, path), ("vgg16", 2, tmp_path / "absent.weights.h5"),
                               ("vgg16", 2, tmp_path / "text.weights.h5")):
        with pytest.raises(StudyError) as caught:
            build_classifier(net, classes, SHAPE, file)
        one_line(caught, str(file), f"{net} with {classes} classes")


@pytest.mark.parametrize("build", [lambda: build_classifier("vgg61", 3, SHAPE),
                                   lambda: build_trainable("VGG16", 3, SHAPE, "float32")])
def test_unknown_backbone(build):
    with pytest.raises(StudyError) as caught:
        build()
    one_line(caught, "['vgg16', 'vgg19']", "got 'v" if "vgg61" in str(caught.value) else "got 'VGG16'")


# Splits


def people(**counts):
    return pd.Series({f"{group}{i:02d}": group for group, n in counts.items() for i in range(n)})


@pytest.mark.parametrize("n", range(3, 41))
def test_shares_of_a_split(n):
    parts = split_subjects(people(a=n, b=n), Split(), seed=1)
    for _, of_group in parts.groupby(people(a=n, b=n)):
        sizes = of_group.value_counts()
        for name, share in (("train", 0.75), ("validation", 0.10), ("test", 0.15)):
            assert sizes[name] >= 1
            assert abs(sizes[name] - share * n) < (1 if n >= 10 else 2), (n, sizes)


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


def test_too_few_subjects_for_a_split():
    with pytest.raises(StudyError) as caught:
        split_subjects(people(control=5, SPMS=2), Split(), seed=0)
    one_line(caught, "group SPMS", "at least 3", "found 2")


def table_of(groups, n_slices=20):
    return pd.DataFrame({"subject": np.repeat(groups.index, n_slices), "slice": np.tile(range(n_slices), len(groups)),
                         "group": np.repeat(groups.to_numpy(), n_slices)})


def test_slice_split_is_stratified_and_leaks():
    table = table_of(people(control=6, RRMS=4))
    parts = split_slices(table["group"], Split(), seed=0)
    shares = pd.crosstab(table["group"], parts, normalize="index")
    assert np.abs(shares[["train", "validation", "test"]].to_numpy() - [0.75, 0.10, 0.15]).max() < 0.01
    with pytest.raises(StudyError) as caught:
        refuse_leakage(table["subject"], parts)
    one_line(caught, "sub-RRMS00", "test and train", "one part")


def test_one_leaking_slice_is_enough():
    table = table_of(people(control=6))
    parts = table["subject"].map(split_subjects(people(control=6), Split(), seed=0))
    refuse_leakage(table["subject"], parts)
    parts.iloc[25] = "test" if parts.iloc[25] != "test" else "train"
    with pytest.raises(StudyError, match="sub-control01"):
        refuse_leakage(table["subject"], parts)


@pytest.mark.parametrize("protocol", ["subject", "slice", "subject_permuted", "slice_permuted"])
def test_parts_of_a_protocol(protocol):
    config = StudyConfig(study="test", groups=["control", "RRMS"],
                         cohort={"simulated": {"study": {"control": 8, "RRMS": 8}, "independent": {}}})
    table = table_of(people(control=8, RRMS=8))
    parts = assign_parts(protocol, SliceSet(np.zeros((len(table), 1, 1, 3), "float16"), table), config)
    per_subject = parts.groupby(table["subject"]).nunique()
    assert set(parts) == {"train", "validation", "test"}
    assert per_subject.max() == 1 if protocol.startswith("subject") else per_subject.min() > 1


def test_permuted_labels():
    groups = people(control=19, RRMS=10, SPMS=9)
    permuted = permute_groups(groups, seed=1)
    assert set(permuted.index) == set(groups.index)
    assert permuted.value_counts().to_dict() == groups.value_counts().to_dict()
    assert (permuted[groups.index] == groups).mean() < 0.7
    assert permuted.equals(permute_groups(groups.sample(frac=1, random_state=2), seed=1))
    assert not permuted.equals(permute_groups(groups, seed=2))


# Slices


def test_slices_of_several_subjects():
    stacks = {name: images(n, (4, 4, 3), n).astype("float16") for name, n in (("b", 3), ("a", 2))}
    slices = gather(stacks, pd.Series({"a": "SPMS", "b": "control"}), ["control", "RRMS", "SPMS"])
    assert slices.table.to_dict("list") == {
        "subject": ["a", "a", "b", "b", "b"], "slice": [0, 1, 0, 1, 2], "target": [2, 2, 0, 0, 0],
        "group": ["SPMS"] * 2 + ["control"] * 3}
    np.testing.assert_array_equal(slices.batch(np.array([4, 0])), np.stack([stacks["b"][2], stacks["a"][0]]))
    one = slices.batch(np.array([1]), channels=[2, 2, 2])
    assert one.dtype == "float32" and np.ptp(one, axis=-1).max() == 0
    np.testing.assert_array_equal(one[..., 0], stacks["a"][1:2, ..., 2])


@pytest.mark.parametrize("factor,size", [(2, (8, 6)), (2, (9, 7)), (3, (11, 10)), (4, (5, 4))])
def test_larger_pixels_are_block_means(factor, size):
    """More slices than are averaged at a time; rows and columns that fill no block are cut at the end."""
    x = images(515, (*size, 3)).astype("float16")
    table, facts = table_of(people(a=5), 103), np.arange(515, dtype="float32")[:, None]
    slices = SliceSet(x, table, facts).shrunk(factor)
    whole = x[:, :size[0] // factor * factor, :size[1] // factor * factor].astype("float64")
    expected = block_reduce(whole, (1, factor, factor, 1), np.mean)
    assert slices.images.dtype == np.float16 and slices.images.shape == expected.shape
    np.testing.assert_allclose(slices.images, expected, rtol=6e-4)
    assert slices.table is table and slices.facts is facts


def test_pixels_of_the_same_size_are_the_same_slices():
    slices = SliceSet(images(2).astype("float16"), table_of(people(a=2), 1))
    assert slices.shrunk(1) is slices


def labelled(n_slices=60):
    stacks = {name: images(n_slices, (4, 4, 3), seed).astype("float16") for seed, name in enumerate("ab")}
    return stacks, pd.Series({"a": "SPMS", "b": "control"})


def test_digest_tells_other_slices_and_other_labels():
    stacks, groups = labelled()
    order = ["control", "RRMS", "SPMS"]
    digest = gather(stacks, groups, order).digest()
    assert len(digest) == 16 and set(digest) <= set("0123456789abcdef")
    assert gather(*labelled(), order).digest() == digest, "the same whenever it is made"
    other = {"data": (stacks | {"b": stacks["b"] * np.float16(0.9)}, groups, order),
             "labels": (stacks, pd.Series({"a": "RRMS", "b": "control"}), order),
             "order of classes": (stacks, groups, order[::-1]),
             "subject": ({"a": stacks["a"], "c": stacks["b"]}, groups.rename({"b": "c"}), order),
             "number of slices": (stacks | {"b": stacks["b"][:-1]}, groups, order)}
    digests = {name: gather(*made).digest() for name, made in other.items()}
    assert len({digest, *digests.values()}) == 6, digests
    assert gather(stacks, groups, order).shrunk(2).digest() != digest


def test_what_a_training_step_is_given():
    stacks, groups = labelled(4)
    index = np.array([5, 0])
    plain = gather(stacks, groups, ["control", "SPMS"])
    assert plain.facts is None
    np.testing.assert_array_equal(plain.truth(index), [0, 1])
    facts = np.arange(16, dtype=np.float32).reshape(8, 2)
    targets, known = SliceSet(plain.images, plain.table, facts).truth(index)
    np.testing.assert_array_equal(targets, [0, 1])
    np.testing.assert_array_equal(known, [[10, 11], [0, 1]])


def test_channels():
    assert channels_of(StudyConfig(study="a")) is None
    assert channels_of(StudyConfig(study="a", model={"input": "FLAIR"})) == [2, 2, 2]


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


def smooth(n=4, size=(48, 40)):
    """Blobs that stay away from the border."""
    noise = np.random.default_rng(5).uniform(0, 1, (n, *size, 3))
    noise *= np.pad(np.ones((size[0] - 20, size[1] - 20)), 10)[None, ..., None]
    noise = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return (noise / noise.max()).astype("float32")


def augment(settings, x, seed=(1, 2)):
    return make_augmenter(settings)(tf.constant(x), tf.constant(seed)).numpy()


def test_no_augmentation_is_the_identity():
    np.testing.assert_allclose(augment(STILL, smooth()), smooth(), atol=2e-6)


def test_augmentation_is_deterministic_and_stays_in_range():
    x = images(3)
    first = augment(Augmentation(), x)
    np.testing.assert_array_equal(first, augment(Augmentation(), x))
    other = augment(Augmentation(), x, (1, 3))
    assert np.abs(first - other).mean() > 1e-3
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1
    assert np.abs(first[0] - augment(Augmentation(), np.repeat(x[:1], 3, 0))[1]).mean() > 1e-3, "each its own change"


def drawn(seed, salt, limit, n):
    return tf.random.stateless_uniform((n,), np.array(seed) + salt, -limit, limit).numpy()


@pytest.mark.parametrize("ranges", [{"rotation_deg": 30.0}, {"translation": 0.2}, {"scale": 0.4},
                                    {"rotation_deg": 20.0, "translation": 0.1, "scale": 0.2}])
def test_augmentation_against_scipy(ranges):
    """Rotation and zoom about the centre, then a shift: the same image as `scipy.ndimage.affine_transform` gives."""
    settings, seed, x = STILL.model_copy(update=ranges), (11, 7), smooth()
    found = augment(settings, x, seed)
    n, height, width, _ = x.shape
    angle = drawn(seed, 1, np.deg2rad(settings.rotation_deg), n)
    zoom = np.exp(drawn(seed, 2, np.log1p(settings.scale), n))
    shift = np.stack([drawn(seed, 4, settings.translation, n) * height,
                      drawn(seed, 3, settings.translation, n) * width], 1)
    centre = np.array([height - 1, width - 1]) / 2
    for i in range(n):
        c, s = np.cos(angle[i]) / zoom[i], np.sin(angle[i]) / zoom[i]
        matrix = np.array([[c, s], [-s, c]])
        offset = centre - matrix @ centre + shift[i]
        expected = np.stack([ndimage.affine_transform(x[i, ..., k], matrix, offset, order=1, mode="grid-constant")
                             for k in range(3)], -1)
        np.testing.assert_allclose(found[i], expected, atol=2e-4)
    assert np.abs(found - x).max() > 0.1


def test_augmentation_reaches_its_ranges():
    """Blind to how it is drawn: the centre of a dot moves within, and nearly up to, the range."""
    dot = np.zeros((400, 41, 41, 1), "float32")
    dot[:, 20, 20] = 1
    moved = augment(STILL.model_copy(update={"translation": 0.2}), dot)
    place = np.array([ndimage.center_of_mass(one[..., 0]) for one in moved]) - 20
    assert np.abs(place).max() <= 0.2 * 41 + 1e-3
    assert np.abs(place).max() > 0.19 * 41 and np.abs(place.mean(0)).max() < 0.6
    toned = augment(STILL.model_copy(update={"gain": 0.2, "gamma": 0.3}), np.full((400, 1, 1, 1), 0.5, "float32"))
    assert 0.5 ** 1.3 * 0.8 <= toned.min() < 0.36 and 0.64 < toned.max() <= 0.5 ** (1 / 1.3) * 1.2


def test_baseline_finds_what_separates():
    rng = np.random.default_rng(0)
    load = {"control": 0.1, "RRMS": 5.0, "SPMS": 40.0}
    table = pd.DataFrame([{"group": g, "lesion_load_ml": m * np.exp(rng.normal(0, 0.1)), "ventricle_volume_ml": 30.0}
                          for g, m in load.items() for _ in range(10)])
    order = ["SPMS", "control", "RRMS"]
    logits = baseline_logits(table, table.drop(columns="group"), order)
    assert [order[i] for i in logits.argmax(1)] == table["group"].tolist()
    np.testing.assert_allclose(np.exp(logits).sum(1), 1)
