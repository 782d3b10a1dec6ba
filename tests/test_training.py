"""Training: it learns, repeats and resumes bit for bit, starts again from a damaged backup, stops when it should."""

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from repository import ROOT
from shared_cases import refused

from mslib.nets import SliceSet, build_classifier, build_trainable, gather, save_half
from mslib.nets.data import balanced_draw, predict
from mslib.nets.heads import Head, fit_head, fold_logits
from mslib.nets.protocols import cached, fine_tune, split_network, start_network
from mslib.nets.train import History, Recipe, _stopped, fit, learning_rates, refresh_batch_norm
from mslib.nets.vgg import fold_batch_norm
from mslib.study import StudyError, write_json
from mslib.study.config import Augmentation
from mslib.study.provenance import file_sha256

GROUPS = ["control", "RRMS", "SPMS"]
MILD = Augmentation(rotation_deg=5, translation=0.05, scale=0.05, gain=0.05, gamma=0.05)
RECIPE = Recipe(epochs=4, slices_per_subject=6, learning_rate=0.01, batch_size=8, weight_decay=1e-4, patience=9, seed=5,
                augmentation=MILD)


def make_slices(per_group=4, n=8, size=16, seed=0):
    """Each class is bright in a channel of its own: trivially separable."""
    rng = np.random.default_rng(seed)
    stacks, groups = {}, {}
    for number, group in enumerate(GROUPS):
        for i in range(per_group):
            images = rng.uniform(0, 0.4, (n, size, size, 3))
            images[..., number] += 0.4
            stacks[f"{group}{i}"], groups[f"{group}{i}"] = images.astype("float16"), group
    return gather(stacks, pd.Series(groups), GROUPS)


@functools.cache
def built():
    """A small network, built once so that trainings of one recipe, if in turn, are traced once; its first weights."""
    keras.utils.set_random_seed(4)
    inputs = x = keras.Input((16, 16, 3), name="image")
    for number, filters in enumerate((8, 8)):
        x = keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        x = keras.layers.BatchNormalization(momentum=0.85, name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled), name="small")
    return model, model.get_weights()


def small_net():
    """That network as it was first."""
    model, weights = built()
    model.set_weights(weights)
    return model


@pytest.fixture(scope="module", autouse=True)
def few_graphs():
    yield
    built.cache_clear()
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def slices():
    return make_slices()


@pytest.fixture(scope="module")
def parts(slices):
    last = slices.table["subject"].str.endswith("3").to_numpy()
    return np.flatnonzero(~last), np.flatnonzero(last)


@pytest.fixture(scope="module")
def whole(slices, parts, tmp_path_factory):
    """An uninterrupted training: history, weights, folder."""
    model, folder = small_net(), tmp_path_factory.mktemp("whole")
    history = fit(model, slices, *parts, RECIPE, folder)
    return history, model.get_weights(), folder


