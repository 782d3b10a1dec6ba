"""The command line: the BIDS App, ``init`` and ``check`` for a cohort of one's own, and the steps of the Snakefile."""

import argparse
import contextlib
import inspect
import os
import sys
from pathlib import Path

import mslib
from mslib.steps import STEPS, Study
from mslib.study import Network, StudyError

#: Commands that are no step of a study, besides the BIDS App.
COMMANDS = {"convert": "convert an open cohort to BIDS, or add it to an earlier conversion (docs/your-cohort.md)",
            "init": "look at a BIDS dataset and write the file of a study of it",
            "check": "tell faults and suspicions of a BIDS dataset; exit status 1 on faults",
            "explain": "explain patients by the shipped networks, without training",
            "bench": "score your own attribution method, MODULE:FUNCTION, beside the built-in ones (docs/bench.md)",
            "steps": "list the steps of the Snakefile (mslib STEP --help)"}


def _app() -> argparse.ArgumentParser:
    """Options of the BIDS App."""
    commands = "\n".join(f"  mslib {name:9}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="mslib", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Heat maps of networks that tell groups of patients apart by T1w, T2w and FLAIR MRI.",
        epilog=f"other commands:\n{commands}\n\ndocs/your-cohort.md leads through a first study.")
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="dataset, with participants.tsv")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="folder of derivatives and results")
    parser.add_argument("analysis_level", choices=("participant", "group"),
                        help="preprocess participants, or everything: train and explain networks, report")
    parser.add_argument("--participant-label", "--participant_label", nargs="+", metavar="LABEL",
                        help="participants to preprocess, with or without sub- (default: all)")
    parser.add_argument("--config", type=Path,
                        help="file of the study (default: OUTPUT_DIR/config.yaml, written by the first call)")
    parser.add_argument("--cores", type=int, help="cores (default: all)")
    parser.add_argument("--skip-bids-validation", "--skip_bids_validation", action="store_true",
                        help="do not run the official validator; images are checked in any case")
    parser.add_argument("--version", action="version", version=f"mslib {mslib.__version__}")
    return parser


def _command(name: str) -> argparse.ArgumentParser:
    """Options of a command of `COMMANDS`."""
    parser = argparse.ArgumentParser(prog=f"mslib {name}", description=COMMANDS[name])
    if name == "convert":
        parser.add_argument("recipe", metavar="RECIPE", help="msleseg, ms3seg or ds000221")
        parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with the unpacked cohort")
    if name != "steps":
        parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR")
    if name == "explain":
        parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")
        parser.add_argument("--cores", type=int, help="cores (default: all)")
    if name == "init":
        parser.add_argument("--name", help="of the study (default: made of the folder's name)")
    either = parser.add_mutually_exclusive_group() if name == "check" else parser  # an empty one has no help
    if name in ("init", "explain", "check"):
        either.add_argument("--group-column", help="column of participants.tsv with the group (default: the likeliest)")
    if name == "check":
        either.add_argument("--config", type=Path, help="file of the study (default: what init would take)")
    return parser


def _step(name: str, step) -> argparse.ArgumentParser:
    """Options of a step: its docstring is the help, its arguments after the study are options."""
    parser = argparse.ArgumentParser(prog=f"mslib {name}", description=inspect.getdoc(step).splitlines()[0])
    for argument, about in inspect.signature(step, eval_str=True).parameters.items():
        if argument == "study":
            parser.add_argument("--config", required=True, type=Path)
            parser.add_argument("--run-dir", required=True, type=Path)
        elif argument == "method":
            parser.add_argument(argument, metavar="MODULE:FUNCTION")
        else:
            default = {"required": True} if about.default is about.empty else {"default": about.default}
            kind = Network.parse if about.annotation is Network else about.annotation
            parser.add_argument(f"--{argument}", type=kind, **default)
    return parser


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first == "steps":
        _command(first).parse_args(arguments[1:])
        print(*(f"{name:15}{inspect.getdoc(step).splitlines()[0]}" for name, step in STEPS.items()), sep="\n")
        return 0
    if step := STEPS.get(first):
        given = vars(_step(first, step).parse_args(arguments[1:]))
        if "run_dir" in given:
            given["study"] = Study(given.pop("config"), given.pop("run_dir"))
        step(**given)
        return 0
    from mslib import app
    if first in COMMANDS:
        return getattr(app, first)(**vars(_command(first).parse_args(arguments[1:])))
    return app.run(**vars(_app().parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    """Run one command or step; bad input is told in one line, now and at the end of the run, with exit status 1."""
    # jsonschema, which papermill and nbconvert load, then does without its check of addresses: its grammar takes 1.4 s.
    sys.modules.setdefault("rfc3987_syntax", None)
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except StudyError as error:
        line = str(error)
    except OSError as error:
        line = f"{error.filename or 'file system'}: {error.strerror or error}"
    print(line, file=sys.stderr)
    if path := os.environ.get("MSLIB_FAULTS"):  # the Snakefile names it
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
