"""From a made-up finished run to results: clean, offline, escaped, whole or not at all."""

import base64
import io
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from repository import ROOT
from shared_cases import contents

from mslib.publish import PUBLISHED, WIDEST, clean_notebook, publish
from mslib.study import Run, StudyError, write_json

EVIL = '<script>alert("sub-001")</script><img src=x onerror=alert(1)> & co'
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
                         "rkJggg==")
NAMES = [name for name in PUBLISHED if name not in ("06_sleep_staging", "08_pretraining")]


def executed(name, seconds):
    """A notebook as papermill leaves it, with what differs from run to run."""
    code = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
    code.metadata["papermill"] = {"duration": seconds}
    code.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text=f"{seconds} s"),
        nbformat.v4.new_output("stream", name="stdout", text="one "),
        nbformat.v4.new_output("stream", name="stdout", text="two"),
        nbformat.v4.new_output("display_data",
                               data={"application/vnd.jupyter.widget-view+json": {"model_id": str(seconds)}}),
        nbformat.v4.new_output("display_data", data={"image/png": base64.b64encode(PIXEL).decode()},
                               metadata={"image/png": {"alt": EVIL, "figure": "cohort.png"}}),
        nbformat.v4.new_output("display_data", data={"text/markdown": f"**Here:** {EVIL}"}),
        nbformat.v4.new_output("display_data", data={"text/html": pd.DataFrame({"name": [EVIL]})._repr_html_() + EVIL})]
    cells = [nbformat.v4.new_markdown_cell(f"# {name}\n\n**Question.** What is {name}?"), code]
    return nbformat.v4.new_notebook(cells=cells, metadata={"papermill": {"duration": seconds}})