@pytest.fixture(scope="module")
def stopped(slices, parts, tmp_path_factory):
    """Folder of a training that was stopped after two epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mslib.nets.train._stopped", lambda rows, _: len(rows) == 2)
        fit(small_net(), slices, *parts, RECIPE, folder)
    return folder


@pytest.fixture
def broken_off(stopped, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "net")


def same(model, history, whole):
    """Bit for bit."""
    pd.testing.assert_frame_equal(history, whole[0], check_exact=True)
    for found, expected in zip(model.get_weights(), whole[1], strict=True):
        np.testing.assert_array_equal(found, expected)


def best_accuracy(model, slices, rows, history):
    """Accuracy of the best epoch, after the check that loss and accuracy in the history are those of the network."""
    logits, best = predict(model, slices, rows=rows), history.loc[history["val_loss"].idxmin()]
    target = slices.table["target"].to_numpy()[rows]
    loss = keras.losses.sparse_categorical_crossentropy(target, logits, from_logits=True)
    assert np.mean(loss) == pytest.approx(best["val_loss"], rel=1e-4)
    assert (logits.argmax(1) == target).mean() == pytest.approx(best["val_accuracy"])
    return best["val_accuracy"]


def test_it_learns(slices, parts, whole):
    history, weights, _ = whole
    assert history["epoch"].tolist() == [1, 2, 3, 4] and set(history["steps"]) == {6}
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    model = small_net()
    model.set_weights(weights)
    assert best_accuracy(model, slices, parts[1], history) > 0.9


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    schedule = learning_rates(0.2, 50)
    rates = np.array([float(schedule(step)) for step in range(50)])
    assert rates[0] == pytest.approx(0.01) and rates[5] == rates.max() == pytest.approx(0.2)
    assert (np.diff(rates[:6]) > 0).all() and (np.diff(rates[5:]) < 0).all()
    assert rates[5 + 45 // 2] == pytest.approx(0.2 * (0.01 + 0.99 * (1 + np.cos(np.pi * 22 / 45)) / 2), rel=1e-5)


def test_a_training_goes_on_where_history_and_best_weights_are_ahead_of_the_backup(slices, parts, whole, tmp_path,
                                                                                   monkeypatch):
    save = keras.callbacks.BackupAndRestore.on_epoch_end

    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        save(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.BackupAndRestore, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(small_net(), slices, *parts, RECIPE, tmp_path)
    epochs, begin = [], History.on_epoch_begin
    monkeypatch.setattr(History, "on_epoch_begin", lambda self, epoch, logs: epochs.append(epoch) or begin(self, epoch))
    model = small_net()
    same(model, fit(model, slices, *parts, RECIPE, tmp_path), whole)
    assert epochs == [1, 2, 3], "only what was unfinished is trained"


SUMS = """
import pathlib, sys
import tensorflow as tf
from mslib.nets.train import add_in_order
graphs = pathlib.Path(sys.argv[1])
for moment in ("before", "after"):
    tf.function(lambda x: tf.add_n([2 * x, tf.sin(x), tf.cos(x)]))(tf.ones((64, 128, 128, 16)))
    (graphs / moment).mkdir()
    for path in graphs.glob("*MetaOptimizer*"):
        path.rename(graphs / moment / path.name)
    add_in_order()
