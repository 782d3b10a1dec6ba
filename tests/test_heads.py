"""The last layer fitted to subjects: mean slice logits are the logistic regression, known classes come back."""

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mslib.nets import SliceSet, gather, net_facts, predict_cohort, protocols, train_protocol
from mslib.nets.data import channels_of
from mslib.nets.heads import OWN_WEIGHT, PENALTIES, SLICES, fit_subject_head, subject_features
from mslib.nets.pretraining import training_rows
from mslib.nets.repeats import train_repeat
from mslib.nets.training import stream
from mslib.nets.vgg import build_trainable
from mslib.study import StudyConfig, StudyError

GROUPS = ["control", "RRMS", "SPMS"]


def pooled_net(filters=6, classes=3):
    """Channels are pooled as they are: features and logits can be written down by hand."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, filters))
    pooled = keras.layers.GlobalAveragePooling2D(name="gap")(inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(pooled))


def some_slices(per_group=8, slices=5, filters=6, groups=GROUPS):
    """Every slice is mostly noise; the mean over a subject's slices tells the class in channel `number`."""
    rng = np.random.default_rng(4)
    stacks, names = {}, {}
    for number, group in enumerate(groups):
        for i in range(per_group):
            noise = rng.normal(0, 2, (slices, 1, 1, filters))
            images = np.broadcast_to(noise - noise.mean(0), (slices, 8, 8, filters)).copy()
            images[..., number] += 1
            stacks[f"{group}{i}"], names[f"{group}{i}"] = images.astype("float16"), group
    return gather(stacks, pd.Series(names), groups)


def subject_means(table, values):
    return pd.DataFrame(values).groupby(table["subject"].to_numpy()).mean().to_numpy()


def test_features_are_means_over_the_slices_of_a_subject():
    slices, model = some_slices(), pooled_net()
    index = np.flatnonzero(slices.table["subject"] != "RRMS3")
    features, targets = subject_features(model, slices, index)
    expected = slices.images[index].astype("float64").mean((1, 2))
    np.testing.assert_allclose(features, subject_means(slices.table.iloc[index], expected), atol=1e-5)
    assert targets.tolist() == [1] * 7 + [2] * 8 + [0] * 8, "in alphabetical order, as subjects are"


def test_of_many_slices_evenly_spaced_ones_are_averaged():
    slices, model = some_slices(per_group=2, slices=3 * SLICES), pooled_net()
    features, _ = subject_features(model, slices, np.arange(len(slices.table)))
    own = slices.images[: 3 * SLICES].astype("float64").mean((1, 2))
    chosen = np.linspace(0, len(own) - 1, SLICES).round().astype(int)
    np.testing.assert_allclose(features[slices.table["subject"].unique().tolist().index(slices.table["subject"][0])],
                               own[chosen].mean(0), atol=1e-4)


def test_mean_slice_logits_are_the_logistic_regression_of_the_subject():
    slices, model = some_slices(), pooled_net()
    features, targets = subject_features(model, slices, np.arange(len(slices.table)))
    penalty = fit_subject_head(model, (features, targets), None, seed=1)
    assert penalty in PENALTIES
    scale, centre = features.std(0), features.mean(0)
    peer = LogisticRegression(C=penalty, max_iter=3000).fit((features - centre) / scale, targets)
    means = subject_means(slices.table, stream(model, slices, np.arange(len(slices.table))))
    found = means - means.mean(1, keepdims=True)
    expected = peer.decision_function((features - centre) / scale)
    np.testing.assert_allclose(found, expected - expected.mean(1, keepdims=True), atol=5e-3)


def test_subjects_are_told_apart_where_slices_cannot_be():
    slices, model = some_slices(), pooled_net()
    features, targets = subject_features(model, slices, np.arange(len(slices.table)))
    fit_subject_head(model, (features, targets), None, seed=1)
    logits = stream(model, slices, np.arange(len(slices.table)))
    right = (subject_means(slices.table, logits).argmax(1) == targets).mean()
    slicewise = (logits.argmax(1) == slices.table["target"]).mean()
    assert right == 1 and slicewise < 0.9


