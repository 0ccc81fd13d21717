"""One process at a time writes a run: a lock on its folder, which names who holds it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qresearch.errors import DataError

NAME = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder. ``DataError`` that names host, process and time if another process has it.

    The lock is the system's (``flock``), so that a process that is killed leaves none behind, whatever the file says;
    what the file says is for people. It is not held by processes that are started meanwhile.
    """
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            raise DataError(f"{folder}: {_holder(path)} is writing this run; wait for it, or stop it") from None
        except OSError as error:
            raise DataError(f"cannot lock {path}: {error.strerror}; use a folder on a file system that can") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_self()).encode())
        yield
    finally:
        os.close(descriptor)  # which releases it


def _lock(descriptor: int) -> None:
    """Takes the lock; BlockingIOError if another has it for longer than ``holder_of`` needs to see that nobody has."""
    for _ in range(5):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder_of(folder: Path) -> str | None:
    """Who writes the run now, in words; None where nobody does."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(path)
    except OSError:
        return None
    return None


def _self() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_bytes())
        return f"process {told['pid']} on {told['host']} (since {told['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
