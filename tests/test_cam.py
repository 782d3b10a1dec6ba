"""Class activation maps against a peer library, exact identities and slow re-statements of their definitions."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from attribution_cases import relative, vgg
from shared_cases import refused
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.layercam import Layercam
from tf_keras_vis.utils.scores import CategoricalScore

from mslib import explain
from mslib.explain import cam

PEERS = {"gradcam": Gradcam, "gradcam++": GradcamPlusPlus, "layercam": Layercam}


def blobs(n, size=32):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    centres = rng.uniform(0.2, 0.8, (n, 3, 2))
    distance = (y - centres[..., 0, None, None]) ** 2 + (x - centres[..., 1, None, None]) ** 2
    images = np.exp(-distance / 0.03) + rng.uniform(0, 0.2, (n, 3, size, size))
    return np.moveaxis(images, 1, -1).astype(np.float32), rng.integers(0, 3, n)


@pytest.fixture(scope="module", params=["vgg16", "vgg19"])
def case(request):
    model = vgg(request.param, 48)
    images, targets = blobs(3, 48)
    methods = (*explain.CAM_METHODS, *explain.CAM_VARIANTS)
    return model, images, targets, explain.layer_cams(model, images, targets, methods=methods, upsample=False)


@pytest.fixture(scope="module")
def small():
    return vgg(), *blobs(4)


def plain_tape(model, images, targets, layer):
    """A and g of one layer, one image at a time, without any of the project's code."""
    net = keras.Model(model.inputs, [model.get_layer(layer).output, model.output])
    parts = []
    for image, target in zip(images, targets):
        with tf.GradientTape() as tape:
            a, logits = net([image[None]])
            score = logits[0, target]
        parts.append((a[0].numpy(), tape.gradient(score, a)[0].numpy(), float(score)))
    return parts


def activations_and_gradients(model, images, targets, layers=None):
    """A and g of layers by the pass that `layer_cams` makes."""
    layers = explain.resolve_layers(model, layers)
    net = keras.Model(model.inputs, [*(model.get_layer(layer).output for layer in layers), model.output])
    found = cam._pass(net, tf.constant(images), tf.constant(targets, tf.int32))
    return {layer: (a.numpy(), g.numpy()) for layer, a, g in zip(layers, *found[:2])}


def loop_map(method, a, g, score):
    """Every method restated channel by channel and cell by cell, in double precision."""
    a, g = a.astype(float), g.astype(float)
    height, width, channels = a.shape
    out = np.zeros((height, width))
    for k in range(channels):
        ak, gk = a[..., k], g[..., k]
        weights = {"gradcam": gk.mean(), "gradcam_absolute": abs(gk.mean()), "activation": 1.0,
                   "gradcam_positive": np.maximum(gk, 0).mean()}
        if method in weights:
            out += weights[method] * ak
        elif method == "xgradcam":
            out += (sum(ak[i, j] * gk[i, j] for i in range(height) for j in range(width)) / ak.sum() * ak
                    if ak.sum() else 0)
        elif method == "gradcam++":
            alpha = np.zeros_like(ak)
            for i in range(height):
                for j in range(width):
                    if gk[i, j] != 0:
                        alpha[i, j] = gk[i, j] ** 2 / (2 * gk[i, j] ** 2 + ak.sum() * gk[i, j] ** 3)
            alpha /= alpha.sum() or 1.0
            out += np.exp(score) * np.sum(alpha * np.maximum(gk, 0)) * ak
        else:
            for i in range(height):
                for j in range(width):
                    out[i, j] += ak[i, j] * (max(gk[i, j], 0) if method == "layercam" else gk[i, j])
    return np.maximum(out, 0)


def test_default_layers_are_all_of_blocks_4_and_5(case):
    model, _, _, maps = case
    assert list(maps) == [*explain.CAM_METHODS, *explain.CAM_VARIANTS]
    for of_layer in maps.values():
        assert list(of_layer) == [x.name for x in model.layers if x.name.startswith(("block4", "block5"))]


@pytest.mark.parametrize("method", PEERS)
def test_equals_tf_keras_vis(case, method):
    """Raw values, float32, at every third layer, because theirs is one layer a pass.

    Grad-CAM++ includes the factor exp(logit) and alpha's normalisation, as theirs.
    """
    model, images, targets, maps = case
    peer = PEERS[method](model, clone=False)
    score = CategoricalScore([int(target) for target in targets])
    for layer, ours in list(maps[method].items())[::3]:
        theirs = np.asarray(peer(score, images, penultimate_layer=layer, seek_penultimate_conv_layer=False,
                                 expand_cam=False, normalize_cam=False))
        assert theirs.max() > 0
        assert relative(ours, theirs) < 1e-5, layer


