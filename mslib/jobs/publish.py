"""From a finished run to ``results/<study>``: the light part, cleaned of everything that differs between two runs."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import nbformat
from PIL import Image

from mslib.show.gallery import GalleryEntry, write_gallery
from mslib.study import StudyConfig, StudyError, write_json, write_text
from mslib.study.provenance import ROOT, code_digest, file_sha256, versions

from . import report
from .claims import metrics
from .cohort import read_json
from .words import attribution

#: Pictures of published notebooks below this size (bytes) stay as they are.
LIGHT = 60_000
#: Notebook, question, figure of the gallery (the first that the study has drawn).
GALLERY = {
    "00_cohort": ("Who is studied, and is every scan usable?", "cohort"),
    "01_coregistration": ("Do the sequences show the same place at the same pixel?", "registration_errors"),
    "02_finetuning_vgg16": ("How much of VGG16's accuracy is real?", "accuracy_vgg16"),
    "02_finetuning_vgg19": ("How much of VGG19's accuracy is real?", "accuracy_vgg19"),
    "03_gradcam_layers": ("At which depth does a heat map point at the lesions?", "depth_curves"),
    "04_multimodal_attribution": ("Which method may be believed about which sequence?",
                                  "attribution_scores_planted", "attribution_patient"),
    "05_modality_relevance": ("Which sequence is a score made of?", "relevance_shares"),
    "06_sleep_staging": ("Which of EEG, EOG and EMG tells a net the stage of sleep?", "sleep_night"),
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


def lighter(picture: str) -> str:
    """A PNG (base64) with a palette of 256 colours where that is smaller; its figure stays in full colour beside it."""
    drawn = base64.b64decode(picture)
    with Image.open(io.BytesIO(drawn)) as image:
        if len(drawn) < LIGHT or image.mode == "P":
            return picture
        small = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(encoded := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(min(drawn, encoded.getvalue(), key=len)).decode()


def _stable_outputs(outputs):
    """Outputs without progress bars; printed text in one piece, however the kernel happened to cut it."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if "image/png" in output.get("data", {}):
            output["data"]["image/png"] = lighter(output["data"]["image/png"])
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def executed_notebooks(config: StudyConfig) -> list[str]:
    """Names of a study's executed notebooks, in order: those of the gallery that its settings ask for."""
    tuned = [f"02_finetuning_{backbone}" for backbone in config.model.backbones if config.cohort.source != "open_ms"]
    absent = () if config.sleep else ("06_sleep_staging",)
    return [name for name in GALLERY if (not name.startswith("02_") or name in tuned) and name not in absent]


def made_files(config: StudyConfig, run_dir: Path) -> list[str]:
    """Figures, tables, viewers and report that the study's notebooks have made in this run, as they recorded it.

    Whatever else an earlier run with other settings or code has left in the run folder is not among them.
    """
    made = [read_json(run_dir / "made" / f"{name}.json") for name in executed_notebooks(config)]
    return sorted({file for files in made for file in files})


def study_digests(config: StudyConfig) -> dict[str, str]:
    """Digest of the code behind every executed notebook of a study."""
    sources = {"02_finetuning" if name.startswith("02_") else name for name in executed_notebooks(config)}
    return {name: code_digest(f"notebooks/{name}.ipynb") for name in sorted(sources)}


def publish(config: StudyConfig, config_path: str | Path, run_dir: str | Path, results: str | Path) -> None:
    """Write the results folder of a study.

    Raises
    ------
    StudyError
        The results folder cannot be written, or holds something that no study has published; a notebook has not run.
    """
    run_dir, results = Path(run_dir), Path(results)
    published = any((results / name).is_file() for name in ("provenance.json", "metrics.json"))
    if results.exists() and any(results.iterdir()) and not published:
        raise StudyError(f"{results}: holds files that no study has published; name another results folder")
    building = results.with_name(f".{results.name}.new")
    try:
        shutil.rmtree(building, ignore_errors=True)
        for file in made_files(config, run_dir):
            (building / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run_dir / file, building / file)
        executed = executed_notebooks(config)
        for name in executed:
            file = Path("notebooks") / f"{name}.ipynb"
            write_text(building / file, clean_notebook(run_dir / file))
        recorded = metrics(run_dir)
        write_json(building / "metrics.json", {name: recorded[name] for name in executed})
        write_json(building / "provenance.json", {
            "study": config.study, "seed": config.seed, "config": Path(config_path).name,
            "settings": json.loads(config.model_dump_json()), "code": study_digests(config), "versions": versions(),
            "lock": file_sha256(ROOT / "requirements.txt")})
        _gallery(config, run_dir, building, executed)
        old = results.with_name(f".{results.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if results.exists():
            results.rename(old)
        building.rename(results)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StudyError(f"{error.filename or results}: cannot be written ({error.strerror or error})") from error


def _gallery(config, run_dir, folder, executed) -> None:
    def drawn(figure):
        return f"figures/{figure}.png" if (folder / "figures" / f"{figure}.png").exists() else None

    found = report.findings(config, run_dir)
    entries = [GalleryEntry(f"notebooks/{name}.ipynb", GALLERY[name][0],
                            next(filter(None, map(drawn, GALLERY[name][1:])), None), found.get(name, ""))
               for name in executed]
    more = {"report.html": "everything in one offline file", "metrics.json": "every recorded number",
            "provenance.json": "settings, code digests, versions"}
    viewers = sorted((folder / "viewers").glob("*"))
    scroll = "scroll through Grad-CAM over FLAIR in 3-D (nothing drawn below a fifth of its maximum)"
    more |= {f"viewers/{path.name}": scroll for path in viewers}
    write_gallery(folder, f"Results of study {config.study}", entries, more=more,
                  headline=drawn("headline_relevance") or drawn("headline"),
                  lead=f"{report.lead_sentence(config, run_dir)} {attribution(config)}",
                  simulated=config.cohort.source == "simulated")
