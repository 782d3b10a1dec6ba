"""Configuration, runs, provenance and safe files: what every other wing stands on."""

from .config import CONTROL, StudyConfig
from .errors import StudyError, WriteError
from .files import (
    atomic_path,
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_json,
    write_table,
    write_tables,
    write_text,
    write_weights,
)
from .loading import load_config
from .progress import progress
from .run import Network, Run, explained_networks

__all__ = ["CONTROL", "Network", "Run", "StudyConfig", "StudyError", "WriteError", "atomic_path", "explained_networks",
           "load_config", "progress", "read_arrays", "read_json", "read_table", "write_arrays",
           "write_json", "write_table", "write_tables", "write_text", "write_weights"]
