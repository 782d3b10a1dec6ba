"""The bench on stand-in networks whose cause is known by construction: a good and a blind method come back as such."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mslib.__main__ import main
from mslib.analysis.attribution import Explained
from mslib.analysis.bench import CHANCE, Known, bench, registered
from mslib.explain import METHODS
from mslib.nets import build_classifier, load_half, save_half
from mslib.nets.known_rule import shortcut_mask
from mslib.steps import known_networks
from mslib.study import StudyError
from mslib.study.files import write_arrays, write_json, write_table
from mslib.study.provenance import file_sha256

SHAPE, SEQUENCES = (16, 12, 3), ("T1w", "T2w", "FLAIR")
SETTINGS = {"superpixels": 3, "samples": 24, "permutations": 1, "steps": 2, "seed": 3275, "precision": "float32"}
PATCH, CORNER = np.zeros(SHAPE[:2], bool), shortcut_mask(SHAPE[:2], 2.0)
PATCH[9:13, 6:10] = True


def reader(where, sequence):
    """Two logits that differ by how bright a place of one sequence is; layers called as the first and last of VGG16."""
    kernel = np.zeros((*SHAPE, 2), np.float32)
    kernel[where, sequence] = [-1, 1]
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, 1, name="block1_conv1")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="block5_conv1")(x))
    middle = 0.3 * where.sum()
    model.set_weights([np.eye(3)[None, None], np.zeros(3), kernel.reshape(-1, 2), np.array([middle, -middle])])
    return model


def slices(where, sequence, features):
    """Six people; the second class is bright at the place, the first one dark."""
    images = np.random.default_rng(0).uniform(0.3, 1, (12, *SHAPE)).astype(np.float32)
    targets = np.arange(12) % 2
    images[targets == 0] *= np.where(where[..., None] & (np.arange(3) == sequence), 0.05, 1).astype(np.float32)
    return Explained(images, targets, np.ones((12, *SHAPE[:2]), bool), np.repeat(features[None], 12, 0),
                     np.repeat(list("abcdef"), 2), 2.0)


@pytest.fixture(scope="module")
def networks():
    everywhere, apart = np.repeat(PATCH[..., None], 3, -1), np.repeat(PATCH[::-1, :, None], 3, -1)
    apart[..., 1] = PATCH  # each sequence has its mark, the decisive one elsewhere
    return [Known("lesions", reader(PATCH, 2), slices(PATCH, 2, everywhere)),
            Known("T2w", reader(PATCH, 1), slices(PATCH, 1, apart), decisive=1),
            Known("shortcut", reader(CORNER, 2), slices(CORNER, 2, everywhere), corner=np.arange(12) % 2 == 1)]


def steepness(model, images, targets):
    """Size of the gradient: where the network looks, and nothing else."""
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        scores = tf.gather(model(images), targets, axis=1, batch_dims=1)
    return np.abs(tape.gradient(scores, images))


def ramp(model, images, targets):
    """From top to bottom, whatever the network and the picture: one map for all sequences."""
    return np.broadcast_to(np.linspace(0, 1, SHAPE[0])[:, None], images.shape[:-1])


def test_a_method_that_sees_and_one_that_is_blind(networks):
    with registered("steepness", steepness) as sees, registered("ramp", ramp) as blind:
        table = bench(networks, [sees, blind], SEQUENCES, **SETTINGS)
    assert table.index.tolist() == [CHANCE, "steepness", "ramp"] and "steepness" not in METHODS
    good, bad, chance = table.loc["steepness"], table.loc["ramp"], table.loc[CHANCE]
    assert chance["auprc"] == pytest.approx(PATCH.mean()) and chance["found"] == pytest.approx(1 / 3)
    assert chance["shortcut"] == pytest.approx(CORNER.mean()) and chance["msfi"] == pytest.approx(PATCH.mean())
    assert good["auprc"] > 0.9 > 0.5 > bad["auprc"] and good["precision"] > 0.9 > bad["precision"]
    assert good["msfi"] > 5 * chance["msfi"] and abs(bad["msfi"] - chance["msfi"]) < 0.05
    assert good["found"] == 1 and bad["found"] == 0, "a map for all sequences finds none"
    assert good["shortcut"] > 0.99 and good["exposed"] and not bad["exposed"]
    assert good["sane"] and not bad["sane"] and bad["random"] > 0.99 > 0.5 > good["random"]
    assert (table["seconds"].dropna() >= 0).all() and (table["blank"].dropna() == 0).all()


def test_slices_that_a_network_gets_wrong_do_not_count(networks):
    known, where = networks[0], networks[0].explained
    turned = Known("lesions", known.model, Explained(where.images, 1 - where.targets, where.brain, where.features,
                                                     where.subjects, where.pixel_mm))
    with registered("steepness", steepness) as name:
        table = bench([turned], [name], SEQUENCES, **SETTINGS)
    assert np.isnan(table.loc[name, "auprc"]) and np.isnan(table.loc[name, "msfi"]), "none is right; no marks either"


@pytest.mark.parametrize("function,message", [
    (lambda model, images, targets: images[:, 1:], r"yours must return finite maps of the shape \(12, 16, 12, 3\) or"),
    (lambda model, images, targets: images * np.nan, "6912 values not finite")])
def test_maps_that_are_none_are_refused(networks, function, message):
    with registered("yours", function) as name, pytest.raises(StudyError, match=message):
        bench(networks[:1], [name], SEQUENCES, **SETTINGS)


def test_of_a_network_that_starts_from_shipped_weights_only_what_was_fitted_is_kept(networks, tmp_path, monkeypatch):
    start, fitted = (build_classifier("vgg16", 2, (32, 32, 3), narrow=8) for _ in range(2))
    file, names = tmp_path / "vgg16_simulated.h5", [layer.name for layer in start.layers if layer.weights]
    save_half(file, start, names, ["control", "RRMS"])
    write_json(file.with_suffix(".json"), {"sha256": file_sha256(file)})
    load_half(start, file, ["control", "RRMS"])
    fitted.set_weights(start.get_weights())
    for name in ("block5_conv3", "logits"):
        fitted.get_layer(name).set_weights([weight + 0.5 for weight in start.get_layer(name).get_weights()])
    folder = tmp_path / "bench"
    folder.mkdir()
    known_networks._write_known(folder, Known("lesions", fitted, networks[0].explained), start)
    write_json(folder / "bench.json", {"networks": ["lesions"]})
    with np.load(folder / "lesions.npz") as stored:
        assert [key for key in stored if key.startswith("weight")] == [f"weight {i:03}" for i in range(24, 28)]
    for place in (tmp_path, tmp_path / "absent"):  # in a clone; of an installed library: beside the folder
        monkeypatch.setattr(known_networks, "shipped", lambda name, place=place: place / f"{name}.h5")
        (again,) = known_networks._known_networks(folder)
        for one, other in zip(again.model.get_weights(), fitted.get_weights()):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    file.unlink()
    with pytest.raises(StudyError, match=r"vgg16_simulated\.h5: is absent, from which the network lesions starts"):
        next(known_networks._known_networks(folder))


def test_the_command_beside_built_in_methods(networks, tmp_path, monkeypatch, capsys):
    """Networks and slices come back from their files; what is missing is told in one line."""
    (tmp_path / "theirs.py").write_text("number = 1\ndef gradient(*_):\n    pass\n"
                                        "def twice(model, images, targets):\n    return 2 * images\n")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "networks"
    command = ["bench", "theirs:twice", "--networks", str(folder)]
    assert main(command) == 1 and "networks: holds no networks whose cause is known; name" in capsys.readouterr().err
    folder.mkdir()
    unmarked = networks[0].explained.images.copy()
    unmarked[:, :4] = 0.5  # as if the upper rows held the marks
    write_arrays(folder / "unmarked.npz", images=unmarked.astype("float16"))
    for known, base in zip(networks, [unmarked, *[None] * len(networks[1:])], strict=False):
        known_networks._write_known(folder, known, unmarked=base)
    (folder / ".tmp-killed.npz").write_bytes(b"")  # what a killed export leaves
    write_json(folder / "bench.json", {"networks": [known.name for known in networks], "sequences": list(SEQUENCES),
                                       "settings": SETTINGS})
    found = {known.name: known for known in known_networks._known_networks(folder)}
    for known in networks:
        again = found[known.name]
        assert again.decisive == known.decisive and np.array_equal(again.corner, known.corner)
        assert np.array_equal(again.explained.features, known.explained.features) and again.explained.few is None
        np.testing.assert_array_equal(again.explained.images, known.explained.images.astype("float16"))
        np.testing.assert_allclose(again.model(known.explained.images), known.model(known.explained.images), rtol=1e-2,
                                   atol=1e-2)
    own = bench(networks[:2], ["input_x_gradient"], SEQUENCES, **SETTINGS)
    write_table(folder / "methods.csv", own.reset_index())
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:]] == [CHANCE, "twice", "input_x_gradient"]
    for method, message in (("theirs", "must be MODULE:FUNCTION"), ("absent:twice", "No module named 'absent'"),
                            ("theirs:thrice", "must be MODULE:FUNCTION"), ("theirs:number", "must be a function"),
                            ("theirs:gradient", "a method of the name gradient exists")):
        assert main(["bench", method, "--networks", str(folder)]) == 1
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1
