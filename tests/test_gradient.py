"""Attribution methods: those of gradients against captum, a dense re-statement and what must hold exactly."""

import keras
import numpy as np
import pytest
from attribution_cases import FIXTURE, case, convolutional, quick, randomise, relative
from scipy.ndimage import gaussian_filter
from shared_cases import refused
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.utils.scores import CategoricalScore

from mslib import explain
from mslib.explain import METHODS, attribute, baseline_images, completeness_gap, upsample_maps


@pytest.mark.parametrize("name,fused", [("2d", True), ("1d", False)])
def test_captum_finds_the_same(name, fused):
    """ReLUs in the convolutions or as layers."""
    _, images, targets, baseline = case(name)
    model, stored = convolutional(name, fused), np.load(FIXTURE)
    np.testing.assert_allclose(np.asarray(model(images)), stored[f"{name} logits"], rtol=1e-4, atol=1e-5)
    for method in ("gradient", "input_x_gradient", "guided_backprop", "deconvolution", "integrated_gradients"):
        more = {"baseline": baseline} if method == "integrated_gradients" else {}
        assert relative(attribute(method, model, images, targets, **more), stored[f"{name} {method}"]) < 1e-5, method


def test_captum_finds_the_same_gradcam():
    model, images, targets, _ = case("2d")
    peer = upsample_maps(np.load(FIXTURE)["2d gradcam"][..., 0], images.shape[1:3])
    ours = attribute("gradcam", model, images, targets)
    assert relative(ours[..., 0], peer) < 1e-5
    assert (ours == ours[..., :1]).all(), "one map for all modalities"
    assert relative(attribute("guided_gradcam", model, images, targets),
                    np.load(FIXTURE)["2d guided_backprop"] * peer[..., None]) < 1e-5


def dense_rule(weights, image, target, rule):
    """Gradient of a chain of dense ReLU layers, value by value, under a rule at every ReLU."""
    values, signal = [], image
    for kernel, bias in weights[:-1]:
        before = signal @ kernel + bias
        values.append(before)
        signal = np.maximum(before, 0)
    back = weights[-1][0][:, target].copy()
    for (kernel, _), before in zip(reversed(weights[:-1]), reversed(values)):
        passed = {"gradient": before > 0, "deconvolution": back > 0, "guided_backprop": (before > 0) & (back > 0)}[rule]
        back = kernel @ np.where(passed, back, 0)
    return back


