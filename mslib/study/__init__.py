"""Configuration, runs, provenance and safe files: what every other wing stands on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "config": ["CONTROL", "StudyConfig"],
    "errors": ["StudyError", "WriteError"],
    "files": ["atomic_path", "check_results", "read_arrays", "read_json", "read_table", "write_arrays", "write_json",
              "write_table", "write_tables", "write_text", "write_weights"],
    "loading": ["load_config"],
    "progress": ["progress"],
    "run": ["Network", "Run", "explained_networks"]})
