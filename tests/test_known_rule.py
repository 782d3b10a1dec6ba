"""Known decision rules: the marks are what they are said to be, and narrow networks are trained on them."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from mslib.nets import SliceSet, build_trainable, known_rule
from mslib.nets.train import Recipe
from mslib.study import StudyError

MM = 2.0
RECIPE = Recipe(epochs=1, slices_per_subject=8, learning_rate=2e-3, batch_size=8, weight_decay=1e-4, patience=1, seed=9)
N = 120


def head(n=N, shape=(96, 84), subjects="ab"):
    """Round brains of even grey, of several subjects."""
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    brain = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < 0.45 * min(shape)
    each = n // len(subjects)
    table = pd.DataFrame({"subject": np.repeat(list(subjects), each), "slice": np.tile(np.arange(each), len(subjects)),
                          "group": "control", "target": 0})
    return SliceSet(np.repeat((0.4 * brain)[None, ..., None], n, 0).repeat(3, -1).astype(np.float16), table)


@pytest.fixture(scope="module")
def marked():
    return known_rule.draw_marks(head(), decisive=1, pixel_mm=MM, seed=3)


def test_each_sequence_shows_the_class_as_often_as_its_role_says(marked):
    same = (marked.shown == marked.slices.table["target"].to_numpy()[:, None]).mean(0)
    assert dict(zip(known_rule.ROLES, known_rule.roles(1))) == {"decisive": 1, "correlated": 2, "irrelevant": 0}
    assert same[1] == 1
    assert abs(same[2] - 0.7) < 3 * np.sqrt(0.21 / N) and abs(same[0] - 0.5) < 3 * np.sqrt(0.25 / N)
    assert marked.slices.table["target"].mean() == 0.5


def test_every_sequence_of_every_slice_has_a_mark_inside_the_brain(marked):
    area = marked.marks.sum((1, 2)) * MM**2
    assert (marked.marks <= marked.brain[..., None]).all()
    np.testing.assert_allclose(area, np.pi * known_rule.RADIUS_MM**2, rtol=0.05)


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


def test_marks_are_seeded_and_seeds_differ():
    one, other = known_rule.draw_marks(head(20), 0, MM, 5), known_rule.draw_marks(head(20), 0, MM, 6)
    np.testing.assert_array_equal(known_rule.draw_marks(head(20), 0, MM, 5).slices.images, one.slices.images)
    assert (one.slices.images != other.slices.images).any()


@pytest.mark.parametrize("agreement", [1.0, 0.0])
def test_the_shortcut_shows_the_class_or_its_opposite(agreement):
    found = known_rule.draw_marks(head(40), 2, MM, 1, shortcut=agreement)
    target = found.slices.table["target"].to_numpy()
    np.testing.assert_array_equal(found.corner, target == agreement)
    square = known_rule.shortcut_mask((96, 84), MM)
    bright = found.slices.images[:, square][..., 2].mean(1) > 0.1
    np.testing.assert_array_equal(bright, found.corner)
    assert not (square & found.brain).any() and not found.slices.images[:, square][..., :2].any()


def test_each_sequence_decides_once_and_one_network_has_a_shortcut():
    assert [(one.name, one.decisive, one.shortcut) for one in known_rule.experiments(["T1w", "T2w", "FLAIR"])] == [
        ("T1w", 0, False), ("T2w", 1, False), ("FLAIR", 2, False), ("shortcut", 2, True)]
    shown = known_rule.Experiment("shortcut", 2, True).marked(head(), MM, 1)
    assert shown.corner.any() and not known_rule.Experiment("FLAIR", 2).marked(head(8), MM, 1).corner.any()
    same = (shown.shown == shown.slices.table["target"].to_numpy()[:, None]).mean(0)
    assert np.abs(same - 0.5).max() < 3 * np.sqrt(0.25 / N), "no mark shows the class"


def test_a_network_is_decided_by_its_seed_and_finished_ones_are_kept(tmp_path, shallow, monkeypatch):
    marked = known_rule.draw_marks(head(24, (32, 32)), 0, 4.0, 1)
    tasks = {"one": (marked, 0), "other": (marked, 1), "again": (marked, 1)}
    found = known_rule.train_known_rules(tasks, RECIPE, 16, tmp_path)
    for here, there in zip(found["other"], found["again"], strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5, err_msg="whatever was trained before")
    assert not np.allclose(found["one"][0], found["other"][0])
    keras.utils.set_random_seed(1)
    start = build_trainable("vgg16", 2, (32, 32, 3), "float32", 16).get_layer("block1_conv1").get_weights()[0]
    likeness = np.corrcoef([kernel.ravel() for kernel in (start, found["other"][0], found["one"][0])])[0, 1:]
    assert likeness[0] > 0.5 > abs(likeness[1]), "training went on from the weights of the seed"
    monkeypatch.setattr(known_rule, "build_trainable", None)
    again = known_rule.train_known_rules(tasks, RECIPE, 16, tmp_path)
    assert all((here == there).all() for name in tasks for here, there in zip(found[name], again[name], strict=True))
    few = replace(RECIPE, slices_per_subject=4, batch_size=16)
    with pytest.raises(StudyError, match=r"fewer than training\.batch_size 16"):
        known_rule.train_known_rules({"few": (marked, 0)}, few, 16, tmp_path)


def test_wide_slices_hold_seventy_percent_of_the_largest_brain_and_nothing_else():
    brain = np.zeros((3, 10, 10), bool)
    for number, rows in enumerate((10, 7, 6)):
        brain[number, :rows] = True
    found = known_rule.wide_slices(np.ones((3, 10, 10, 3), np.float16), brain)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found.any(-1), brain[:2])