"""


def test_sums_of_three_are_not_made_in_the_order_of_arrival(whole, tmp_path):
    """What TensorFlow makes of a sum is read from the graph that it runs (a network shows it once in many steps)."""
    dumped = os.environ | {"TF_DUMP_GRAPH_PREFIX": str(tmp_path), "TF_CPP_VMODULE": "meta_optimizer=1",
                           "TF_CPP_MIN_LOG_LEVEL": "0"}
    subprocess.run([sys.executable, "-c", SUMS, str(tmp_path)], env=dumped, cwd=ROOT, capture_output=True, check=True)
    reordered = [any("TemporaryVariable" in path.read_text(encoding="utf-8")
                     for path in (tmp_path / moment).glob("after_MetaOptimizer*")) for moment in ("before", "after")]
    assert reordered == [True, False]
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"], "since the first training"


def test_a_finished_training_is_not_repeated(slices, parts, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[2], tmp_path / "net")
    monkeypatch.setattr(History, "on_epoch_begin", None)
    model = small_net()
    same(model, fit(model, slices, *parts, RECIPE, tmp_path / "net"), whole)


def named_as_damaged(folder, text):
    lines = [line for line in text.splitlines() if "damaged backup" in line]
    return len(lines) == 1 and lines[0].startswith(f"net: damaged backup in {folder}") and lines[0].endswith(
        "this training starts again")


def cut(state):
    state.write_bytes(state.read_bytes()[:-2000])


def all_cut(backup):
    for state in backup.glob("*.weights.h5*"):
        cut(state)


def behind(backup):
    """A kill between two files: weights of two epochs, number of one; the steps of the optimizer decide."""
    (backup / "training_metadata.json").write_text(json.dumps({"epoch": 1, "batch": 0}))


@pytest.mark.parametrize("damage", [behind, all_cut])
def test_a_damaged_backup_is_gone_on_from_or_started_again(slices, parts, whole, broken_off, capsys, damage):
    """Bit for bit, though the network is the one whose backup was damaged, which was trained before."""
    damage(broken_off / "backup")
    model = small_net()
    same(model, fit(model, slices, *parts, RECIPE, broken_off, "net"), whole)
    lines = capsys.readouterr().err
    assert named_as_damaged(broken_off, lines) == (damage is all_cut)
    assert ("net: goes on after epoch 2 of 4\n" in lines) == (damage is behind)


def begins(slices, parts, folder):
    """Epoch at which a training in the folder would go on, and the steps behind it."""
    def begin(self, epoch, logs=None):
        raise KeyboardInterrupt(epoch, int(self.model.optimizer.iterations))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(History, "on_epoch_begin", begin)
        fit(small_net(), slices, *parts, RECIPE, folder, "net")
    return caught.value.args


@pytest.mark.parametrize("damage,begin", [
    (lambda folder: (folder / "history.csv").unlink(), (0, 0)),
    (lambda folder: (folder / "best.weights.h5").unlink(), (0, 0)),
    (lambda folder: cut(folder / "backup" / "latest.weights.h5"), (1, 6))])  # a kill while Keras writes: the one before
def test_a_backup_needs_its_other_files_and_one_of_two_is_enough(slices, parts, broken_off, capsys, damage, begin):
    damage(broken_off)
    assert begins(slices, parts, broken_off) == begin
    assert named_as_damaged(broken_off, capsys.readouterr().err) == (begin == (0, 0))


def test_a_loss_that_is_not_a_number(slices, parts, tmp_path):
    broken = SliceSet(np.full_like(slices.images, np.nan), slices.table)
    with refused("net: the loss of epoch 1 is nan; lower training learning_rate", error=StudyError):
        fit(small_net(), broken, *parts, RECIPE, tmp_path, "net")
    assert not (tmp_path / "backup").exists() and not (tmp_path / "history.csv").exists()


def test_refreshing_changes_moving_statistics_alone(slices, parts, monkeypatch):
    monkeypatch.setattr("mslib.nets.train.REFRESH_BATCHES", 80)
    model = small_net()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    moving = {id(w) for layer in norms for w in (layer.moving_mean, layer.moving_variance)}
    before = [np.array(w) for w in model.weights]
    refresh_batch_norm(model, slices, parts[0], RECIPE)
    for weight, old in zip(model.weights, before):
        assert np.array_equal(weight, old) == (id(weight) not in moving), weight.path
    first = keras.Model(model.input, model.layers[1].output)(slices.batch(parts[0])).numpy()
    np.testing.assert_allclose(norms[0].moving_mean, first.mean((0, 1, 2)), atol=0.05 * first.std())
    np.testing.assert_allclose(norms[0].moving_variance, first.var((0, 1, 2)), rtol=0.1, atol=1e-4)


def test_the_best_epoch_is_kept_and_waiting_ends(slices, parts, tmp_path, monkeypatch):
    losses, seen, end = iter([0.9, 0.5, 0.7, 0.1]), [], History.on_epoch_end

    def prescribed(self, epoch, logs):
        logs["val_loss"] = next(losses)
        seen.append([layer.get_weights() for layer in self.model.layers])
        end(self, epoch, logs)

    monkeypatch.setattr(History, "on_epoch_end", prescribed)
    model = small_net()
    history = fit(model, slices, *parts, replace(RECIPE, patience=1), tmp_path)
    assert history["val_loss"].tolist() == [0.9, 0.5, 0.7]
    rows = [{"val_loss": loss} for loss in (0.9, 0.5, 0.7, 0.6, 0.8)]
    assert [_stopped(rows[:n], 2) for n in range(6)] == [False] * 4 + [True] * 2
    for layer, expected in zip(model.layers, seen[1], strict=True):
        for found, wanted in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_an_epoch_gives_means_over_its_batches_and_refreshed_statistics(slices, parts, tmp_path):
    """With steps too small to change the network, so that the loss of each batch can be computed afterwards."""
    model = small_net()
    history = fit(model, slices, *parts, replace(RECIPE, epochs=1, learning_rate=1e-12, augmentation=None), tmp_path)
    targets = slices.table["target"].to_numpy()
    order = balanced_draw(targets, parts[0], 6 * 9, np.random.default_rng([5, 0]))
    logits = [model(slices.batch(order[i:i + 8]), training=True).numpy() for i in range(0, 48, 8)]
    losses = keras.losses.sparse_categorical_crossentropy(targets[order[:48]], np.concatenate(logits), from_logits=True)
    assert history["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    right = np.concatenate(logits).argmax(1) == targets[order[:48]]
    assert history["accuracy"].item() == pytest.approx(right.mean())
    first = keras.Model(model.input, model.layers[1].output)(slices.batch(parts[0])).numpy()
    assert 0.85**6 > 0.3, "after the six steps of the epoch alone much of the variance at the start would be left"
    variance = first.var((0, 1, 2))
    assert (np.abs(np.array(model.layers[2].moving_variance) - variance) < 0.1 * (1 - variance)).all()


def with_areas(slices):
    """Every slice gets a brighter band; areas are its share of the slice, and half of that."""
    rows, images = np.random.default_rng(1).integers(0, 13, len(slices.table)), slices.images.copy()
    for image, n in zip(images, rows):
        image[:n] += np.float16(0.2)
    return SliceSet(images, slices.table, np.stack([rows / 12, rows / 24], 1).astype("float32"))


def test_areas_are_learned_as_much_as_they_weigh_and_the_class_beside_them(slices, parts, tmp_path):
    """The history is of the class."""
    truth, held, errors = with_areas(slices), with_areas(slices).areas[parts[1]], []
    for weight in (0.01, 10.0):
        net = small_net()
        areas = keras.layers.Dense(2, name="areas")(net.get_layer("gap").output)
        model = keras.Model(net.input, [net.output, areas])
        recipe = replace(RECIPE, epochs=4, slices_per_subject=12, area_weight=weight)
        history = fit(model, truth, *parts, recipe, tmp_path / str(weight))
        found = predict(keras.Model(net.input, areas), truth, rows=parts[1])
        errors.append(np.square(found - held).mean())
    assert errors[1] < 0.5 * errors[0] and np.corrcoef(found[:, 0], held[:, 0])[0, 1] > 0.8
    assert best_accuracy(net, truth, parts[1], history) > 0.8, "the class is learned beside"


QUICK = replace(RECIPE, epochs=2, slices_per_subject=4, learning_rate=1e-3, batch_size=12, augmentation=None)
SHAPE = (32, 32, 3)


@pytest.mark.parametrize("build,blocks", [(lambda: build_trainable("vgg16", 3, SHAPE, "float32"), 4),
                                          (lambda: build_classifier("vgg19", 3, SHAPE), 1)])
def test_a_network_is_its_lower_and_upper_part(build, blocks, shallow):
    model, images = build(), np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    lower, upper = split_network(model, blocks)
    np.testing.assert_array_equal(upper(lower(images)), model(images))
    assert not {layer.name for layer in upper.layers} & {f"block{b}_conv1" for b in range(1, blocks + 1)}
    assert upper.get_layer(f"block{blocks + 1}_conv1") is model.get_layer(f"block{blocks + 1}_conv1")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_above_frozen_blocks_the_rest_learns_from_a_fitted_last_layer(tmp_path, shallow, precision):
    """Given weights are those of a shipped file; what is predicted from activations is what the network says."""
    slices, start = make_slices(n=4, size=32), build_classifier("vgg16", 3, SHAPE)
    file = tmp_path / "vgg16_simulated.h5"
    save_half(file, start, [layer.name for layer in start.layers if layer.weights], GROUPS)
    write_json(file.with_suffix(".json"), {"sha256": file_sha256(file)})
    model = start_network("vgg16", GROUPS, SHAPE, "simulated", precision, file)
    before = fold_batch_norm(model)
    activations, features = cached(model, [4], slices, [0, 0, 0], "cache")
    activations = activations[4]
    assert activations.dtype == np.float16 and activations.shape == (48, 2, 2, 512) and features.shape == (48, 512)
    parts = slices.table["subject"].str[-1].map({"0": "train", "1": "train", "2": "validation", "3": "test"})
    above = SliceSet(activations, slices.table)
    after, history = fine_tune(model, 4, above, parts, QUICK, tmp_path / "net", "net", features)
    assert not [layer for layer in after.layers if isinstance(layer, keras.layers.BatchNormalization)]
    upper = split_network(after, 4)[1]
    logits = predict(upper, above)
    if precision == "float32":
        best_accuracy(upper, above, np.flatnonzero(parts == "validation"), history)
    for layer in before.layers:
        if layer.weights and layer.name[:6] in ("block1", "block2", "block3", "block4"):
            np.testing.assert_array_equal(layer.get_weights()[0], after.get_layer(layer.name).get_weights()[0])
    moved = [np.abs(before.get_layer(name).get_weights()[0] - after.get_layer(name).get_weights()[0]).max()
             for name in ("block5_conv1", "logits")]
    assert min(moved) > 1e-4
    expected = after(slices.batch(np.arange(48), [0, 0, 0])).numpy()
    tolerance = 2e-3 if precision == "float32" else 0.05
    np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(expected).max())


def blobs(subjects=20, n=6, identity=0.0, seed=0):
    """Features of slices: the class in one column, the subject in the others (as strong as `identity`)."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"subject": np.repeat([f"{i:02d}" for i in range(subjects)], n)})
    table["target"] = table["subject"].astype(int) % 2
    table["group"] = table["target"].map({0: "control", 1: "RRMS"})
    features = rng.normal(0, 1, (len(table), 40)).astype("float32")
    features += identity * np.repeat(rng.normal(0, 1, (subjects, 40)), n, 0)
    return features, table