def test_two_classes_have_two_logits():
    slices, model = some_slices(groups=["control", "MS"]), pooled_net(classes=2)
    features, targets = subject_features(model, slices, np.arange(len(slices.table)))
    fit_subject_head(model, (features, targets), None, seed=1)
    means = subject_means(slices.table, stream(model, slices, np.arange(len(slices.table))))
    assert (means.argmax(1) == targets).all()
    np.testing.assert_allclose(means.sum(1), 0, atol=1e-4)


def test_two_fits_agree():
    fits = []
    for _ in range(2):
        slices, model = some_slices(), pooled_net()
        fit_subject_head(model, subject_features(model, slices, np.arange(len(slices.table))), None, seed=3)
        fits.append(model.get_layer("logits").get_weights()[0])
    np.testing.assert_array_equal(*fits)


def test_others_are_joined_at_their_weight_and_choose_no_penalty():
    """Against one fit that holds every own subject `OWN_WEIGHT` times."""
    rng = np.random.default_rng(5)
    own, others = ((rng.normal(size=(n, 6)), np.arange(n) % 3) for n in (12, 30))
    model = pooled_net()
    penalty = fit_subject_head(model, own, others, seed=1)
    features, targets = (np.concatenate([np.repeat(mine, int(OWN_WEIGHT), axis=0), other])
                         for mine, other in zip(own, others))
    middle = [np.mean([kind[0][kind[1] == target].mean(0) for target in range(3)], 0) for kind in (own, others)]
    joined = np.concatenate([own[0], others[0] + middle[0] - middle[1]])
    features[-30:] = joined[-30:]
    scale, centre = joined.std(0), joined.mean(0)
    peer = LogisticRegression(C=penalty, max_iter=3000, tol=1e-8).fit((features - centre) / scale, targets)
    found = model(np.broadcast_to(joined[:, None, None, :], (42, 8, 8, 6)).astype("float32")).numpy()
    expected = peer.decision_function((joined - centre) / scale)
    expected -= expected.mean(1, keepdims=True)
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected, atol=1e-2)
    alone = fit_subject_head(pooled_net(), own, None, seed=1)
    assert {penalty, alone} <= set(PENALTIES)


def test_what_others_differ_by_as_a_whole_changes_nothing():
    """Shares of the classes differ, too: a plain mean would take a part of the disease for the difference."""
    rng = np.random.default_rng(6)
    centres = np.eye(3, 6) * 3
    own_targets, targets = np.repeat([0, 1, 2], 6), np.repeat([0, 1, 2], [40, 10, 10])
    own = centres[own_targets] + rng.normal(size=(18, 6)), own_targets
    others = centres[targets] + rng.normal(size=(60, 6)), targets
    moved = others[0] + rng.normal(0, 5, 6), targets
    heads = []
    for kind in (others, moved):
        model = pooled_net()
        fit_subject_head(model, own, kind, seed=1)
        heads.append(model.get_layer("logits").get_weights())
    for one, other in zip(*heads):
        np.testing.assert_allclose(one, other, atol=1e-4)
    fresh = centres[targets] + rng.normal(size=(60, 6))
    right = (fresh @ heads[1][0] + heads[1][1]).argmax(1) == targets
    assert min(right[targets == target].mean() for target in range(3)) >= 0.8


@pytest.mark.parametrize("targets", [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1]])
def test_a_class_needs_two_subjects(targets):
    with pytest.raises(StudyError, match=r"training\.subject_head: needs at least two training subjects") as caught:
        fit_subject_head(pooled_net(), (np.zeros((5, 6)), np.array(targets)), None, seed=0)
    assert len(str(caught.value).splitlines()) == 1


