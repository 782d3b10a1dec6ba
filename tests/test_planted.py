"""Planted truth: the marks are what they are said to be, the narrow net is folded exactly, nets are taken up."""

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from mslib.jobs.planted import Experiment, control_slices, experiments, has_planted, spread
from mslib.nets import SliceSet, fold_batch_norm, planted
from mslib.nets.planted import narrowed, plant, roles, shortcut_mask, train_planted
from mslib.nets.spread import evenly
from mslib.nets.vgg import build_classifier, build_trainable
from mslib.study import StudyConfig, StudyError

MM = 2.0
CONFIG = StudyConfig(study="test", training={"batch_size": 8}, attribution={"planted": {
    "slices_per_subject": 8, "epochs": 1, "test_slices": 8, "narrow": 16}})


def head(n=200, shape=(96, 84), level=0.4):
    """Round brains of even grey, two subjects."""
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    brain = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < 0.45 * min(shape)
    table = pd.DataFrame({"subject": np.repeat(["a", "b"], n // 2), "slice": np.tile(np.arange(n // 2), 2),
                          "group": "control", "target": 0})
    return SliceSet(np.repeat((level * brain)[None, ..., None], n, 0).repeat(3, -1).astype(np.float16), table)


@pytest.fixture(scope="module")
def marked():
    return plant(head(), deciding=1, pixel_mm=MM, seed=3)


def test_each_sequence_agrees_as_often_as_it_should(marked):
    same = (marked.shown == marked.slices.table["target"].to_numpy()[:, None]).mean(0)
    assert roles(1) == [1, 2, 0] and same[1] == 1
    assert abs(same[2] - 0.7) < 3 * np.sqrt(0.21 / 200) and abs(same[0] - 0.5) < 3 * np.sqrt(0.25 / 200)
    assert marked.slices.table["target"].mean() == 0.5


def test_every_sequence_of_every_slice_has_a_mark_inside_the_brain(marked):
    area = marked.marks.sum((1, 2)) * MM**2
    assert (marked.marks <= marked.brain[..., None]).all()
    np.testing.assert_allclose(area, np.pi * planted.RADIUS_MM**2, rtol=0.05)


def test_nothing_but_the_marks_changes(marked):
    changed = np.abs(marked.slices.images.astype(float) - head().images.astype(float)) > 0.02
    assert not changed[~marked.brain].any()
    near = ndimage.binary_dilation(marked.marks, ndimage.generate_binary_structure(2, 2)[None, ..., None], iterations=2)
    assert not (changed & ~near).any(), "the soft edge ends within two pixels"
    assert (changed & marked.marks).sum() > 0.8 * marked.marks.sum()


def test_stripes_run_as_the_class_says(marked):
    images = marked.slices.images.astype(float)
    steps = [np.abs(np.diff(images, axis=axis, prepend=0)) * marked.marks for axis in (1, 2)]
    down, across = (step.sum((1, 2)) for step in steps)
    assert ((down > across) == (marked.shown == 0)).mean() > 0.99


def test_planting_is_seeded_and_seeds_differ():
    again, other = plant(head(20), 0, MM, 5), plant(head(20), 0, MM, 6)
    np.testing.assert_array_equal(plant(head(20), 0, MM, 5).slices.images, again.slices.images)
    assert (again.slices.images != other.slices.images).any()


@pytest.mark.parametrize("agreement", [1.0, 0.0])
def test_the_shortcut_tells_the_class_or_its_opposite(agreement):
    found = plant(head(40), 2, MM, 1, shortcut=agreement)
    target = found.slices.table["target"].to_numpy()
    np.testing.assert_array_equal(found.corner, target == agreement)
    square = shortcut_mask((96, 84), MM)
    bright = found.slices.images[:, square][..., 2].mean(1) > 0.1
    np.testing.assert_array_equal(bright, found.corner)
    assert not (square & found.brain).any() and not found.slices.images[:, square][..., :2].any()


def test_narrow_nets_have_the_layers_of_vgg16_and_a_part_of_its_channels():
    wide = build_classifier("vgg16", 2, (64, 64, 3))
    net = narrowed(wide, 4)
    assert [layer.name for layer in net.layers] == [layer.name for layer in wide.layers]
    assert net.get_layer("block5_conv3").filters == 128 and net.get_layer("block1_conv1").filters == 16


def test_a_narrow_net_is_folded_exactly():
    shape, rng = (64, 64, 3), np.random.default_rng(0)
    trained = narrowed(build_trainable("vgg16", 2, shape, "float32"), 16)
    for layer in trained.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    images = rng.random((3, *shape)).astype(np.float32)
    plain = fold_batch_norm(trained, narrowed(build_classifier("vgg16", 2, shape), 16))
    expected = np.asarray(trained(images, training=False))
    np.testing.assert_allclose(np.asarray(plain(images)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_planted_net_is_trained_once(tmp_path, monkeypatch, shallow):
    marked = plant(head(24, (48, 40)), 0, 4.0, 1)
    parts = np.array(["train"] * 16 + ["validation"] * 8)
    first = train_planted(marked, parts, CONFIG, tmp_path, 0, "net")
    monkeypatch.setattr(planted, "fit", None)
    again = train_planted(marked, parts, CONFIG, tmp_path, 0, "net")
    for one, other in zip(first.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError):
        train_planted(marked, parts, CONFIG, tmp_path, 1, "net")


def test_damaged_weights_are_named(tmp_path, shallow):
    marked, parts = plant(head(24, (48, 40)), 0, 4.0, 1), np.array(["train"] * 16 + ["validation"] * 8)
    train_planted(marked, parts, CONFIG, tmp_path, 0, "net")
    (tmp_path / "weights.weights.h5").write_bytes(b"half a file")
    with pytest.raises(StudyError, match=r"weights\.h5: is not a weight file of vgg16 .*; if an .* delete it"):
        train_planted(marked, parts, CONFIG, tmp_path, 0, "net")


def test_each_sequence_decides_once_and_one_net_has_a_shortcut():
    assert [(one.name, one.deciding, one.shortcut) for one in experiments(CONFIG)] == [
        ("T1w", 0, False), ("T2w", 1, False), ("FLAIR", 2, False), ("shortcut", 2, True)]
    assert has_planted(CONFIG)
    assert not has_planted(CONFIG.model_copy(update={"groups": ["RRMS", "SPMS"]}))
    shown = Experiment("shortcut", 2, True).planted(head(40), CONFIG, 1)
    assert shown.corner.any() and not Experiment("FLAIR", 2).planted(head(40), CONFIG, 1).corner.any()


def test_slices_are_spread_over_subjects():
    chosen = spread(head(40), 8)
    assert chosen.table["subject"].value_counts().to_dict() == {"a": 4, "b": 4}
    assert chosen.table["slice"].tolist() == [0, 6, 13, 19] * 2
    assert spread(head(40), 2).table["slice"].tolist() == [10] * 2, "one of each: that in the middle"


@pytest.mark.parametrize("n,count,expected", [(5, 1, [2]), (4, 1, [2]), (1, 1, [0]), (9, 2, [0, 8]), (9, 3, [0, 4, 8]),
                                              (3, 8, [0, 1, 2])])
def test_elements_are_spread_from_end_to_end(n, count, expected):
    np.testing.assert_array_equal(evenly(np.arange(n) * 7, count), np.array(expected) * 7)


def test_controls_are_split_by_subject(monkeypatch):
    class Person:
        def __init__(self, name, group, cohort):
            self.id, self.group, self.cohort = name, group, cohort

    people = [Person(f"{group}{i}", group, "study") for group in CONFIG.groups for i in range(4)]
    fresh = [Person(f"T{i}", "control", "independent") for i in range(2)]
    brain = np.arange(4)[:, None, None] < np.full((4, 8, 8), 4)
    stack = {"images": np.ones((4, 8, 8, 3), np.float16), "brain": brain}
    monkeypatch.setattr("mslib.jobs.planted.stack_of", lambda *_: stack)
    for cohort, tested in ((people + fresh, {"T0", "T1"}), (people, None)):
        monkeypatch.setattr("mslib.jobs.planted.usable_subjects", lambda *_, cohort=cohort: cohort)
        found = {part: set(slices.table["subject"]) for part, slices in control_slices(CONFIG, "run").items()}
        assert not found["train"] & found["validation"] and not found["test"] & (found["train"] | found["validation"])
        assert set.union(*found.values()) <= {person.id for person in cohort if person.group == "control"}
        assert tested is None or found["test"] == tested
    monkeypatch.setattr("mslib.jobs.planted.usable_subjects", lambda *_: people[2:] + fresh)
    with pytest.raises(StudyError, match="group control: the subject-wise split needs at least 3 subjects"):
        control_slices(CONFIG, "run")
