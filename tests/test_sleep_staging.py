"""The staging network and its folds: shape, learning, no leak, resumed as unbroken, scores."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from mslib import sleep
from mslib.sleep import STAGES, EpochSet, Fold, make_folds, staging
from mslib.sleep.staging import build_stager, class_weights, fit_fold, fit_stager, prediction_table

SUBJECTS = [f"s{number}" for number in range(6)]
FOLDS = make_folds(SUBJECTS, 3)
TINY = {"per_recording": None, "passes": 4, "pool": 2, "batch_size": 8, "patience": 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """Six subjects, one night each: W is fast, N3 is slow; both in the first channel only."""
    folder = tmp_path_factory.mktemp("store")
    rng, tables = np.random.default_rng(0), []
    time = np.arange(120) / 20
    for subject in SUBJECTS:
        stages = rng.permutation([0] * 12 + [3] * 12)
        signals = rng.normal(0, 0.3, (24, 120, 2))
        phase = rng.random((24, 1))
        signals[..., 0] += np.sin(2 * np.pi * (np.where(stages == 0, 5.0, 0.7)[:, None] * time + phase))
        np.save(folder / f"{subject}n1.npy", signals.astype(np.float16))
        tables.append(pd.DataFrame({"recording": f"{subject}n1", "subject": subject, "onset": 30.0 * np.arange(24),
                                    "stage": stages, "row": np.arange(24)}))
    return EpochSet(folder, pd.concat(tables, ignore_index=True))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Folder of `fitted` as a kill before the third pass would leave it."""
    return tmp_path_factory.mktemp("cut")


@pytest.fixture(scope="module")
def fitted(epochs, cut, tmp_path_factory):
    """Network and history of the first fold, trained in one go."""
    folder = tmp_path_factory.mktemp("unbroken")

    class Passes(staging._Passes):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                shutil.copytree(folder, cut, dirs_exist_ok=True)
            super().on_epoch_begin(epoch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "_Passes", Passes)
        return fit_fold(epochs, FOLDS[0], folder, **TINY)


def test_network_is_the_published_one():
    model = build_stager()
    convolutions = [(layer.filters, layer.kernel_size[0]) for layer in model.layers
                    if isinstance(layer, keras.layers.Conv1D)]
    assert convolutions == [(16, 5), (16, 5), (32, 3), (32, 3), (32, 3), (32, 3), (256, 3), (256, 3)]
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [64, 64, 5]
    assert [layer.pool_size for layer in model.layers if isinstance(layer, keras.layers.MaxPooling1D)] == [(2,)] * 3
    assert model.count_params() == 255_061 and model.input_shape == (None, 3000, 3)
    assert model.layers[-1].activation is keras.activations.linear
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    with pytest.raises(ValueError, match="pool: 8 leaves nothing of 100 samples"):
        build_stager(100, pool=8)


def test_class_weights_balance():
    stages = np.array([0] * 6 + [2] * 3 + [4])
    weights = class_weights(stages)
    assert weights[[1, 3]].tolist() == [0, 0]
    totals = np.bincount(stages, weights[stages])
    np.testing.assert_allclose(totals[[0, 2, 4]], 10 / 3)


def test_patience_counts_passes_since_the_lowest_loss():
    rows = [{"val_loss": loss} for loss in (3, 2, 2, 2.5)]
    assert [staging._stopped(rows[:n], 2) for n in range(5)] == [False, False, False, False, True]


def test_a_loss_that_is_no_number_is_told(tmp_path):
    passes = staging._Passes(tmp_path / "history.csv", [], None, 4, 0)
    passes.set_model(staging._compiled(build_stager(120, 2), 0.25))
    with pytest.raises(ValueError, match=r"loss of pass 3 is no number; allowed: a lower learning_rate than 0.25"):
        passes.on_epoch_end(2, {"loss": 1.0, "accuracy": 0.5, "val_loss": np.nan, "val_accuracy": 0.5})


