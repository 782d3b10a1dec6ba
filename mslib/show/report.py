"""The report of a study: one HTML file that opens offline, in the order a quality-control report is read."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mslib.study import StudyError, write_text

SECTIONS = {
    "summary": "Summary",
    "cohort": "Cohort and split",
    "registration": "Co-registration, subject by subject",
    "training": "Fine-tuning",
    "layers": "Grad-CAM layer by layer",
    "attribution": "Attribution per sequence",
    "relevance": "Relevance per modality",
    "sleep": "Sleep staging",
    "methods": "Methods and versions",
    "faults": "Faults",
}
REQUIRED = ("summary", "cohort", "registration", "training", "layers", "methods")
SIMULATED = ("Simulated data: every subject in this report is made by a phantom. No number here describes "
             "patients, and none supports a clinical decision.")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is loaded or run
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class Panel:
    """One piece of a section.

    Parameters
    ----------
    title : str
    see : str
        What one sees.
    good : str
        What good looks like.
    image : str, Path or bytes, optional
        PNG, JPEG or WebP, embedded.
    alt : str
        The picture in words, for those who cannot see it; required with an image.
    caption : str
        With n, and the kind of interval.
    table : pandas.DataFrame, optional
    text : str
        Paragraphs, separated by empty lines.
    """

    title: str
    see: str = ""
    good: str = ""
    image: str | Path | bytes | None = None
    alt: str = ""
    caption: str = ""
    table: pd.DataFrame | None = None
    text: str = ""


@dataclass(frozen=True)
class Section:
    """The panels of one section below an introduction."""

    panels: Sequence[Panel] = field(default_factory=tuple)
    intro: str = ""


def _text(text: str, kind: str = "") -> str:
    """Paragraphs of plain text, escaped."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    parts = [part.strip() for part in re.split(r"\n\s*\n", str(text)) if part.strip()]
    return "\n".join(f"{opening}{html.escape(part)}</p>" for part in parts)


