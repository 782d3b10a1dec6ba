"""From a finished run to ``results/<study>``: the light part, cleaned of everything that differs between two runs."""

import base64
import copy
import html
import io
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from nbconvert.preprocessors.sanitize import SanitizeHTML
from PIL import Image

from mslib.show import label_of
from mslib.study import Run, StudyError, check_results, read_json, read_table, write_json, write_table, write_text
from mslib.study.provenance import ROOT, commit, file_sha256, versions

#: What is published of every notebook, figures and tables; the first figure that a study has drawn stands in the
#: gallery. All the rest stays in the run.
PUBLISHED = {
    "00_cohort": (["cohort", "appearance"], []),
    "01_coregistration": (["figure1_examples"], []),
    "02_finetuning": (["accuracy", "figure2_confusion"], ["accuracy"]),
    "03_gradcam_layers": (
        ["depth_curves", "cause_layers", "figure3_layers", "figure4_layers", "depth_by_size", "randomisation"],
        ["depth_curves", "way_to_oracle", "way_cross_fitted", "depth_by_size", "depth_tests"]),
    "04_multimodal_attribution": (["attribution_checks", "attribution_scores_known_rule", "attribution_cause_auprc"],
                                  ["attribution_known_rule", "attribution_cause", "attribution_checks"]),
    "05_modality_relevance": (["relevance_known_rule", "relevance_shares"], ["relevance_shares"]),
    "06_sleep_staging": (["sleep_shares", "sleep_night"], ["sleep_shares"]),
    "07_summary": (["summary"], ["claims"]),
    "08_pretraining": (["pretraining_depth", "pretraining_depth_equal"],
                       ["pretraining_accuracy", "pretraining_depth", "pretraining_methods"])}
#: The same of real patients explained by networks of simulated ones: an example and maps, no accuracy.
TRANSFER = dict.fromkeys(PUBLISHED, ([], [])) | {
    "01_coregistration": (["figure1_examples"], []), "03_gradcam_layers": (["figure3_layers"], ["depth_curves"])}
SIMULATED = "Simulated data: every subject is made by this project's own phantom. No number describes a person"
#: Where notebook 00 has run.
BESIDE = ", but for the real patients (named there) beside whom notebook 00 sets the simulated ones"
CONTROL = ("Networks that only lesions can decide have learnt from simulated people and are measured on them; all else "
           "is of the study's own cohort.")
LESJAK = ("Data: open_ms_data (Lesjak et al. 2016 and 2017), CC-BY; corrected for bias fields, aligned, masked to the "
          "brain, scaled and resampled by this project.")
#: Pixels of the pictures inside notebooks; those of `PUBLISHED` are whole in ``figures``.
WIDEST = 680
PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "show" / "pages"), trim_blocks=True,
                    lstrip_blocks=True, keep_trailing_newline=True, autoescape=lambda name: ".html" in name)
PAGES.filters |= {"label": label_of, "text": lambda text: html.escape(str(text), quote=False)}  # inside Markdown
#: What markdown and tables may hold; any other tag is shown as text. nbconvert's own list lacks headings, paragraphs
#: and heads of tables.
SANITIZER = SanitizeHTML(
    tags=("a abbr b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre span strong sub sup "
          "table tbody td th thead tr ul").split(),
    attributes={"*": ["class", "id"], "a": ["href"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]})


def clean_notebook(path: Path, answer: str = "") -> nbformat.NotebookNode:
    """An executed notebook without timing, machine paths and progress bars: the same text for the same results.

    The answer stands below the question; pictures are small JPEG in full colour where that saves bytes.
    """
    notebook = nbformat.read(path, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    if answer:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"**Answer.** {html.escape(answer, quote=False)}"))
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # papermill gives the cell it adds a random one
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.outputs = _stable_outputs(cell.outputs)
    return notebook


def _stable_outputs(outputs):
    """Outputs without progress bars; printed text in one piece, however the kernel happened to cut it."""
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in data:
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1]["text"] += output["text"]
            continue
        kept.append(output)
        if "image/png" in data:
            drawn, stored = base64.b64decode(data["image/png"]), io.BytesIO()
            picture = Image.open(io.BytesIO(drawn)).convert("RGB")
            picture.thumbnail((WIDEST, WIDEST * 4))
            picture.save(stored, "JPEG", quality=72, optimize=True)
            if len(stored.getvalue()) < len(drawn):
                data["image/jpeg"] = base64.b64encode(stored.getvalue()).decode()
                output["metadata"]["image/jpeg"] = output["metadata"].pop("image/png", {})
                del data["image/png"]
    return kept


def _notebook_page(notebook: nbformat.NotebookNode, title: str, figures: Path) -> str:
    """HTML of a cleaned notebook: inputs folded, pictures that lie in `figures` linked instead of embedded."""
    notebook = copy.deepcopy(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for kind in ("image/png", "image/jpeg"):
            file = figures / str(output.get("metadata", {}).get(kind, {}).get("figure"))
            if file.is_file():
                output["metadata"]["filenames"] = {kind: f"../figures/{file.name}"}
    exporter = HTMLExporter(
        template_file="folded.html.j2", extra_loaders=[PAGES.loader], sanitize_html=True, exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True, filters={"clean_html": lambda text: (
            SANITIZER.sanitize_html_tags(re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)))})
    hidden = TagRemovePreprocessor(remove_cell_tags={"parameters", "injected-parameters"}, enabled=True)
    exporter.register_preprocessor(hidden, enabled=True)
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r"<table.*?</table>", r'<div class="scroll" tabindex="0" role="group" aria-label="table">\g<0></div>',
                  body, flags=re.DOTALL)  # wide tables scroll by themselves, also by keyboard
    return PAGES.get_template("notebook.html.j2").render(title=title, body=body)


