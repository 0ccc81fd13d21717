"""JSON files that carry the sha256 of their content, so that an altered or truncated one is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qresearch.errors import DataError
from qresearch.results.atomic import read_bytes, render_json, write_text
from qresearch.results.record import content_hash


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain values, atomically, with a key ``sha256`` over all others."""
    write_text(path, render_json({**content, "sha256": content_hash(dict(content))}))


def read_sealed(path: Path) -> dict[str, Any]:
    """What ``write_sealed`` wrote. ``DataError`` that names the file if it is anything else, byte for byte."""
    data = read_bytes(path)
    try:
        content = json.loads(data)
        stored = content.pop("sha256")
        intact = stored == content_hash(content) and render_json({**content, "sha256": stored}).encode() == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise DataError(f"{path}: is damaged (sha256)")
    return content
