"""What holds for all tests."""

import os

# Before NumPy: two workers on two cores, whose threads of linear algebra would wait for one another.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import pytest

import mslib  # noqa: F401 - before TensorFlow, which then takes the kernels that the study runs with


def pytest_collection_modifyitems(items):
    """The smoke study first: it takes longest, and the other files run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("study") is None)


@pytest.fixture
def shallow(monkeypatch):
    """VGG16 with one convolution a block, for what does not depend on how many there are: traced in half the time."""
    from mslib.nets.vgg import CONVOLUTIONS
    monkeypatch.setitem(CONVOLUTIONS, "vgg16", (1, 1, 1, 1, 1))
