"""The ways to set up the study (pip, conda, container, CI) install one and the same lock."""

import ast
import json
import re
import subprocess
import tomllib
import unicodedata
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from repository import ROOT, modules, name, texts

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT.get("optional-dependencies", {})
LOCKED = [PYPROJECT["dependencies"], EXTRAS["study"], EXTRAS["dev"]]
WANTED = [Requirement(line) for lines in LOCKED for line in lines]
PACKAGES = packages_distributions()
OPTIONAL = [Requirement(line) for extra in ("bench", "cluster", "viewer") for line in EXTRAS[extra]]


def lock() -> dict[str, list[tuple[Version, int]]]:
    """Versions of every locked package, each with its number of hashes."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    found: dict[str, list[tuple[Version, int]]] = {}
    for entry in entries:
        head = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", entry)
        if head:
            hashes = len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry))
            found.setdefault(canonicalize_name(head[1]), []).append((Version(head[2]), hashes))
    return found


LOCK = lock()


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_dependency_is_locked_with_an_allowed_version(wanted):
    versions = LOCK.get(canonicalize_name(wanted.name))
    assert versions, f"requirements.txt lacks {wanted}"
    for version, _ in versions:
        assert wanted.specifier.contains(version, prereleases=True), f"requirements.txt has {wanted.name} {version}"


def test_every_locked_package_has_hashes():
    assert len(LOCK) > 100
    assert [package for package, entries in LOCK.items() if any(hashes == 0 for _, hashes in entries)] == []


def test_benchmark_peers_stay_out_of_the_lock():
    declared = {canonicalize_name(wanted.name) for wanted in WANTED}
    for peer in EXTRAS.get("bench", []):
        package = canonicalize_name(Requirement(peer).name)
        assert package not in declared and package not in LOCK


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = re.findall(r"^(?:dependencies|study|dev) = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(blocks) == 3 and len(lines) == len(WANTED)
    assert [line for line in lines if not re.search(r'",\s*# \S.{3,}', line)] == []
    for extra in ("bench", "cluster", "viewer"):
        assert re.search(rf"^{extra} = \[.*\]\s+# \S", text, flags=re.MULTILINE), f"extra '{extra}' has no comment"


def test_the_library_alone_needs_nothing_of_the_study():
    """What its modules import is a dependency, but for the modules that run or publish a study."""
    study, found = {canonicalize_name(Requirement(line).name) for line in EXTRAS["study"] + EXTRAS["dev"]}, {}
    for path in modules("mslib"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for module in (one.split(".")[0] for one in names):
                if study & {canonicalize_name(package) for package in PACKAGES.get(module, ())}:
                    found.setdefault(name(path), []).append(module)
    assert found.keys() <= {"mslib/publish.py", "mslib/show/pages.py"}, found


def imported() -> set[str]:
    """Top-level modules that the project's Python files, notebooks and Snakefile import."""
    sources = [path.read_text(encoding="utf-8") for path in modules("mslib", "tests", "benchmarks")
               if "fixtures" not in path.parts]  # made beforehand, with packages outside the lock
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_dependency_is_used_and_every_used_package_is_a_dependency():
    """Programs are called instead of imported; what is not installed belongs to the tests or to an extra."""
    programs = {"snakemake", "jupyterlab", "ipykernel", "pytest-xdist", "ruff", "bids-validator-deno"}
    used = {canonicalize_name(PACKAGES[module][0]) for module in imported() if module in PACKAGES}
    declared = {canonicalize_name(wanted.name) for wanted in WANTED}
    optional = {canonicalize_name(wanted.name) for wanted in OPTIONAL}
    assert declared - used - programs == set()
    assert used - declared - optional - {"mslib", "shap"} == set()


def test_conda_route_uses_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert re.fullmatch(r"python=3\.\d+", python)
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(python.removeprefix("python=") + ".0")
    assert pip == "pip"
    assert nested == {"pip": ["-r requirements.txt"]}


def test_container_uses_the_lock_and_no_root():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    orders = [line for line in lines if line and not line.startswith("#")]
    version = re.fullmatch(r"FROM python:(3\.\d+)-slim", orders[0])[1]
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(version + ".0")
    installs = re.findall(r"pip install [^&\n]*", "\n".join(orders))
    assert [line.strip() for line in installs] == ["pip install --require-hashes -r requirements.txt",
                                                   "pip install --no-deps -e ."]
    users = [line for line in orders if line.startswith("USER ")]
    assert users and users[-1] not in ("USER root", "USER 0")
    assert orders[-1] == 'CMD ["snakemake"]'


