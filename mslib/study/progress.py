"""Progress bars that reach the person, wherever the code runs."""

from __future__ import annotations

import os
import sys

from tqdm.auto import tqdm as auto_tqdm
from tqdm.std import tqdm


def progress(iterable=None, **options):
    """A tqdm bar with time left: in the notebook when one is worked in, on the terminal when Snakemake drives it.

    Parameters
    ----------
    iterable : iterable, optional
    **options
        As of `tqdm.tqdm` (``total``, ``desc``, ``unit``, ``initial``).

    Returns
    -------
    tqdm.tqdm
    """
    if os.environ.get("MSLIB_PROGRESS") == "terminal":
        # A kernel's sys.stderr ends in the notebook; the inherited one is the terminal.
        return tqdm(iterable, file=sys.__stderr__, mininterval=5, **options)
    return auto_tqdm(iterable, mininterval=1, **options)
