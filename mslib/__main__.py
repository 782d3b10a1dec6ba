"""The steps that the Snakefile calls: ``python -m mslib STEP --config FILE --run-dir FOLDER``; and ``pretrain``."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import sys
from pathlib import Path

from mslib import steps
from mslib.study import Network, StudyError

STEPS = [name for name, step in vars(steps).items() if inspect.isfunction(step) and step.__module__ == steps.__name__
         and next(iter(inspect.signature(step).parameters), "") == "study" and not name.startswith("_")]
#: Commands that belong to no study.
ALONE = ("pretrain",)
DEFAULTS = {"recipe": steps.ROOT / "weights" / "pretraining.yaml"}
#: How arguments of steps are read, where they are no plain text.
KINDS = {"network": Network.parse, "number": int, "blocks": int, "mm": float, "results": Path, "folder": Path,
         "recipe": Path}


def _parser() -> argparse.ArgumentParser:
    """One command per step: its docstring is the help, its arguments after the study are required options."""
    parser = argparse.ArgumentParser(prog="python -m mslib", description=__doc__)
    commands = parser.add_subparsers(dest="step", required=True)
    for name in (*STEPS, *ALONE):
        function = getattr(steps, name)
        text = inspect.getdoc(function).splitlines()[0]
        command = commands.add_parser(name, help=text, description=text)
        arguments = list(inspect.signature(function).parameters)
        if name in STEPS:
            command.add_argument("--config", required=True, type=Path)
            command.add_argument("--run-dir", required=True, type=Path)
            arguments = arguments[1:]
        for argument in arguments:
            default = DEFAULTS.get(argument)
            command.add_argument(f"--{argument}", required=default is None, default=default,
                                 type=KINDS.get(argument, str))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one step; bad input is told in one line and gives exit status 1."""
    try:
        given = vars(_parser().parse_args(arguments))
        step = getattr(steps, given.pop("step"))
        if "run_dir" in given:
            given["study"] = steps.Study(given.pop("config"), given.pop("run_dir"))
        step(**given)
    except StudyError as error:
        return _fault(str(error))
    except OSError as error:
        return _fault(f"{error.filename or 'file system'}: {error.strerror or error}")
    return 0


def _fault(line: str) -> int:
    """Tell a fault, now and (through the file that the Snakefile names) at the end of the run; the exit status."""
    print(line, file=sys.stderr)
    if path := os.environ.get("MSLIB_FAULTS"):
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
