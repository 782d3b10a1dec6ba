"""Steps of the results: one notebook executed, and what is published."""

from pathlib import Path

from mslib.study import StudyError
from mslib.study.provenance import ROOT

from .study import Study


def notebook(study: Study, name: str) -> None:
    """Execute one notebook into the run folder, as papermill alone would; bad input ends in one line, no traceback."""
    import os

    import papermill
    from papermill.exceptions import PapermillExecutionError
    folder, target = ROOT / "notebooks", study.folder / "notebooks" / f"{name}.ipynb"
    parameters = {name: os.path.relpath(path, folder)
                  for name, path in (("config", study.config_path), ("run_dir", study.folder))}
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(str(folder / f"{name}.ipynb"), str(target), parameters, cwd=str(folder),
                                   start_timeout=300)
    except PapermillExecutionError as error:
        if error.ename in ("StudyError", "WriteError"):
            raise StudyError(f"notebook {name}: {error.evalue}") from error
        raise


def publish(study: Study, results: Path) -> None:
    """Copy the light part of a run to the results folder."""
    from mslib.publish import publish as write_results
    write_results(study, results)
