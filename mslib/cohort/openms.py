"""Real MS patients (Lesjak et al. 2016, 2017): download, conversion to BIDS, and what could not be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .openms_bids import Conversion, to_bids
from .openms_files import BASE, base_address, fetch, registry


def source_faults(missing: Mapping[str, str], left_out: Sequence[str]) -> list[str]:
    """One line per file that could not be had (`fetch`: why) or is not whole (``incomplete`` of `to_bids`: whose)."""
    named = [next((f"{line} ({reason})" for name, reason in missing.items() if name in line), line)
             for line in left_out]
    others = [f"{name}: could not be had: {reason}" for name, reason in missing.items()
              if not any(name in line for line in left_out)]
    return [*(f"{line}; left out" for line in named), *others]


__all__ = ["BASE", "Conversion", "base_address", "fetch", "registry", "source_faults", "to_bids"]
