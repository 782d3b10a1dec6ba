"""Relevance propagation: zennit, every rule written out over dense matrices, and what must hold exactly."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from attribution_cases import randomise, relative
from repository import ROOT
from shared_cases import refused

from mslib.explain import LRP_COMPOSITES, LRP_RULES, Composite, attribute, lrp, relevance_flow, relevance_shares
from mslib.explain.lrp import _traced
from mslib.explain.lrp_rules import check_parameters

layers = keras.layers
FIXTURE = ROOT / "tests" / "fixtures" / "lrp" / "nets.npz"
#: zennit's rules and composites beside ours: its z+ rule and its alpha = 1, beta = 0 are one for inputs of any sign.
PEERS = {"epsilon": "epsilon", "z_plus": "alpha1_beta0", "alpha1_beta0": "alpha1_beta0",
         "alpha2_beta1": "alpha2_beta1", "gamma": "gamma", "epsilon 0.1": "epsilon", "epsilon_plus": "epsilon_plus",
         "epsilon_alpha2_beta1": "epsilon_alpha2_beta1"}


def only(name):
    """A composite of one rule."""
    return Composite(LRP_RULES[name], LRP_RULES[name], "Ours 2026")


def small(seed=0, bias=0.2):
    """2-D net with a side branch and all that moves, pads or pools, three classes."""
    inputs = keras.Input((10, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    for layer in (layers.Rescaling(2.0), layers.ZeroPadding2D(((1, 0), (2, 1))), layers.MaxPooling2D(2),
                  layers.SpatialDropout2D(0.2), layers.UpSampling2D(2), layers.AveragePooling2D(2), layers.Identity()):
        x = layer(x)
    side = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, side])
    x = layers.Concatenate()([x, side])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(7, 3, strides=2, padding="same", activation="relu")(x))
    return randomise(keras.Model(inputs, layers.Dense(3)(x)), seed, bias)


@pytest.fixture(scope="module")
def net():
    """`small` for tests that leave its weights alone."""
    return small()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(0, 1, (4, 10, 8, 3)).astype("float32")


@pytest.fixture(autouse=True)
def eagerly():
    """Without a graph: the same functions and numbers, without the half second that a graph takes to trace."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def peer_net(name, fused=False):
    """The nets of the fixture, ReLUs and batch norm in layers of their own or fused."""
    stored, flat = np.load(FIXTURE), name != "2d"
    conv, max_pool, mean_pool, last_pool = {
        1: (layers.Conv1D, layers.MaxPooling1D, layers.AveragePooling1D, layers.GlobalMaxPooling1D),
        2: (layers.Conv2D, layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D),
        3: (layers.Conv3D, layers.MaxPooling3D, layers.AveragePooling3D, layers.GlobalAveragePooling3D),
    }[stored[f"{name} inputs"].ndim - 2]

    def weighted(x, kind, layer, relu=True, **more):
        kernel = stored[f"{name} {layer} kernel"]
        size = () if kind is layers.Dense else (kernel.shape[0],)
        x = kind(kernel.shape[-1], *size, name=layer, activation="relu" if relu and fused else None, **more)(x)
        return layers.ReLU()(x) if relu and not fused else x

    def depthwise(x):
        """As in MobileNet."""
        x = weighted(x, conv, "conv1", padding="same")
        side = layers.BatchNormalization(name="norm")(layers.DepthwiseConv2D(3, padding="same", name="conv2")(x))
        x = layers.Add()([x, weighted(layers.ReLU(6)(side), conv, "conv3", relu=False)])
        x = layers.ReLU(6)(layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="conv4")(x))
        x = last_pool()(layers.ReLU(6)(weighted(x, conv, "conv5", relu=False)))
        return weighted(weighted(x, layers.Dense, "dense"), layers.Dense, "head", relu=False)

    def with_weights(model):
        for layer in model.layers:
            if layer.name == "norm":
                layer.set_weights(stored[f"{name} norm"])
            elif layer.weights:
                layer.set_weights([stored[f"{name} {layer.name} {key}"] for key in ("kernel", "bias")])
        return model

    if name == "depthwise":
        inputs = keras.Input(stored["depthwise inputs"].shape[1:])
        return with_weights(keras.Model(inputs, depthwise(inputs)))
    inputs = keras.Input(stored[f"{name} inputs"].shape[1:])
    x = weighted(inputs, conv, "conv1", padding="same")
    x = max_pool(2)(weighted(x, conv, "conv2", padding="same", dilation_rate=2))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(weighted(x, conv, "conv3", relu=False, strides=2)))
    if not flat:
        side = weighted(x, conv, "conv4", padding="same")
        x = layers.Concatenate()([layers.Add()([x, side]), side])
    x = weighted(mean_pool(2, strides=1)(x), conv, "conv4" if flat else "conv5", relu=False)
    x = layers.Dropout(0.5)(weighted(last_pool()(layers.LeakyReLU(negative_slope=0.1)(x)), layers.Dense, "dense"))
    return with_weights(keras.Model(inputs, weighted(x, layers.Dense, "head", relu=False)))


