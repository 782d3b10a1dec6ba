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
LAYOUT = ("cross_sectional", "longitudinal")


def registry() -> dict[str, str]:
    """SHA-256 of every file that the study uses, by its path in the database."""
    text = files("mslib.cohort").joinpath("openms_registry.txt").read_text(encoding="utf-8")
    return dict(line.split() for line in text.splitlines() if line and not line.startswith("#"))


def base_address() -> str:
    """Where the files come from: ``MSLIB_DATA``, else the database's public home.

    StudyError: a folder that is absent or holds neither the database nor ``open_ms_data/`` with it.
    """
    given = os.environ.get("MSLIB_DATA") or BASE
    if given.startswith(("http://", "https://")):
        return given.rstrip("/") + "/"
    for folder in (Path(given), Path(given) / "open_ms_data"):
        if any((folder / part).is_dir() for part in LAYOUT):
            return f"{folder.absolute()}/"
    raise StudyError(f"{given}: holds no open_ms_data; allowed: an http(s) address, or a folder with "
                     f"{' and '.join(LAYOUT)} in it or in its open_ms_data/ (MSLIB_DATA)")


def _copy(url: str, output_file: str, _pooch) -> None:
    """Stand in for a downloader where the base is a folder."""
    shutil.copyfile(url, output_file)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, requests.exceptions.RequestException):
        answer = error.response
        return f"the connection failed ({type(error).__name__})" if answer is None else (
            f"the server answers {answer.status_code} {answer.reason}")
    if isinstance(error, ValueError):
        return "its checksum differs from the registered one, so it is not used"
    return f"{error.strerror or error}"


def fetch(dest: str | Path) -> dict[str, str]:
    """Bring the registered files of the database into a folder, in its layout; what is there and whole is left alone.

    Every file is written under another name, checked and then renamed, so that an interrupted download leaves no half
    file and the next call goes on where it stopped. Gives path and reason of each file that could not be had; each is
    also printed as one line. StudyError: no usable `base_address`, or `dest` cannot be written.
    """
    names, address, dest = registry(), base_address(), Path(dest)
    store = pooch.create(path=dest, base_url=address, registry=names)
    downloader = pooch.HTTPDownloader(timeout=30) if address.startswith("http") else _copy
    pooch.get_logger().setLevel("WARNING")
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{dest}: cannot be written ({error.strerror or error})") from error
    for path in dest.rglob("tmp????????"):  # of `tempfile`: left by a killed download
        path.unlink(missing_ok=True)
    missing, silent = {}, 0  # files in a row without any answer
    for name in progress(names, desc="fetch open_ms_data", unit="file"):
        path = dest / name
        if silent >= 2 and not (path.is_file() and file_sha256(path) == names[name]):
            missing[name] = "the connection failed (not tried again)"
            continue
        try:
            store.fetch(name, downloader=downloader)
            silent = 0
        except (OSError, ValueError) as error:
            code, culprit = getattr(error, "errno", None), f"{getattr(error, 'filename', '')}"
            # What others fail to give is listed; a full disk or a locked folder of ours ends the download.
            if code and (code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT) or culprit.startswith(f"{store.abspath}/")):
                raise StudyError(f"{path}: cannot be written ({os.strerror(code)})") from error
            missing[name] = _reason(error)
            silent += isinstance(error, requests.exceptions.RequestException) and error.response is None
    for name, reason in missing.items():
        print(f"{name}: could not be had: {reason}")
    return missing
