"""Where a trial ran: versions, commit, device. Gathered once per process, by asking; nothing here names the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from qresearch.registry import extensions

_PACKAGES = ("jax", "flax", "optax", "numpy", "qresearch")


def environment() -> dict[str, Any]:
    """The ``environment`` field of a record. Starts JAX and its device: call it where trials run.

    ``commit`` and ``dirty`` are null where qresearch does not run from a git checkout, or git is absent.
    """
    import jax

    devices = jax.devices()
    commit, dirty = _commit(Path(__file__).resolve().parent)
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            **extensions(),
        },
        "commit": commit,
        "dirty": dirty,
        "device": {"kind": devices[0].device_kind, "count": len(devices)},
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    """The commit that holds this file, and whether tracked files differ from it."""
    # An installed qresearch may lie inside some other project's checkout: its commit would say nothing about us.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR points at the hook's repository, which need not be ours.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, env=variables, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
