"""What tests of several wings share: messages of errors, contents of folders, real patients."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def refused(*words, match=None, error=ValueError):
    """What stands within raises an error of one line that holds all words."""
    with pytest.raises(error, match=match) as caught:
        yield
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and all(word in text for word in words), text


def files_of(root: Path) -> dict[str, Path]:
    """Every file below a folder by its path in it."""
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def contents(root: Path) -> dict[str, bytes]:
    """Content of every file below a folder by its path in it."""
    return {name: path.read_bytes() for name, path in files_of(root).items()}


def real_data(place: str) -> Path:
    """A file or folder of the real patients; the test is skipped where it is absent."""
    path = Path(os.environ.get("MSLIB_DATA", "absent"), place)
    if not path.exists():
        pytest.skip(f"MSLIB_DATA is unset or holds no {place}")
    return path
