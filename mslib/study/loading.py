"""A study's YAML file into checked settings; one line per fault."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from .config import PATTERNS, Section, StudyConfig
from .errors import StudyError


def _allowed(error: dict) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not a known key"
    if kind == "string_pattern_mismatch":
        return f"must be {PATTERNS.get(ctx['pattern'], ctx['pattern'])}"
    if kind == "float_type" and isinstance(error["input"], str) and re.fullmatch(r"-?\d+e[+-]?\d+", error["input"]):
        mantissa, exponent = error["input"].split("e")
        return f"must be a number: write {mantissa}.0e{exponent}, YAML takes {error['input']} for text"
    if kind == "literal_error":
        return f"must be {ctx['expected']}"
    if kind == "value_error":
        return str(ctx["error"])
    return error["msg"][0].lower() + error["msg"][1:].replace("Input ", "").replace("input ", "")


def fault_lines(path: str | Path, error: ValidationError) -> list[str]:
    """One line per fault: file, key, what is allowed, what was given."""
    lines = []
    for fault in error.errors():
        if fault["type"] == "value_error":
            lines.append(f"{path}: {_allowed(fault)}")
            continue
        key = ".".join(str(part) for part in fault["loc"]) or "(file)"
        given = "nothing" if fault["type"] == "missing" else repr(fault["input"])
        lines.append(f"{path}: {key}: {_allowed(fault)} (got {given})")
    return lines


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is a fault, not a silent replacement."""

    def construct_mapping(self, node, deep=False):
        """Keys and values of a mapping, each key once."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key, deep) for key, _ in node.value]
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return mapping


def load_config(path: str | Path, model: type[Section] = StudyConfig) -> Section:
    """Read and check a study's YAML file, or another that holds the keys of `model`.

    Parameters
    ----------
    path : str or Path
        The file, for instance ``config/simulated.yaml``.

    Returns
    -------
    StudyConfig, or `model`

    Raises
    ------
    StudyError
        File absent, not YAML, or one line per faulty key (file, key, allowed, given).
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: must hold keys and values (got {type(raw).__name__})")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise StudyError("\n".join(fault_lines(path, error))) from error
