"""The steps that the Snakefile calls: ``python -m mslib STEP --config FILE --run-dir FOLDER``."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from pathlib import Path

from mslib import steps
from mslib.study import Network, StudyError

STEPS = (
    "start", "simulate", "check", "preprocess", "subjects", "truth", "pretraining_cohort", "pretrain",
    "activations", "train", "predict", "measure_maps", "randomise", "volume", "known_rule", "known_rule_maps",
    "known_rule_scores", "attribute", "attribute_together", "attribution_randomised", "importance",
    "attribution_scores", "relevance_shares", "relevance_rules", "relevance_volume", "nights", "fold",
    "fold_relevance", "notebook", "publish")
#: How arguments of steps are read, where they are no plain text.
KINDS = {"network": Network.parse, "number": int, "blocks": int, "shrink": int, "results": Path}


def _parser() -> argparse.ArgumentParser:
    """One command per step: its docstring is the help, its arguments after the study are required options."""
    parser = argparse.ArgumentParser(prog="python -m mslib", description=__doc__)
    commands = parser.add_subparsers(dest="step", required=True)
    for name in STEPS:
        function = getattr(steps, name)
        text = inspect.getdoc(function).splitlines()[0]
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", required=True, type=Path)
        command.add_argument("--run-dir", required=True, type=Path)
        for argument in list(inspect.signature(function).parameters)[1:]:
            command.add_argument(f"--{argument}", required=True, type=KINDS.get(argument, str))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one step; bad input is told in one line and gives exit status 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        given = vars(_parser().parse_args(arguments))
        step = getattr(steps, given.pop("step"))
        study = steps.Study(given.pop("config"), given.pop("run_dir"))
        step(study, **given)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
