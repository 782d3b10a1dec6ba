"""Progress bars that reach the person, wherever the code runs."""

import os
import sys

from tqdm.auto import tqdm as auto_tqdm
from tqdm.std import tqdm


def progress(iterable=None, **options) -> tqdm:
    """A tqdm bar with `options`, in the notebook or, where Snakemake drives it, on the terminal."""
    if os.environ.get("MSLIB_PROGRESS") == "terminal":
        # A kernel's sys.stderr ends in the notebook; the inherited one is the terminal.
        return tqdm(iterable, file=sys.__stderr__, mininterval=5, **options)
    return auto_tqdm(iterable, mininterval=1, **options)
