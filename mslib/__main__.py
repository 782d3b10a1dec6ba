"""The jobs that the Snakefile calls: ``python -m mslib JOB --config FILE --run-dir FOLDER``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mslib.study import StudyConfig, StudyError, load_config

JOBS = {
    "start": "describe the simulated dataset, or fetch and convert the real patients",
    "simulate": "simulate one subject",
    "check": "check the whole cohort and list its faults",
    "preprocess": "preprocess one subject",
    "notebook": "execute one notebook into the run folder",
    "maps": "Grad-CAM of every layer and its measures for one backbone",
    "planted": "train and explain the planted nets of notebook 04",
    "patients": "choose the patients of notebook 04",
    "attribute": "maps of one patient by the methods of notebook 04",
    "checks": "maps of random weights and of the second net, for one net's patients of notebook 04",
    "repeat": "train one net once more from another seed and measure its relevance (notebooks 04, 05)",
    "nights": "make, fetch or read the nights of notebook 06",
    "fold": "train and explain the net of one fold of sleep staging (notebook 06)",
    "publish": "copy the light part of a run to results/",
}
PER_SUBJECT = {"simulate", "preprocess", "attribute"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mslib", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, text in JOBS.items():
        job = jobs.add_parser(name, help=text, description=text)
        job.add_argument("--config", required=True, type=Path)
        job.add_argument("--run-dir", required=True, type=Path)
        if name in PER_SUBJECT:
            job.add_argument("--subject", required=True)
        if name == "notebook":
            job.add_argument("--name", required=True, help="for instance 00_cohort")
        if name in ("maps", "notebook", "attribute", "checks", "repeat"):
            job.add_argument("--backbone", required=name != "notebook")
        if name == "fold":
            job.add_argument("--number", required=True, type=int, help="from 0 on")
        if name == "publish":
            job.add_argument("--results", required=True, type=Path)
    return parser


def _run(args: argparse.Namespace) -> None:
    config = load_config(args.config)
    if args.job == "maps":
        from mslib.jobs.maps import make_maps
        make_maps(config, args.run_dir, args.backbone)
    elif args.job == "planted":
        from mslib.jobs.planted_results import make_planted
        make_planted(config, args.run_dir)
    elif args.job == "patients":
        from mslib.jobs.explained import choose_patients
        choose_patients(config, args.run_dir)
    elif args.job == "attribute":
        from mslib.jobs.attributions import attribute_subject
        attribute_subject(config, args.run_dir, args.backbone, args.subject)
    elif args.job == "checks":
        from mslib.jobs.attribution_patients import check_patients
        check_patients(config, args.run_dir, args.backbone)
    elif args.job == "notebook":
        from mslib.jobs.notebook import execute_notebook
        execute_notebook(args.name, args.config, args.run_dir, args.backbone)
    elif args.job == "repeat":
        from mslib.jobs.relevance import repeat_relevance
        repeat_relevance(config, args.run_dir, args.backbone)
    elif args.job == "nights":
        from mslib.jobs.sleep import read_nights
        read_nights(config, args.run_dir)
    elif args.job == "fold":
        from mslib.jobs.sleep import fit_fold
        fit_fold(config, args.run_dir, args.number)
    elif args.job == "publish":
        from mslib.jobs.publish import publish
        publish(config, args.config, args.run_dir, args.results)
    else:
        _run_cohort(args, config)


def _run_cohort(args: argparse.Namespace, config: StudyConfig) -> None:
    from mslib.jobs import cohort
    if args.job in PER_SUBJECT:
        getattr(cohort, args.job)(config, args.run_dir, args.subject)
    elif args.job == "start":
        if config.model.weights not in ("scratch", "simulated"):  # looking at weights takes seconds
            from mslib.jobs.weights import check_weights
            check_weights(config)
        cohort.start_cohort(config, args.run_dir)
    else:
        cohort.check_cohort(config, args.run_dir)


def main(arguments: list[str] | None = None) -> int:
    """Run one job; bad input is told in one line and gives exit status 1."""
    args = _parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        _run(args)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or args.run_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