def test_training_keeps_the_lowest_validation_loss(epochs, fitted, cut, tmp_path):
    """Two passes of which the first was the better one; nothing is left to train."""
    model, history = fit_fold(epochs, FOLDS[0], shutil.copytree(cut, tmp_path / "cut"), **TINY | {"passes": 2})
    assert history["pass"].tolist() == [1, 2] and history["val_loss"].idxmin() == 0
    subjects, stages = epochs.table["subject"], epochs.table["stage"].to_numpy()
    train, validation = (np.flatnonzero(subjects.isin(part)) for part in (FOLDS[0].train, FOLDS[0].validation))
    weights = class_weights(stages[train])[stages[validation]]
    losses = keras.losses.sparse_categorical_crossentropy(
        stages[validation], model(epochs.batch(validation)), from_logits=True).numpy()
    # Keras divides the weighted sum of a batch by its size, and weighs batches by their size.
    assert (weights * losses).mean() == pytest.approx(history["val_loss"].min(), rel=1e-3)
    with pytest.raises(ValueError, match=r"needs epochs to train on and to validate with \(got 0 and 48\)"):
        fit_stager(model, epochs, [], validation, tmp_path, passes=1)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_training_cut_short_ends_as_an_unbroken_one(epochs, fitted, cut, tmp_path, capsys, damaged):
    folder = shutil.copytree(cut, tmp_path / "cut")
    if damaged:
        for path in (folder / "backup").glob("*.h5*"):
            path.write_bytes(b"damaged")
    else:  # as a kill may leave them: the backup's number behind its weights, the history ahead of both
        (folder / "backup" / "training_metadata.json").write_text(json.dumps({"epoch": 1, "batch": 0}))
        rows = (folder / "history.csv").read_text()
        (folder / "history.csv").write_text(rows + "3" + rows.splitlines()[-1][1:] + "\n")
    model, history = fit_fold(epochs, FOLDS[0], folder, **TINY)
    assert capsys.readouterr().err.count("damaged backup") == damaged
    pd.testing.assert_frame_equal(history, fitted[1], check_exact=True)
    for one, other in zip(model.get_weights(), fitted[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("n", "n_folds"), [(22, 10), (22, 5), (3, 3)])
def test_folds_share_nobody(n, n_folds):
    subjects = [f"s{number:02d}" for number in range(n)]
    folds = make_folds(subjects * 2, n_folds, seed=1)
    assert sorted(subject for fold in folds for subject in fold.test) == subjects
    assert sorted(subject for fold in folds for subject in fold.validation) == subjects
    for fold in folds:
        sleep.refuse_leak(fold)
        assert sorted([*fold.train, *fold.validation, *fold.test]) == subjects
    assert folds == make_folds(reversed(subjects), n_folds, seed=1) != make_folds(subjects, n_folds, seed=2)


@pytest.mark.parametrize(("subjects", "n_folds"), [(["a"], 5), (["a", "b"], 2), (["a", "b", "c"], 2),
                                                   (["a", "b", "c"], 4)])
def test_too_few_subjects(subjects, n_folds):
    with pytest.raises(ValueError, match=f"n_folds: must lie in 3..{len(subjects)}"):
        make_folds(subjects, n_folds)


@pytest.mark.parametrize(("fold", "message"), [
    (Fold(("s0", "s1"), ("s2",), ("s1",)), "subject 's1' is in train and test at once"),
    (Fold(("s0",), ("s2",), ("s2",)), "subject 's2' is in validation and test at once"),
    (Fold(("s0",), ("s0",), ("s2",)), "subject 's0' is in train and validation at once"),
    (Fold(("s0",), ("s1",), ("s7",)), "no recording of subject 's7'")])
def test_leaks_are_refused(epochs, tmp_path, fold, message):
    with pytest.raises(ValueError, match=message):
        fit_fold(epochs, fold, tmp_path, **TINY)
    assert not list(tmp_path.iterdir())


def test_easy_stages_are_learnt_in_people_not_seen(epochs, fitted):
    table = prediction_table(fitted[0], epochs, FOLDS[0].test)
    assert set(table["subject"]) == set(FOLDS[0].test) and len(table) == 48
    assert cohen_kappa_score(table["stage"], table["predicted"]) > 0.9
    logits = table[[f"logit_{stage}" for stage in STAGES]].to_numpy()
    np.testing.assert_array_equal(logits.argmax(1), table["predicted"])
    np.testing.assert_allclose(fitted[0](epochs.batch(table["epoch"])), logits, atol=1e-5)
    pd.testing.assert_frame_equal(prediction_table(fitted[0], epochs, FOLDS[0].test, batch_size=7), table, rtol=1e-4,
                                  atol=1e-5)


def test_scores_by_hand():
    stages, predicted = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]
    found = sleep.score(stages, predicted).set_index(["measure", "stage"])["value"]
    assert found["precision", "W"] == 0.5 and found["recall", "N2"] == pytest.approx(2 / 3)
    assert found["f1", "N1"] == pytest.approx(2 / 3) and found["accuracy", "all"] == pytest.approx(4 / 6)
    assert found["kappa", "all"] == pytest.approx((4 / 6 - 12 / 36) / (1 - 12 / 36))
    assert found["kappa", "all"] == pytest.approx(cohen_kappa_score(stages, predicted))
    assert found["macro_f1", "all"] == pytest.approx(f1_score(stages, predicted, average="macro"))
    assert np.isnan(found["recall", "N3"]) and np.isnan(found["f1", "REM"])
    for bad in (([], []), ([0], [0, 1]), ([0], [5])):
        with pytest.raises(ValueError, match="stages, predicted: must"):
            sleep.score(*bad)


def test_summary_over_folds():
    predictions = pd.DataFrame({"fold": [0, 0, 1, 1, 2, 2], "stage": [0, 2] * 3, "predicted": [0, 2, 0, 0, 2, 2]})
    scores = sleep.score_folds(predictions)
    row = sleep.summarise(scores).set_index("measure").loc["accuracy"]
    assert row["mean"] == pytest.approx(2 / 3)
    half = 4.302653 * np.std([1, 0.5, 0.5], ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)
    one = sleep.summarise(sleep.score_folds(predictions[predictions["fold"] == 0])).set_index("measure").loc["accuracy"]
    assert one["n_folds"] == 1 and np.isnan(one["low"])
    assert sleep.confusion(predictions).loc["W"].tolist() == [2, 0, 1, 0, 0]
