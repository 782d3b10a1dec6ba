"""Networks as people have them (nested, softmax, several inputs or outputs) are explained as their flat equals are."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from repository import ROOT
from scipy.special import softmax

from mslib import explain
from mslib.explain import attribute, explainable, layer_cams, lrp, stacked

IMAGES = np.random.default_rng(3).random((2, 12, 12, 3)).astype(np.float32)
TARGETS = np.array([0, 2])


def stem(channels=3, name="stem"):
    return keras.Sequential([keras.Input((12, 12, channels)), layers.Conv2D(4, 3, activation="relu", name="conv"),
                             layers.MaxPooling2D(name="pool")], name=name)


@pytest.fixture(scope="module")
def pair():
    """The commonest form of transfer learning, with a softmax, and its flat equal with logits."""
    nested = keras.Sequential([keras.Input((12, 12, 3)), stem(), layers.GlobalAveragePooling2D(), layers.Dropout(0.2),
                               layers.Dense(3, activation="softmax", name="head")])
    equal = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 3, activation="relu", name="conv"),
                              layers.MaxPooling2D(name="pool"), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    equal.set_weights(nested.get_weights())
    return nested, equal


def test_nested_with_softmax_equals_flat_with_logits(pair):
    nested, equal = pair
    with pytest.warns(UserWarning, match="output 'head' is a softmax: the logits before it are explained"):
        model = explainable(nested)
    assert [layer.name for layer in model.layers][1:3] == ["conv", "pool"] and explainable(equal) is equal
    odds = softmax(model.predict(IMAGES, verbose=0), 1)
    np.testing.assert_allclose(odds, nested.predict(IMAGES, verbose=0), atol=1e-6)
    for found, expected in ((layer_cams(net, IMAGES, TARGETS, ["conv", "pool"])["gradcam"] for net in pair),
                            ({"lrp": lrp(net, IMAGES, TARGETS)} for net in pair),
                            ({name: attribute(name, net, IMAGES, TARGETS) for name in ("deeplift", "occlusion")}
                             for net in pair)):
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=name)


def test_weights_are_those_of_the_moment(pair):
    nested, _ = pair
    before, kept = explainable(nested), nested.get_weights()
    nested.set_weights([2 * weight for weight in kept])
    assert explainable(nested) is before
    np.testing.assert_array_equal(before.get_layer("conv").kernel, nested.layers[0].get_layer("conv").kernel)
    nested.set_weights(kept)


def test_statistics_of_the_input_are_copied():
    norm = layers.Normalization(name="norm")
    norm.adapt(3 + 5 * IMAGES)
    base = keras.Sequential([keras.Input((12, 12, 3)), norm, layers.Conv2D(4, 3, name="conv")])
    nested = keras.Sequential([base, layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")])
    expected, flat = nested.predict(IMAGES, verbose=0), explainable(nested)
    np.testing.assert_allclose(flat.predict(IMAGES, verbose=0), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(explain.predict_copy(flat).predict(IMAGES, verbose=0), expected, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(explain.randomised_copy(nested, "head").get_layer("norm").mean, norm.mean)


def test_layers_of_nested_models_are_randomised_too(pair):
    nested, _ = pair

    def random(network):
        return [name for name in ("conv", "head") if (
            network.get_layer(name).kernel.numpy() != explainable(nested).get_layer(name).kernel.numpy()).all()]

    assert random(explain.randomised_copy(nested, "conv")) == ["conv", "head"]
    steps = explain.cascading_randomisation(nested, ["head", "conv"], 1)
    assert [random(network) for *_, network in steps] == [["head"], ["conv", "head"]]


def test_outputs_of_one_name_and_layers_at_several_places():
    """A head and a convolution that are used twice: each output by its number, no class activation map of theirs."""
    keras.utils.set_random_seed(1)
    inputs = [keras.Input((12, 12, 3)), keras.Input((12, 12, 3))]
    shared, head = layers.Conv2D(4, 3, name="shared"), layers.Dense(3, activation="softmax", name="head")
    last = [layers.Conv2D(4, 3, activation="relu", name=name)(shared(one)) for name, one in zip("ab", inputs)]
    model = keras.Model(inputs, [head(layers.GlobalAveragePooling2D()(one)) for one in last])
    both = np.concatenate([IMAGES, IMAGES[:, ::-1]], -1)
    for number, expected in enumerate(model.predict([both[..., :3], both[..., 3:]], verbose=0)):
        chosen = explainable(model, number)
        np.testing.assert_allclose(softmax(chosen.predict(both, verbose=0), 1), expected, rtol=1e-5)
        assert layer_cams(chosen, both, TARGETS, ["shared", "ab"[number]])["gradcam"]["ab"[number]].any()
    with pytest.raises(ValueError, match=r"outputs head, head; choose one.*by number where a name"):
        explainable(model, "head")
    joined = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Concatenate()(last))))
    with pytest.raises(ValueError, match="layers: 'shared': stands at several places of the net"):
        layer_cams(joined, both, TARGETS, ["shared", "a"])


def test_layers_that_stand_in_other_graphs_too(pair):
    """`Sequential.add` calls its layers again and again; the graph that gives the output counts."""
    _, equal = pair
    added = keras.Sequential()
    for layer in [keras.Input((12, 12, 3)), *keras.models.clone_model(equal).layers]:
        added.add(layer)
    added.set_weights(equal.get_weights())
    found, expected = (layer_cams(net, IMAGES, TARGETS, ["conv", "pool"])["gradcam"] for net in (added, equal))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_a_bare_operation_as_head():
    image = keras.Input((12, 12, 3))
    logits = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(image))
    for operation in (keras.ops.softmax, keras.ops.log_softmax, keras.ops.hard_sigmoid):
        with pytest.warns(UserWarning, match="the logits before it are explained"):
            found = explainable(keras.Model(image, operation(logits)))
        assert found.layers[-1].name == "logits"


def test_a_sigmoid_and_lower_precision():
    image = keras.Input((12, 12, 3))
    base = stem()
    features = layers.GlobalAveragePooling2D()(base(image, training=False))
    logit = layers.Dense(1, dtype="mixed_bfloat16")(features)
    model = keras.Model(image, layers.Activation("sigmoid", name="p")(logit))
    with pytest.warns(UserWarning, match="output 'p' is a sigmoid"):
        found = explainable(model)
    assert all(layer.compute_dtype == "float32" for layer in found.layers)
    odds = 1 / (1 + np.exp(-found.predict(IMAGES, verbose=0)))
    np.testing.assert_allclose(odds, model.predict(IMAGES, verbose=0), atol=4e-3)  # bfloat16 has 8 bits


def test_one_input_per_modality_equals_stacked_channels():
    """Towers that share layers, and towers of their own; each map belongs to its input."""
    inputs = [keras.Input((12, 12, 1), name=name) for name in ("t1w", "t2w", "flair")]
    tower = stem(1)
    towers = [tower(inputs[0]), tower(inputs[1]), stem(1, "third")(inputs[2])]
    pooled = layers.GlobalAveragePooling2D()(layers.Concatenate()(towers))
    model = keras.Model(inputs, [layers.Dense(3, name="type")(pooled), layers.Dense(1, name="age")(pooled)])
    images = {name: IMAGES[..., k:k + 1] for k, name in enumerate(("t1w", "t2w", "flair"))}
    np.testing.assert_array_equal(stacked(images, model), IMAGES)
    chosen = explainable(model, "type")
    np.testing.assert_allclose(chosen.predict(IMAGES, verbose=0), model.predict(images, verbose=0)[0], atol=1e-6)
    assert explainable(model, 1).output_shape == (None, 1) and "third_conv" in [one.name for one in chosen.layers]
    gradients = attribute("gradient", chosen, images, TARGETS)
    step = 1e-2 * np.eye(3)[2] * (np.indices((12, 12)).sum(0) == 10)[..., None]
    change = np.diff([chosen.predict(IMAGES + sign * step, verbose=0)[[0, 1], TARGETS] for sign in (-1, 1)], axis=0)[0]
    np.testing.assert_allclose(change / 2, (gradients * step).sum((1, 2, 3)), atol=2e-4)
    pooled = layers.GlobalAveragePooling2D()(layers.Concatenate()([stem(1, f"{one.name}_stem")(one) for one in inputs]))
    own = keras.Model(inputs, layers.Dense(3, use_bias=False)(pooled))  # no layer at several places, no bias but 0
    relevance = lrp(own, list(images.values()), TARGETS, "epsilon", epsilon=1e-9)
    assert relevance.shape == IMAGES.shape and np.abs(relevance).sum((0, 1, 2)).min() > 0
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), own.predict(images, verbose=0)[[0, 1], TARGETS], atol=1e-5)
    with pytest.raises(ValueError, match=r"has the outputs type, age; choose one.*\(got None\)"):
        attribute("gradient", model, images, TARGETS)


def test_a_mapping_goes_by_the_names_of_the_inputs():
    """In whatever order it comes; as keys where the inputs are a mapping; where an output needs one input alone."""
    images = {name: IMAGES[..., k:k + 1] for k, name in enumerate(("t1w", "t2w", "flair"))}
    inputs = {name: keras.Input((12, 12, 1), name=name) for name in ("t2w", "flair", "t1w")}
    pooled = {name: layers.GlobalAveragePooling2D()(one) for name, one in inputs.items()}
    outputs = [layers.Dense(2, name="type")(layers.Concatenate()(list(pooled.values()))),
               layers.Dense(2, name="age")(pooled["t1w"])]
    for given, order in ((list(inputs.values()), list(inputs)), (inputs, sorted(inputs))):
        model = keras.Model(given, outputs)
        expected = np.concatenate([images[name] for name in order], -1)
        for name, answer in zip(("type", "age"), model.predict(images, verbose=0)):
            chosen = explainable(model, name)
            for net in (model, chosen):
                np.testing.assert_array_equal(stacked(images, net), expected)
            np.testing.assert_allclose(chosen.predict(expected, verbose=0), answer, atol=1e-6)
        for wrong in ({name: images[name] for name in ("t1w", "t2w")}, images | {"pd": IMAGES[..., :1]}):
            with pytest.raises(ValueError, match=f"model's inputs {', '.join(order)} .got t1w, t2w"):
                attribute("gradient", explainable(model, "type"), wrong, 0)


@pytest.mark.parametrize("make,message", [
    (lambda: explainable(keras.Model(*two((12, 12, 1), (6, 6, 1)))), r"its inputs must differ in nothing but their ch"),
    (lambda: stacked([IMAGES, IMAGES[:, :6]], stem()), r"images: must differ in nothing but their channels"),
    (lambda: explainable(stem(), "absent"), r"has the outputs pool; choose one.*\(got 'absent'\)")])
def test_what_cannot_be_adapted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def two(*shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return inputs, layers.Concatenate()([layers.GlobalAveragePooling2D()(one) for one in inputs])


@pytest.fixture(scope="module")
def volumes():
    """A 3-D net whose kernels and pools are one slice deep, and the 2-D net that sees the slices one by one."""
    def build(axes):
        size, at = ((3, 3), (2, 2)) if axes == 2 else ((1, 3, 3), (1, 2, 2))
        conv, pool = getattr(layers, f"Conv{axes}D"), getattr(layers, f"MaxPooling{axes}D")
        mean = getattr(layers, f"GlobalAveragePooling{axes}D")
        return keras.Sequential([keras.Input((12, 10, 2) if axes == 2 else (2, 12, 10, 2)),
                                 conv(4, size, activation="relu", name="conv1"), pool(at, name="pool"),
                                 conv(5, size, activation="relu", name="conv2"), mean(), layers.Dense(3)])

    flat, deep = build(2), build(3)
    rng = np.random.default_rng(4)
    weights = [rng.normal(0, 0.3, weight.shape) for weight in flat.weights]
    flat.set_weights(weights)
    deep.set_weights([weight.reshape(one.shape) for weight, one in zip(weights, deep.weights)])
    return flat, deep, rng.random((2, 2, 12, 10, 2)).astype(np.float32)


def test_a_volume_is_explained_slice_by_slice(volumes):
    """The score of a volume is the mean over its two slices, so that each has half of what it has alone."""
    flat, deep, images = volumes
    slices, targets = images.reshape(4, 12, 10, 2), np.repeat(TARGETS, 2)

    def as_slices(maps):
        return maps.reshape(4, *maps.shape[2:])

    methods = ("gradcam", "hirescam", "layercam", "xgradcam")
    ours, expected = (layer_cams(net, x, y, ["conv1", "pool", "conv2"], methods)
                      for net, x, y in ((deep, images, TARGETS), (flat, slices, targets)))
    for method, of_layer in ours.items():
        for layer in of_layer if method in ("hirescam", "layercam") else ["conv2"]:  # its weights are a slice's
            np.testing.assert_allclose(as_slices(of_layer[layer]), expected[method][layer] / 2, rtol=1e-4, atol=1e-7)
    for name, given in (("guided_backprop", {}), ("deconvolution", {}), ("deeplift", {}), ("guided_gradcam", {}),
                        ("smoothgrad", {"noise": 0.0}), ("integrated_gradients", {"steps": 4})):
        found, one = attribute(name, deep, images, TARGETS, **given), attribute(name, flat, slices, targets, **given)
        halved = 4 if name == "guided_gradcam" else 2  # a product of two halves
        np.testing.assert_allclose(as_slices(found), one / halved, rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_wing_alone_needs_nothing_of_the_study_and_little_time():
    """CPU seconds beside those of TensorFlow: 0.3 s are 6 % of 5 s, whatever else the machine does."""
    code = ("import json, sys, time; before = time.process_time(); import tensorflow, keras; between = "
            "time.process_time(); from mslib.explain import attribute, layer_cams, lrp; after = time.process_time(); "
            "print(json.dumps([between - before, after - between, sorted(sys.modules)]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    tensorflow, ours, modules = json.loads(done.stdout.splitlines()[-1])
    study = {"nibabel", "SimpleITK", "snakemake", "nilearn", "pydantic", "mne", "sklearn.linear_model",
             "mslib.study", "mslib.cohort", "mslib.prep", "mslib.nets", "mslib.measure"}
    assert not study & set(modules) and ours < 0.06 * tensorflow, (ours, tensorflow)