@pytest.fixture(scope="module", params=["2d", "1d", "3d", "depthwise"])
def peer(request):
    model, stored = peer_net(request.param), np.load(FIXTURE)
    logits = model(stored[f"{request.param} inputs"])
    np.testing.assert_allclose(logits, stored[f"{request.param} logits"], rtol=1e-4, atol=1e-5)
    return request.param, model


@pytest.mark.parametrize("rule", PEERS)
def test_zennit_finds_the_same(peer, rule):
    name, model = peer
    stored = np.load(FIXTURE)
    given = {"epsilon": 0.1} if rule == "epsilon 0.1" else {}
    ours = lrp(model, stored[f"{name} inputs"], stored["targets"], PEERS[rule], **given)
    assert relative(ours, stored[f"{name} {rule}"]) < 1e-5


def test_zennit_finds_the_same_where_relus_are_fused_and_a_graph_is_traced():
    tf.config.run_functions_eagerly(False)
    stored = np.load(FIXTURE)
    ours = lrp(peer_net("2d", fused=True), stored["2d inputs"], stored["targets"])
    assert relative(ours, stored["2d epsilon_plus"]) < 1e-5


def written_out(rule, x, w, b, relevance, epsilon=1e-6, gamma=0.25):
    """Relevance of x, what every input j adds to every output k written out; w (j, k), b (k)."""
    def part(c, bias, r, to=1e-6):
        z = c.sum(0) + bias
        return (c / (z + to * np.where(z < 0, -1, 1)) * r).sum(1)

    c, (b_up, b_down) = x[:, None] * w, (np.maximum(b, 0), np.minimum(b, 0))
    z, up, down = c.sum(0) + b, np.maximum(c, 0), np.minimum(c, 0)
    return {
        "epsilon": lambda: part(c, b, relevance, epsilon),
        "alpha1_beta0": lambda: part(up, b_up, relevance),
        "alpha2_beta1": lambda: 2 * part(up, b_up, relevance) - part(down, b_down, relevance),
        "gamma": lambda: (part(c + gamma * up, b + gamma * b_up, relevance * (z > 0))
                          + part(c + gamma * down, b + gamma * b_down, relevance * (z < 0))),
    }[rule]()


