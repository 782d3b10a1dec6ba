"""What made a result: digests of the code that a step runs, versions of the libraries, the machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("tensorflow", "keras", "numpy", "scipy", "pandas", "SimpleITK", "nibabel", "nilearn", "scikit-image",
             "scikit-learn", "statsmodels", "mne", "edfio", "matplotlib", "seaborn", "snakemake", "papermill")


def _module_path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterable[tuple[str, str | None]]:
    """(module, name) pairs of mslib that a syntax tree imports, relative imports resolved."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "mslib")
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, source] if source else above)
            if source.split(".")[0] == "mslib":
                yield from ((source, alias.name) for alias in node.names)


@lru_cache(maxsize=1024)
def _imported(source: str, module: str, is_package: bool) -> tuple[tuple[str, str | None], ...]:
    return tuple(_imports(ast.parse(source), module, is_package))


def _imports_of(path: Path, module: str) -> tuple[tuple[str, str | None], ...]:
    return _imported(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")


def _resolve(module: str, name: str | None) -> str:
    """The module that defines `name`: a submodule, or what the package's ``__init__`` re-exports it from."""
    if name is None:
        return module
    if _module_path(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _module_path(module)
    if path is None or path.name != "__init__.py":
        return module
    for source, exported in _imports_of(path, module):
        if exported == name:
            return _resolve(source, name)
    return module


def module_closure(trees: Iterable[ast.AST]) -> list[Path]:
    """Files of mslib that the given syntax trees import, directly or through one another.

    A name that an ``__init__`` re-exports leads to the module that defines it; a package that is imported as a whole
    leads to all that it re-exports.
    """
    found: dict[str, Path] = {}
    waiting = [_resolve(*pair) for tree in trees for pair in _imports(tree, "", False)]
    while waiting:
        module = waiting.pop()
        path = _module_path(module)
        if module in found or path is None:
            continue
        found[module] = path
        waiting += [_resolve(*pair) for pair in _imports_of(path, module)]
    return sorted(found.values())


def _without_docstrings(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = body[1:] or [ast.Pass()]
    return _dump(tree)


@lru_cache(maxsize=1024)
def _essence(source: str) -> str:
    return _without_docstrings(ast.parse(source))


def _dump(node) -> str:
    """`ast.dump` without empty fields, which differ between versions of Python."""
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_dump(value)}" for name, value in ast.iter_fields(node)
              if isinstance(node, ast.Constant) or value not in (None, [])]
    return f"{type(node).__name__}({', '.join(fields)})"


def notebook_code(path: str | Path) -> str:
    """The code cells of a notebook as one source text."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def code_digest(*steps: str, without: str | None = None) -> str:
    """Digest of the code that steps run; comments, docstrings and layout do not count.

    Parameters
    ----------
    *steps : str
        Notebook paths relative to the project (``notebooks/00_cohort.ipynb``) or modules (``mslib.jobs.cohort``).
    without : str, optional
        Folder of the project whose modules do not count.

    Returns
    -------
    str
        Sixteen hexadecimal digits that change when any function a step can reach changes.
    """
    trees = []
    for step in steps:
        source = notebook_code(ROOT / step) if step.endswith(".ipynb") else f"import {step}"
        trees.append(ast.parse(source))
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(_without_docstrings(tree).encode())
    counted = [path for path in module_closure(trees)
               if without is None or not path.is_relative_to(ROOT / without)]
    for path in counted:
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(_essence(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def made_by(step: str) -> str:
    """Digest of the code that makes data: all that a module reaches but the study wing.

    Files, bars and the models of settings are there, whose values a stamp holds anyway.

    Parameters
    ----------
    step : str
        Module, as in `code_digest`.

    Returns
    -------
    str
        As of `code_digest`.
    """
    return code_digest(step, without="mslib/study")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, streamed."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}
