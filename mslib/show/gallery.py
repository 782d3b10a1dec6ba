"""The gallery of a study: the README of its results folder, which a code host shows as a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mslib.study import StudyError, write_text

SIMULATED = ("**Simulated data.** Every subject is made by this project's own phantom; "
             "no number here describes patients.")


@dataclass(frozen=True)
class GalleryEntry:
    """One executed notebook: its file and figure (inside the results folder), question, finding."""

    notebook: str
    question: str
    figure: str | None = None
    finding: str = ""


def escape_markdown(text: str) -> str:
    """Make text safe inside a Markdown table: no markup, no HTML, no line break."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    return text


def _checked(folder: Path, name: str) -> str:
    """Return the file's name as a link, or say that it is missing."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise StudyError(f"{folder}: gallery files must lie inside it (got '{name}')")
    if not (folder / path).is_file():
        raise StudyError(f"{folder / path}: the gallery names this file but it is not there")
    return path.as_posix().replace(" ", "%20")


def write_gallery(folder: str | Path, title: str, entries: Sequence[GalleryEntry], *, lead: str = "",
                  simulated: bool = False, headline: str | None = None,
                  more: Mapping[str, str] | None = None) -> Path:
    """Write ``README.md`` of a results folder: headline, then question, finding and figure per notebook.

    Parameters
    ----------
    folder : str or Path
        ``results/<study>``; all files named must be there.
    title : str
    entries : sequence of GalleryEntry
    lead : str
        Markdown below the title: the result in one sentence, with number and interval.
    simulated : bool
        Say that the data are simulated.
    headline : str, optional
        Wide figure shown first.
    more : mapping of file to description, optional
        Further files (``report.html``, ``metrics.json``).

    Returns
    -------
    Path

    Raises
    ------
    StudyError
        A file that is not there or lies outside the folder.
    """
    folder = Path(folder)
    lines = [f"# {escape_markdown(title)}", ""]
    if simulated:
        lines += [f"> {SIMULATED}", ""]
    if lead:
        lines += [lead.strip(), ""]
    if headline:
        lines += [f"![{escape_markdown(title)}]({_checked(folder, headline)})", ""]
    lines += ["| notebook | question | finding |", "|---|---|---|"]
    for entry in entries:
        name = escape_markdown(os.path.splitext(os.path.basename(entry.notebook))[0])
        lines.append(f"| [{name}]({_checked(folder, entry.notebook)}) | {escape_markdown(entry.question)} | "
                     f"{escape_markdown(entry.finding)} |")
    for file, description in (more or {}).items():
        link = f"[{escape_markdown(file)}]({_checked(folder, file)})"
        lines.append(f"| {link} | {escape_markdown(description)} | |")
    for entry in entries:
        if entry.figure:
            question = escape_markdown(entry.question)
            picture = f"![{question}]({_checked(folder, entry.figure)})"
            lines += ["", f"## {question}", "", f"[{picture}]({_checked(folder, entry.notebook)})"]
    return write_text(folder / "README.md", "\n".join(lines) + "\n")
