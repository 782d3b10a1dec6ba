"""The ways to set up the study (pip, conda, container, CI) install one and the same lock."""

import re
import subprocess
import tomllib

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
WANTED = [Requirement(line) for line in PYPROJECT["dependencies"]]
OPTIONAL = [Requirement(line) for lines in EXTRAS.values() for line in lines]


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


def test_lock_is_read():
    assert len(LOCK) > 100


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_dependency_is_locked_with_an_allowed_version(wanted):
    versions = LOCK.get(canonicalize_name(wanted.name))
    assert versions, f"requirements.txt lacks {wanted}"
    for version, _ in versions:
        assert wanted.specifier.contains(version, prereleases=True), f"requirements.txt has {wanted.name} {version}"


def test_every_locked_package_has_hashes():
    assert [package for package, entries in LOCK.items() if any(hashes == 0 for _, hashes in entries)] == []


def test_benchmark_peers_stay_out_of_the_lock():
    declared = {canonicalize_name(wanted.name) for wanted in WANTED}
    for peer in EXTRAS.get("bench", []):
        package = canonicalize_name(Requirement(peer).name)
        assert package not in declared and package not in LOCK


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)[1]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) == len(WANTED)
    assert [line for line in lines if not re.search(r'",\s*# \S.{3,}', line)] == []
    for extra in EXTRAS:
        assert re.search(rf"^{extra} = \[.*\]\s+# \S", text, flags=re.MULTILINE), f"extra '{extra}' has no comment"


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


def test_citation_file_is_valid():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "references"} <= set(CITATION)
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= set(reference), reference
        assert reference["type"] in {"article", "conference-paper", "software", "book", "data", "generic"}
        assert all("name" in author or "family-names" in author for author in reference["authors"])
        assert re.fullmatch(r"10\.\d{4,9}/\S+", reference.get("doi", "10.1000/none")), reference
    known = [reference["doi"] for reference in CITATION["references"] if "doi" in reference]
    assert len(known) == len(set(known))


@pytest.mark.parametrize("wanted", WANTED + OPTIONAL, ids=lambda wanted: wanted.name)
def test_citation_mentions_every_dependency(wanted):
    named = {canonicalize_name(package.strip())
             for reference in CITATION["references"]
             for listed in re.findall(r"Dependencies: (.*?)\.(?:\s|$)", reference.get("notes", ""))
             for package in listed.split(",")}
    assert canonicalize_name(wanted.name) in named


def test_citation_holds_every_source_named_in_the_code():
    known = {(reference["authors"][0].get("family-names"), reference.get("year"))
             for reference in CITATION["references"]}
    source = re.compile(r"\b([A-Z][\w'-]+)(?: et al\.| and [A-Z][\w'-]+),? \(?((?:19|20)\d\d)\b")
    missing = {}
    for path in modules("mslib"):
        for author, year in source.findall(path.read_text(encoding="utf-8")):
            if (author, int(year)) not in known:
                missing.setdefault(f"{author} {year}", set()).add(name(path))
    assert missing == {}


def test_licence():
    assert PYPROJECT["license"] == CITATION["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert PYPROJECT["version"] == CITATION["version"]
