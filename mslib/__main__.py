"""The steps that the Snakefile calls: ``python -m mslib STEP --config FILE --run-dir FOLDER``; and ``pretrain``."""

from __future__ import annotations

import argparse
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
KINDS = {"network": Network.parse, "number": int, "blocks": int, "results": Path,
         "folder": Path, "recipe": Path}


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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        given = vars(_parser().parse_args(arguments))
        step = getattr(steps, given.pop("step"))
        if "run_dir" in given:
            given["study"] = steps.Study(given.pop("config"), given.pop("run_dir"))
        step(**given)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
