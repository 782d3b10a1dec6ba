"""What holds for all tests."""

import mslib  # noqa: F401 - before TensorFlow, which then takes the kernels that the study runs with
