"""A study's YAML file into checked settings; one line per fault."""

import contextlib
import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from .config import PATTERNS, Section, StudyConfig
from .errors import StudyError


def _fault_line(path: Path, error: dict) -> str:
    """File, key, what is allowed, what was given."""
    kind, ctx, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "value_error":  # of our own models, which name the key
        return f"{path}: {ctx['error']}"
    allowed = error["msg"][0].lower() + error["msg"][1:].replace("Input ", "").replace("input ", "")
    if kind == "extra_forbidden":
        allowed = "is not a known key"
    elif kind == "string_pattern_mismatch":
        allowed = f"must be {PATTERNS.get(ctx['pattern'], ctx['pattern'])}"
    elif kind == "float_type" and isinstance(given, str):
        with contextlib.suppress(ValueError):
            allowed = f"must be a number: write {yaml.safe_dump(float(given)).split()[0]}, YAML takes {given} for text"
    elif kind == "literal_error":
        allowed = f"must be {ctx['expected']}"
    key = ".".join(str(part) for part in error["loc"]) or "(file)"
    return f"{path}: {key}: {allowed} (got {'nothing' if kind == 'missing' else repr(given)})"


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


# A label such as 012, which YAML 1.1 reads as an octal number, stays text.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: (
    node.value if re.fullmatch("0[0-9]+", node.value) else loader.construct_yaml_int(node)))


def load_config(path: str | Path, model: type[Section] = StudyConfig) -> Section:
    """Read and check a study's YAML file, or another that holds the keys of `model`, whose instance is returned.

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
        raise StudyError("\n".join(_fault_line(path, fault) for fault in error.errors())) from error
