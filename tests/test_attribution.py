"""What holds for every attribution method: captum and shap, axioms, what is refused, what maps add up to.

What is drawn at random agrees by correlation, at the numbers of draws below; the peers' were drawn so often that their
scatter does not show (tests/fixtures/attribution).
"""

import keras
import numpy as np
import pytest
from attribution_cases import FIXTURE, blocks, case, quick, relative
from scipy.stats import spearmanr
from shared_cases import refused

from mslib.explain import METHODS, attribute, completeness_gap, covered, superpixels

#: First kernels under which something is known of maps: the second modality is not seen, they stand in another order.
KERNELS = {"order": lambda kernel: kernel[..., [2, 0, 1], :],
           "blind": lambda kernel: kernel * np.array([1, 0, 1], "float32")[:, None]}
#: Draws at which a method agrees with its peer: correlation of all values of all images above 0.999.
DRAWN = {"lime": {"samples": 16000, "width": 0.2}, "kernel_shap": {"samples": 4000},
         "shapley_sampling": {"permutations": 2000}, "smoothgrad": {"samples": 1500},
         "gradient_shap": {"samples": 1500}}
GROUPED = [name for name, method in METHODS.items() if "groups" in method.parameters]


@pytest.fixture(scope="module")
def changed():
    """The net with each of `KERNELS`: traced once for all methods."""
    model, found = case("2d")[0], {name: keras.models.clone_model(case("2d")[0]) for name in KERNELS}
    for name, change in KERNELS.items():
        kernel, *rest = model.get_weights()
        found[name].set_weights([change(kernel), *rest])
    return found


@pytest.mark.parametrize("name", ["2d", "1d"])
@pytest.mark.parametrize("method", ["occlusion", "feature_ablation"])
def test_captum_removes_the_same(name, method):
    (model, images, targets, baseline), stored = case(name), np.load(FIXTURE)
    more = {"window": 4, "stride": 2} if method == "occlusion" else {"groups": blocks(images)}
    found = attribute(method, model, images, targets, baseline=baseline, **more)
    assert relative(found, stored[f"{name} {method}"]) < 1e-5


@pytest.mark.parametrize("name,method", [(name, method) for name in ("2d", "1d") for method in DRAWN
                                         if name == "2d" or method in GROUPED])
def test_captum_samples_the_same_and_shap_over_all_coalitions(name, method):
    (model, images, targets, baseline), stored = case(name), np.load(FIXTURE)
    more = DRAWN[method] | ({"groups": blocks(images)} if method in GROUPED else {})
    more = more | ({"baseline": baseline} if method != "smoothgrad" else {})
    found = attribute(method, model, images, targets, **more)
    assert np.corrcoef(found.ravel(), stored[f"{name} {method}"].ravel())[0, 1] > 0.999
    assert relative(found, stored[f"{name} {method}"]) < 0.06, "the scale, too"
    if method in ("kernel_shap", "shapley_sampling"):
        assert np.corrcoef(found.ravel(), stored[f"{name} exact_shapley"].ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", ["2d", "1d"])
def test_shap_finds_the_same_deeplift_from_a_random_baseline(name):
    (model, images, targets, baseline), stored = case(name), np.load(FIXTURE)
    assert relative(attribute("deeplift", model, images, targets, baseline=baseline), stored[f"{name} deeplift"]) < 1e-5


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gradcam"])
def test_a_modality_that_the_net_does_not_see_gets_nothing(changed, method):
    """Null player; regressions on coalitions reach it by many draws."""
    _, images, targets, _ = case("2d")
    more = quick(method, images) | (DRAWN[method] if method in ("lime", "kernel_shap") else {})
    maps = np.abs(attribute(method, changed["blind"], images, targets, **more))
    limit = {"gradient": 0, "activation": 0}.get(METHODS[method].family, 1e-5)
    assert maps[..., 1].max() <= (0.05 if method in ("lime", "kernel_shap") else limit) * maps[..., [0, 2]].max()
    assert maps[..., 0].any() and maps[..., 2].any()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "smoothgrad"])
