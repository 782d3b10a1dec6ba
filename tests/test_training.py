"""Training: it learns, resumes as if never stopped, starts again from a damaged state, and stops when it should."""

import keras
import numpy as np
import pandas as pd
import pytest

from mslib.nets import (
    SliceSet,
    choose_precision,
    gather,
    load_net,
    net_facts,
    predict_cohort,
    protocols,
    train_protocol,
    training,
)
from mslib.nets import pretraining as pretraining_module
from mslib.nets.data import balanced_draw
from mslib.nets.frozen import frozen_activations, split_net
from mslib.nets.pretraining import pretrained_weights
from mslib.nets.training import Recipe, fit, refresh_batch_norm, stream
from mslib.nets.vgg import build_classifier, build_trainable
from mslib.nets.workers import Worker
from mslib.study import StudyConfig, StudyError
from mslib.study.config import Augmentation, Schedule

GROUPS = ["control", "RRMS", "SPMS"]
MILD = Augmentation(rotation_deg=5, translation=0.05, scale=0.05, gain=0.05, gamma=0.05)


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


def small_net():
    """All by name: nets of one structure are trained in one compiled copy."""
    keras.utils.set_random_seed(4)
    inputs = x = keras.Input((16, 16, 3), name="image")
    for number, filters in enumerate((8, 8)):
        x = keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        x = keras.layers.BatchNormalization(momentum=0.85, name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled), name="small")


def recipe(**changes):
    schedule = Schedule(epochs=changes.pop("epochs", 4), slices_per_subject=6,
                        learning_rate=changes.pop("learning_rate", 0.01))
    return Recipe(**({"schedule": schedule, "augmentation": MILD, "batch_size": 8, "weight_decay": 1e-4, "patience": 9,
                      "seed": 5} | changes))


@pytest.fixture(scope="module")
def slices():
    return make_slices()


@pytest.fixture(scope="module")
def parts(slices):
    last = slices.table["subject"].str.endswith("3").to_numpy()
    return np.flatnonzero(~last), np.flatnonzero(last)


@pytest.fixture(scope="module")
def whole(slices, parts, tmp_path_factory):
    """An uninterrupted training: history and weights."""
    model = small_net()
    history = fit(model, slices, *parts, tmp_path_factory.mktemp("whole"), recipe())
    return history, model.get_weights()


def same(model, history, whole):
    """float32: sums may be taken in another order, so that equal means 1e-5, not bit for bit."""
    pd.testing.assert_frame_equal(history, whole[0], rtol=1e-5, atol=1e-6)
    for found, expected in zip(model.get_weights(), whole[1]):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_it_learns(slices, parts, whole):
    history, weights = whole
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    model = small_net()
    model.set_weights(weights)
    right = stream(model, slices, parts[1]).argmax(1) == slices.table["target"].to_numpy()[parts[1]]
    assert right.mean() > 0.9
    assert right.mean() == pytest.approx(history.loc[history["val_loss"].idxmin(), "val_accuracy"])


