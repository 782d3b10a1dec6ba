"""What holds for all tests."""

import mslib  # noqa: F401 - before TensorFlow, which then takes the kernels that the study runs with


def pytest_collection_modifyitems(items):
    """The smoke study first: it takes longest, and the other files run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("study") is None)
