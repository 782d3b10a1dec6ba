"""Where does a network look when it tells types of multiple sclerosis apart? Helpers of the notebooks."""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile

# TensorFlow leaves the faster kernels out on processors without AVX-512 unless asked before it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Imports TensorFlow without the lines about GPUs that its C++ part prints; all others still reach the terminal.

    They come before its log level is read, so file descriptor 2 is diverted while the package is imported.
    """

    CHATTER = (b"I0000 ", b"WARNING: All log messages before absl")

    def find_spec(self, name, path=None, target=None):
        """Hook of the import system."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module

            def load_quietly(module):
                with self.diverted():
                    load(module)

            spec.loader.exec_module = load_quietly
        return spec

    @contextlib.contextmanager
    def diverted(self):
        """Keep what is written to file descriptor 2, and write it afterwards, but for the chatter."""
        with tempfile.TemporaryFile() as kept:
            terminal = os.dup(2)
            os.dup2(kept.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
                kept.seek(0)
                for line in kept:
                    if not line.startswith(self.CHATTER):
                        os.write(2, line)


if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _QuietTensorFlow())
