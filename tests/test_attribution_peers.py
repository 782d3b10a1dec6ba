"""Methods of removal and of sampling against captum and shap, and the axioms that hold for them.

What is drawn at random agrees by correlation, at the numbers of draws below; the peers' were drawn so often that their
scatter does not show (tests/fixtures/attribution).
"""

import numpy as np
import pytest
from attribution_cases import FIXTURE, blocks, case, relative, with_first_kernel, without_second

from mslib.explain import METHODS, attribute

#: Draws at which a method agrees with its peer: correlation of all values of all images above 0.999.
DRAWN = {"lime": {"samples": 16000, "width": 0.2}, "kernel_shap": {"samples": 4000},
         "shapley_sampling": {"permutations": 2000}, "smoothgrad": {"samples": 1500},
         "gradient_shap": {"samples": 1500}}
GROUPED = [name for name, method in METHODS.items() if "groups" in method.parameters]
REMOVING = [name for name, method in METHODS.items() if method.family == "perturbation"]
#: Small numbers of draws, for what holds whatever is drawn.
FEW = {"lime": {"samples": 200}, "kernel_shap": {"samples": 200}, "shapley_sampling": {"permutations": 5},
       "feature_permutation": {"permutations": 2}, "occlusion": {"window": 4, "stride": 2},
       "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 4}, "gradient_shap": {"samples": 2}}


@pytest.fixture(scope="module", params=["2d", "1d"])
def net(request):
    return request.param, *case(request.param)


def of_peer(name, method):
    return np.load(FIXTURE)[f"{name} {method}"]


@pytest.mark.parametrize("method", ["occlusion", "feature_ablation"])
def test_captum_removes_the_same(net, method):
    name, model, images, targets, baseline = net
    more = {"window": 4, "stride": 2} if method == "occlusion" else {"groups": blocks(images)}
    assert relative(attribute(method, model, images, targets, baseline=baseline, **more), of_peer(name, method)) < 1e-5


@pytest.mark.parametrize("method", DRAWN)
def test_captum_samples_the_same(net, method):
    name, model, images, targets, baseline = net
    more = DRAWN[method] | ({"groups": blocks(images)} if method in GROUPED else {})
    more = more | ({"baseline": baseline} if method != "smoothgrad" else {})
    found = attribute(method, model, images, targets, **more)
    assert np.corrcoef(found.ravel(), of_peer(name, method).ravel())[0, 1] > 0.999
    assert relative(found, of_peer(name, method)) < 0.06, "the scale, too"


def test_limes_kernel_matters(net):
    """What `test_captum_samples_the_same` would not see if values hung on no kernel."""
    name, model, images, targets, baseline = net
    wide = attribute("lime", model, images, targets, baseline=baseline, groups=blocks(images), samples=16000)
    assert np.corrcoef(wide.ravel(), of_peer(name, "lime").ravel())[0, 1] < 0.995


@pytest.mark.parametrize("method", ["kernel_shap", "shapley_sampling"])
def test_shap_finds_the_same_over_all_coalitions(net, method):
    name, model, images, targets, baseline = net
    found = attribute(method, model, images, targets, baseline=baseline, groups=blocks(images), **DRAWN[method])
    assert np.corrcoef(found.ravel(), of_peer(name, "exact_shapley").ravel())[0, 1] > 0.999


def test_shap_finds_the_same_deeplift_from_a_random_baseline(net):
    name, model, images, targets, baseline = net
    assert relative(attribute("deeplift", model, images, targets, baseline=baseline), of_peer(name, "deeplift")) < 1e-5


# Axioms


@pytest.mark.parametrize("method", [*(name for name, one in METHODS.items() if one.family == "gradient"
                                      and name != "smoothgrad"), *REMOVING])
def test_modalities_that_are_alike_get_the_same(net, method):
    """Symmetry: first and second modality have the same values and weights. (SmoothGrad draws noise for each.)"""
    _, model, images, targets, _ = net
    images = images[..., [0, 0, 2]]

    def alike(kernel):
        kernel[..., 1, :] = kernel[..., 0, :]
        return kernel

    more = DRAWN.get(method, {}) if method in GROUPED else FEW.get(method, {})
    more = more | ({"groups": blocks(images)} if method in GROUPED else {})
    maps = attribute(method, with_first_kernel(model, alike), images, targets, **more)
    if method in DRAWN and method in GROUPED:
        assert np.corrcoef(maps[..., 0].ravel(), maps[..., 1].ravel())[0, 1] > 0.99, "but for what was drawn"
    else:
        assert relative(maps[..., 0], maps[..., 1]) < 1e-4
    if METHODS[method].per_modality:
        assert relative(maps[..., 2], maps[..., 0]) > 0.1


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gradcam"])
def test_a_modality_that_the_net_does_not_see_gets_nothing(net, method):
    """Null player; regressions on coalitions reach it by many draws."""
    _, model, images, targets, _ = net
    more = (DRAWN[method] if method in ("lime", "kernel_shap") else FEW.get(method, {})) | (
        {"groups": blocks(images)} if method in GROUPED else {})
    maps = np.abs(attribute(method, with_first_kernel(model, without_second), images, targets, **more))
    limit = {"gradient": 0, "activation": 0}.get(METHODS[method].family, 1e-5)
    assert maps[..., 1].max() <= (0.05 if method in ("lime", "kernel_shap") else limit) * maps[..., [0, 2]].max()
    assert maps[..., 0].any() and maps[..., 2].any()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "smoothgrad"])
def test_modalities_in_another_order_give_maps_in_that_order(net, method):
    """SmoothGrad draws its noise in the order of the modalities."""
    _, model, images, targets, _ = net
    order, more, moved = [2, 0, 1], FEW.get(method, {}), {}
    if method in GROUPED:
        groups = blocks(images)
        more, moved = more | {"groups": groups}, {"groups": groups[..., order]}
    expected = attribute(method, model, images, targets, **more)[..., order]
    other = with_first_kernel(model, lambda kernel: kernel[..., order, :])
    assert relative(attribute(method, other, images[..., order], targets, **more | moved), expected) < 1e-4