@pytest.mark.parametrize("layer", ["block4_pool", "block5_conv1"])
def test_equals_slow_restatement(case, layer):
    """Within rounding; of Grad-CAM and XGrad-CAM, whose means of g cancel, within that of the terms (|g| for g)."""
    model, images, targets, maps = case
    parts = plain_tape(model, images, targets, layer)
    for method, of_layer in maps.items():
        slow = np.stack([loop_map(method, *part) for part in parts])
        limit = 1e-5 * slow.max()
        if method in ("gradcam", "xgradcam", "gradcam_absolute"):
            limit = 1e-6 * max(loop_map(method, a, np.abs(g), y).max() for a, g, y in parts)
            assert slow.max() > 1000 * limit
        assert np.abs(of_layer[layer] - slow).max() < limit, method


def test_one_pass_gives_logits_silent_channels_and_what_averaging_leaves(small):
    model, images, targets = small
    found = explain.explain_layers(model, images, targets, ["block5_conv1", "block2_pool"], batch_size=3)
    np.testing.assert_allclose(found.logits, model(images), rtol=1e-4, atol=1e-5)
    for layer in ("block2_pool", "block5_conv1"):
        for i, (a, g, _) in enumerate(plain_tape(model, images, targets, layer)):
            np.testing.assert_allclose(found.peaks[layer][i], a.max((0, 1)), rtol=1e-4, atol=1e-6)
            kept = np.abs(g.mean((0, 1))).sum() / np.abs(g).mean((0, 1)).sum()
            assert found.kept[layer][i] == pytest.approx(kept, rel=1e-3)


def test_weights_of_the_last_block_are_the_output_weights(case):
    """Known answer 1: Z alpha_k = w_k at block5_pool and at the last convolution; 2: not above it."""
    model, images, targets, maps = case
    last = [name for name in maps["gradcam"] if "block5_conv" in name][-1]
    parts = activations_and_gradients(model, images, targets)
    weights = model.get_layer("logits").kernel.numpy().T[targets]
    for layer, (_, g) in parts.items():
        summed = g.sum(axis=(1, 2))
        if layer in (last, "block5_pool"):
            assert relative(summed, weights) < 1e-5
        elif summed.shape == weights.shape:
            assert relative(summed, weights) > 0.1


def test_pool_map_is_cam(case):
    """At block5_pool Grad-CAM = HiResCAM = Z-th of CAM (Zhou et al. 2016), at earlier layers they part."""
    model, images, targets, maps = case
    a = activations_and_gradients(model, images, targets, ["block5_pool"])["block5_pool"][0]
    weights = model.get_layer("logits").kernel.numpy().T[targets]
    cam = np.maximum(np.einsum("nhwk,nk->nhw", a, weights), 0) / np.prod(a.shape[1:3])
    for method in ("gradcam", "hirescam"):
        assert relative(maps[method]["block5_pool"], cam) < 1e-5
    assert relative(maps["gradcam"]["block5_conv1"], maps["hirescam"]["block5_conv1"]) > 0.05


@pytest.mark.parametrize("bias", [0.0, 0.05])
def test_gradient_times_activation_sums_to_the_logit(bias):
    """Known answer 3: y at every layer without biases; y - b at the two last layers with biases."""
    model = vgg(bias=bias)
    images, targets = blobs(3)
    logits = model.predict(images, verbose=0)[np.arange(3), targets]
    last_bias = model.get_layer("logits").bias.numpy()[targets]
    for layer, (a, g) in activations_and_gradients(model, images, targets).items():
        exact = np.allclose((a * g).sum(axis=(1, 2, 3)), logits - last_bias, rtol=1e-4, atol=1e-5)
        assert exact == (bias == 0 or layer in ("block5_conv3", "block5_pool")), layer


def test_one_trace_serves_every_batch_size_and_call(small, monkeypatch):
    cam._traced.cache_clear()
    traces, original = [], cam._pass
    monkeypatch.setattr(cam, "_pass", lambda *args: traces.append(1) or original(*args))
    model, images, targets = small
    for batch_size in (1, 3, 4):
        maps = explain.layer_cams(model, images, targets, ["block5_conv1", "block2_pool"], batch_size=batch_size)
    assert len(traces) == 1
    assert list(maps["gradcam"]) == ["block2_pool", "block5_conv1"], "in the order of the net"


