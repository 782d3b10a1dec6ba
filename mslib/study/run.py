"""One run of a study: its settings, where its files lie, and how what is missing is asked for."""

from __future__ import annotations

import math
import os
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
    def parse(cls, text: str) -> Network:
        """The network of ``vgg19/honest/seed1``; StudyError for any other form."""
        parts = text.split("/")
        if len(parts) != 3 or not parts[2].removeprefix("seed").isdigit() or not parts[2].startswith("seed"):
            raise StudyError(f"--network: must be BACKBONE/KIND/seedNUMBER (got {text!r})")
        return cls(parts[0], parts[1], int(parts[2][4:]))


def explained_networks(config: StudyConfig, *of: str) -> list[Network]:
    """Networks that are explained: every kind, all seeds (of real patients, the first of ``honest``).

    `of`: a backbone, or a backbone and a kind, whose networks alone are given.
    """
    kinds, seeds = (config.model.kinds, config.model.seeds) if config.trains else (["honest"], 1)
    networks = [Network(backbone, kind, seed) for backbone in config.model.backbones for kind in kinds
                for seed in range(1, seeds + 1)]
    return [network for network in networks if network[:len(of)] == of]


#: Tables that steps leave, by the name under which they are read; ``{network}`` (explained), ``{first}`` (its first
#: seed), ``{kind}`` (with its backbone), ``{backbone}``, ``{fold}`` and ``{start}`` (weights) are looped over.
TABLES = {
    "subjects": "subjects.csv", "truth": "cohort/truth.csv", "quality": "cohort/quality.csv",
    "registration_errors": "cohort/registration_errors.csv", "bias_fields": "cohort/bias_fields.csv",
    "appearance": "cohort/appearance.csv",
    "predictions": "nets/{network}/predictions.csv", "history": "nets/{network}/history.csv",
    "permuted": "nets/{kind}/permuted.csv", "folds": "nets/{backbone}/honest/folds.csv",
    "maps": "maps/{network}/measures.csv", "randomisation": "maps/{first}/randomisation.csv",
    "dead": "maps/{first}/dead.csv",
    "attribution_scores": "attributions/{backbone}/scores.csv", "importance": "attributions/{backbone}/importance.csv",
    "relevance": "relevance/{backbone}/shares.csv", "relevance_rules": "relevance/{backbone}/rules.csv",
    "relevance_flow": "relevance/{backbone}/flow.csv",
    "sleep_predictions": "sleep/fold-{fold}/predictions.csv", "sleep_history": "sleep/fold-{fold}/history.csv",
    "sleep_relevance": "sleep/fold-{fold}/relevance.csv", "sleep_ablation": "sleep/fold-{fold}/ablation.csv",
    "sleep_methods": "sleep/fold-{fold}/methods.csv",
    **{f"pretraining_{name}": f"pretraining/{{start}}/{name}.csv" for name in ("accuracy", "maps", "methods")},
    **{f"known_rule_{name}": f"known_rule/{name}.csv" for name in (
        "use", "scores", "removal", "randomised", "repeated", "importance", "layers", "shortcut", "relevance")},
}


class Run:
    """A study's settings and the folder that its run grows in.

    Parameters
    ----------
    config : path
        The study's YAML file.
    run_dir : path
        Folder of the run.
    notebook : str, optional
        Stem of the notebook that works with it (``03_gradcam_layers``); needed for `record`.

    Attributes
    ----------
    config : StudyConfig
    folder : Path
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

        Parameters
        ----------
        target : {"cohort", "nets", "maps", "attributions", "relevance", "sleep", "pretraining", "report"}

        Raises
        ------
        StudyError
            Snakemake could not make it; its own lines say why.
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

    def paths(self, name: str) -> dict[str, Path]:
        """Files behind a name of `TABLES`: by network or fold where there is one each, else under ``""``."""
        pattern, config = TABLES[name], self.config
        backbones, kinds = config.model.backbones, config.model.kinds
        for key, values in (("network", explained_networks(config)), ("backbone", backbones),
                            ("kind", [f"{backbone}/{kind}" for backbone in backbones for kind in kinds]),
                            ("first", [one for one in explained_networks(config) if one.seed == 1]),
                            ("fold", range(config.sleep.folds) if config.sleep else ()),
                            ("start", config.comparison.weights if config.comparison else ())):
            if f"{{{key}}}" in pattern:
                return {str(value): self.folder / pattern.format(**{key: value}) for value in values}
        return {"": self.folder / pattern}

    def read(self, name: str, optional: bool = False) -> pd.DataFrame:
        """A table that steps have left.

        Parameters
        ----------
        name : str
            Of `TABLES`.
        optional : bool
            An absent table, or one of a stage that this study lacks, is empty.

        Returns
        -------
        DataFrame
            Tables of several networks are joined under ``backbone, kind, seed``, those of folds under ``fold``, of
            backbones under ``backbone``.

        Raises
        ------
        StudyError
            Absent or damaged.
        """
        tables = []
        for key, path in self.paths(name).items():
            if optional and not path.exists():
                continue
            table = read_table(path)
            if "/seed" in key:
                network = Network.parse(key)
                table = table.assign(backbone=network.backbone, kind=network.kind, seed=network.seed)
            elif key:
                column = "fold" if key.isdigit() else "start" if "{start}" in TABLES[name] else "backbone"
                table = table.assign(**{column: int(key) if key.isdigit() else key.split("/")[0]})
            tables.append(table)
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
        write_json(self.folder / "metrics" / f"{self.notebook}.json", _rounded(numbers))


def _rounded(value):
    """Five significant digits, and None for what is not a number: two runs then write the same text."""
    if isinstance(value, dict):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    return float(f"{float(value):.5g}") if math.isfinite(value) else None