def dense_matrix(layer, shape):
    """Matrix of a layer without bias and activation, from what it does to unit vectors, and its bias a unit."""
    (*kernels, bias), config = layer.get_weights(), layer.activation
    units = np.eye(np.prod(shape), dtype="float32").reshape(-1, *shape)
    layer.set_weights([*kernels, np.zeros_like(bias)])
    layer.activation = keras.activations.linear
    matrix = np.asarray(layer(units), np.float64).reshape(len(units), -1)
    layer.activation = config
    layer.set_weights([*kernels, bias])
    return matrix, np.tile(bias.astype(np.float64), matrix.shape[1] // len(bias))


#: Convolutions of every kind and geometry, of one to three axes.
CHAINS = {
    1: ((13, 3), lambda: [layers.Conv1D(4, 3, strides=2, padding="same", activation="relu"),
                          layers.Conv1D(4, 3, dilation_rate=2, padding="causal"),
                          layers.Conv1D(5, 2, strides=2, padding="valid", activation="relu")]),
    2: ((7, 6, 2), lambda: [layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
                            layers.Conv2D(5, 2, dilation_rate=(1, 2), padding="same"),
                            layers.Conv2D(5, (2, 1), strides=(1, 2), padding="valid", activation="relu")]),
    3: ((5, 4, 6, 2), lambda: [layers.Conv3D(3, 3, strides=2, padding="same", activation="relu"),
                               layers.Conv3D(4, (1, 2, 2), padding="valid"),
                               layers.Conv3DTranspose(2, 2, strides=(1, 2, 1), activation="relu")]),
    "depthwise 1-D": ((9, 2), lambda: [layers.DepthwiseConv1D(3, depth_multiplier=2, activation="relu"),
                                       layers.SeparableConv1D(3, 3, padding="same", depth_multiplier=2),
                                       layers.Conv1DTranspose(3, 2, strides=2, activation="relu")]),
    "depthwise 2-D": ((6, 7, 3), lambda: [layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2),
                                          layers.SeparableConv2D(4, 2, depth_multiplier=3, activation="relu"),
                                          layers.Conv2DTranspose(2, 3, strides=2, padding="same", activation="relu")])}


@functools.cache
def chain(kind):
    """One of `CHAINS`, then dense layers."""
    shape, make = CHAINS[kind]
    inputs = x = keras.Input(shape)
    for layer in make():
        x = layer(x)
    x = layers.Dense(12, activation="relu")(layers.Flatten()(x))
    return randomise(keras.Model(inputs, layers.Dense(3)(x)), list(CHAINS).index(kind) + 1, bias=0.5)


@pytest.mark.parametrize("rule", LRP_RULES)
@pytest.mark.parametrize("kind", CHAINS)
def test_every_rule_written_out(kind, rule):
    model = chain(kind)
    x = np.random.default_rng(4).normal(0, 1, (1, *model.inputs[0].shape[1:])).astype("float32")
    given = {name: value for name, value in {"epsilon": 0.05, "gamma": 0.4}.items() if name in only(rule).parameters}
    _, found = lrp(model, x, None, only(rule), layers=True, **given)
    weighted = [layer for layer in model.layers if layer.weights]
    seen = [keras.Model(model.inputs[0], layer.input)(x).numpy()[0] for layer in weighted]
    logits = np.asarray(model(x), np.float64)[0]
    relevance = np.where(logits == logits.max(), logits, 0)
    names = ["input", *(layer.name for layer in weighted)]
    found["input"] = next(iter(found.values()))
    for layer, below, values in zip(reversed(weighted), reversed(names[:-1]), reversed(seen)):
        matrix, bias = dense_matrix(layer, values.shape)
        relevance = written_out(rule, values.ravel().astype(np.float64), matrix, bias, relevance, **given)
        assert relative(found[below].ravel(), relevance) < 1e-4, layer.name
        relevance = found[below].ravel().astype(np.float64)  # so that rounding does not add up over layers


@pytest.mark.parametrize("rule", ["epsilon", "alpha1_beta0", "gamma", "epsilon_plus", "epsilon_gamma"])
def test_without_biases_relevance_adds_up_to_the_logit(images, rule):
    model = small(bias=0)
    flow = relevance_flow(model, images, None, rule)
    logits = np.asarray(model(images)).max(1)
    assert logits.min() > 0.01
    np.testing.assert_allclose(next(iter(flow.values()))["sum"], logits, rtol=1e-3)