def test_one_forward_and_one_backward_pass_down_to_the_lowest_layer(case):
    """What the outputs of the traced graph need: all convolutions once, and those above block4_conv1 once back."""
    model, _, _, maps = case
    traced = cam._traced(model, explain.resolve_layers(model), tuple(maps)).get_concrete_function()
    wanted = [output.op.name for output in traced.outputs]
    needed = tf.compat.v1.graph_util.extract_sub_graph(traced.graph.as_graph_def(), wanted).node
    count, forth, back = Counter(node.op for node in needed), *{"vgg16": (13, 5), "vgg19": (16, 7)}[model.name]
    assert (count["Conv2D"], count["MaxPool"]) == (forth, 5)
    assert (count["Conv2DBackpropInput"], count["MaxPoolGrad"], count["Conv2DBackpropFilter"]) == (back, 2, 0)


def test_upsampling_is_half_pixel_bilinear():
    for shape, size in [((2, 7, 7), (224, 224)), ((1, 4, 3), (128, 96)), ((3, 1, 1), (8, 8)), ((2, 5, 6), (5, 6)),
                        ((1, 3, 4), (10, 13))]:
        maps = np.random.default_rng(0).random(shape).astype(np.float32)
        reference = tf.image.resize(maps[..., None], size, method="bilinear")[..., 0].numpy()
        np.testing.assert_allclose(explain.upsample_maps(maps, size), reference, atol=1e-6)
    np.testing.assert_allclose(explain.upsample_maps(np.array([[0.0, 1.0]]), (1, 4)), [[0, 0.25, 0.75, 1]])


def test_cells_stay_where_the_pools_of_an_odd_side_have_them():
    """168 pixels are 10 cells of 16 and a rest: a lesion in the last cell is drawn there and not 8 pixels further."""
    image = np.zeros((1, 192, 168), np.float32)
    image[:, 64:80, 144:160] = 1
    cells = explain.average_cells(image, (12, 10))
    pooled = image[..., :160].reshape(1, 12, 16, 10, 16).mean((2, 4))
    np.testing.assert_allclose(cells, pooled)
    assert cells[0, 4, 9] == 1 and cells.sum() == 1
    drawn = explain.upsample_maps(cells, (192, 168))[0]
    row, column = np.unravel_index(drawn[:, :160].argmax(), (192, 160))
    assert 64 <= row < 80 and 150 <= column < 160 and (drawn[72, 152:] == drawn[72, 152]).all()
    whole = explain.average_cells(np.ones((1, 192, 168)), (48, 42))
    np.testing.assert_allclose(whole, 1)


def test_maps_of_signals_and_volumes_are_resampled_axis_by_axis():
    maps = np.random.default_rng(2).random((2, 3, 4, 5)).astype(np.float32)
    ours = explain.upsample_maps(maps, (6, 12, 10))
    planes = explain.upsample_maps(maps, (12, 10))
    expected = np.stack([explain.upsample_maps(line, (6,)) for line in np.moveaxis(planes, 1, -1).reshape(-1, 3)])
    np.testing.assert_allclose(ours, np.moveaxis(expected.reshape(2, 12, 10, 6), -1, 1), rtol=1e-5)
    np.testing.assert_allclose(explain.average_cells(np.repeat(maps, 2, 1), (3, 4, 5)), maps, rtol=1e-6)


def test_blank_maps_are_flagged():
    maps = np.zeros((4, 5, 5), np.float32)
    maps[1, 2, 2], maps[2], maps[3, 0, 0] = 1e-3, 1e-31, np.nan
    assert explain.blank_maps(maps).tolist() == [True, False, True, True]


def tiny(outputs=1):
    """A small net, no convolution of which is in a block 4 or 5."""
    image = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(2, 3, name="only")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    heads = [keras.layers.Dense(3, name=f"head{i}")(pooled) for i in range(outputs)]
    return keras.Model(image, heads or features)


class Subclassed(keras.Model):
    def call(self, inputs):
        return keras.ops.mean(inputs, (1, 2))


@pytest.mark.parametrize("make, message", [
    (lambda: tiny(outputs=2), r"has the outputs head0, head1; choose one: explainable\(model, output=...\)"),
    (lambda: tiny(outputs=0), r"volumes \(N, D, H, W, M\) to logits \(N, n_classes\)"),
    (lambda: Subclassed(), r"must be a functional keras.Model or a built keras.Sequential \(got Subclassed\)"),
    (lambda: keras.Sequential([keras.Input((8, 8, 3)), Subclassed()]), "its layer 'subclassed.*' must be a functional"),
    (tiny, "no block4_.*name some of only"),
    (lambda: "vgg16", r"must be a functional keras.Model or a built keras.Sequential \(got str\)"),
])
def test_unfit_models_are_refused_with_the_remedy(make, message):
    with refused(match=message):
        explain.layer_cams(make(), np.zeros((1, 8, 8, 3)), np.array([0]))