def _image(panel: Panel) -> str:
    if not panel.alt:
        raise StudyError(f"report: panel '{panel.title}': an image needs its text in words (alt)")
    name = "image" if isinstance(panel.image, bytes) else panel.image
    try:
        data = panel.image if isinstance(panel.image, bytes) else Path(panel.image).read_bytes()
    except OSError as error:
        raise StudyError(f"{name}: figure of panel '{panel.title}' cannot be read "
                         f"({error.strerror})") from error
    kind = next((mime for start, mime in SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        raise StudyError(f"{name}: figure of panel '{panel.title}' must be a PNG, JPEG or WebP")
    caption = f"<figcaption>{html.escape(panel.caption)}</figcaption>" if panel.caption else ""
    return (f'<figure><img src="data:{kind};base64,{base64.b64encode(data).decode()}" '
            f'alt="{html.escape(panel.alt)}">{caption}</figure>')


def compressed(path: str | Path, most: int, width: int = 1400) -> bytes:
    """A picture as WebP for embedding, as sharp as a number of bytes allows.

    Parameters
    ----------
    path : str or Path
    most : int
        Bytes that are aimed at; the coarsest step (a third of `width`) is taken even where it is larger.
    width : int
        Pixels; a wider picture is made smaller, a narrower one is not enlarged.

    Returns
    -------
    bytes

    Raises
    ------
    StudyError
        The picture cannot be read.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise StudyError(f"{path}: picture of the report cannot be read ({error.strerror or error})") from error
    for share, quality in ((1, 80), (0.8, 70), (0.65, 60), (0.5, 50), (0.33, 40)):
        size = min(1.0, width * share / picture.width)
        smaller = picture.resize([max(1, round(side * size)) for side in picture.size], Image.Resampling.LANCZOS)
        smaller.save(encoded := io.BytesIO(), "WEBP", quality=quality, method=4)
        if encoded.tell() <= most:
            break
    return encoded.getvalue()


def _cell(value) -> str:
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return html.escape(str(value))


def _table(table: pd.DataFrame, caption: str) -> str:
    kinds = [' class="number"' if pd.api.types.is_numeric_dtype(kind) else "" for kind in table.dtypes]
    head = "".join(f'<th scope="col"{kind}>{html.escape(str(name))}</th>'
                   for name, kind in zip(table.columns, kinds, strict=True))
    rows = ("".join(f"<td{kind}>{_cell(value)}</td>" for value, kind in zip(row, kinds, strict=True))
            for row in table.itertuples(index=False, name=None))
    caption = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</tbody></table></div>")


def _panel(panel: Panel, anchor: str) -> str:
    parts = [f'<section class="panel" id="{anchor}"><h3>{html.escape(panel.title)}</h3>']
    told = [("What you see", panel.see), ("What good looks like", panel.good)]
    if any(text for _, text in told):
        parts.append('<dl class="read">' + "".join(
            f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in told if text) + "</dl>")
    if panel.text:
        parts.append(_text(panel.text))
    if panel.image is not None:
        parts.append(_image(panel))
    if panel.table is not None:
        parts.append(_table(panel.table, "" if panel.image is not None else panel.caption))
    return "\n".join(parts) + "</section>"


def _versions(versions: Mapping[str, object]) -> str:
    values = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
              for value in versions.values()]
    table = pd.DataFrame({"what": list(versions), "version": values})
    return _table(table, "Versions and settings of this run.")


def _faults(faults: Sequence[str]) -> str:
    if not faults:
        return '<p class="none">No fault was recorded in this run.</p>'
    lines = "".join(f"<li>{html.escape(str(fault))}</li>" for fault in faults)
    return f'<ul class="faults">{lines}</ul>'


def _body(sections: Mapping[str, Section], versions, faults) -> tuple[str, str]:
    """Give the sections and the table of contents as HTML."""
    parts, contents = [], []
    for key, title in SECTIONS.items():
        if key not in sections and key not in (*REQUIRED, "faults"):
            continue
        section = sections.get(key, Section())
        panels = [(panel, f"{key}-{i + 1}") for i, panel in enumerate(section.panels)]
        inner = [_text(section.intro)] + [_panel(panel, anchor) for panel, anchor in panels]
        if key == "methods" and versions:
            inner.append(_versions(versions))
        if key == "faults":
            inner.append(_faults(faults))
        elif key not in sections:
            inner.append('<p class="none">Not part of this run.</p>')
        parts.append(f'<section id="{key}"><h2>{title}</h2>\n' + "\n".join(inner) + "\n</section>")
        links = "".join(f'<li><a href="#{anchor}">{html.escape(panel.title)}</a></li>'
                        for panel, anchor in panels)
        contents.append(f'<li><a href="#{key}">{title}</a>{f"<ol>{links}</ol>" if links else ""}</li>')
    return "\n".join(parts), "<ol>" + "\n".join(contents) + "</ol>"


def build_report(path: str | Path, title: str, sections: Mapping[str, Section], *, simulated: bool,
                 lead: str = "", versions: Mapping[str, object] | None = None, faults: Sequence[str] = (),
                 language: str = "en") -> Path:
    """Write the report of a study as one self-contained HTML file.

    Parameters
    ----------
    path : str or Path
        The HTML file, written atomically.
    title : str
    sections : mapping of key to Section
        Keys of ``SECTIONS``; the order of the report is theirs, whatever the mapping's. A required section
        that is absent is shown as not part of the run.
    simulated : bool
        Print the banner that says so.
    lead : str
        The result in one sentence, with number and interval.
    versions : mapping of str to str, optional
        Software, seeds and settings, listed below the methods.
    faults : sequence of str
        What went wrong and was skipped, one line each.
    language : str
        BCP 47 tag of the texts.

    Returns
    -------
    Path

    Raises
    ------
    StudyError
        An unknown section, an image that cannot be read or has no text in words.
    """
    unknown = [key for key in sections if key not in SECTIONS]
    if unknown:
        raise StudyError(f"{path}: report sections must be among {list(SECTIONS)} (got {unknown})")
    body, contents = _body(sections, versions, faults)
    style = (resources.files("mslib.show") / "report.css").read_text(encoding="utf-8")
    banner = f'<p class="banner" role="note">{SIMULATED}</p>' if simulated else ""
    name = html.escape(title)
    return write_text(path, f"""<!DOCTYPE html>
<html lang="{html.escape(language)}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<div class="page">
<nav aria-label="Contents">{contents}</nav>
<main id="report">
{banner}<h1>{name}</h1>
{_text(lead, "lead")}
{body}
</main>
</div>
</body>
</html>
""")
