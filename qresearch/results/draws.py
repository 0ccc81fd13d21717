"""Draws of posteriors beside records, in the groups that ArviZ knows: ``arviz_base.from_dict(load_draws(path))``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from qresearch.errors import DataError
from qresearch.results.atomic import read_bytes, write_bytes

Groups = dict[str, dict[str, np.ndarray]]


def save_draws(path: Path, groups: Groups) -> None:
    """Writes the groups as an ``npz`` with arrays named ``group/name``, whole or not at all."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"{group}/{name}": a for group, own in groups.items() for name, a in own.items()}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def load_draws(path: Path) -> Groups:
    """The groups that ``save_draws`` wrote. DataError naming the file if it is missing or damaged."""
    found: Groups = {}
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            for key in file.files:
                group, name = key.split("/", 1)
                found.setdefault(group, {})[name] = file[key]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no draws of a posterior, or damaged ({error}); delete it and search again") from None
    return found
