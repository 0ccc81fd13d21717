"""Files that are either the old content or the new, never half of it.

A file is written beside its final place, flushed to the disk and renamed; the folder is flushed too, because a rename
that only lives in memory is lost with the power. Every failure is one line that names the path and the system's reason.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qresearch.errors import DataError

# Some network and FUSE file systems cannot flush a folder; their rename is as durable as they make it.
_FOLDER_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)


def render_json(value: Any) -> str:
    """The one text form of a JSON value: sorted keys, ASCII, no NaN. Equal values have equal text."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at ``path`` by ``data``, atomically and durably. ``DataError`` if that is not possible."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        # After a successful rename there is nothing left to remove; after any failure there must not be.
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replaces the file at ``path`` by ``text`` in UTF-8; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replaces the file at ``path`` by ``value`` in the form of ``render_json``; see ``write_bytes``."""
    write_text(path, render_json(value))


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where they are missing. ``DataError`` if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot make the folder {path}: {_reason(error)}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file. ``DataError`` that names it if it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error


def render_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as lines of JSON. NaN and infinity become null."""
    return "".join(json.dumps(_without_nan(row), sort_keys=True, allow_nan=False) + "\n" for row in rows)


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file of ``render_json_lines``, and the number of torn lines that were left out."""
    rows, torn = [], 0
    for line in read_bytes(path).split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def remove_unfinished(folder: Path) -> None:
    """Removes what killed writers left below a folder: files, and checkpoints of orbax, that never got their name. For
    whoever knows that nobody is writing there.
    """
    for path in [*folder.rglob(".*.tmp"), *folder.rglob("*.orbax-checkpoint-tmp*")]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_and_sync(path: Path, data: bytes) -> None:
    """Creates the file (which must not exist) with the permissions of the user's umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FOLDER_CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
