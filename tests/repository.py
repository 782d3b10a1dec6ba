"""The files of the repository as the static tests see them: those that git tracks, not a reader's own configs."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IGNORED = {".git", ".venv", ".snakemake", ".cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints",
           "__pycache__", "build", "data", "runs", "ants", "captum", "zennit"}
BINARY = {".png", ".jpg", ".gz", ".npz", ".edf", ".h5"}


@functools.cache
def files() -> tuple[Path, ...]:
    """All files of the repository; without git (a container, an archive) all but those that git would ignore."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True,
                            text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*")
                 if not IGNORED & set(path.relative_to(ROOT).parts) and ".egg-info" not in str(path)]
    return tuple(sorted(path for path in paths if path.is_file() and not path.name.startswith(".tmp-")))


def name(path: Path) -> str:
    """Path inside the repository."""
    return path.relative_to(ROOT).as_posix()


def texts() -> dict[str, str]:
    """Text of every file that is not a picture or a scan."""
    return {name(path): path.read_text(encoding="utf-8") for path in files() if path.suffix not in BINARY}


def modules(*folders: str) -> list[Path]:
    """Python files below the given top folders."""
    return [path for path in files() if path.suffix == ".py" and name(path).split("/")[0] in folders]
