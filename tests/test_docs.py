"""What documents show to be typed works as it stands there."""

import re

import numpy as np
from repository import ROOT

from mslib.explain import METHODS


def test_every_block_of_your_own_model_runs():
    text = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
    blocks, shared = re.findall(r"```python\n(.+?)```", text, re.DOTALL), {}
    known = dict(METHODS)
    try:
        for block in blocks:
            exec(compile(block, "docs/your-model.md", "exec"), shared)
            if "layer_cams(" in block:
                assert shared["maps"]["layercam"]["conv3_block4_out"].shape == (2, 64, 64)
            if "integrated_gradients" in block:
                assert set(shared["maps"]) == set(known)
                assert all(one.shape == (2, 32, 32, 3) for one in shared["maps"].values())
        np.testing.assert_allclose(np.nansum(shared["relevance_shares"](shared["relevance"])["absolute"], 1), 100)
        assert len(blocks) == 4 and "squared_gradient" in METHODS
    finally:
        METHODS.pop("squared_gradient", None)
