"""From a finished run to ``results/<study>``: the light part, cleaned of everything that differs between two runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML

from mslib.study import Run, StudyError, read_json, read_table, write_json, write_table, write_text
from mslib.study.provenance import ROOT, commit, file_sha256, versions

#: Figure of every notebook in the gallery: the first that the study has drawn.
FIGURES = {"00_cohort": ["cohort"], "01_coregistration": ["registration_errors", "figure1_examples"],
           "02_finetuning": ["accuracy", "figure2_confusion"], "03_gradcam_layers": ["depth_curves", "layer_grid"],
           "04_multimodal_attribution": ["attribution_scores_known_rule", "attribution_patient"],
           "05_modality_relevance": ["relevance_shares"], "06_sleep_staging": ["sleep_night"],
           "07_summary": ["headline_relevance"], "08_pretraining": ["pretraining_depth"]}
SIMULATED = "Simulated data: every subject is made by this project's own phantom. No number here describes a person."
LESJAK = ("Data: open_ms_data (Lesjak et al. 2016 and 2017), CC-BY; corrected for bias fields, aligned, masked to the "
          "brain, scaled and resampled by this project.")
#: Nothing is loaded from elsewhere and nothing runs.
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%;height:auto}table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}
td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}pre{overflow-x:auto;background:#f6f6f6;padding:.5rem}
details{margin:.5rem 0}summary{cursor:pointer;color:#555}
.card{display:grid;grid-template-columns:16rem 1fr;gap:1rem;margin:1.5rem 0}
@media(max-width:600px){.card{grid-template-columns:1fr}}.note{background:#fff3cd;padding:.5rem 1rem}
@media print{details:not([open]){display:none}}"""
#: What markdown and tables may hold; any other tag is shown as text.
TAGS = ("a abbr b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre span strong sub sup table "
        "tbody td th thead tr ul").split()
SANITIZER = SanitizeHTML(tags=TAGS, attributes={"*": ["class", "id"], "a": ["href"], "td": ["colspan", "rowspan"],
                                                "th": ["colspan", "rowspan"]})
#: The basic template of nbconvert with every input folded.
TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block input_group %}<details><summary>Code</summary>{{ super() }}</details>{% endblock %}"""


def clean_notebook(path: Path) -> nbformat.NotebookNode:
    """An executed notebook without timing, machine paths and progress bars: the same text for the same results."""
    notebook = nbformat.read(path, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # papermill gives the cell it adds a random one
        tags = cell.metadata.get("tags", [])
        cell.metadata.clear()
        if tags:
            cell.metadata["tags"] = tags
        if cell.cell_type == "code":
            cell.outputs = _stable_outputs(cell.outputs)
    return notebook


def _stable_outputs(outputs):
    """Outputs without progress bars; printed text in one piece, however the kernel happened to cut it."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def page(title: str, body: str) -> str:
    """A whole HTML page that loads nothing from elsewhere and runs no script."""
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head>'
            f"<body><main>{body}</main></body></html>\n")


def _clean_html(text: str) -> str:
    """HTML of a cell with `TAGS` alone; nbconvert's own list lacks headings, paragraphs and heads of tables."""
    return SANITIZER.sanitize_html_tags(re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL))


def notebook_page(notebook: nbformat.NotebookNode, title: str, figures: Path) -> str:
    """HTML of a cleaned notebook: inputs folded, pictures that lie in `figures` linked instead of embedded."""
    exporter = HTMLExporter(template_file="folded.html.j2", extra_loaders=[DictLoader({"folded.html.j2": TEMPLATE})],
                            sanitize_html=True, filters={"clean_html": _clean_html})
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    known = {hashlib.sha256(path.read_bytes()).digest(): path.stem for path in figures.glob("*.png")}

    def linked(match):
        name = known.get(hashlib.sha256(base64.b64decode(match[1])).digest())
        return f'src="../figures/{name}.png" alt="{name}"' if name else match[0]

    body = re.sub(r'(?:alt="[^"]*"\s*)?src="data:image/png;base64,([^"]+)"', linked, body)
    return page(title, f'<p><a href="../index.html">All notebooks</a></p>{body}')