@pytest.mark.parametrize("rule", ["gradient", "deconvolution", "guided_backprop"])
def test_rules_of_relus_written_out(rule):
    rng = np.random.default_rng(3)
    inputs = keras.Input((6, 2))
    x = keras.layers.Flatten()(inputs)
    for units in (9, 7):
        x = keras.layers.Dense(units, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    arrays = [weight.astype("float64") for weight in model.get_weights()]
    weights = list(zip(arrays[::2], arrays[1::2]))
    images, targets = rng.normal(size=(8, 6, 2)).astype("float32"), rng.integers(0, 3, 8)
    expected = [dense_rule(weights, image.ravel(), target, rule).reshape(6, 2)
                for image, target in zip(images.astype("float64"), targets)]
    assert relative(attribute(rule, model, images, targets), np.array(expected)) < 1e-5


@pytest.mark.parametrize("method,limit", [("deeplift", 1e-4), ("integrated_gradients", 0.02)])
@pytest.mark.parametrize("baseline", ["zero", "mean", "blurred", "noise", 0.3])
@pytest.mark.parametrize("name", ["2d", "1d"])
def test_complete_methods_add_up(name, method, limit, baseline):
    model, images, targets, _ = case(name)
    maps = attribute(method, model, images, targets, baseline=baseline)
    gap = completeness_gap(maps, model, images, targets, baseline_images(images, baseline))
    scores = [np.asarray(model(x))[range(5), targets] for x in (images, baseline_images(images, baseline))]
    assert (gap * np.abs(scores[0] - scores[1]) < limit * np.abs(scores).max()).all()


def test_smoothgrad_is_the_mean_gradient_of_noisy_copies():
    model, images, targets, _ = case("2d")
    plain = attribute("gradient", model, images, targets)
    assert relative(attribute("smoothgrad", model, images, targets, noise=0.0), plain) < 1e-5
    rng = np.random.default_rng(5)
    spread = 0.15 * np.array([image.max() - image.min() for image in images])[:, None, None, None]
    copies = [images + spread * rng.standard_normal(images.shape[1:], np.float32) for _ in range(3)]
    mean = np.mean([attribute("gradient", model, copy.astype("float32"), targets) for copy in copies], 0)
    assert relative(attribute("smoothgrad", model, images, targets, samples=3, seed=5), mean) < 1e-5
    assert relative(mean, plain) > 1e-2


@pytest.mark.parametrize("method", ["smoothgrad", "gradient_shap", "lime", "shapley_sampling", "kernel_shap"])
def test_seeded(method):
    model, images, targets, _ = case("2d")
    one, same, other = (attribute(method, model, images, targets, seed=seed, **quick(method, images))
                        for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert relative(other, one) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_explained_alike_in_any_batch_and_alone(method):
    """Whatever is drawn; feature permutation takes its values from the other images."""
    model, images, targets, _ = case("2d")
    parameters = quick(method, images) | ({"baseline": "noise"} if "baseline" in METHODS[method].parameters else {})
    together = attribute(method, model, images, targets, **parameters)
    assert together.shape == images.shape and together.dtype == np.float32
    assert relative(attribute(method, model, images, targets, batch_size=2, **parameters), together) < 1e-5
    if method != "feature_permutation":
        alone = attribute(method, model, images[3:4], targets[3:4], **parameters)
        np.testing.assert_allclose(alone[0], together[3], rtol=1e-4, atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("method", ["deeplift", "gradcam", "occlusion"])
def test_weights_may_change_between_two_calls(method):
    kept, images, targets, _ = case("2d")
    model, fresh = keras.models.clone_model(kept), keras.models.clone_model(kept)
    model.set_weights(kept.get_weights())
    before = attribute(method, model, images, targets)
    for net in (model, fresh):
        net.set_weights([2 * weight for weight in kept.get_weights()])
    after = attribute(method, model, images, targets)
    assert relative(after, before) > 0.5
    assert relative(after, attribute(method, fresh, images, targets)) < 1e-5


def test_without_targets_the_predicted_class_is_explained():
    model, images, _, _ = case("2d")
    predicted = np.asarray(model(images)).argmax(1)
    np.testing.assert_array_equal(attribute("gradient", model, images), attribute("gradient", model, images, predicted))
    np.testing.assert_array_equal(attribute("gradient", model, images, 2),
                                  attribute("gradient", model, images, np.full(5, 2)))


def test_named_baselines():
    images = np.random.default_rng(0).uniform(1, 2, (2, 20, 10, 3)).astype("float32")
    assert (baseline_images(images) == 0).all()
    mean = baseline_images(images, "mean")
    np.testing.assert_allclose(mean[1, 3, 4], images[1].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(baseline_images(images, "blurred")[1, :, :, 2],
                               gaussian_filter(images[1, :, :, 2], (2, 1), mode="nearest"), rtol=1e-4)
    noise = baseline_images(images, "noise", seed=1)
    np.testing.assert_array_equal(noise, baseline_images(images, "noise", seed=1))
    assert not np.allclose(noise, baseline_images(images, "noise", seed=2))
    np.testing.assert_allclose(noise.mean((1, 2)), images.mean((1, 2)), atol=0.1)
    assert (baseline_images(images, 0.25) == np.float32(0.25)).all()
    np.testing.assert_array_equal(baseline_images(images, images[0])[1], images[0])


@pytest.mark.parametrize("bent,message", [
    (keras.layers.Conv2D(4, 3, activation="tanh"), "uses the activation tanh"),
    (keras.layers.Conv2D(4, 3, activation=keras.ops.relu), "but not keras.activations.relu"),
    (keras.layers.Activation("relu6"), "uses the activation relu6"), (keras.layers.LeakyReLU(), "uses LeakyReLU"),
    (keras.layers.ReLU(max_value=6), "uses ReLU with max_value=6"),
    (keras.layers.LayerNormalization(), "uses LayerNormalization"),
    (lambda x: keras.layers.Multiply()([x, x]), "uses Multiply"),
    (keras.ops.relu, "uses the bare operation Relu"), (lambda x: x * x, "uses the bare operation Multiply")])
def test_rules_for_relus_refuse_other_nets(bent, message):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(bent(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    for method in ("guided_backprop", "deconvolution", "deeplift"):
        with refused("is defined for nets of ReLUs; layer '", message, "supported are relu (or linear) in"):
            attribute(method, model, np.zeros((1, 8, 8, 3)), 0)


def many_layers():
    """A net of nearly all supported layers, two branches among them."""
    layers = keras.layers
    inputs = keras.Input((12, 10, 3))
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.BatchNormalization()(layers.Cropping2D(1)(x))
    x = layers.Add()([x, layers.Activation("relu")(layers.DepthwiseConv2D(3, padding="same")(x))])
    x = layers.SpatialDropout2D(0.1)(layers.AveragePooling2D(2)(layers.MaxPooling2D(2, 1)(x)))
    x = layers.Concatenate()([x, layers.Conv2DTranspose(4, 3, padding="same", activation="relu")(x)])
    x = layers.Permute((2, 1, 3))(layers.ReLU()(x))
    x = layers.Concatenate()([layers.Flatten()(x), layers.Reshape((10,))(layers.GlobalMaxPooling2D()(x))])
    return randomise(keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.1)(x))), 6)


def test_deeplift_of_all_supported_layers_adds_up():
    """The allow-list holds no layer through which the rescale rule would lose something."""
    model, rng = many_layers(), np.random.default_rng(7)
    images, baseline = (rng.normal(size=(4, 12, 10, 3)).astype("float32") for _ in range(2))
    maps = attribute("deeplift", model, images, [0, 1, 2, 0], baseline=baseline)
    assert completeness_gap(maps, model, images, [0, 1, 2, 0], baseline).max() < 1e-3


def test_rules_are_float32_whatever_the_default_policy():
    _, images, targets, _ = case("2d")
    one, other = (convolutional("2d", False) for _ in range(2))
    expected, policy = attribute("deeplift", one, images, targets), keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert relative(attribute("deeplift", other, images, targets), expected) < 1e-6
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_gradcam_of_signals_is_that_of_tf_keras_vis(layer):
    model, images, targets, _ = case("1d")
    ours = explain.layer_cams(model, images, targets, [layer], upsample=False)["gradcam"][layer]
    peer = Gradcam(model, clone=False)(CategoricalScore(targets.tolist()), images, penultimate_layer=layer,
                                       expand_cam=False, normalize_cam=False, seek_penultimate_conv_layer=False)
    assert relative(ours, peer) < 1e-5
    maps = attribute("gradcam", model, images, targets, layer=layer)
    assert relative(maps, upsample_maps(ours[:, None], (1, 40))[:, 0, :, None] + np.zeros(3)) < 1e-6
    guided = attribute("guided_gradcam", model, images, targets, layer=layer)
    assert relative(guided, maps * attribute("guided_backprop", model, images, targets)) < 1e-6


def test_the_last_convolution_may_be_of_any_kind():
    for convolution in ("SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose", "Conv2D"):
        more = {} if convolution.startswith("Depth") else {"filters": 4}
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, name="first")(inputs)
        x = getattr(keras.layers, convolution)(kernel_size=3, name="last", **more)(x)
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
        assert explain.last_convolution(model) == "last", convolution