def finished(folder, **settings):
    """A finished run."""
    config = folder / "own.yaml"
    config.write_text(yaml.safe_dump({"study": "own"} | settings), encoding="utf-8")
    run = Run(config, folder / "run")
    (run.folder / "notebooks").mkdir(parents=True)
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "cohort.png").write_bytes(PIXEL)
    (run.folder / "figures" / "cohort.svg").write_text("<svg/>")
    (run.folder / "figures" / "left_by_another_run.png").write_bytes(b"old")
    (run.folder / "minutes").mkdir()
    for subject, seconds in (("001", 30), ("002", 60)):
        (run.folder / "minutes" / f"simulate-{subject}.tsv").write_text(
            f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:01\t{seconds * 10.24}\t15\n")
    for name in NAMES:
        nbformat.write(executed(name, 1.5), run.folder / "notebooks" / f"{name}.ipynb")
        write_json(run.folder / "metrics" / f"{name}.json", {
            "answer": EVIL, "subjects": 3, "faults": 0, "verdicts": {"published": {"holds": 2, EVIL: 1}}})
        write_json(run.folder / "made" / f"{name}.json", {"figures/cohort.png": EVIL, "figures/supplement.png": "",
                                                          "tables/supplement.csv": ""} if name == "00_cohort" else {})
    return run


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What is published of such a run."""
    folder = tmp_path_factory.mktemp("published")
    publish(finished(folder), folder / "results")
    return folder / "results"


def test_a_cleaned_notebook_does_not_depend_on_the_clock(tmp_path):
    texts = []
    for seconds in (1.0, 2.0):
        nbformat.write(executed("a", seconds), tmp_path / "a.ipynb")
        notebook = clean_notebook(tmp_path / "a.ipynb")
        assert [output.output_type for output in notebook.cells[1].outputs] == ["stream", *["display_data"] * 3]
        assert notebook.cells[1].outputs[0]["text"] == "one two"
        texts.append(nbformat.writes(notebook))
    assert texts[0] == texts[1]


def test_the_light_part_of_the_run_is_published_and_nothing_else(run, results, tmp_path):
    made = contents(shutil.copytree(results, tmp_path / "results"))
    assert set(made) == {"README.md", "index.html", "methods.md", "metrics.json", "provenance.json",
                         "figures/cohort.png", "figures/cohort.svg", "tables/minutes.csv",
                         *(f"notebooks/{name}.{end}" for name in NAMES for end in ("ipynb", "html"))}
    assert made["tables/minutes.csv"].decode() == "rule,jobs,minutes,cpu_minutes,memory_gb\nsimulate,2,1.5,0.5,0.6\n"
    provenance = json.loads(made["provenance.json"])
    assert provenance["study"] == "own" and provenance["seed"] == 3275 and len(provenance["commit"]) >= 7
    publish(run, tmp_path / "results")
    assert contents(tmp_path / "results") == made
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_pages_load_nothing_run_nothing_and_escape_what_files_say(results):
    pages = list(results.rglob("*.html"))
    assert len(pages) == len(NAMES) + 1
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text and not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text)
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", text) and "Content-Security-Policy" in text
        for link in re.findall(r'(?:src|href)="([^"#][^"]*)"', text):
            assert link.startswith("data:") or (path.parent / link).is_file(), link
    notebook = (results / "notebooks/00_cohort.html").read_text(encoding="utf-8")
    assert "../figures/cohort.png" in notebook and "base64" not in notebook
    assert "<details><summary>Code</summary>" in notebook
    assert re.search(r"<h1[^>]*>00_cohort", notebook) and "<p><strong>Question.</strong>" in notebook
    assert "<thead>" in notebook and "<th>name</th>" in notebook and "<style scoped" not in notebook
    escaped = set(re.findall(r"&lt;/?(\w+)", notebook))
    assert escaped == {"script", "img"}, "markdown and tables are drawn, what files say is text"
    assert "<p><strong>Answer.</strong> &lt;script" in notebook and "¶" not in notebook and "Out[" not in notebook
    assert '<div class="scroll" tabindex="0"' in notebook and "<strong>Here:</strong> &lt;script" in notebook
    index = (results / "index.html").read_text(encoding="utf-8")
    assert 'class="good">holds: 2' in index and index.count('alt="&lt;script') == 1
    for name in ("README.md", "methods.md"):
        assert "<script" not in (results / name).read_text(encoding="utf-8")


def test_the_gallery_shows_question_answer_and_figure(run, results, tmp_path):
    readme = (results / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Results of study own\n\n> Simulated data")
    assert "What is 03_gradcam_layers?" in readme and "(figures/cohort.png)" in readme
    methods = (results / "methods.md").read_text(encoding="utf-8")
    assert "3 subjects were usable" in methods and "VGG16 and VGG19" in methods and "LRP γ, centred" in methods
    write_json(run.folder / "made" / "00_cohort.json", {"figures/left_by_another_run.png": "", "tables/other.csv": ""})
    publish(run, tmp_path / "results")  # none of the figures that are published was drawn: the first one stands for it
    assert "(figures/left_by_another_run.png)" in (tmp_path / "results/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("cohort,note", [
    ({"source": "bids", "root": "/data"}, "simulated people and are measured on them; all else"),
    ({"source": "open_ms"}, "Lesjak et al.")])
def test_readers_are_told_whose_data_it_is(tmp_path, cohort, note):
    publish(finished(tmp_path, cohort=cohort, model={"weights": "simulated"}), tmp_path / "results")
    for file in ("README.md", "index.html"):
        assert note in (tmp_path / "results" / file).read_text(encoding="utf-8")


def test_pictures_in_notebooks_keep_their_colours_and_weigh_less(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).resize((2000, 2000))
    noise.save(drawn := io.BytesIO(), "PNG")
    notebook = executed("a", 1.0)
    notebook.cells[1].outputs[4]["data"]["image/png"] = base64.b64encode(drawn.getvalue()).decode()
    nbformat.write(notebook, tmp_path / "a.ipynb")
    output = clean_notebook(tmp_path / "a.ipynb").cells[1].outputs[1]
    assert set(output["data"]) == {"image/jpeg"} and output["metadata"]["image/jpeg"]["figure"] == "cohort.png"
    stored = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/jpeg"])))
    assert stored.size == (WIDEST, WIDEST), "as wide as a page; whole pictures are in figures/"
    assert np.abs(np.asarray(stored, float) - np.asarray(noise.resize(stored.size), float)).mean() < 5
    small = executed("b", 1.0)
    nbformat.write(small, tmp_path / "b.ipynb")
    assert "image/png" in clean_notebook(tmp_path / "b.ipynb").cells[1].outputs[1]["data"], "a pixel stays PNG"


def test_an_unfinished_run_leaves_the_published_results_and_foreign_files_are_not_replaced(run, results, tmp_path):
    before = contents(shutil.copytree(results, tmp_path / "results"))
    for name, message in (("notebooks/07_summary.ipynb", r"07_summary\.ipynb: is absent$"),
                          ("metrics/03_gradcam_layers.json", r"03_gradcam_layers\.json: is absent or damaged")):
        (run.folder / name).unlink()
        with pytest.raises(StudyError, match=message):
            publish(run, tmp_path / "results")
        assert contents(tmp_path / "results") == before
    (tmp_path / "own").mkdir()
    for name in ("mine.txt", "metrics.json", "README.md"):  # as a project of somebody else may hold them
        (tmp_path / "own" / name).write_text("mine")
    for place, message in (("own", "holds files that no study has published"), ("own/mine.txt/a", "cannot be written")):
        with pytest.raises(StudyError, match=message):
            publish(run, tmp_path / place)
    assert (tmp_path / "own" / "mine.txt").read_text() == "mine"


def test_every_notebook_has_its_place():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(PUBLISHED)