def test_with_biases_each_layer_keeps_its_part():
    """Of the epsilon rule: sum of b_j R_j / z_j, and nothing else is lost on the way."""
    model = chain(2)
    x = np.random.default_rng(2).normal(0, 1, (3, 7, 6, 2)).astype("float32")
    _, found = lrp(model, x, 0, "epsilon", layers=True, epsilon=1e-8)
    flow = relevance_flow(model, x, 0, "epsilon", batch_size=2, epsilon=1e-8)
    assert list(flow) == list(found)
    before = next(iter(flow.values()))["sum"]
    for layer in model.layers[1:]:
        above = flow[layer.name]["sum"]
        np.testing.assert_allclose(above, found[layer.name].reshape(3, -1).sum(1), rtol=1e-4, atol=1e-5)
        kept = 0
        if layer.weights:
            below = keras.Model(model.inputs[0], layer.input)(x).numpy()
            matrix, bias = dense_matrix(layer, below.shape[1:])
            kept = (bias * found[layer.name].reshape(3, -1) / (below.reshape(3, -1) @ matrix + bias)).sum(1)
            assert np.abs(kept).max() > 1e-3
        np.testing.assert_allclose(above - before, kept, rtol=1e-3, atol=1e-4)
        before = above
    assert np.abs(before - next(iter(flow.values()))["sum"]).max() > 0.01, "biases do keep relevance"


def with_norms():
    """Batch norm that cannot be folded: of the input, after a ReLU, and where its input is read twice."""
    inputs = keras.Input((10, 8, 3))
    x = layers.Conv2D(5, 3, activation="relu")(layers.BatchNormalization()(inputs))
    x = layers.Conv2D(5, 3, padding="same")(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.BatchNormalization(scale=False)(x)])
    x = layers.Dense(4, activation="leaky_relu")(layers.GlobalMaxPooling2D()(layers.ReLU()(x)))
    return randomise(keras.Model(inputs, layers.Dense(3)(x)), 7)


@pytest.mark.parametrize("build", [small, with_norms])
def test_epsilon_to_zero_is_input_times_gradient_and_biases_have_the_rest(build, images):
    tf.config.run_functions_eagerly(False)
    model = build()
    ours = lrp(model, images, 1, "epsilon", epsilon=1e-9)
    assert relative(ours, attribute("input_x_gradient", model, images, 1)) < 1e-4  # 1e-6 in pools and add remain
    if build is small:
        biases = [layer.bias for layer in model.layers if layer.weights]
        with tf.GradientTape() as tape:
            logit = model(images[:1])[0, 1]
        owed = sum(float(tf.reduce_sum(bias * part)) for bias, part in zip(biases, tape.gradient(logit, biases)))
        assert abs(owed) > 0.01
        np.testing.assert_allclose(float(logit) - ours[0].sum(), owed, rtol=1e-3)


