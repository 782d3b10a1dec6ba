"""What holds for all tests."""

import fcntl
import os

# Before NumPy: two workers on two cores, whose threads of linear algebra would wait for one another.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import pytest

import mslib  # noqa: F401 - before TensorFlow, which then takes the kernels that the study runs with


def pytest_collection_modifyitems(items):
    """The small study first, which takes longest, what is tried on copies of it last; the other files run beside it."""
    items.sort(key=lambda item: {"test_study.py": 0, "test_study_copies.py": 2}.get(item.path.name, 1))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Folder of the small study (`small_study.make`), made once for all workers."""
    from small_study import make
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture
def shallow(monkeypatch):
    """VGG16 with one convolution a block, for what does not depend on how many there are: traced in half the time."""
    from mslib.nets.vgg import CONVOLUTIONS
    monkeypatch.setitem(CONVOLUTIONS, "vgg16", (1, 1, 1, 1, 1))
