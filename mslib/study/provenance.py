"""What made a result: a digest of the code that a step runs, versions of the libraries, the commit."""

import ast
import hashlib
import importlib.metadata
import platform
import subprocess
import zlib
from functools import cache
from pathlib import Path

from .errors import StudyError
from .files import read_json

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("tensorflow", "keras", "numpy", "scipy", "pandas", "SimpleITK", "nibabel", "nilearn", "scikit-image",
             "scikit-learn", "statsmodels", "mne", "edfio", "matplotlib", "seaborn", "snakemake", "papermill")


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _essence(tree: ast.AST) -> str:
    """A piece of code without docstrings, comments and layout, as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.dump(tree)


@cache
def _used(tree: ast.AST) -> set[str]:
    """Names that a piece of code uses, but for its own variables, and attributes, with a dot before them."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    attributes = {f".{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in names} - own


def code_digest(step: str, *wings: str) -> str:
    """Digest of a step and of the wings that it runs, with the files they read; comments and docstrings do not count.

    Parameters
    ----------
    step : str
        Function of `mslib.steps`, or a notebook (``notebooks/00_cohort.ipynb``).
    *wings : str
        Folders or modules of mslib: ``prep``, ``analysis/depth``.
    """
    modules = sorted((ROOT / "mslib" / "steps").glob("*.py"))
    tree = _tree("\n".join(path.read_text(encoding="utf-8") for path in modules))
    places = [("", tree), *((".", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = {dot + node.name: node for dot, place in places for node in place.body
                 if isinstance(node, ast.FunctionDef)}
    if step.endswith(".ipynb"):
        cells = read_json(ROOT / step)["cells"]
        functions[step] = _tree("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    called = [step]
    for name in called:  # grows: the step, and the functions and methods that it reaches
        called += sorted((_used(functions[name]) & functions.keys()) - set(called))
    sources = [_essence(functions[name]) for name in called]
    for wing in wings:
        place = ROOT / "mslib" / wing
        for file in sorted(place.rglob("*")) if place.is_dir() else [place.with_suffix(".py")]:
            if file.suffix == ".py":
                sources.append(_essence(_tree(file.read_text(encoding="utf-8"))))
            elif file.suffix not in ("", ".md", ".pyc"):  # folders and licences, README, caches
                sources.append(file_sha256(file))
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def training_folder(folder: Path, step: str, wing: str, *decisive) -> Path:
    """Folder of an unfinished training, named by what decides it: none goes on under other settings or code."""
    facts = "\n".join([code_digest(step, wing), *map(repr, decisive)])
    return folder / f"training-{zlib.crc32(facts.encode()):08x}"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, streamed."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verified(path: Path) -> Path:
    """A shipped file, if it is that of its card (``.json`` beside it); StudyError where it is absent or changed."""
    if not path.is_file():
        raise StudyError(f"{path}: is absent; shipped weights lie in the folder weights (weights/README.md)")
    if file_sha256(path) != (known := read_json(path.with_suffix(".json")).get("sha256")):
        raise StudyError(f"{path}: is not the file of its card (its sha256 must be {known}); get it anew")
    return path


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def commit() -> str:
    """The commit of the working copy, with ``+`` where files differ from it; ``unknown`` without git."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
