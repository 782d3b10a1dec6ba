"""What every file of the project keeps to: size, layout, notebooks without outputs, no path of one machine."""

import ast
import json
import re
import subprocess
import sys

import pytest
from repository import ROOT, files, name, texts

from mslib.study.provenance import verified

NOTEBOOKS = [path for path in files() if name(path).startswith("notebooks/") and path.suffix == ".ipynb"]
EXECUTED = [path for path in files() if name(path).startswith("results/") and path.suffix == ".ipynb"]


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(path):
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def tree(cell):
    """Syntax tree of a cell without its magics."""
    lines = [line for line in source(cell).splitlines() if not re.match(r"\s*[%!]", line)]
    return ast.parse("\n".join(lines))


SCIENCE = {"02": ("evaluate(",), "03": ("layer_cams(", "Gradcam("), "04": ("attribute(", "postprocess("),
           "05": ("lrp(", "relevance_shares("), "06": ("lrp(", "mixed_effects(")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_for_what_it_needs_and_shows_its_science(path):
    """Title, question and parameters first; no outputs, no kernel of one machine, no plumbing."""
    first, cells = load(path)["cells"][0], code_cells(path)
    assert first["cell_type"] == "markdown" and re.match(r"# \S", source(first)) and "?" in source(first)
    assert load(path)["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []
    tagged, = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assignments = tree(tagged).body
    assert all(isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant) for one in assignments)
    assert {target.id for one in assignments for target in one.targets} == {"config", "run_dir"}
    code = "\n".join(map(source, cells))
    assert "subprocess" not in code and "run_dir}" not in code
    for words in ("Study(config, run_dir", "study.need(", "study.record(", *SCIENCE.get(path.name[:2], ())):
        assert words in code


@pytest.mark.parametrize("path", EXECUTED, ids=name)
def test_executed_notebook_ran_to_its_end(path):
    cells = code_cells(path)
    assert cells and all(cell["execution_count"] for cell in cells if source(cell).strip())
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert errors == []


def test_no_path_of_one_machine():
    """No absolute path in any text file, long base64 runs (pictures inside HTML and notebooks) left out."""
    encoded = re.compile(r"(?:[A-Za-z0-9+/=]|\\n){200,}")
    path = re.compile(r"(?<![\w.:/<>~$}*)\]-])/(?:home|Users|root|work|tmp|mnt|media|data|opt|var|scratch)/[\w./-]+"
                      r"|\b[A-Z]:\\\\?[A-Za-z]")
    found = {}
    for file, text in texts().items():
        hits = [match.group(0) for match in path.finditer(encoded.sub("", text))]
        if file == "Dockerfile":  # a folder of the image, not of a machine
            hits = [hit for hit in hits if "/lib/apt/lists" not in hit]
        if hits:
            found[file] = hits[:5]
    assert found == {}


def test_files_are_small():
    """3 MB; results hold whole reports and executed notebooks with their figures: 10 MB (25 MB in all); weights 50."""
    large = {"results": 10_000_000, "weights": 50_000_000}
    limits = {path: large.get(name(path).split("/")[0], 3_000_000) for path in files()}
    assert {name(path): path.stat().st_size for path, limit in limits.items() if path.stat().st_size > limit} == {}
    results = sum(path.stat().st_size for path in files() if name(path).startswith("results/"))
    assert results < 25_000_000
    weights = [path for path in files() if name(path).startswith("weights/") and path.suffix == ".h5"]
    assert [verified(path) for path in weights] == weights
    assert sum(path.stat().st_size for path in weights) < 120_000_000


def test_ruff_is_clean():
    checked = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet", "."], cwd=ROOT,
                             capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr[-1000:]


def test_every_folder_has_a_readme():
    """Top folders and the folders right below mslib/ and results/."""
    known = {name(path) for path in files()}
    folders = {parts[0] for path in known if len(parts := path.split("/")) > 1 and not parts[0].startswith(".")}
    folders |= {"/".join(parts[:2]) for path in known
                if len(parts := path.split("/")) > 2 and parts[0] in ("mslib", "results")}
    assert sorted(folder for folder in folders if f"{folder}/README.md" not in known) == []


def test_linked_files_are_there():
    """README, galleries and documents link to files of the project that exist."""
    missing = {}
    for path in (path for path in files() if path.suffix == ".md"):
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link) and not (path.parent / link).exists():
                missing.setdefault(name(path), []).append(link)
    assert missing == {}


def test_readme_quotes_the_results():
    """Numbers between the marks of README.md are those of the results that it names."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- from (\S+) -->\s*(.*?)\s*<!-- end -->", readme, re.DOTALL)
    assert quoted
    for file, text in quoted:
        assert " ".join(text.split()) in " ".join((ROOT / file).read_text(encoding="utf-8").split()), file
