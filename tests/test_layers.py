"""The wings of mslib import downwards only: nets -> prep -> cohort -> study; analysis above, steps on top."""

import ast
import subprocess
import sys
from importlib import import_module

import pytest
from repository import ROOT, modules, name

BELOW = {
    "study": set(),
    "cohort": {"study"},
    "prep": {"cohort", "study"},
    "nets": {"prep", "cohort", "study"},
    "show": {"study"},
    "explain": set(),
    "measure": set(),
    "sleep": set(),
    "analysis": {"study", "cohort", "prep", "nets", "explain", "measure", "sleep"},
    "steps": {"study", "cohort", "prep", "nets", "explain", "measure", "sleep", "analysis", "show"},
}
MEETING_PLACES = {f"mslib/{name}.py" for name in ("__main__", "__init__", "app", "publish", "claims")}
IMAGING = {"nibabel", "nilearn", "SimpleITK", "ants"}
NETWORKS = {"tensorflow", "keras", "tf_keras_vis"}
STRANGERS = {
    "explain": IMAGING,
    "measure": IMAGING | NETWORKS,
    "sleep": IMAGING,
    "show": NETWORKS,
    "study": IMAGING | NETWORKS,
    "cohort": NETWORKS,
    "prep": NETWORKS,
}
WINGS = sorted(folder.name for folder in (ROOT / "mslib").iterdir() if any(folder.glob("*.py")))
FILES = [path for path in modules("mslib") if name(path) not in MEETING_PLACES]


def imported(text, file) -> set[str]:
    """Full names of all that a module imports, wherever it stands, also by `import_module`."""
    package = file.removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "import_module", "__import__"):
            found |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def wings_of(names) -> set[str]:
    return {full.split(".")[1] for full in names if full.startswith("mslib.") and full.split(".")[1] in BELOW}


def test_imports_go_downwards_and_wings_do_not_know_what_is_not_theirs():
    assert set(WINGS) <= set(BELOW)
    wrong = {}
    for file, text in ((name(path), path.read_text(encoding="utf-8")) for path in FILES):
        wing, names = file.split("/")[1], imported(text, file)
        found = wings_of(names) - {wing} - BELOW[wing] | {one.split(".")[0] for one in names} & STRANGERS.get(
            wing, set())
        wrong |= {file: found} if found else {}
    assert wrong == {}


@pytest.mark.parametrize("text", [
    "import mslib.nets", "from mslib.nets import vgg", "from mslib import nets", "from ..nets import x",
    "from .. import nets", "def f():\n    import mslib.nets.vgg", "import_module('mslib.nets')"])
def test_the_check_sees_an_upward_import(text):
    assert wings_of(imported(text, "mslib/measure/imagined.py")) == {"nets"}


@pytest.mark.parametrize("wing", WINGS)
def test_wing_says_what_is_public(wing):
    module = import_module(f"mslib.{wing}")
    public = getattr(module, "__all__", [])
    assert module.__doc__ and (public or wing == "analysis")  # one module a topic, imported by name
    assert not [one for one in public if one.startswith("_") or not hasattr(module, one)]


#: What steps of the cohort and of nights and notebooks 00, 01, 02 and 07 import.
WITHOUT_NETWORKS = ", ".join(f"mslib.{name}" for name in (
    "steps", "show", "claims", "sleep.cohort", "sleep.scores", "analysis.truth", "analysis.networks", "nets.splits",
    "nets.data", "nets.heads", "nets.simulated"))


def test_light_steps_start_without_what_loads_slowly():
    code = ("import sys, mslib.steps; assert 'SimpleITK' not in sys.modules\n"
            f"import mslib.publish, {WITHOUT_NETWORKS}; assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_only_steps_and_the_study_wing_know_run_folders():
    """A function elsewhere that takes a run folder is a smell."""
    bad = []
    for path in FILES:
        if name(path).split("/")[1] in ("study", "steps"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
                bad += [f"{name(path)}:{node.name}"] * bool(given & {"run_dir", "run_folder"})
    assert bad == []
