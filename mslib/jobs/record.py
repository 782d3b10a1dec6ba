"""What a notebook leaves behind besides its text: figures, tables and the numbers that others quote."""

from __future__ import annotations

import math
from pathlib import Path

from IPython.display import Image

from mslib.measure import MIN_SUBJECTS
from mslib.show import save_figure
from mslib.study import write_json
from mslib.study.files import WRITTEN

#: What of a run is published, besides numbers and executed notebooks.
PUBLISHED = ("figures", "tables", "viewers", "report.html")


def show(figure, run_dir: str | Path, name: str):
    """Save a figure as ``figures/<name>.png`` and return that picture, so that the notebook displays and keeps it."""
    return Image(save_figure(figure, Path(run_dir) / "figures" / f"{name}.png"))


def _rounded(value):
    """Five significant digits, and None for what is not a number: two runs then write the same text."""
    if isinstance(value, dict):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    return float(f"{float(value):.5g}") if math.isfinite(value) else None


def record(run_dir: str | Path, name: str, metrics: dict) -> None:
    """Write a notebook's numbers to ``metrics/<name>.json``, and what it has made for readers to ``made/<name>.json``.

    The latter tells publishing which files belong to this run, and which an earlier one has left.
    """
    run_dir = Path(run_dir)
    inside = [path.relative_to(run_dir) for path in WRITTEN if path.is_relative_to(run_dir)]
    made = sorted({path.as_posix() for path in inside if path.parts[0] in PUBLISHED})
    write_json(run_dir / "made" / f"{name}.json", made)
    write_json(run_dir / "metrics" / f"{name}.json", _rounded(metrics))


def interval_text(value, low, high, digits: int = 2, name: str = "") -> str:
    """``0.93 (0.88 to 0.97)``, with a `name` ``0.93 (95 % interval 0.88 to 0.97)``, or that there is no interval.

    Parameters
    ----------
    value, low, high : float or None
        None (as recorded) or NaN: not known.
    digits : int
    name : str
        What the interval is, for readers who have not been told.
    """
    known = [math.nan if number is None else float(number) for number in (value, low, high)]
    if math.isnan(known[0]):
        return "not measured"
    if math.isnan(known[1]) or math.isnan(known[2]):
        return f"{known[0]:.{digits}f} (no {name or 'interval'}: n < {MIN_SUBJECTS} subjects, or all alike)"
    before = f"{name} " if name else ""
    return f"{known[0]:.{digits}f} ({before}{known[1]:.{digits}f} to {known[2]:.{digits}f})"
