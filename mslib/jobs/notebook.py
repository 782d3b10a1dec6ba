"""One notebook executed into the run folder, as papermill alone would; bad input ends in one line, no traceback."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from mslib.study import StudyError
from mslib.study.provenance import ROOT


def execute_notebook(name: str, config_path: str | Path, run_dir: str | Path, backbone: str | None = None) -> Path:
    """Run ``notebooks/<name>.ipynb`` into ``<run_dir>/notebooks/``, for one backbone where one is given.

    Waits for a process that a killed run may have left at the same notebook.

    Raises
    ------
    StudyError
        What the notebook's code said in one line; any other error comes through with its traceback.
    """
    folder, run_dir = ROOT / "notebooks", Path(run_dir)
    target = run_dir / "notebooks" / f"{name}{f'_{backbone}' if backbone else ''}.ipynb"
    parameters = {"config": os.path.relpath(config_path, folder), "run_dir": os.path.relpath(run_dir, folder)}
    if backbone:
        parameters["backbone"] = backbone
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.stem}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            papermill.execute_notebook(str(folder / f"{name}.ipynb"), str(target), parameters, cwd=str(folder),
                                       start_timeout=300)
        except PapermillExecutionError as error:
            if error.ename in ("StudyError", "WriteError"):
                raise StudyError(f"notebook {target.stem}: {error.evalue}") from error
            raise
    return target
