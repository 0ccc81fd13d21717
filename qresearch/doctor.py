"""``qresearch doctor``: what qresearch needs of a machine, tried and not assumed, one line for each thing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from qresearch.data import DATASETS
from qresearch.data.dataset import FOLDER_VARIABLE
from qresearch.errors import DataError, QResearchError
from qresearch.results.atomic import read_bytes, write_bytes
from qresearch.results.ledger import open_ledger
from qresearch.results.lock import holder_of, locked

_STRICT_TABLES = (3, 37)  # the SQLite version that has them; the ledger is one
_LITTLE_ROOM = 1e9  # bytes

# In a process of its own: a driver that hangs or crashes takes no one with it. A product is compiled and run.
_DEVICES = """
import json, jax, jax.numpy as jnp
assert float((jnp.ones((8, 8)) @ jnp.ones((8, 8)))[0, 0]) == 8
print(json.dumps([[device.platform, device.device_kind] for device in jax.devices()]))
"""
_NVIDIA = Path("/dev/nvidiactl")


class Check(NamedTuple):
    """level: "FAIL" where sweeps cannot run, "warn" where they can and something is worth knowing."""

    level: Literal["ok", "warn", "FAIL"]
    what: str
    found: str
    to_do: str = ""

    @property
    def line(self) -> str:
        """``ok    what: found (what to do)``."""
        return f"{self.level:<4}  {self.what}: {self.found}" + (f" ({self.to_do})" if self.to_do else "")


def examine(output: Path, timeout: float = 60.0) -> Iterator[Check]:
    """Every check, as soon as it is done. output: where runs would be; timeout: seconds for JAX to show its devices.

    What it tries in ``output`` it removes again.
    """
    yield Check("ok", "platform", f"{platform.platform()}, Python {platform.python_version()}")
    yield from _packages()
    yield _devices(timeout)
    yield Check("ok", "CPU cores", str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()))
    yield Check("ok", "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB")
    yield _sqlite()
    yield from _output(output)
    yield from _data()


# ---- Packages


def _packages() -> Iterator[Check]:
    """Versions against the ranges of our own package metadata."""
    try:
        about = importlib.metadata.metadata("qresearch")
    except importlib.metadata.PackageNotFoundError:
        yield Check("warn", "qresearch", "is not installed, so that no versions are checked", "pip install -e .")
        return
    yield Check("ok", "qresearch", about["Version"])
    every = [Requirement(text) for text in importlib.metadata.requires("qresearch") or ()]
    needed = [requirement for requirement in every if _applies(requirement, "")]
    for requirement in needed:
        found, fits = _version(requirement)
        wanted = "" if fits else f"pip install '{requirement.name}{requirement.specifier}'"
        yield Check("ok" if fits else "FAIL", requirement.name, found, wanted)
    for extra in about.get_all("Provides-Extra") or ():
        own = [one for one in every if one not in needed and _applies(one, extra) and one.name != "qresearch"]
        if own:
            yield _extra(extra, [inner for one in own for inner in _with_extras(one)])


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _with_extras(requirement: Requirement) -> Iterator[Requirement]:
    """The requirement, and those of the extras that it names: ``jax[cuda]`` is more than jax."""
    yield requirement
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        inner = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or ()]
        for extra in requirement.extras:
            for one in inner:
                if _applies(one, extra) and not _applies(one, ""):
                    yield from _with_extras(one)


def _version(requirement: Requirement) -> tuple[str, bool]:
    """What is installed, and whether it is in the range."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed", False
    fits = requirement.specifier.contains(version, prereleases=True)
    return version if fits else f"{version} is installed, and {requirement.specifier} is needed", fits


def _extra(extra: str, requirements: Sequence[Requirement]) -> Check:
    """An extra is optional: what is missing is no fault, and what is too old is worth knowing."""
    found = {requirement.name: _version(requirement) for requirement in requirements}
    install = f"pip install 'qresearch[{extra}]'"
    if all(fits for _, fits in found.values()):
        return Check("ok", f"extra {extra}", ", ".join(f"{name} {version}" for name, (version, _) in found.items()))
    bad = {name: version for name, (version, fits) in found.items() if not fits}
    level: Literal["ok", "warn"] = "ok" if all(version == "is not installed" for version in bad.values()) else "warn"
    return Check(level, f"extra {extra}", ", ".join(f"{name} {version}" for name, version in bad.items()), install)


