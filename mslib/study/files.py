"""Writing that leaves either the old file or the whole new one; reading that names a damaged file."""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import StudyError, WriteError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed over it when the block ends without an error.

    The folder is made; the temporary name keeps the suffixes, by which writers choose a format.

    Raises
    ------
    WriteError
        The folder cannot be written or the disk is full (one line naming the file).
    StudyError
        A file that the block reads is absent.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename not in (None, str(temporary)):
            raise StudyError(f"{error.filename}: is absent") from error
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_results(folder: str | Path) -> None:
    """StudyError where a folder of results, which is replaced, cannot be written or holds what no study published."""
    folder = Path(folder).absolute()
    try:
        published = all((folder / name).is_file() for name in ("metrics.json", "index.html", "README.md"))
        if folder.exists() and any(folder.iterdir()) and not published:
            raise StudyError(f"{folder}: holds files that no study has published; name another results folder")
        tempfile.TemporaryFile(dir=next(above for above in folder.parents if above.exists())).close()
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written ({error.strerror})") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` atomically as UTF-8 and return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value) -> Path:
    """Write `value` atomically as indented JSON (NaN refused) and return the path."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _separator(path) -> str:
    return "\t" if str(path).endswith(".tsv") else ","


def write_table(path: str | Path, table: pd.DataFrame, **options) -> Path:
    """Write a table atomically: tab-separated for ``.tsv``, else comma-separated; `options` of ``DataFrame.to_csv``."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep=_separator(path), index=False, lineterminator="\n", **options)
    return Path(path)


def write_tables(folder: str | Path, digits: int, **tables: pd.DataFrame) -> None:
    """Write tables with so many significant digits, each to ``<name>.csv``."""
    for name, table in tables.items():
        write_table(Path(folder) / f"{name}.csv", table, float_format=f"%.{digits}g")


def write_weights(path: str | Path, model) -> None:
    """Write the weights of a Keras model atomically (``.weights.h5``)."""
    with atomic_path(path) as temporary:
        model.save_weights(str(temporary))


def write_arrays(path: str | Path, **arrays) -> Path:
    """Write named arrays atomically as compressed ``.npz``."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return Path(path)


@contextlib.contextmanager
def _reading(path):
    """StudyError with the remedy where a file of an earlier step is absent or damaged."""
    try:
        yield
    except Exception as error:  # a damaged archive raises any of half a dozen
        raise StudyError(f"{path}: is absent or damaged ({' '.join(str(error).split())}); delete it and run the same "
                         "command again") from error


def read_json(path: str | Path):
    """Read a JSON file of an earlier step; StudyError with the remedy where it is absent or damaged."""
    with _reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of an earlier step (ids stay text); StudyError with the remedy where absent, damaged or cut."""
    with _reading(path), contextlib.suppress(pd.errors.EmptyDataError):
        if not Path(path).read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut")
        return pd.read_csv(path, sep=_separator(path), dtype={"subject": str, "recording": str, "group": str})
    return pd.DataFrame()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` of an earlier step; StudyError with the remedy where it is absent or damaged."""
    with _reading(path), np.load(path, allow_pickle=False) as stored:
        return dict(stored)