def test_batch_norm_is_folded_exactly_into_every_kind_of_layer(images):
    """Beside a net whose kernels are scaled by hand, and which gives the same logits."""
    def build(norm):
        inputs = x = keras.Input((10, 8, 3))
        for layer, scale, center in ((layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"), True, True),
                                     (layers.SeparableConv2D(5, 3, name="separable"), False, True),
                                     (layers.Conv2DTranspose(4, 2, name="transposed"), True, False),
                                     (layers.Conv2D(5, 3, padding="same", use_bias=not norm, name="plain"), True, True),
                                     (layers.Dense(4, name="dense"), True, True)):
            x = layer(layers.Flatten()(x) if layer.name == "dense" else x)
            x = layers.BatchNormalization(scale=scale, center=center, name=f"{layer.name}_norm")(x) if norm else x
            x = layers.ReLU()(x)
        return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)), 6)

    model, plain = build(True), build(False)
    plain.get_layer("head").set_weights(model.get_layer("head").get_weights())
    for name in ("depthwise", "separable", "transposed", "plain", "dense"):
        layer, norm = model.get_layer(name), model.get_layer(f"{name}_norm")
        kernels = [weight.numpy() for weight in layer.weights if "kernel" in weight.name]
        scale = (norm.gamma.numpy() if norm.scale else 1) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        kernels[-1] = kernels[-1] * (scale.reshape(3, 2) if name == "depthwise" else
                                     scale[:, None] if name == "transposed" else scale)
        bias = (layer.bias.numpy() if layer.use_bias else 0) - norm.moving_mean.numpy()
        plain.get_layer(name).set_weights([*kernels, bias * scale + (norm.beta.numpy() if norm.center else 0)])
    np.testing.assert_allclose(model(images), plain(images), rtol=1e-4, atol=1e-4)
    for rule in ("epsilon_plus", "gamma"):
        assert relative(lrp(model, images, 0, rule), lrp(plain, images, 0, rule)) < 1e-5
    found = lrp(model, images, 0, layers=True)[1]
    np.testing.assert_array_equal(found["plain"], found["plain_norm"])


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121"])
def test_backbones_of_keras_conserve_relevance_and_equal_input_times_gradient(name):
    """Add, concatenate, depthwise convolutions, and batch norm that can be folded or not; no biases.

    The ceiling of ReLU6 is raised: beyond it the gradient ends and relevance does not.
    """
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3,
                                              classifier_activation=None)
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.8, 1.2, weight.shape) if weight.path.endswith(("gamma", "moving_variance")) else
                       rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:2 if "depthwise" in layer.name else -1])),
                                  weight.shape) if weight.path.endswith("kernel") else np.zeros(weight.shape)
                       for layer in model.layers for weight in layer.weights])
    for layer in model.layers:
        if isinstance(layer, layers.ReLU):
            layer.max_value = 1e6
    image = tf.constant(rng.normal(0, 1, (1, 32, 32, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(image)
        logit = model(image, training=False)[:, 1]
    expected = image * tape.gradient(logit, image)
    found = lrp(model, image, 1, "epsilon", epsilon=1e-9)
    np.testing.assert_allclose(found.sum(), logit[0], rtol=1e-3)
    assert relative(found, expected) < 1e-2  # the stabiliser of batch norm and add: 1e-6 of values that shrink


def test_relevance_follows_the_class(net, images):
    swapped = small()
    kernel, bias = swapped.layers[-1].get_weights()
    swapped.layers[-1].set_weights([kernel[:, [1, 0, 2]], bias[[1, 0, 2]]])
    np.testing.assert_allclose(lrp(net, images, 0), lrp(swapped, images, 1), rtol=1e-5, atol=1e-7)
    assert relative(lrp(net, images, 0), lrp(net, images, 1)) > 0.1
    predicted = np.asarray(net(images)).argmax(1)
    np.testing.assert_array_equal(lrp(net, images), lrp(net, images, predicted))


def test_images_do_not_meddle_with_each_other_and_layers_come_on_request(net, images):
    whole, of_layers = lrp(net, images, [0, 1, 2, 0], layers=True)
    assert list(of_layers) == [layer.name for layer in net.layers]
    chosen = lrp(net, images, [0, 1, 2, 0], layers=[net.layers[3].name, net.layers[1].name])[1]
    assert list(chosen) == [net.layers[1].name, net.layers[3].name], "shallow to deep"
    np.testing.assert_array_equal(of_layers[net.layers[0].name], whole)
    one, single = lrp(net, images[2:3], 2, layers=True, batch_size=1)
    assert relative(one[0], whole[2]) < 1e-5
    for name, relevance in of_layers.items():
        assert relevance.shape == (4, *net.get_layer(name).output.shape[1:])
        assert relative(single[name][0], relevance[2]) < 1e-5
    assert relative(lrp(net, images, [0, 1, 2, 0], batch_size=3), whole) < 1e-5


def test_one_graph_for_any_batch_that_follows_the_weights(images):
    tf.config.run_functions_eagerly(False)
    model, other = small(1), small(2)
    lrp(model, images, 0)
    misses = _traced.cache_info().misses
    lrp(model, images[:3], 1)
    lrp(model, images, 0, batch_size=2)
    parameters = check_parameters(LRP_COMPOSITES["epsilon_plus"], {})
    run = _traced(model, LRP_COMPOSITES["epsilon_plus"], tuple(parameters.items()), (), False)
    assert _traced.cache_info().misses == misses
    assert run.experimental_get_tracing_count() == 1
    model.set_weights(other.get_weights())
    np.testing.assert_array_equal(lrp(model, images, 0), lrp(other, images, 0))


def test_shares_of_modalities():
    relevance = np.zeros((3, 2, 2, 2), "float32")
    relevance[0, ..., 0], relevance[0, ..., 1] = [[3, -3], [0, 0]], [[1, 0], [0, 1]]
    relevance[1, 0, 0] = [-1, -3]
    shares = relevance_shares(relevance)
    np.testing.assert_allclose(shares["absolute"], [[75, 25], [25, 75], [np.nan, np.nan]])
    np.testing.assert_allclose(shares["positive"], [[60, 40], [np.nan, np.nan], [np.nan, np.nan]])
    for wrong in (np.zeros(3), np.full((1, 4, 2), np.nan), np.zeros((0, 4, 2))):
        with pytest.raises(ValueError, match="relevance: must be finite"):
            relevance_shares(wrong)


@pytest.mark.parametrize("rule", LRP_COMPOSITES)
def test_relevance_finds_the_only_modality_that_counts(images, rule):
    model = small()
    kernel, bias = model.layers[1].get_weights()
    kernel[:, :, [0, 2]] = 0
    model.layers[1].set_weights([kernel, bias])
    np.testing.assert_allclose(relevance_shares(lrp(model, images, 0, rule))["absolute"], [[0, 100, 0]] * 4)


SHARED = layers.Conv2D(3, 3, padding="same", name="twice")


@pytest.mark.parametrize("chosen,message", [
    ([layers.UnitNormalization(name="odd")], r"'odd' is a UnitNorm.*layers in its place, of DepthwiseConv\*D, Conv"),
    ([layers.Conv2D(3, 3, activation="tanh", name="bent")], "layer 'bent' has the activation tanh.*supported: linear"),
    ([lambda x: x + x], r"is a Add, which relevance cannot .* Add, .*; attribute\(\) explains any network"),
    ([SHARED, SHARED], "layer 'twice' stands at several places"),
    ([layers.MaxPooling2D(2, data_format="channels_first", name="turned")], "layer 'turned' has its channels first"),
])
def test_what_is_not_supported_is_named(chosen, message):
    inputs = x = keras.Input((10, 8, 3))
    for layer in chosen:
        x = layer(x)
    with refused(match=message):
        lrp(keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x))), np.ones((1, 10, 8, 3)), 0)