# ---- Devices


def _devices(timeout: float) -> Check:
    what = "JAX devices"
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-P", "-c", _DEVICES], stdout=answer, stderr=errors)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            # Inside a driver a process may not even die of SIGKILL; we do not wait for it forever.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            return Check("FAIL", what, f"no answer in {timeout:g} s", "try JAX_PLATFORMS=cpu; look at the driver")
        answer.seek(0)
        errors.seek(0)
        said = (errors.read() if status else answer.read()).decode(errors="replace").splitlines() or [""]
    if status:
        return Check("FAIL", what, f"{said[-1][:200]} (exit status {status})", "try JAX_PLATFORMS=cpu")
    found = json.loads(said[-1])
    kinds = {kind: [own for _, own in found].count(kind) for _, kind in found}
    shown = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if _NVIDIA.exists() and all(name == "cpu" for name, _ in found) and os.environ.get("JAX_PLATFORMS") != "cpu":
        return Check("warn", what, f"{shown}, and not the NVIDIA GPU", "pip install 'qresearch[cuda]'")
    return Check("ok", what, shown)


# ---- Folders


def _sqlite() -> Check:
    fits = sqlite3.sqlite_version_info >= _STRICT_TABLES
    wanted = "" if fits else "the ledger of a run needs {}.{} or newer".format(*_STRICT_TABLES)
    return Check("ok" if fits else "FAIL", "SQLite", sqlite3.sqlite_version, wanted)


def _output(output: Path) -> Iterator[Check]:
    """Writes, flushes, renames, locks and keeps a ledger in the folder where runs would be."""
    what = f"output folder {output}"
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=output) as tried:
            yield from _tried(what, Path(tried))
        free = shutil.disk_usage(output).free
        little = "" if free >= _LITTLE_ROOM else "checkpoints and records need room"
        yield Check("warn" if little else "ok", "free disk there", f"{free / 1e9:.1f} GB", little)
    except OSError as error:
        yield Check("FAIL", what, f"cannot be written: {error.strerror}", "name another with --output")
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # never made, or no longer empty
                folder.rmdir()


def _tried(what: str, folder: Path) -> Iterator[Check]:
    elsewhere = "name a folder on another file system with --output"
    try:
        write_bytes(folder / "file", b"old")
        write_bytes(folder / "file", b"new")
        if read_bytes(folder / "file") != b"new":
            raise DataError("a file that was replaced holds its old content")
        with locked(folder):
            if holder_of(folder) is None:
                raise DataError("a lock that is held is not seen; two sweeps could write one run")
        with open_ledger(folder):
            pass
    except DataError as error:
        yield Check("FAIL", what, str(error), elsewhere)
        return
    yield Check("ok", what, "is written, flushed, renamed and locked")
    with contextlib.closing(sqlite3.connect(folder / "wal.sqlite")) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    slow = "" if mode == "wal" else f"'qresearch status' may have to wait; {elsewhere}"
    yield Check("warn" if slow else "ok", "SQLite there", f"journal mode {mode}", slow)


def _data() -> Iterator[Check]:
    """Loads every data set that can be found: a truncated file is as bad as a missing one."""
    given = os.environ.get(FOLDER_VARIABLE)
    folder = None if given is None else Path(given).expanduser()
    if folder is None:
        yield Check("ok", "data folder", "none; data sets that a library ships need none", f"set {FOLDER_VARIABLE}")
    else:
        try:
            yield Check("ok", f"data folder {folder}", f"{len(list(folder.iterdir()))} entries")
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            yield Check("FAIL", f"data folder {folder}", reason, f"set {FOLDER_VARIABLE} to a folder, or to nothing")
            return
    for name, load in DATASETS.items():
        try:
            data = load(None)
        except QResearchError as error:
            problem, _, where = str(error).removeprefix(f"{name}: ").partition("; ")
            if folder is not None:
                yield Check("warn", f"data {name}", problem, where)
        else:
            yield Check("ok", f"data {name}", f"{len(data.train)} training examples")