def question_of(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """Title and question of a notebook, from its first cell."""
    text = notebook.cells[0].source
    question = re.search(r"\*\*Question\.\*\*\s*(.+)", text)
    return text.splitlines()[0].lstrip("# "), question[1].strip() if question else ""


def minutes_by_rule(folder: Path) -> pd.DataFrame:
    """What every rule has cost, from Snakemake's benchmark files: jobs, minutes, memory (GB) of the largest job."""
    rows = [read_table(path).assign(rule=path.stem.split("-")[0]) for path in sorted(folder.glob("*.tsv"))]
    if not rows:
        return pd.DataFrame(columns=["rule", "jobs", "minutes", "cpu_minutes", "memory_gb"])
    table = pd.concat(rows).replace("-", None).groupby("rule").agg(
        jobs=("s", "size"), minutes=("s", "sum"), cpu_minutes=("cpu_time", "sum"), memory_gb=("max_rss", "max"))
    return (table / [1, 60, 60, 1024]).sort_values("minutes", ascending=False).reset_index()


def publish(run: Run, results: Path) -> None:
    """Write the results folder of a study; what was published before stays until the new is whole.

    Raises
    ------
    StudyError
        The folder cannot be written, or holds something that no study has published; a notebook has not run.
    """
    results = Path(results)
    published = any((results / name).is_file() for name in ("provenance.json", "metrics.json"))
    if results.exists() and any(results.iterdir()) and not published:
        raise StudyError(f"{results}: holds files that no study has published; name another results folder")
    building, old = (results.with_name(f".{results.name}.{end}") for end in ("new", "old"))
    try:
        shutil.rmtree(building, ignore_errors=True)
        names = run.config.run_notebooks
        for file in sorted({file for name in names for file in read_json(run.folder / "made" / f"{name}.json")}):
            (building / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / file, building / file)
        entries = []
        for name in names:
            notebook = clean_notebook(run.folder / "notebooks" / f"{name}.ipynb")
            title, question = question_of(notebook)
            write_text(building / "notebooks" / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
            write_text(building / "notebooks" / f"{name}.html", notebook_page(notebook, title, building / "figures"))
            drawn = (f"figures/{figure}.png" for figure in FIGURES[name])
            entries.append((name, title, question, next((file for file in drawn if (building / file).exists()), "")))
        metrics = {name: read_json(run.folder / "metrics" / f"{name}.json") for name in names}
        write_table(building / "tables" / "minutes.csv", minutes_by_rule(run.folder / "minutes"), float_format="%.3g")
        write_json(building / "metrics.json", metrics)
        write_json(building / "provenance.json", {
            "study": run.config.study, "commit": commit(), "seed": run.config.seed, "config": run.config_path.name,
            "settings": json.loads(run.config.model_dump_json()), "versions": versions(),
            "lock": file_sha256(ROOT / "requirements.txt")})
        _gallery(run, building, entries, metrics)
        shutil.rmtree(old, ignore_errors=True)
        if results.exists():
            results.rename(old)
        building.rename(results)
        shutil.rmtree(old, ignore_errors=True)
    except FileNotFoundError as error:
        raise StudyError(f"{error.filename}: is absent") from error
    except OSError as error:
        raise StudyError(f"{error.filename or results}: cannot be written ({error.strerror or error})") from error


def _gallery(run, folder, entries, metrics) -> None:
    """``README.md`` and ``index.html``: question, answer and figure of every notebook."""
    title = f"Results of study {run.config.study}"
    notes = [SIMULATED] * (run.config.cohort.source == "simulated") + [LESJAK] * (run.config.cohort.source == "open_ms")
    readme = [f"# {title}", *(f"> {note}" for note in notes),
              f"Made by commit `{commit()}`; `provenance.json` holds settings and versions, `metrics.json` every "
              "recorded number. Offline pages: `index.html`. Minutes by rule: `tables/minutes.csv`."]
    cards = [f"<h1>{html.escape(title)}</h1>", *(f'<p class="note">{html.escape(note)}</p>' for note in notes)]
    for name, heading, question, figure in entries:
        answer = str(metrics[name].get("answer", ""))  # its numbers are computed, its names may come from data
        picture = f'<img src="{figure}" alt="{html.escape(answer or question)}">' if figure else ""
        readme += [f"## [{heading}](notebooks/{name}.ipynb)", question, html.escape(answer, quote=False),
                   f"![{answer or question}]({figure})" if figure else ""]
        cards.append(f'<section class="card"><a href="notebooks/{name}.html">{picture or html.escape(name)}</a><div>'
                     f'<h2><a href="notebooks/{name}.html">{html.escape(heading)}</a></h2>'
                     f"<p>{html.escape(question)}</p><p>{html.escape(answer)}</p></div></section>")
    viewers = sorted(path.name for path in (folder / "viewers").glob("*.html"))
    if viewers:
        items = "".join(f'<li><a href="viewers/{name}">{name}</a></li>' for name in viewers)
        cards.append(f"<h2>Viewers</h2><ul>{items}</ul>")
        readme += ["## Viewers", "\n".join(f"- [{name}](viewers/{name})" for name in viewers)]
    write_text(folder / "README.md", "\n\n".join(part for part in readme if part) + "\n")
    write_text(folder / "index.html", page(title, "\n".join(cards)))