def config(weights, **training):
    one = {"epochs": 1, "slices_per_subject": 4, "learning_rate": 1e-3}
    return StudyConfig(study="test", model={"image_size": (32, 32), "weights": weights}, training={
        "batch_size": 12, "precision": "float32", "subject": one, "slice": one, "permuted": one, "subject_head": True,
        "pretraining_subjects": 12, "pretraining_pixel_mm": 1.5} | training)


def images_of(per_group, prefix=""):
    rng = np.random.default_rng(3)
    stacks = {f"{prefix}{group}{i}": rng.uniform(0, 1, (4, 32, 32, 3)).astype("float16")
              for group in GROUPS for i in range(per_group)}
    return gather(stacks, pd.Series({name: name.strip("P0123456789") for name in stacks}), GROUPS)


@pytest.fixture
def seen(monkeypatch, shallow):
    """Subjects that heads were fitted to; further subjects and pre-trained weights are made up."""
    names, further = [], images_of(4, "P")
    further = SliceSet(further.images, further.table, np.zeros((len(further.table), 2), "float32"))
    start = build_trainable("vgg16", 3, (32, 32, 3), "float32").get_weights()
    monkeypatch.setattr(protocols, "further_slices", lambda *_: further)
    monkeypatch.setattr(protocols, "pretrained_weights", lambda *_: start)

    def noted(model, slices, index, *more):
        names.append(set(slices.table["subject"].iloc[index]))
        return subject_features(model, slices, index, *more)

    monkeypatch.setattr(protocols, "subject_features", noted)
    return names, further


@pytest.mark.parametrize("weights", ["scratch", "simulated"])
def test_the_subject_wise_net_ends_in_a_head_of_subjects(weights, seen, tmp_path):
    names, further = seen
    slices, study = images_of(4), config(weights)
    table = train_protocol("subject", "vgg16", slices, study, tmp_path)
    kept = set(slices.table["subject"]) - set(table["subject"])
    assert names[0] == kept, "those of validation and test are left out"
    if weights == "simulated":
        assert names[1] == set(further.table["subject"].iloc[training_rows(further, study)])
        assert 0 < len(names[1]) < further.table["subject"].nunique()
    assert len(names) == (2 if weights == "simulated" else 1)
    assert net_facts(tmp_path, "vgg16", "subject")["subject_head"] in PENALTIES
    again = predict_cohort(protocols.load_net(tmp_path, "vgg16", study), slices, study)
    merged = again.merge(table, on=["subject", "slice"], suffixes=("", "_kept"))
    np.testing.assert_allclose(merged["logit_SPMS"], merged["logit_SPMS_kept"], atol=1e-3)
    assert channels_of(study) is None


def test_the_head_is_fitted_to_the_net_that_is_reported(shallow, tmp_path):
    """In float32, whatever the training computed in: fitted again to the reported net's features, it stays."""
    slices, study = images_of(4), config("scratch", precision="bfloat16")
    train_protocol("subject", "vgg16", slices, study, tmp_path)
    net = protocols.load_net(tmp_path, "vgg16", study)
    kept = net.get_layer("logits").get_weights()[0]
    train = np.flatnonzero(protocols.assign_parts("subject", slices, study) == "train")
    fit_subject_head(net, subject_features(net, slices, train), None, study.seed)
    np.testing.assert_allclose(net.get_layer("logits").get_weights()[0], kept, atol=1e-3 * np.abs(kept).max())


def test_the_repeat_of_another_seed_ends_alike(seen, tmp_path):
    names, _ = seen
    slices, study = images_of(4), config("simulated")
    train_protocol("subject", "vgg16", slices, study, tmp_path)
    train_repeat("vgg16", slices, study, tmp_path)
    assert len(names) == 4 and names[2:] == names[:2], "a head of the same subjects"


@pytest.mark.parametrize("protocol", ["slice", "subject_permuted", "slice_permuted"])
def test_other_protocols_keep_the_trained_head(protocol, seen, tmp_path):
    train_protocol(protocol, "vgg16", images_of(4), config("simulated"), tmp_path)
    assert not seen[0] and net_facts(tmp_path, "vgg16", protocol)["subject_head"] is None