def test_a_head_is_the_best_on_the_validation_part():
    features, table = blobs()
    target = table["target"].to_numpy()
    features[:, 0] = 1000 + 50 * (8 * target + np.random.default_rng(1).normal(0, 1, len(target)))
    rows = [np.flatnonzero(np.arange(len(target)) % 3 == part) for part in range(3)]
    head = fit_head(features, target, *rows[:2])
    assert (head.logits(features[rows[2]]).argmax(1) == target[rows[2]]).mean() > 0.85
    perfect = Head(np.stack([-60.0 * target, 60.0 * target], 1), np.array([30.0, -30.0]))
    assert fit_head(np.eye(len(target)), target, *rows[:2], [perfect]) is perfect


def test_folds_do_not_know_the_tested_subject():
    """Subjects are told apart by their features, which say nothing of their class: slices leak, folds do not."""
    found = []
    for seed in range(8):
        features, table = blobs(40, identity=5.0, seed=seed)
        target, every = table["target"].to_numpy(), np.arange(len(table))
        leaking = fit_head(features, target, every[every % 3 == 0], every[every % 3 == 1]).logits(features)
        assert (leaking.argmax(1) == target)[every % 3 == 2].mean() > 0.9
        found.append((fold_logits(features, table, 5, 0).argmax(1) == target).mean())
    assert 0.4 < np.mean(found) < 0.6
    features[:, 0] += 40 * table["target"]
    assert (fold_logits(features, table, 5, 0).argmax(1) == table["target"]).mean() > 0.9
