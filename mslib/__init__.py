"""Where does a network look when it tells types of multiple sclerosis apart? Helpers of the notebooks."""

import os

# TensorFlow leaves the faster kernels out on processors without AVX-512 unless asked before it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"
