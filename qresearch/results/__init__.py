"""The record store: one folder per sweep, one checked record per trial. Knows nothing of models or JAX arrays."""

from __future__ import annotations

from qresearch.results.environment import environment
from qresearch.results.listing import RunRow, find_run, list_runs
from qresearch.results.record import Examples, Record, content_hash, read_record
from qresearch.results.run_folder import RunFolder, Stored, create_run, open_run, safe_name

__all__ = [
    "Examples",
    "Record",
    "RunFolder",
    "RunRow",
    "Stored",
    "content_hash",
    "create_run",
    "environment",
    "find_run",
    "list_runs",
    "open_run",
    "read_record",
    "safe_name",
]