def test_ci_runs_the_readers_test_command():
    shown = subprocess.run(["bash", ".ci/run", "--print"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    command = shown.stdout.strip()
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    steps = [step.strip() for step in command.split("&&")]
    assert steps == ["python3.11 -m venv .venv",
                     ".venv/bin/pip install --require-hashes -r requirements.txt",
                     ".venv/bin/pip install --no-deps -e .",
                     ".venv/bin/pytest"]


def test_no_index_address_anywhere():
    address = re.compile(r"--(?:extra-)?index-ur[l]\b|--find-link[s]\b|^-[if] +\S|https?://[^\s\"')]*/simpl[e]\b",
                         re.MULTILINE)
    found = {path: address.findall(text) for path, text in texts().items()
             if not path.startswith("results/") and address.search(text)}
    assert found == {}


def bibliography() -> list[dict[str, str]]:
    """Entries of docs/references.bib, one field a line; nothing else but comments may stand there."""
    text = re.sub(r"^%.*\n", "", (ROOT / "docs/references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)
    entry = re.compile(r"^@([a-z]+)\{([A-Za-z0-9]+),\n((?:  [a-z]+ = \{.*\},\n)+)\}\n", re.MULTILINE)
    assert entry.sub("", text).strip() == ""
    return [{"type": kind, "key": key, **dict(re.findall(r"^  ([a-z]+) = \{(.*)\},$", fields, flags=re.MULTILINE))}
            for kind, key, fields in entry.findall(text)]


BIBLIOGRAPHY = bibliography()


def cited() -> list[dict]:
    """Every reference of either file: family name of the first author (or the whole name), title, year, DOI."""
    of_bib = [{"author": re.split(r", | and ", entry["author"])[0].strip("{}"), "title": entry["title"].strip("{}"),
               "year": entry.get("year"), "doi": entry.get("doi")} for entry in BIBLIOGRAPHY]
    of_cff = [{"author": reference["authors"][0].get("family-names"), "title": reference["title"],
               "year": str(reference["year"]), "doi": reference.get("doi")} for reference in CITATION["references"]]
    return of_bib + of_cff


def test_citation_file_names_the_source_studies_and_the_data():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "references"} <= set(CITATION)
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference), reference
        assert reference["type"] in {"article", "conference-paper"}
    assert [(reference["authors"][0]["family-names"], reference["year"]) for reference in CITATION["references"]] == [
        ("Hong", 2021), ("Jin", 2022), ("Jin", 2023), ("Ellis", 2021),
        ("Lesjak", 2017), ("Kemp", 2000), ("Guillot", 2020)]


def test_bibliography_is_valid():
    needed = {"article": {"journal", "year"}, "inproceedings": {"booktitle", "year"}, "book": {"publisher", "year"},
              "incollection": {"booktitle", "year"}, "misc": {"dependency"}}
    for entry in BIBLIOGRAPHY:
        assert {"author", "title"} | needed[entry["type"]] <= set(entry), entry["key"]
        assert all(value.count("{") == value.count("}") for value in entry.values()), entry["key"]
        if "year" in entry:
            letters = unicodedata.normalize("NFKD", re.split(", | and ", entry["author"])[0])
            assert entry["key"] == re.sub("[^A-Za-z]", "", letters) + entry["year"]
    keys = [entry["key"] for entry in BIBLIOGRAPHY]
    assert len(keys) > 80 and len(keys) == len(set(keys))


def test_nothing_is_cited_twice():
    for key in ("title", "doi"):
        found = [reference[key].lower() for reference in cited() if reference[key]]
        assert [value for value in found if found.count(value) > 1] == []
    assert [reference["doi"] for reference in cited()
            if reference["doi"] and not re.fullmatch(r"10\.\d{4,9}/\S+", reference["doi"])] == []


@pytest.mark.parametrize("wanted", WANTED + OPTIONAL, ids=lambda wanted: wanted.name)
def test_bibliography_mentions_every_dependency(wanted):
    named = {canonicalize_name(package.strip()) for entry in BIBLIOGRAPHY if "dependency" in entry
             for package in entry["dependency"].split(",")}
    assert canonicalize_name(wanted.name) in named


def test_references_hold_every_source_named_in_the_code():
    held = {(reference["author"], reference["year"]) for reference in cited()}
    source = re.compile(r"\b((?:Van )?[A-Z][\w'-]+)(?: et al\.| and [A-Z][\w'-]+),? \(?((?:19|20)\d\d)\b")
    missing = {}
    for path in modules("mslib", "benchmarks"):
        for author, year in source.findall(" ".join(path.read_text(encoding="utf-8").split())):
            if (author, year) not in held:
                missing.setdefault(f"{author} {year}", set()).add(name(path))
    assert missing == {}


def test_licence():
    assert PYPROJECT["license"] == CITATION["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert PYPROJECT["version"] == CITATION["version"]