@pytest.mark.parametrize("more,message", [
    ({"rule": "lrp"}, "rule: must be one of epsilon_plus, .* or a Composite .got 'lrp'"),
    ({"gamma": 1}, "rule: unknown parameter 'gamma'; this one has epsilon"),
    ({"epsilon": 0}, "epsilon: must be positive"),
    ({"epsilon": "small"}, "epsilon: must be a finite number"),
    ({"rule": "gamma", "gamma": -1}, "gamma: must not be negative"),
    ({"batch_size": 0}, "batch_size: must be a whole number from 1 on"),
    ({"layers": ["conv9"]}, "layers: 'conv9': not among"),
    ({"targets": 3}, "targets: must lie in 0..2"),
])
def test_faults_are_named(net, images, more, message):
    with refused(match=message):
        lrp(**{"model": net, "inputs": images, "targets": 0} | more)


def test_relevance_that_is_not_finite_is_refused(images):
    model = small()
    model.layers[-1].set_weights([np.full((7, 3), 1e38), np.zeros(3)])
    with pytest.raises(ValueError, match="lrp: relevance is not finite"):
        lrp(model, images, 0)


@pytest.mark.parametrize("rule", LRP_COMPOSITES)
def test_relevance_from_a_baseline_is_that_of_the_net_that_expects_inputs_minus_it(rule):
    """A first convolution without padding: its bias can take a constant baseline in exactly."""
    inputs, rng = keras.Input((7, 6, 3)), np.random.default_rng(0)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, activation="relu", name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    shifted, images = keras.models.clone_model(model), rng.normal(0.3, 1, (4, 7, 6, 3)).astype(np.float32)
    baseline = np.array([0.5, -0.2, 0.1], np.float32)
    kernel, bias, *rest = model.get_weights()
    shifted.set_weights([kernel, bias + np.einsum("hwio,i->o", kernel, baseline), *rest])
    base = np.broadcast_to(baseline, images.shape)
    np.testing.assert_allclose(shifted(images - base), model(images), rtol=1e-4, atol=1e-6)
    given = {"epsilon": 0.01} if "epsilon" in LRP_COMPOSITES[rule].parameters else {}  # no sum near 0 is blown up
    ours, flow = (of(model, images, 1, rule, baseline=base, **given) for of in (lrp, relevance_flow))
    expected = lrp(shifted, images - base, 1, rule, **given)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(ours - lrp(model, images, 1, rule, **given)).max() > 0.01 * np.abs(ours).max(), "from 0: another"
    np.testing.assert_allclose(next(iter(flow.values()))["sum"], ours.sum((1, 2, 3)), rtol=1e-3, atol=1e-5)


