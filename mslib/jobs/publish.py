"""From a finished run to ``results/<study>``: the light part, cleaned of everything that differs between two runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat

from mslib.show.gallery import GalleryEntry, write_gallery
from mslib.study import StudyConfig, StudyError, write_json, write_text
from mslib.study.provenance import ROOT, code_digest, file_sha256, versions

from .claims import metrics
from .report import lead_sentence

#: Notebook, question, figure of the gallery.
GALLERY = {
    "00_cohort": ("Who is studied, and how close are they to real patients?", "cohort"),
    "01_coregistration": ("Do the sequences show the same place at the same pixel?", "figure1_examples"),
    "02_finetuning_vgg16": ("How much of VGG16's accuracy is real?", "accuracy_vgg16"),
    "02_finetuning_vgg19": ("How much of VGG19's accuracy is real?", "accuracy_vgg19"),
    "03_gradcam_layers": ("At which depth does a heat map point at the lesions?", "depth_curves"),
    "07_summary": ("Which published claims hold?", "figure2_confusion")}


def clean_notebook(path: Path) -> str:
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
    return nbformat.writes(notebook) + "\n"


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


def minutes_of(path: Path) -> float | None:
    """How long a notebook ran, from papermill's own record."""
    seconds = nbformat.read(path, as_version=4).metadata.get("papermill", {}).get("duration")
    return None if seconds is None else seconds / 60


def _copy_folder(source: Path, target: Path, pattern: str) -> None:
    for path in sorted(source.glob(pattern)):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)


def study_digests(config: StudyConfig) -> dict[str, str]:
    """Digest of the code behind every executed notebook of a study."""
    names = ["00_cohort", "01_coregistration", "03_gradcam_layers", "07_summary"]
    if config.cohort.source != "open_ms":
        names.append("02_finetuning")
    return {name: code_digest(f"notebooks/{name}.ipynb") for name in sorted(names)}


def publish(config: StudyConfig, config_path: str | Path, run_dir: str | Path, results: str | Path) -> None:
    """Write the results folder of a study.

    Raises
    ------
    StudyError
        The results folder cannot be written, or holds something that no study has published.
    """
    run_dir, results = Path(run_dir), Path(results)
    if results.exists() and any(results.iterdir()) and not (results / "provenance.json").is_file():
        raise StudyError(f"{results}: holds files that no study has published; name another results folder")
    building = results.with_name(f".{results.name}.new")
    try:
        shutil.rmtree(building, ignore_errors=True)
        for name in ("figures", "tables", "viewers"):
            _copy_folder(run_dir / name, building / name, "*.*")
        shutil.copyfile(run_dir / "report.html", building / "report.html")
        executed = sorted((run_dir / "notebooks").glob("*.ipynb"))
        for path in executed:
            write_text(building / "notebooks" / path.name, clean_notebook(path))
        write_json(building / "metrics.json", metrics(run_dir))
        write_json(building / "provenance.json", {
            "study": config.study, "seed": config.seed, "config": Path(config_path).name,
            "settings": json.loads(config.model_dump_json()), "code": study_digests(config), "versions": versions(),
            "lock": file_sha256(ROOT / "requirements.txt")})
        _gallery(config, run_dir, building, [path.stem for path in executed])
        shutil.rmtree(results, ignore_errors=True)
        building.rename(results)
    except OSError as error:
        raise StudyError(f"{error.filename or results}: cannot be written ({error.strerror or error})") from error


def _gallery(config, run_dir, folder, executed) -> None:
    def drawn(figure):
        return f"figures/{figure}.png" if (folder / "figures" / f"{figure}.png").exists() else None

    entries = [GalleryEntry(f"notebooks/{name}.ipynb", question, drawn(figure))
               for name, (question, figure) in GALLERY.items() if name in executed]
    more = {"report.html": "everything in one offline file", "metrics.json": "every recorded number",
            "provenance.json": "settings, code digests, versions"}
    viewers = sorted((folder / "viewers").glob("*"))
    more |= {f"viewers/{path.name}": "scroll through a heat map in 3-D" for path in viewers}
    write_gallery(folder, f"Results of study {config.study}", entries, lead=lead_sentence(config, run_dir),
                  simulated=config.cohort.source == "simulated",
                  headline=drawn("headline"), more=more)
