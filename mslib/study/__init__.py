"""Configuration, provenance and safe writing: what every other wing stands on."""

from .config import StudyConfig
from .errors import StudyError, WriteError
from .files import atomic_path, stamped_folder, write_json, write_table, write_text
from .loading import load_config
from .progress import progress

__all__ = ["StudyConfig", "StudyError", "WriteError", "atomic_path", "load_config", "progress", "stamped_folder",
           "write_json", "write_table", "write_text"]
