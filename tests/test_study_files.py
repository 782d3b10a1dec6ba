"""Writing leaves the old file or the whole new one, and says in one line why it could not write."""

import errno
import json
import os

import pandas as pd
import pytest
from shared_cases import refused

from mslib.study import StudyError, atomic_path, write_json, write_table, write_text


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_or_is_interrupted_leaves_the_old_file(tmp_path, failure):
    path = write_text(tmp_path / "a.nii.gz", "old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where,code", [("writer", errno.ENOSPC), ("rename", errno.ENOSPC), ("writer", errno.EACCES)])
def test_full_disk_and_read_only_folder(tmp_path, monkeypatch, where, code):
    path = write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(code, os.strerror(code))

    if where == "rename":
        monkeypatch.setattr(os, "replace", full)
    fault = refused(os.strerror(code), match=rf"^{path}: cannot be written \(", error=StudyError)
    with fault, atomic_path(path) as temporary:
        temporary.write_text("half")
        if where == "writer":
            full()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made(tmp_path):
    """A regular file stands where a folder should: fails for every user, the administrator too."""
    write_text(tmp_path / "file", "")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "below" / "a.txt"):
        with refused(match=rf"^{path}: cannot be written \(", error=StudyError):
            write_text(path, "new")


def test_an_absent_file_that_is_read_while_writing_is_not_called_unwritable(tmp_path):
    with pytest.raises(StudyError, match=r"absent\.txt: is absent$"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text((tmp_path / "absent.txt").read_text())


def test_json_has_no_nan(tmp_path):
    path = write_json(tmp_path / "a.json", {"name": "Gruppe ä", "value": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Gruppe ä", "value": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["value"] == 1.5


def test_tables_are_separated_as_their_name_says(tmp_path):
    table = pd.DataFrame({"id": ["001"], "value": [0.25]})
    assert write_table(tmp_path / "a.tsv", table).read_bytes() == b"id\tvalue\n001\t0.25\n"
    assert write_table(tmp_path / "a.csv", table, float_format="%.1f").read_bytes() == b"id,value\n001,0.2\n"
