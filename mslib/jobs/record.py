"""What a notebook leaves behind besides its text: figures, tables and the numbers that others quote."""

from __future__ import annotations

import math
from pathlib import Path

from mslib.show import save_figure
from mslib.study import write_json


def show(figure, run_dir: str | Path, name: str):
    """Save a figure as ``figures/<name>.png`` and return it, so that the notebook displays it."""
    save_figure(figure, Path(run_dir) / "figures" / f"{name}.png")
    return figure


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
    """Write a notebook's numbers to ``metrics/<name>.json``."""
    write_json(Path(run_dir) / "metrics" / f"{name}.json", _rounded(metrics))


def interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    """``0.93 (0.88 to 0.97)``."""
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
