"""Methods of removal and of sampling against captum and shap, and the axioms that hold for them.

What is drawn at random agrees by correlation, at the numbers of draws below; the peers' were drawn so often that their
scatter does not show (tests/fixtures/attribution).
"""

import numpy as np
import pytest
from attribution_cases import FIXTURE, blocks, case, quick, relative, with_first_kernel

from mslib.explain import METHODS, attribute

#: First kernels under which something is known of maps: the second modality is not seen, they stand in another order.
KERNELS = {"order": lambda kernel: kernel[..., [2, 0, 1], :],
           "blind": lambda kernel: kernel * np.array([1, 0, 1], "float32")[:, None]}
#: Draws at which a method agrees with its peer: correlation of all values of all images above 0.999.
DRAWN = {"lime": {"samples": 16000, "width": 0.2}, "kernel_shap": {"samples": 4000},
         "shapley_sampling": {"permutations": 2000}, "smoothgrad": {"samples": 1500},
         "gradient_shap": {"samples": 1500}}
GROUPED = [name for name, method in METHODS.items() if "groups" in method.parameters]


@pytest.fixture(scope="module", params=["2d", "1d"])
def net(request):
    return request.param, *case(request.param)


@pytest.fixture(scope="module")
def changed():
    """The net with each of `KERNELS`: traced once for all methods."""
    return {name: with_first_kernel(case("2d")[0], change) for name, change in KERNELS.items()}


def of_peer(name, method):
    return np.load(FIXTURE)[f"{name} {method}"]


@pytest.mark.parametrize("method", ["occlusion", "feature_ablation"])
def test_captum_removes_the_same(net, method):
    name, model, images, targets, baseline = net
    more = {"window": 4, "stride": 2} if method == "occlusion" else {"groups": blocks(images)}
    assert relative(attribute(method, model, images, targets, baseline=baseline, **more), of_peer(name, method)) < 1e-5


@pytest.mark.parametrize("name,method", [(name, method) for name in ("2d", "1d") for method in DRAWN
                                         if name == "2d" or method in GROUPED])
def test_captum_samples_the_same_and_shap_over_all_coalitions(name, method):
    model, images, targets, baseline = case(name)
    more = DRAWN[method] | ({"groups": blocks(images)} if method in GROUPED else {})
    more = more | ({"baseline": baseline} if method != "smoothgrad" else {})
    found = attribute(method, model, images, targets, **more)
    assert np.corrcoef(found.ravel(), of_peer(name, method).ravel())[0, 1] > 0.999
    assert relative(found, of_peer(name, method)) < 0.06, "the scale, too"
    if method in ("kernel_shap", "shapley_sampling"):
        assert np.corrcoef(found.ravel(), of_peer(name, "exact_shapley").ravel())[0, 1] > 0.999


def test_limes_kernel_matters():
    """What the test above would not see if values hung on no kernel."""
    name, (model, images, targets, baseline) = "2d", case("2d")
    wide = attribute("lime", model, images, targets, baseline=baseline, groups=blocks(images), samples=4000)
    assert np.corrcoef(wide.ravel(), of_peer(name, "lime").ravel())[0, 1] < 0.995


def test_shap_finds_the_same_deeplift_from_a_random_baseline(net):
    name, model, images, targets, baseline = net
    assert relative(attribute("deeplift", model, images, targets, baseline=baseline), of_peer(name, "deeplift")) < 1e-5


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
