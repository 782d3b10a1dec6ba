"""Download of real MS patients (Lesjak et al. 2016, 2017) with checksums, from their public home or a folder."""

from __future__ import annotations

import errno
import os
import shutil
from importlib.resources import files
from pathlib import Path

import pooch
import requests

from mslib.study import StudyError, progress
from mslib.study.provenance import file_sha256

REPOSITORY = "muschellij2/open_ms_data"
COMMIT = "65704901f60650824565aa5a4818611aa89716f4"
BASE = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/"
VARIABLE = "MSLIB_DATA"
LAYOUT = ("cross_sectional", "longitudinal")
#: After so many files in a row without any answer the server is taken to be out of reach.
PATIENCE = 2


def registry() -> dict[str, str]:
    """SHA-256 of every file that the study uses, by its path in the database."""
    text = files("mslib.cohort").joinpath("openms_registry.txt").read_text(encoding="utf-8")
    return dict(line.split() for line in text.splitlines() if line and not line.startswith("#"))


def base_address(base: str | Path | None = None) -> str:
    """Where the files come from: the argument, else ``MSLIB_DATA``, else the database's public home.

    StudyError: a folder that is absent or holds neither the database nor ``open_ms_data/`` with it.
    """
    given = str(base) if base is not None else os.environ.get(VARIABLE) or BASE
    if given.startswith(("http://", "https://")):
        return given.rstrip("/") + "/"
    for folder in (Path(given), Path(given) / "open_ms_data"):
        if any((folder / part).is_dir() for part in LAYOUT):
            return f"{folder.absolute()}/"
    raise StudyError(f"{given}: holds no open_ms_data; allowed: an http(s) address, or a folder with "
                     f"{' and '.join(LAYOUT)} in it or in its open_ms_data/ ({VARIABLE})")


def _copy(url: str, output_file: str, _pooch) -> None:
    """Stand in for a downloader where the base is a folder."""
    shutil.copyfile(url, output_file)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    if isinstance(error, requests.exceptions.RequestException):
        return f"the connection failed ({type(error).__name__})"
    if isinstance(error, ValueError):
        return "its checksum differs from the registered one, so it is not used"
    return f"{getattr(error, 'strerror', None) or error}"


def fetch(dest: str | Path, base: str | Path | None = None, *, names: dict[str, str] | None = None) -> dict[str, str]:
    """Bring the registered files of the database into a folder; what is there and whole is left alone.

    Every file is written under another name, checked and then renamed, so that an interrupted download leaves
    no half file and the next call goes on where it stopped. Files without a registered checksum are not fetched.

    `dest`: folder to fill, with the database's own layout; `base`: see `base_address`; `names`: paths and their SHA-256
    (default: `registry`). Gives path and reason of each file that could not be had; each is also printed as one line.
    StudyError: no usable base, or `dest` cannot be written.
    """
    names, address, dest = registry() if names is None else names, base_address(base), Path(dest)
    store = pooch.create(path=dest, base_url=address, registry=names)
    downloader = pooch.HTTPDownloader(timeout=30) if address.startswith("http") else _copy
    pooch.get_logger().setLevel("WARNING")
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{dest}: cannot be written ({error.strerror or error})") from error
    for path in dest.rglob("tmp????????"):  # of `tempfile`: left by a killed download
        path.unlink(missing_ok=True)
    missing: dict[str, str] = {}
    silent = 0
    for name in progress(names, desc="fetch open_ms_data", unit="file"):
        path = dest / name
        if silent >= PATIENCE and not (path.is_file() and file_sha256(path) == names[name]):
            missing[name] = "the connection failed (not tried again)"
            continue
        try:
            store.fetch(name, downloader=downloader)
            silent = 0
        except (OSError, ValueError) as error:
            code, culprit = getattr(error, "errno", None), str(getattr(error, "filename", None) or "")
            # What others fail to give is listed; a full disk or a locked folder of ours ends the download.
            if code and (code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT) or culprit.startswith(f"{store.abspath}/")):
                raise StudyError(f"{path}: cannot be written ({os.strerror(code)})") from error
            missing[name] = _reason(error)
            silent += isinstance(error, requests.exceptions.RequestException) and error.response is None
    for name, reason in missing.items():
        print(f"{name}: could not be had: {reason}")
    return missing