def test_modalities_in_another_order_give_maps_in_that_order(changed, method):
    """So that those that are alike get the same. SmoothGrad draws its noise in the order of the modalities."""
    model, images, targets, _ = case("2d")
    order, more = [2, 0, 1], quick(method, images)
    moved = {"groups": more["groups"][..., order]} if "groups" in more else {}
    expected = attribute(method, model, images, targets, **more)[..., order]
    found = attribute(method, changed["order"], images[..., order], targets, **more | moved)
    assert relative(found, expected) < 1e-4
    assert (relative(expected[..., 0], expected[..., 1]) > 0.1) == METHODS[method].per_modality


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_unfit_input_in_one_line(method):
    model, images, targets, _ = case("2d")
    unfit = [({"images": images[0]}, "images: must be a non-empty (N, any, any, 3) array"),
             ({"images": images[:0], "targets": targets[:0]}, "images: must be a non-empty"),
             ({"images": images[..., :2]}, "images: must be a non-empty (N, any, any, 3) array"),
             ({"images": np.where(images > 0.99, np.nan, images)}, "hold NaN or infinity"),
             ({"targets": 4}, "targets: must lie in 0..3"),
             ({"targets": -1}, "targets: must lie in 0..3"),
             ({"targets": targets[:2]}, "targets: must be 5 integer class ids"),
             ({"targets": targets + 0.5}, "targets: must be 5 integer class ids"),
             ({"batch_size": 0}, f"{method}: batch_size must be a whole number from 1 on (got 0)"),
             ({"images": np.float32(3)}, "images: must be a non-empty"),
             ({"precision": "half"}, "precision: must be float32, or bfloat16 for perturbation methods"),
             ({"method": "saliency"}, "method: must be one of gradient, input_x_gradient"),
             ({"nonsense": 1}, f"{method}: unknown parameter 'nonsense'; allowed: ")]
    known, family = METHODS[method].parameters, METHODS[method].family
    unfit += [({"precision": "bfloat16"}, f"(got 'bfloat16' for {method})")] if family != "perturbation" else []
    unfit += [({name: value}, f"{method}: {name} must be a whole number from 1 on (got {value})") for value in (0, 2.5)
              for name in ("samples", "steps", "permutations", "window", "stride") if name in known]
    unfit += [({"window": 4}, "stride must not exceed the window")] if "window" in known else []
    unfit += [({"width": 0.0}, "lime: width must be above 0 (got 0.0)")] if "width" in known else []
    unfit += [({"noise": -0.1}, "noise must be from 0 on (got -0.1)")] if "noise" in known else []
    if "groups" in known:
        unfit += [({"groups": np.zeros((3, 3), int)}, "groups"), ({"groups": np.full(images.shape[1:], -1)}, "groups")]
    if "baseline" in known:
        unfit += [({"baseline": "grey"}, "baseline: must be a number, an array or one of zero, mean"),
                  ({"baseline": np.zeros((2, 2))}, "baseline: must have"), ({"baseline": np.nan}, "holds NaN")]
    if "layer" in known:
        unfit += [({"layer": "conv9"}, "layers: 'conv9': not among the layers")]
    for change, message in unfit:
        with refused(message):
            attribute(**({"method": method, "model": model, "images": images, "targets": targets} | change))


def test_where_a_method_can_give_a_value():
    """Black margins are in no superpixel: methods of superpixels leave them 0, others do not."""
    model, images, targets, _ = case("2d")
    images = images.copy()
    images[:, :4] = 0
    groups = superpixels(images, 3)
    given = covered("feature_ablation", groups)
    assert not given[:, :4].any() and given[:, 4:].all() and covered("gradient", groups).all()
    assert (attribute("feature_ablation", model, images, targets, groups=groups)[~given] == 0).all()
    assert (attribute("gradient", model, images, targets)[~given] != 0).any()
    with pytest.raises(ValueError, match="method: must be one of gradient"):
        covered("saliency", groups)


@pytest.fixture(scope="module")
def adding():
    """A net whose two scores are the sum of an image and 0."""
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.set_weights([np.stack([np.ones(16), np.zeros(16)], 1), np.zeros(2)])
    return model


def test_gap_where_nothing_is_owed(adding):
    images = np.array([3.0, 3.0, 2.0, 0.0, 0.0], "float32")[:, None, None, None] * np.ones((1, 4, 4, 1), "float32")
    baseline = images.copy()
    baseline[2] = 1
    maps = np.zeros(images.shape)
    maps[1, 0, 0] = 1
    maps[2] = 1.5
    maps[4, 0, 0] = 1e-3
    with np.errstate(all="raise"):
        gap = completeness_gap(maps, adding, images, np.zeros(5, int), baseline)
    assert gap[0] == 0 and gap[3] == 0, "nothing owed, nothing given"
    assert gap[1] == pytest.approx(1 / (1e-6 * 48), rel=1e-3), "nothing owed, 1 given, both scores are 48"
    assert gap[2] == pytest.approx(0.5)
    assert np.isfinite(gap).all() and gap[4] > 1e20


def test_gap_of_a_softmax_is_that_of_its_logits(adding):
    images = np.full((1, 4, 4, 1), 0.5, "float32")
    softmax = keras.Sequential([adding, keras.layers.Softmax()])
    assert completeness_gap(images, softmax, images, [0], 0 * images) == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize("change,message", [
    ({"maps": np.zeros((2, 4, 4, 2))}, "maps: must be finite, of the shape of the images"),
    ({"maps": np.full((2, 4, 4, 1), np.nan)}, "maps: must be finite"),
    ({"baseline": np.zeros((4, 4, 1))}, "baseline: must be finite, of the shape of the images"),
    ({"images": np.full((2, 4, 4, 1), np.inf)}, "images: 2 of 2 hold NaN or infinity"),
    ({"targets": [0, 2]}, "targets: must lie in 0..1")])
def test_gap_of_unfit_input_is_refused(adding, change, message):
    given = {"maps": np.zeros((2, 4, 4, 1)), "model": adding, "images": np.ones((2, 4, 4, 1)), "targets": [0, 1],
             "baseline": np.zeros((2, 4, 4, 1))}
    with refused(message):
        completeness_gap(**(given | change))


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].family == "perturbation"])
def test_maps_in_bfloat16_rank_alike(method):
    """Spearman's correlation of the maps above 0.99 (0.9990 to 0.9999 were found)."""
    model, images, targets, _ = case("2d")
    groups = {"groups": blocks(images)} if "groups" in METHODS[method].parameters else {}
    exact, rounded = (attribute(method, model, images, targets, precision=precision, **groups)
                      for precision in ("float32", "bfloat16"))
    assert (exact != rounded).any()
    assert spearmanr(exact.ravel(), rounded.ravel()).statistic > 0.99