def test_a_baseline_needs_a_linear_first_layer():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten(name="flat")(inputs)))
    with pytest.raises(ValueError, match="baseline: must be zero, because the input goes into 'flat', which"):
        lrp(model, np.ones((1, 4, 4, 3)), 0, baseline=0.5)


def test_three_axes_of_depth_one_are_two_axes():
    """Whatever pools, pads or moves: a volume of one slice has the relevance of the image."""
    def build(axes):
        def kind(name, *given, **more):
            return getattr(layers, f"{name}{axes}D")(*(one if axes == 2 else (1, *one) for one in given), **more)

        pad = ((1, 0), (2, 1))
        inputs = x = keras.Input((9, 8, 2) if axes == 2 else (1, 9, 8, 2))
        for layer in (layers.Rescaling(0.5), kind("ZeroPadding", padding=pad if axes == 2 else ((0, 0), *pad)),
                      getattr(layers, f"Conv{axes}D")(4, (3, 3) if axes == 2 else (1, 3, 3), activation="relu"),
                      kind("MaxPooling", (2, 2)), kind("SpatialDropout", rate=0.2), kind("UpSampling", (2, 2)),
                      kind("AveragePooling", (2, 2)), layers.Identity()):
            x = layer(x)
        pools = layers.Concatenate()([kind("GlobalAveragePooling")(x), kind("GlobalMaxPooling")(x)])
        return keras.Model(inputs, layers.Dense(3)(pools))

    flat, deep = randomise(build(2), 4), build(3)
    deep.set_weights([weight.reshape(shape.shape) for weight, shape in zip(flat.get_weights(), deep.weights)])
    images = np.random.default_rng(5).normal(0, 1, (3, 9, 8, 2)).astype("float32")
    for rule in ("epsilon_plus", "gamma"):
        ours, expected = lrp(deep, images[:, None], 1, rule), lrp(flat, images, 1, rule)
        assert ours.shape == (3, 1, 9, 8, 2) and relative(ours[:, 0], expected) < 1e-5, rule
