"""One run of a study: its settings, where its files lie, and how what is missing is asked for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .config import StudyConfig
from .errors import StudyError
from .files import read_table, write_json, write_table
from .loading import load_config
from .provenance import ROOT

#: Set while Snakemake runs a step or a notebook, which then must not ask it again.
DRIVEN = "MSLIB_DRIVEN"


class Network(NamedTuple):
    """Name of a fitted network: backbone, kind (see `mslib.nets.KINDS`) and number of its seed, from 1 on."""

    backbone: str
    kind: str = "honest"
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.backbone}/{self.kind}/seed{self.seed}"

    @classmethod
    def parse(cls, text: str) -> "Network":
        """The network of ``vgg19/honest/seed1``; StudyError for any other form."""
        if not (found := re.fullmatch("([^/]+)/([^/]+)/seed([0-9]+)", text)):
            raise StudyError(f"--network: must be BACKBONE/KIND/seedNUMBER (got {text!r})")
        return cls(found[1], found[2], int(found[3]))


def explained_networks(config: StudyConfig, *of: str) -> list[Network]:
    """Networks that are explained: every kind, all seeds (of real patients, the first of ``honest``).

    `of`: a backbone, or a backbone and a kind, whose networks alone are given.
    """
    kinds, seeds = (config.model.kinds, config.model.seeds) if config.trains else (["honest"], 1)
    networks = [Network(backbone, kind, seed) for backbone in config.model.backbones for kind in kinds
                for seed in range(1, seeds + 1)]
    return [network for network in networks if network[:len(of)] == of]


#: Tables that steps leave, by the name under which they are read; there is one for each value of what stands in braces.
TABLES = {
    "subjects": "subjects.csv",
    **{name: f"cohort/{name}.csv" for name in ("truth", "quality", "registration_errors", "bias_fields", "appearance")},
    **{name: f"nets/{{backbone}}/{{kind}}/seed{{seed}}/{name}.csv" for name in ("predictions", "history")},
    "permuted": "nets/{backbone}/{kind}/permuted.csv", "folds": "nets/{backbone}/honest/folds.csv",
    "maps": "maps/{backbone}/{kind}/seed{seed}/measures.csv",
    **{name: f"maps/{{backbone}}/{{kind}}/seed1/{name}.csv" for name in ("randomisation", "dead")},
    "attribution_scores": "attributions/{backbone}/scores.csv", "importance": "attributions/{backbone}/importance.csv",
    "relevance": "relevance/{backbone}/shares.csv",
    **{f"relevance_{name}": f"relevance/{{backbone}}/{name}.csv" for name in ("rules", "flow")},
    **{f"sleep_{name}": f"sleep/fold-{{fold}}/{name}.csv" for name in (
        "predictions", "history", "relevance", "ablation", "methods")},
    **{f"pretraining_{name}": f"pretraining/{{start}}/{name}.csv" for name in ("accuracy", "maps", "methods")},
    **{f"known_rule_{name}": f"known_rule/{name}.csv" for name in (
        "use", "scores", "removal", "randomised", "repeated", "importance", "layers", "shortcut", "relevance")},
}


class Run:
    """The settings of a study's YAML file, ``config``, and the ``folder`` that its run grows in.

    `notebook` is the stem of the one that works with it (``03_gradcam_layers``); needed for `record`.
    """

    def __init__(self, config: str | Path, run_dir: str | Path, notebook: str = ""):
        self.config_path, self.folder, self.notebook = Path(config), Path(run_dir), notebook
        self.config = load_config(self.config_path)
        self._made: dict[str, str] = {}  # files for readers, and what a figure says

    @property
    def bids_root(self) -> Path:
        """The user's BIDS folder (relative to the project), or ``bids`` of the run."""
        return ROOT / self.config.cohort.root if self.config.cohort.source == "bids" else self.folder / "bids"

    def anat(self, subject: str) -> Path:
        """Folder of a subject's derivatives."""
        return self.folder / "derivatives" / "mslib" / f"sub-{subject}" / "anat"

    def need(self, target: str) -> None:
        """Let Snakemake make what a target rule lacks, with visible progress; nothing to do where it drives this.

        StudyError where it could not be made; Snakemake's own lines say why.
        """
        if os.environ.get(DRIVEN):
            return
        words = [sys.executable, "-m", "snakemake", target, "--config", f"study={self.config.study}",
                 f"file={self.config_path.resolve()}", f"run_dir={self.folder.resolve()}"]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                print(line, end="")
        if process.returncode:
            raise StudyError(f"{self.folder}: {target} could not be made; the lines above say why")

    def paths(self, name: str) -> list[tuple[Path, dict]]:
        """Files behind a name of `TABLES`, each with its backbone, kind and seed, its fold, or its start."""
        pattern, config = TABLES[name], self.config
        every = {"backbone": config.model.backbones, "fold": range(config.sleep.folds if config.sleep else 0),
                 "start": config.comparison.weights if config.comparison else ()}
        owners = [{key: value} for key, values in every.items() if f"{{{key}}}" in pattern for value in values]
        if "{kind}" in pattern:
            owners = [one._asdict() for one in explained_networks(config) if "{seed}" in pattern or one.seed == 1]
        elif "{" not in pattern:
            owners = [{}]
        return [(self.folder / pattern.format(**owner), owner) for owner in owners]

    def read(self, name: str, optional: bool = False) -> pd.DataFrame:
        """A table of `TABLES` that steps have left; those of several networks, folds or starts are joined.

        `optional`: an absent table is empty. StudyError where a table is absent or damaged.
        """
        tables = []
        for path, owner in self.paths(name):
            if path.exists() or not optional:
                table = read_table(path)
                tables.append(table.assign(**{key: value for key, value in owner.items() if key not in table}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def saved(self, name: str) -> pd.DataFrame:
        """A table that a notebook has saved (`save`); an empty one where none has."""
        path = self.folder / "tables" / f"{name}.csv"
        return read_table(path) if path.exists() else pd.DataFrame()

    def save(self, name: str, table: pd.DataFrame, digits: int = 5) -> pd.DataFrame:
        """Write a table for readers to ``tables/<name>.csv`` (significant digits) and return it."""
        write_table(self.folder / "tables" / f"{name}.csv", table, float_format=f"%.{digits}g")
        self._made[f"tables/{name}.csv"] = ""
        return table

    def keep(self, path: Path) -> Path:
        """Have a file of the run folder published that is neither table nor figure, and return it."""
        self._made[path.relative_to(self.folder).as_posix()] = ""
        return path

    def record(self, **numbers) -> None:
        """Write a notebook's numbers to ``metrics/``, and which files it has made for readers to ``made/``.

        ``answer`` is the answer to the notebook's question, for the gallery.
        """
        write_json(self.folder / "made" / f"{self.notebook}.json", dict(sorted(self._made.items())))
        # Five significant digits, and None for what is not a number: two runs then write the same text.
        rounded = json.loads(json.dumps(numbers, default=float), parse_constant=lambda name: None,
                             parse_float=lambda text: float(f"{float(text):.5g}"))
        write_json(self.folder / "metrics" / f"{self.notebook}.json", rounded)