def test_loss_and_accuracy_of_an_epoch_are_means_over_its_batches(slices, parts, tmp_path):
    """With steps too small to change the net, so that the loss of each batch can be computed afterwards."""
    model, still = small_net(), Augmentation(rotation_deg=0, translation=0, scale=0, gain=0, gamma=0)
    history = fit(model, slices, *parts, tmp_path, recipe(epochs=1, learning_rate=1e-12, augmentation=still))
    targets = slices.table["target"].to_numpy()
    order = balanced_draw(targets, parts[0], 6 * 9, np.random.default_rng([5, 0]))
    logits = [model(slices.batch(order[i:i + 8]), training=True).numpy() for i in range(0, 48, 8)]
    losses = keras.losses.sparse_categorical_crossentropy(targets[order[:48]], np.concatenate(logits), from_logits=True)
    assert history["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    right = np.concatenate(logits).argmax(1) == targets[order[:48]]
    assert history["accuracy"].item() == pytest.approx(right.mean())


@pytest.mark.parametrize("where,call", [("_evaluate", 3), ("_run_epoch", 2), ("_save_state", 2), ("write_table", 2)])
def test_a_killed_training_goes_on_as_if_never_stopped(slices, parts, whole, tmp_path, monkeypatch, where, call):
    original, calls = getattr(training, where), []

    def killed(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, where, killed)
        with pytest.raises(KeyboardInterrupt):
            fit(small_net(), slices, *parts, tmp_path, recipe())
    epochs = []
    run = training._run_epoch
    monkeypatch.setattr(training, "_run_epoch", lambda *args: epochs.append(args[5]) or run(*args))
    model = small_net()
    same(model, fit(model, slices, *parts, tmp_path, recipe()), whole)
    assert epochs == list(range(call - 1, 4)), "only what was unfinished is trained"


def test_a_finished_training_is_taken_up(slices, parts, whole, tmp_path, monkeypatch):
    fit(small_net(), slices, *parts, tmp_path, recipe())
    monkeypatch.setattr(training, "_run_epoch", None)
    model = small_net()
    same(model, fit(model, slices, *parts, tmp_path, recipe()), whole)


@pytest.mark.parametrize("damage", ["cut", "text", "foreign"])
def test_a_damaged_state_is_named(slices, parts, whole, tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(training, "_stopped", lambda history, _: len(history) == 2)
    fit(small_net(), slices, *parts, tmp_path, recipe())
    state = tmp_path / "state.npz"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-2000])
    elif damage == "text":
        state.write_text("no state")
    else:
        np.savez(state, weight_000=np.zeros(3), slot_000=np.array(4))
    monkeypatch.undo()
    capsys.readouterr()
    model = small_net()
    history = fit(model, slices, *parts, tmp_path, recipe())
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged state" in line]
    assert len(told) == 1 and str(state) in told[0] and "starts again" in told[0]
    same(model, history, whole)


def test_the_best_epoch_is_kept_and_waiting_ends(slices, parts, tmp_path, monkeypatch):
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.8, 0.1])
    kept = []

    def evaluate(model, *_):
        kept.append(model.get_weights())
        return next(losses), 0.5

    monkeypatch.setattr(training, "_evaluate", evaluate)
    model = small_net()
    history = fit(model, slices, *parts, tmp_path, recipe(epochs=6, patience=2))
    assert history["val_loss"].tolist() == [0.9, 0.5, 0.7, 0.6]
    for found, expected in zip(model.get_weights(), kept[1]):
        np.testing.assert_array_equal(found, expected)


def test_a_loss_that_is_no_number(slices, parts, tmp_path):
    broken = SliceSet(np.full_like(slices.images, np.nan), slices.table)
    with pytest.raises(StudyError, match=r"net: the loss of epoch 1 is nan; lower training learning_rate"):
        fit(small_net(), broken, *parts, tmp_path, recipe(), "net")
    assert not (tmp_path / "state.npz").exists()


def test_too_few_slices(slices, parts, tmp_path):
    none = np.array([], int)
    for train, validation, size, words in ((none, parts[1], 8, "got 0 and"), (parts[0], none, 8, "and 0"),
                                           (parts[0], parts[1], 999, "fewer than training.batch_size 999")):
        with pytest.raises(StudyError, match=words) as caught:
            fit(small_net(), slices, train, validation, tmp_path, recipe(batch_size=size))
        assert len(str(caught.value).splitlines()) == 1


def test_refreshing_changes_moving_statistics_alone(slices, parts):
    model = small_net()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    moving = {id(w) for layer in norms for w in (layer.moving_mean, layer.moving_variance)}
    before = [np.array(w) for w in model.weights]
    refresh_batch_norm(Worker(model, 1e-4), slices, parts[0], recipe(), n_batches=80)
    for weight, old in zip(model.weights, before):
        assert np.array_equal(weight, old) == (id(weight) not in moving), weight.path
    first = keras.Model(model.input, model.layers[1].output)(slices.batch(parts[0])).numpy()
    np.testing.assert_allclose(norms[0].moving_mean, first.mean((0, 1, 2)), atol=0.05 * first.std())
    np.testing.assert_allclose(norms[0].moving_variance, first.var((0, 1, 2)), rtol=0.1, atol=1e-4)


