"""A rule's digest changes with the code that it runs, and with nothing else; checksums and versions."""

import ast
import base64
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from repository import ROOT

from mslib.study import provenance
from mslib.study.provenance import code_digest, commit, file_sha256, versions

STEPS = '''"""Steps."""
LIMIT = 3
def _shared(value):
    """Twice."""
    return 2 * value  # twice
def measure(study):
    """Measure."""
    train = study
    return _shared(study), train.images()
def other(study):
    return 1
def train(study):
    return 2
class Study:
    def images(self):
        return 4
    def groups(self):
        return 8
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two wings, two steps and a notebook."""
    for name, text in {"steps/all.py": STEPS, "prep/__init__.py": "", "prep/cut.py": "def cut():\n    return 1\n",
                       "prep/README.md": "words", "prep/deep/page.html": "<p>page</p>",
                       "nets/__init__.py": "", "nets/vgg.py": "DEPTH = 5\n"}.items():
        path = tmp_path / "mslib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cells = [{"cell_type": "markdown", "source": ["# words"]}, {"cell_type": "code", "source": ["x = 1\n", "x"]}]
    (tmp_path / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


STEP, ONE, NOTEBOOK = ("measure", "prep"), ("measure", "nets/vgg"), ("notebook.ipynb",)


@pytest.mark.parametrize("what,name,old,new,counts", [
    (STEP, "mslib/steps/all.py", "# twice", "# once more", False),
    (STEP, "mslib/steps/all.py", '"""Twice."""', '"""Doubled."""', False),
    (STEP, "mslib/steps/all.py", "return 1", "return 7", False),
    (STEP, "mslib/steps/all.py", "return 8", "return 9", False),
    (STEP, "mslib/steps/all.py", "return 2\n", "return 3\n", False),  # called like a variable of the step
    (STEP, "mslib/nets/vgg.py", "5", "6", False), (STEP, "mslib/prep/cut.py", "\n", "\n\n", False),
    (STEP, "mslib/prep/README.md", "words", "other words", False),
    (STEP, "mslib/steps/all.py", "2 * value", "3 * value", True),
    (STEP, "mslib/steps/all.py", "_shared(study),", "_shared(study + 1),", True),
    (STEP, "mslib/steps/all.py", "return 4", "return 5", True), (STEP, "mslib/prep/cut.py", "1", "2", True),
    (STEP, "mslib/prep/deep/page.html", "page", "other page", True),
    (ONE, "mslib/prep/cut.py", "1", "2", False), (ONE, "mslib/nets/vgg.py", "5", "6", True),
    (NOTEBOOK, "notebook.ipynb", "# words", "# other words", False),
    (NOTEBOOK, "notebook.ipynb", "x = 1", "x = 2", True)])
def test_what_runs_counts_and_nothing_else(project, what, name, old, new, counts):
    before = code_digest(*what)
    path = project / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert (code_digest(*what) != before) == counts


def test_checksum_versions_and_commit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(provenance.LIBRARIES) < set(versions())
    assert commit() == "unknown" or len(commit().rstrip("+")) == 40


def test_outputs_that_were_altered_give_way(tmp_path, monkeypatch, capsys):
    """A function of the Snakefile; cut and foreign notes are passed over, files from a tar are as they were."""
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    space = {"RUN": "run", "Path": Path, "urlsafe_b64decode": base64.urlsafe_b64decode, "json": json, "sys": sys}
    exec(text[text.index("def set_altered_aside"):text.index("def tell_faults_again")], space)
    (tmp_path / "run").mkdir()
    for name, time, note in (
            ("kept", 1000.25, '{"endtime": 1000.25}'), ("edited", 1007.5, '{"endtime": 1000.25}'),
            ("from_tar", 1000.0, '{"endtime": 1000.25}'), ("cut_note", 1007.0, '{"endt'), ("list", 1007.0, "[1]"),
            ("binary", 1007.0, "\udcff"), ("empty_note", 1007.0, ""), ("text", 1007.0, '{"endtime": "now"}')):
        (tmp_path / "run" / name).touch()
        os.utime(tmp_path / "run" / name, (time, time))
        place = tmp_path / ".snakemake" / "metadata" / base64.urlsafe_b64encode(f"run/{name}".encode()).decode()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(note.encode(errors="surrogateescape"))
    (place.parent / ".DS_Store").write_text("{}")
    space["set_altered_aside"]()
    assert [path.name for path in (tmp_path / "run").glob("*.altered")] == ["edited.altered"]
    assert capsys.readouterr().err.startswith("run/edited: was changed after it was made; made again")


def test_functions_of_the_steps_have_one_name_each():
    """They are found by name, in whatever module of the wing they stand."""
    names = [node.name for path in (ROOT / "mslib" / "steps").glob("*.py")
             for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    assert len(names) > 20 and len(names) == len(set(names))