@pytest.mark.parametrize("change, message", [
    ({"images": np.zeros((2, 32, 32, 1))}, r"images: must be a non-empty \(N, 32, 32, 3\).*got \(2, 32, 32, 1\)"),
    ({"images": np.full((2, 32, 32, 3), np.nan)}, r"images: 2 of 2 hold NaN or infinity \(first: index 0\)"),
    ({"targets": np.array([0, 3])}, r"targets: must lie in 0..2, the model's classes \(got 0..3\)"),
    ({"targets": np.array([0])}, "targets: must be 2 integer class ids"),
    ({"layers": ["block9_conv1"]}, "layers: 'block9_conv1': not among the layers.*block4_conv3, block4_pool"),
    ({"layers": ["logits"]}, "layers: 'logits': not among the layers with a spatial output"),
    ({"layers": []}, "layers: none given"),
    ({"methods": ("scorecam",)}, "methods: 'scorecam': not among gradcam, gradcam[+][+], hirescam"),
])
def test_unfit_input_is_refused_in_one_line(small, change, message):
    arguments = {"images": np.zeros((2, 32, 32, 3)), "targets": np.array([0, 1])} | change
    with refused(match=message):
        explain.layer_cams(small[0], **arguments)


def test_extreme_last_layers(small):
    """One net, traced once, with other last layers: one that sees nothing, scores beyond float32, and no finite map."""
    _, images, targets = small
    model, layers = vgg(), ["block4_conv3", "block5_pool"]

    def cams(weight, bias, factor=1):
        model.get_layer("logits").set_weights([np.full((64, 3), weight), np.full(3, bias)])
        return explain.layer_cams(model, factor * images, targets, layers, ("gradcam", "gradcam++"))

    blank = cams(-1.0, 0.0)["gradcam"]["block5_pool"]
    assert explain.blank_maps(blank).all() and (blank == 0).all()
    near = cams(1.0, 0.0)["gradcam++"]
    for bias in (-300.0, 300.0):  # exp(300) is beyond float32; exp(-300) would leave a blank map
        for layer, maps in cams(1.0, bias)["gradcam++"].items():
            ours, reference = (m / m.max((1, 2), keepdims=True) for m in (maps, near[layer]))
            np.testing.assert_allclose(ours, reference, atol=1e-5, err_msg=f"{layer}: the score is a factor, no more")
    with pytest.raises(ValueError, match=r"gradcam at block\w+: a map is not finite"):
        cams(3e38, 0.0, 1e3)


def test_randomisation_goes_from_the_output_down_and_leaves_the_model(small):
    model = small[0]
    before = [weight.copy() for weight in model.get_weights()]
    found, kernels = [], {}
    for draw, lowest, network in explain.cascading_randomisation(model, ["block5_conv1", "block4_conv1"], 2, seed=3):
        changed = [layer.name for layer, own in zip(network.layers, model.layers)
                   if layer.weights and (layer.kernel.numpy() != own.kernel.numpy()).any()]
        found.append((draw, lowest, changed[0], changed[-1]))
        kernels[draw, lowest] = network.get_layer("block5_conv2").kernel.numpy()
    names = ["block5_conv1", "block4_conv1"]
    assert found == [(draw, name, name, "logits") for draw in (1, 2) for name in names]
    assert all((old == new).all() for old, new in zip(before, model.get_weights()))
    assert (kernels[1, names[0]] == kernels[1, names[1]]).all(), "each stays random while the next follow"
    assert (kernels[1, names[0]] != kernels[2, names[0]]).any(), "another draw"
    copy = explain.randomised_copy(model, "block5_conv1", seed=[3, 1])
    assert (copy.get_layer("block5_conv2").kernel.numpy() == kernels[1, names[0]]).all()
    assert kernels[1, names[0]].std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.01)
    for lowest in (["block9_conv1"], names[::-1], []):
        with refused("lowest: must name layers of the model, deep to shallow"):
            next(explain.cascading_randomisation(model, lowest))


def test_every_kernel_is_drawn_with_the_spread_of_what_an_output_reads():
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 64)), layers.DepthwiseConv2D(3, name="lowest"),
                              layers.SeparableConv2D(50, 3), layers.GlobalAveragePooling2D(), layers.Dense(40)])
    found = explain.randomised_copy(model, "lowest").layers
    read = [9, 9, 64, 50]  # values
    kernels = [weight.numpy() for layer in found for weight in layer.weights if "kernel" in weight.name]
    np.testing.assert_allclose([kernel.std() for kernel in kernels], np.sqrt(2 / np.array(read)), rtol=0.1)