def test_prediction_does_not_depend_on_the_batch(slices):
    model, index = small_net(), np.arange(0, len(slices.table), 3)
    at_once = stream(model, slices, index)
    np.testing.assert_allclose(stream(model, slices, index, batch_size=5), at_once, rtol=1e-5, atol=1e-6)
    assert at_once.dtype == "float32" and at_once.shape == (len(index), 3)


# Known facts beside the class


def facts_head():
    keras.utils.set_random_seed(8)
    return keras.layers.Dense(2, name="facts")


def with_facts(slices, shuffled=False, seed=1):
    """Every slice gets a brighter band; facts are its share of the slice, and half of that."""
    rng = np.random.default_rng(seed)
    rows, images = rng.integers(0, 13, len(slices.table)), slices.images.copy()
    for image, n in zip(images, rows):
        image[:n] += np.float16(0.2)
    facts = np.stack([rows / 12, rows / 24], 1).astype("float32")
    return SliceSet(images, slices.table, rng.permutation(facts) if shuffled else facts)


@pytest.fixture(scope="module")
def of_facts(slices, parts, tmp_path_factory):
    """A training with facts: history, net, head, folder."""
    model, head, folder = small_net(), facts_head(), tmp_path_factory.mktemp("facts")
    return fit(model, with_facts(slices), *parts, folder, recipe(epochs=8), facts_head=head), model, head, folder


def told_facts(model, head, slices, index):
    return keras.Model(model.input, head(model.get_layer("gap").output))(slices.batch(index), training=False).numpy()


def test_a_planted_fact_is_learned(slices, parts, tmp_path, of_facts):
    history, model, head, _ = of_facts
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    known, shuffled = with_facts(slices).facts[parts[1], 0], with_facts(slices, shuffled=True)
    assert np.corrcoef(told_facts(model, head, with_facts(slices), parts[1])[:, 0], known)[0, 1] > 0.8
    ignorant, head = small_net(), facts_head()
    fit(ignorant, shuffled, *parts, tmp_path, recipe(epochs=8), facts_head=head)
    assert np.corrcoef(told_facts(ignorant, head, shuffled, parts[1])[:, 0], known)[0, 1] < 0.5


def test_the_weight_of_facts_decides_how_well_they_are_learned(slices, parts, tmp_path):
    known, errors = with_facts(slices), []
    for weight in (0.01, 10.0):
        model, head = small_net(), facts_head()
        fit(model, known, *parts, tmp_path / str(weight), recipe(facts_weight=weight), facts_head=head)
        errors.append(np.square(told_facts(model, head, known, parts[0]) - known.facts[parts[0]]).mean())
    assert errors[1] < 0.5 * errors[0]


def test_the_net_itself_keeps_one_output(slices, parts, of_facts):
    history, model, head, folder = of_facts
    assert len(model.outputs) == 1 and model.output.shape == (None, 3)
    assert [w.shape for w in model.get_weights()] == [w.shape for w in small_net().get_weights()]
    with np.load(folder / "best.npz") as best, np.load(folder / "state.npz") as state:
        assert len(best) == len(model.get_weights())
        assert sum(name.startswith("weight_") for name in state) == len(best) + len(head.weights)
    right = stream(model, with_facts(slices), parts[1]).argmax(1)
    right = right == slices.table["target"].to_numpy()[parts[1]]
    assert right.mean() == pytest.approx(history.loc[history["val_loss"].idxmin(), "val_accuracy"])
    assert right.mean() > 0.8, "the class is learned beside"