def _minutes_by_rule(folder: Path) -> pd.DataFrame:
    """What every rule has cost, from Snakemake's benchmark files: jobs, minutes, memory (GB) of the largest job."""
    rows = [read_table(path).assign(rule=path.stem.split("-")[0]) for path in sorted(folder.glob("*.tsv"))]
    if not rows:
        return pd.DataFrame(columns=["rule", "jobs", "minutes", "cpu_minutes", "memory_gb"])
    table = pd.concat(rows).replace("-", None).groupby("rule").agg(
        jobs=("s", "size"), minutes=("s", "sum"), cpu_minutes=("cpu_time", "sum"), memory_gb=("max_rss", "max"))
    return (table / [1, 60, 60, 1024]).sort_values("minutes", ascending=False).reset_index()


def publish(run: Run, results: Path) -> None:
    """Write the results folder of a study; what was published before stays until the new is whole.

    StudyError where the folder cannot be written or holds what no study has published, or a notebook has not run.
    """
    check_results(results)
    building, old = (results.with_name(f".{results.name}.{end}") for end in ("new", "old"))
    try:
        shutil.rmtree(building, ignore_errors=True)
        _build(run, building)
        shutil.rmtree(old, ignore_errors=True)
        if results.exists():
            results.rename(old)
        building.rename(results)
        shutil.rmtree(old, ignore_errors=True)
    except FileNotFoundError as error:
        raise StudyError(f"{error.filename}: is absent") from error
    except OSError as error:
        raise StudyError(f"{error.filename or results}: cannot be written ({error.strerror or error})") from error


def _build(run: Run, folder: Path) -> None:
    """Everything that is published of a run, into a new folder."""
    kept = TRANSFER if run.config.cohort.source == "open_ms" else PUBLISHED
    notebooks, viewers, metrics = [], [], {}
    for name in run.config.run_notebooks:
        made, metrics[name] = (read_json(run.folder / place / f"{name}.json") for place in ("made", "metrics"))
        drawn = {Path(file).stem: file for file in made if file.startswith("figures/")}
        figures = [drawn[figure] for figure in kept[name][0] if figure in drawn]
        if not figures and kept is PUBLISHED:  # a study that drew none of them shows its first
            figures = list(drawn.values())[:1]
        pages = {file.split("_")[0]: file for file in reversed(made) if file.startswith("viewers/")}  # one a patient
        files = [f"tables/{table}.csv" for table in kept[name][1] if f"tables/{table}.csv" in made]
        files += [*pages.values(), *figures, *(Path(file).with_suffix(".svg").as_posix() for file in figures)]
        for file in files:
            if not file.endswith(".svg") or (run.folder / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / file, folder / file)
        answer = str(metrics[name].get("answer", ""))  # its numbers are computed, its names may come from data
        notebook = clean_notebook(run.folder / "notebooks" / f"{name}.ipynb", answer)
        first = notebook.cells[0].source
        title, question = first.splitlines()[0].lstrip("# "), re.search(r"\*\*Question\.\*\*\s*(.+)", first)
        write_text(folder / "notebooks" / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
        write_text(folder / "notebooks" / f"{name}.html", _notebook_page(notebook, title, folder / "figures"))
        notebooks.append({"name": name, "title": title, "question": question[1].strip() if question else "",
                          "answer": answer, "figures": {Path(file).name: made[file] for file in figures}})
        viewers += pages.values()
    write_table(folder / "tables" / "minutes.csv", _minutes_by_rule(run.folder / "minutes"), float_format="%.3g")
    write_json(folder / "metrics.json", metrics)
    provenance = {
        "study": run.config.study, "commit": commit(), "seed": run.config.seed, "config": run.config_path.name,
        "settings": run.config.model_dump(mode="json"), "versions": versions(),
        "lock": file_sha256(ROOT / "requirements.txt")}
    write_json(folder / "provenance.json", provenance)
    simulated = f"{SIMULATED}{BESIDE * ('00_cohort' in metrics)}."
    control = CONTROL * (run.config.trains and "cause" in run.config.model.kinds)
    note = {"simulated": simulated, "open_ms": LESJAK, "bids": control}[run.config.cohort.source]
    words = {"title": f"Results of study {run.config.study}", "note": note, "notebooks": notebooks, "viewers": viewers,
             "verdicts": metrics.get("07_summary", {}).get("verdicts", {}), "metrics": metrics,
             "provenance": provenance}
    described = ["methods.md"] * ("03_gradcam_layers" in metrics)  # a study of patients, not of start weights
    for name in ("README.md", "index.html", *described):
        write_text(folder / name, PAGES.get_template(f"{name}.j2").render(words))
