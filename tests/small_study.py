"""The small study as a person runs it, killed three times on its way; what its tests share."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import yaml
from repository import ROOT

from mslib.study import load_config

PATIENCE = 1800
SMOKE = load_config(ROOT / "config" / "smoke.yaml")
#: What `cohort` makes beside tables of ``cohort/``.
COHORT_FILES = ("cohort.json", "subjects.csv", "faults.json")


def environment():
    """Without what pytest and a run that drives these tests have set."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith(("PYTEST", "MSLIB_PROGRESS", "MSLIB_DRIVEN", "MSLIB_FAULTS"))}


def called(words, root=ROOT, **options):
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=root, env=environment(), capture_output=True,
                          text=True, check=False, **options)


def command(folder, more=(), run="run", study="study=smoke", results="results"):
    return ["snakemake", *more, "--config", study, f"run_dir={folder / run}", f"results={folder / results}"]


def start(folder, **options):
    """Snakemake in the background, its words in ``log.txt``; in its own session, so that all of it can be killed."""
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, "-m", *command(folder, **options)], cwd=ROOT, env=environment(),
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(folder, **options):
    status = start(folder, **options).wait(timeout=PATIENCE)
    return status, (folder / "log.txt").read_text(encoding="utf-8")


def planned(folder, more=(), root=ROOT, study="study=smoke"):
    """Rules that a dry run names, with the number of their jobs."""
    done = called(command(folder, ["-n", *more], study=study), root)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-4000:]
    table = told.partition("Job stats:")[2].partition("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE) if name != "all"}


def kill_when(process, ready, whom, folder):
    """Kill -9 the run (all of it, or only its head) as soon as `ready` holds."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def step(name, *arguments, limit=None, config="config/smoke.yaml"):
    """One step of the command line; with a limit no file may grow beyond so many bytes, as on a full disk."""
    def narrow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return called(["mslib", name, "--config", config, *arguments], preexec_fn=narrow if limit else None)


def settings_of(folder, **sections):
    """Path of a copy of the small study's file with other sections, and what it holds."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8")) | sections
    path = folder / f"{config['study']}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def told_of_a_full_disk(done, begin):
    """In one line, whatever else was said."""
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.startswith(f"{begin}") and "cannot be written (" in done.stderr


def make(folder):
    """The small study, killed while simulating, preprocessing and training; then finished.

    The folder holds ``run`` and ``results``; ``kept.json`` the times of what was finished when a kill came, and
    ``resumed.txt`` the network that was in training at one.
    """
    folder.mkdir()
    run, kept = folder / "run", {}

    def training():
        found = [*run.glob("nets/vgg*/*/seed*/training-*/history.csv")]
        if found:
            (folder / "resumed.txt").write_text(found[0].parents[1].relative_to(run / "nets").as_posix())
        return bool(found)

    def found(pattern, more_than=0):
        return lambda: len([*run.glob(pattern)]) > more_than

    moments = [  # when, whom, what is finished by then
        (found("bids/derivatives/truth/*/anat/*_truth.json"), "all", None),
        (found("derivatives/mslib/*/anat/*_desc-qc.json", 3), "head", "bids/sub-*/anat/*.nii.gz"),
        (training, "all", "derivatives/mslib/*/anat/*_desc-slices.npz")]
    for ready, whom, finished in moments:
        kill_when(start(folder), ready, whom, folder)
        while whom == "head" and subprocess.run(["pgrep", "-f", run], capture_output=True, check=False).returncode == 0:
            time.sleep(1)  # its jobs end by themselves
        if finished:
            # What a job wrote in its last seconds may not have been noted as whole, and is then made again.
            done = [path for path in run.glob(finished) if time.time() - path.stat().st_mtime > 12]
            kept |= {str(path): path.stat().st_mtime_ns for path in done}
    status, output = finish(folder)
    assert status == 0, output[-6000:]
    (folder / "kept.json").write_text(json.dumps(kept))