def test_a_killed_training_with_facts_goes_on(slices, parts, of_facts, tmp_path, monkeypatch):
    original, calls = training._run_epoch, []

    def killed(*args):
        calls.append(args[5])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(training, "_run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(small_net(), with_facts(slices), *parts, tmp_path, recipe(epochs=8), facts_head=facts_head())
    model = small_net()
    history = fit(model, with_facts(slices), *parts, tmp_path, recipe(epochs=8), facts_head=facts_head())
    assert calls == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    same(model, history, (of_facts[0], of_facts[1].get_weights()))


def test_precision():
    assert [choose_precision(wish) for wish in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert choose_precision("auto") in ("float32", "bfloat16")


def study(**training_changes):
    one = {"epochs": 1, "slices_per_subject": 4, "learning_rate": 1e-3}
    return StudyConfig(study="test", model={"image_size": (32, 32)}, training={
        "batch_size": 12, "precision": "float32", "subject": one, "slice": one, "permuted": one} | training_changes)


def test_a_protocol_from_slices_to_a_plain_net(tmp_path, monkeypatch, shallow):
    slices, config = make_slices(n=4, size=32), study()
    table = train_protocol("subject", "vgg16", slices, config, tmp_path)
    assert set(table["part"]) == {"validation", "test"} and len(table) == 3 * 2 * 4
    assert table.groupby("subject")["part"].nunique().max() == 1
    folder = tmp_path / "nets" / "vgg16" / "subject"
    assert {path.name for path in folder.iterdir()} == {"stamp.json", "weights.weights.h5", "history.csv",
                                                        "predictions.csv", "net.json"}
    model = load_net(tmp_path, "vgg16", config)
    assert not [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    again = predict_cohort(model, slices, config).merge(table, on=["subject", "slice"], suffixes=("", "_kept"))
    for group in GROUPS:
        np.testing.assert_allclose(again[f"logit_{group}"], again[f"logit_{group}_kept"], atol=1e-4)
    assert net_facts(tmp_path, "vgg16", "subject")["weights"] == "trained from scratch"
    monkeypatch.setattr(protocols, "fit", None)
    pd.testing.assert_frame_equal(train_protocol("subject", "vgg16", slices, config, tmp_path), table)


def test_permuted_labels_go_with_the_subject(tmp_path, monkeypatch):
    seen = {}

    def no_training(model, slices, train, validation, *_):
        seen.update(table=slices.table, train=train, validation=validation)

    monkeypatch.setattr(protocols, "fit", no_training)
    slices = make_slices(n=4, size=32)
    table = train_protocol("slice_permuted", "vgg16", slices, study(), tmp_path)
    assert seen["table"].groupby("subject")["target"].nunique().max() == 1
    assert (seen["table"]["target"] != slices.table["target"]).any()
    assert seen["table"]["group"].value_counts().to_dict() == slices.table["group"].value_counts().to_dict()
    assert not set(seen["train"]) & set(seen["validation"])
    merged = table.merge(seen["table"], on=["subject", "slice"])
    assert (merged["target_x"] == merged["target_y"]).all(), "tested with the labels that it was trained with"


# Frozen blocks


@pytest.mark.parametrize("build", [lambda: build_trainable("vgg16", 3, (32, 32, 3), "float32"),
                                   lambda: build_classifier("vgg19", 3, (32, 32, 3))])
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_net_is_its_lower_and_upper_part(build, blocks):
    model, images = build(), np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("float32")
    lower, upper = split_net(model, blocks)
    np.testing.assert_array_equal(upper(lower(images)), model(images))
    assert not {layer.name for layer in upper.layers} & {f"block{b}_conv1" for b in range(1, blocks + 1)}
    assert upper.get_layer(f"block{blocks + 1}_conv1") is model.get_layer(f"block{blocks + 1}_conv1")


def test_activations_of_frozen_blocks_are_made_once(tmp_path):
    slices = make_slices(n=4, size=32)
    model = build_trainable("vgg16", 3, (32, 32, 3), "float32")
    lower, _ = split_net(model, 4)
    found = frozen_activations(lower, slices, tmp_path / "frozen")
    expected = lower(slices.batch(np.arange(len(slices.table)))).numpy()
    np.testing.assert_allclose(found.images, expected, rtol=1e-3, atol=1e-4)
    assert found.images.shape == (len(slices.table), 2, 2, 512) and found.table is slices.table
    kept = (tmp_path / "frozen" / "activations.npy").stat().st_mtime_ns
    permuted = SliceSet(slices.images, slices.table.assign(target=0))
    alike = build_trainable("vgg16", 3, (32, 32, 3), "float32")
    alike.set_weights(model.get_weights())
    frozen_activations(split_net(alike, 4)[0], permuted, tmp_path / "frozen")
    assert (tmp_path / "frozen" / "activations.npy").stat().st_mtime_ns == kept, "labels change no activation"
    other = SliceSet(slices.images[:, ::-1], slices.table)
    again = frozen_activations(lower, other, tmp_path / "frozen")
    assert not np.allclose(again.images, found.images, atol=1e-2), "other slices, other activations"


def test_frozen_blocks_stay_as_pretrained_and_the_rest_learns(tmp_path, monkeypatch, shallow):
    start = build_trainable("vgg16", 3, (32, 32, 3), "float32")
    weights = start.get_weights()
    monkeypatch.setattr(protocols, "pretrained_weights", lambda *_: weights)
    slices = make_slices(n=4, size=32)
    one = {"epochs": 2, "slices_per_subject": 4, "learning_rate": 1e-3, "frozen_blocks": 4}
    config = study(pretraining_subjects=9).model_dump() | {"model": {"image_size": (32, 32), "weights": "simulated"}}
    config["training"] |= {"slice": one, "pretraining_pixel_mm": 1.5}
    config = StudyConfig(**config)
    train_protocol("slice", "vgg16", slices, config, tmp_path)
    facts = net_facts(tmp_path, "vgg16", "slice")
    assert facts["frozen_blocks"] == 4 and not facts["augmented"]
    start.set_weights(weights)
    before, after = protocols._finished(start), load_net(tmp_path, "vgg16", config, "slice")
    for layer in before.layers:
        if layer.weights and layer.name[:6] in ("block1", "block2", "block3", "block4"):
            np.testing.assert_array_equal(layer.get_weights()[0], after.get_layer(layer.name).get_weights()[0])
    moved = [np.abs(before.get_layer(name).get_weights()[0] - after.get_layer(name).get_weights()[0]).max()
             for name in ("block5_conv1", "logits")]
    assert min(moved) > 1e-4


# Stages of pre-training


def test_stages_go_on_from_each_other_and_protocols_start_from_their_pixels(tmp_path, monkeypatch, shallow):
    starts, shapes, recipes = [], [], []

    def no_training(model, slices, train, validation, folder, recipe, label, head):
        assert recipe.channels == [2, 2, 2], "pre-training sees what training will see"
        recipes.append(recipe)
        starts.append(model.get_weights())
        shapes.append(slices.images.shape[1:3])
        model.set_weights([weight + 1 for weight in model.get_weights()])
        (folder / "history.csv").write_text("epoch,val_loss\n1,1.0\n")

    monkeypatch.setattr(pretraining_module, "fit", no_training)
    slices = make_slices(n=4, size=64)
    monkeypatch.setattr(pretraining_module, "further_slices", lambda *_: SliceSet(
        slices.images, slices.table, np.zeros((len(slices.table), 2), "float32")))
    stages = [{"shrink": 2}, {"shrink": 2}, {"shrink": 1, "augmented": False, "batch_size": 5}]
    config = StudyConfig(**study(pretraining_subjects=12, pretraining=stages, pretraining_pixel_mm=1.5).model_dump()
                         | {"model": {"image_size": (64, 64), "weights": "simulated", "input": "FLAIR"}})
    fine, coarse = pretrained_weights("vgg16", config, tmp_path), pretrained_weights("vgg16", config, tmp_path, 2)
    assert shapes == [(32, 32), (32, 32), (64, 64)], "finished stages are taken up"
    for one, two, three, last, early in zip(*starts, fine, coarse):
        np.testing.assert_array_equal(two, one + 1)
        np.testing.assert_array_equal(three, two + 1)
        np.testing.assert_array_equal(last, three + 1)
        np.testing.assert_array_equal(early, two + 1, "coarse nets start from coarse stages")
    assert pd.read_csv(tmp_path / "nets" / "vgg16" / "pretraining" / "history.csv")["stage"].tolist() == [1, 2, 3]
    assert len({recipe.seed for recipe in recipes}) == 3, "equal stages draw other slices"
    assert [recipe.augmentation is None for recipe in recipes] == [False, False, True]
    assert [recipe.batch_size for recipe in recipes] == [12, 12, 5]


def test_what_is_not_there(tmp_path):
    with pytest.raises(StudyError, match="protocol: must be one of") as caught:
        train_protocol("subjects", "vgg16", make_slices(3, 1), study(), tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(StudyError, match="no fitted vgg19; run the study that trains it first") as caught:
        load_net(tmp_path / "simulated", "vgg19", study())
    assert "study=simulated" in str(caught.value) and len(str(caught.value).splitlines()) == 1
