"""Digests of code: what a step can reach counts, comments and docstrings do not."""

import ast
import hashlib
import json

import pytest

from mslib.study import provenance
from mslib.study.provenance import code_digest, file_sha256, made_by, module_closure, versions

PACKAGE = {
    "mslib/__init__.py": "",
    "mslib/jobs/__init__.py": '"""Jobs."""\n',
    "mslib/jobs/work.py": "from mslib.wing import public\n\ndef work():\n    return public()\n",
    "mslib/jobs/lazy.py": "def work():\n    from mslib.wing import aside\n    return aside.f()\n",
    "mslib/wing/__init__.py": "from .inner import public\nfrom .other import unrelated\n",
    "mslib/wing/inner.py": '"""Inner."""\nfrom ..tools import helper\n\n'
                           'def public():\n    """Do."""\n    return helper(1)\n',
    "mslib/wing/other.py": "def unrelated():\n    return 2\n",
    "mslib/wing/aside.py": "def f():\n    return 3\n",
    "mslib/tools.py": "def helper(x):\n    # add one\n    return x + 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def reached(package, source):
    return [path.relative_to(package / "mslib").as_posix() for path in module_closure([ast.parse(source)])]


def change(package, name, old, new):
    path = package / "mslib" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_exported_names_lead_to_the_module_that_defines_them(package):
    assert reached(package, "import mslib.jobs.work") == ["jobs/work.py", "tools.py", "wing/inner.py"]
    assert reached(package, "from mslib.wing import unrelated") == ["wing/other.py"]
    assert reached(package, "from mslib.jobs import lazy as jobs") == ["jobs/lazy.py", "wing/aside.py"]
    assert reached(package, "import numpy\nfrom pathlib import Path") == []


def test_a_package_imported_whole_leads_to_all_that_it_exports(package):
    whole = ["tools.py", "wing/__init__.py", "wing/inner.py", "wing/other.py"]
    assert reached(package, "import mslib.wing") == whole
    assert reached(package, "from mslib import wing") == whole


@pytest.mark.parametrize("name,old,new", [
    ("tools.py", "# add one", "# add exactly one"),
    ("tools.py", "return x + 1", "return (x +\n            1)"),
    ("wing/inner.py", '"""Do."""', '"""Do it\n\n    well."""'),
    ("wing/inner.py", '"""Inner."""', '"""Other words."""'),
    ("wing/other.py", "return 2", "return 22"),
    ("wing/__init__.py", "from .other import unrelated", "from .other import unrelated as renamed"),
])
def test_what_cannot_change_the_result_does_not_count(package, name, old, new):
    before = code_digest("mslib.jobs.work")
    change(package, name, old, new)
    assert code_digest("mslib.jobs.work") == before


@pytest.mark.parametrize("name,old,new", [
    ("tools.py", "x + 1", "x + 2"), ("tools.py", "def helper(x)", "def helper(x=3)"),
    ("wing/inner.py", "helper(1)", "helper('1')"), ("jobs/work.py", "return public()", "return None"),
])
def test_what_a_step_reaches_counts(package, name, old, new):
    before = code_digest("mslib.jobs.work")
    change(package, name, old, new)
    assert code_digest("mslib.jobs.work") != before


def test_imports_inside_functions_count(package):
    before = code_digest("mslib.jobs.lazy")
    change(package, "wing/aside.py", "return 3", "return 4")
    assert code_digest("mslib.jobs.lazy") != before


def test_the_study_wing_does_not_decide_data(package):
    """A new bar or a new way to write files makes no data stale; a new formula does."""
    (package / "mslib" / "study").mkdir()
    (package / "mslib" / "study" / "__init__.py").write_text("def bar():\n    return 1\n")
    change(package, "jobs/work.py", "return public()", "from mslib.study import bar\n    return public(bar())")
    data, all_code = made_by("mslib.jobs.work"), code_digest("mslib.jobs.work")
    change(package, "study/__init__.py", "return 1", "return 2")
    assert made_by("mslib.jobs.work") == data and code_digest("mslib.jobs.work") != all_code
    change(package, "tools.py", "x + 1", "x + 2")
    assert made_by("mslib.jobs.work") != data


def test_only_code_cells_of_a_notebook_count(package):
    def digest(title, code):
        cells = [{"cell_type": "markdown", "source": [title]},
                 {"cell_type": "code", "source": code.splitlines(keepends=True), "outputs": [title]}]
        (package / "n.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        return code_digest("n.ipynb")

    code = "from mslib.jobs.work import work\nwork()"
    before = digest("# A", code)
    assert digest("# B", code + "  # run") == before
    assert digest("# A", code + "\nwork()") != before
    change(package, "tools.py", "x + 1", "x - 1")
    assert digest("# A", code) != before


def test_digest_does_not_depend_on_the_version_of_python(package):
    """Pinned: `ast.dump` itself would give another one from 3.12 on (type_params) and from 3.13 on (empty fields)."""
    source = "def f(a, *, b=None):\n    '''Doc.'''\n    return [], f'{a!r:>{b}}'"
    assert provenance._without_docstrings(ast.parse(source)) == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a')], kwonlyargs=[arg(arg='b')], "
        "kw_defaults=[Constant(value=None, kind=None)]), body=[Return(value=Tuple(elts=[List(ctx=Load()), "
        "JoinedStr(values=[FormattedValue(value=Name(id='a', ctx=Load()), conversion=114, "
        "format_spec=JoinedStr(values=[Constant(value='>', kind=None), FormattedValue(value=Name(id='b', ctx=Load()), "
        "conversion=-1)]))])], ctx=Load()))])])")


def test_every_step_of_the_study_has_a_digest():
    notebooks = sorted((provenance.ROOT / "notebooks").glob("*.ipynb"))
    steps = [f"notebooks/{path.name}" for path in notebooks]
    digests = [code_digest(step) for step in [*steps, "mslib.prep", "mslib.jobs.cohort", "mslib.jobs.publish"]]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_file_checksum_and_versions(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert {"python", "tensorflow", "keras", "SimpleITK"} <= set(versions())
