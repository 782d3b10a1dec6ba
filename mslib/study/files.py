"""Writing that leaves either the old file or the whole new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import WriteError

#: Files that this process has written, in order: what a notebook has made (see `mslib.jobs.record`).
WRITTEN: list[Path] = []


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed over it when the block ends without an error.

    Parameters
    ----------
    path : str or Path
        The final file. Its folder is made. The temporary name keeps the suffixes, so that writers which
        choose a format by suffix (NIfTI, PNG) work.

    Raises
    ------
    WriteError
        The folder cannot be written or the disk is full (one line naming the file).
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        WRITTEN.append(path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` atomically as UTF-8 and return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value) -> Path:
    """Write `value` atomically as indented JSON (NaN refused) and return the path."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_table(path: str | Path, table, **options) -> Path:
    """Write a pandas table atomically: tab-separated for ``.tsv``, else comma-separated."""
    separator = "\t" if str(path).endswith(".tsv") else ","
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep=separator, index=False, lineterminator="\n", **options)
    return Path(path)


def stamped_folder(folder: str | Path, facts: dict) -> Path:
    """A folder whose content was made under exactly these facts; one made under others is emptied and told of.

    Parameters
    ----------
    folder : str or Path
    facts : dict
        Whatever decides the content (settings, code, inputs), ready for JSON; kept as ``stamp.json``.

    Returns
    -------
    Path
        The folder, holding what an earlier run under the same facts left.

    Raises
    ------
    StudyError
        A file stands in the folder's place, or the folder cannot be emptied or written.
    """
    folder, stamp = Path(folder), Path(folder) / "stamp.json"
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    if folder.exists() and not folder.is_dir():
        raise WriteError(f"{folder}: is a file where a folder is needed; remove it and run again")
    try:
        known = stamp.is_file() and stamp.read_bytes() == text.encode()
        if not known and any(path.is_file() for path in folder.rglob("*")):
            print(f"{folder}: was made with other settings, code or data; made anew", file=sys.stderr)
            shutil.rmtree(folder)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be emptied ({error.strerror or error}); remove it by hand") from error
    if not stamp.exists():
        write_text(stamp, text)
    return folder
