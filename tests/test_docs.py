"""What documents show to be typed works as it stands there, and what their tables say is so."""

import functools
import re

import keras
import numpy as np
import pytest
from repository import ROOT

from mslib.explain import METHODS, attribute, gradient, occlusion, perturbation

YOUR_MODEL = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)


def test_every_block_of_your_own_model_runs():
    shared, known, shapes = {}, dict(METHODS), {}
    try:
        for block in blocks(YOUR_MODEL):
            exec(compile(block, "docs/your-model.md", "exec"), shared)
            shapes |= {name: one.shape for name, one in shared["maps"].items() if hasattr(one, "shape")}
            if "ResNet50" in block:
                assert list(shared["maps"]["layercam"])[::15] == ["conv2_block1_out", "conv5_block3_out"]
                assert {one.shape for one in shared["maps"]["layercam"].values()} == {(2, 64, 64)}
        assert {shapes[name] for name in known if name != "kernel_shap"} == {(2, 32, 32, 3)}
        assert shapes["lrp"] == shapes["kernel_shap"] == (2, 8, 24, 24, 2)
        np.testing.assert_allclose(np.nansum(shared["relevance_shares"](shared["relevance"])["absolute"], 1), 100)
        assert len(blocks(YOUR_MODEL)) == 5 and "squared_gradient" in METHODS
    finally:
        METHODS.pop("squared_gradient", None)


ROWS = {cells[0].strip("`"): cells[1:] for line in YOUR_MODEL.splitlines() if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}


def test_the_table_of_methods_names_all_of_them():
    assert [name for name in ROWS if name in METHODS] == list(METHODS) and len(ROWS) == len(METHODS) + 2


@functools.cache
def net_of(shape):
    """A convolution and a dense layer for inputs of a shape; one for all methods, so that it is traced once."""
    keras.utils.set_random_seed(0)
    conv, mean = (getattr(keras.layers, f"{one}{len(shape) - 1}D") for one in ("Conv", "GlobalAveragePooling"))
    return keras.Sequential([keras.Input(shape), conv(3, 3, padding="same", activation="relu"), mean(),
                             keras.layers.Dense(2)])


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_methods_is_true(name, monkeypatch):
    """Signals, images and volumes; sums of what adds up; images that pass through the network, counted."""
    *axes, modalities, sums, cost = ROWS[name]
    assert axes == ["yes"] * 3 and (modalities == "yes") == METHODS[name].per_modality
    assert sums.startswith("yes") == METHODS[name].complete
    passed = []

    def counted(module, function, images_of):
        plain = getattr(module, function)

        def counting(*given, **more):
            passed.append(images_of(given))
            return plain(*given, **more)

        monkeypatch.setattr(module, function, counting)

    def counted_batches(module):
        plain = module.logits_of
        monkeypatch.setattr(module, "logits_of", lambda model, batches: plain(
            model, (passed.append(len(batch)) or batch for batch in batches)))

    counted(gradient, "_gradients", lambda given: len(given[1]))
    counted(gradient, "layer_cams", lambda given: len(given[1]))
    counted_batches(perturbation)
    counted_batches(occlusion)
    for shape in ((16, 2), (8, 6, 2), (4, 8, 6, 2)):
        images = np.random.default_rng(0).random((2, *shape)).astype("float32")
        groups = np.arange(2) + 2 * (np.indices(shape)[0] >= 2)
        given = {key: value for key, value in {"samples": 12, "steps": 4, "permutations": 1, "window": 4, "stride": 4,
                                               "groups": groups, "engine": "full"}.items()
                 if key in METHODS[name].parameters}
        passed.clear()
        maps = attribute(name, net_of(shape), images, 0, **given)
        assert maps.shape == images.shape and maps.any()
        known = given | {"groups": 4, "windows": 2 * np.prod([-(-size // 4) for size in shape[:-1]])}
        most = 2 * eval(cost, {}, known)
        repeats = name in ("lime", "shapley_sampling", "kernel_shap")  # coalitions that are drawn twice
        assert sum(passed) == most or (repeats and most / 3 < sum(passed) <= most), shape


def test_the_method_of_the_bench_document_runs():
    shared = {}
    exec(compile(blocks((ROOT / "docs" / "bench.md").read_text(encoding="utf-8"))[0], "docs/bench.md", "exec"), shared)
    model = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert shared["mymethod"](model, np.ones((4, 6, 5, 3), "float32"), np.zeros(4, "int32")).shape == (4, 6, 5, 3)
