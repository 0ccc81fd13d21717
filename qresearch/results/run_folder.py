"""The folder of one sweep: its config, one sub-folder per trial, and the report.

``<output>/<name>-<hash4>/``: ``sweep.yaml`` ``resolved.json`` ``env.json`` and ``trials/<key8>-<label>/`` with
``config.json`` ``metrics.jsonl`` ``examples.npz`` ``result.json``; the report adds its files beside ``sweep.yaml``.
``result.json`` is written last: a trial is finished when it is there and valid.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qresearch.errors import DataError
from qresearch.results.atomic import (
    make_folder,
    read_bytes,
    read_json_lines,
    render_json,
    render_json_lines,
    write_bytes,
    write_json,
    write_text,
)
from qresearch.results.record import (
    Examples,
    Record,
    content_hash,
    decode_examples,
    encode_examples,
    encode_record,
    read_record,
)

# One part of a path on any system, with room for "<key8>-" before it: no separator, no leading dot, no drive, no NUL.
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]*")
_LONGEST_NAME = 100


class Stored(NamedTuple):
    """The records of a run, and the files that are not valid records, each with the reason."""

    records: tuple[Record, ...]
    invalid: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class RunFolder:
    """A run on disk; made by ``create_run`` or ``open_run``. ``digest``: the sha256 of the resolved sweep."""

    path: Path
    name: str
    digest: str
    created: str
    sweep: Mapping[str, Any]

    def records(self) -> Stored:
        """Every stored record, in the order of the trial folders' names; nothing damaged is fatal or dropped."""
        records, invalid = [], []
        folders = _folders(self.path / "trials")
        copies = Counter(folder.name.partition("-")[0] for folder in folders)
        for folder in folders:
            try:
                digits = folder.name.partition("-")[0]
                if copies[digits] > 1:
                    self._find_folder(f"{digits}-")  # which refuses them by their names
                # A folder without a result is a trial that has not finished, which is nothing wrong.
                if os.path.lexists(folder / "result.json"):
                    records.append(self._read(folder))
            except DataError as error:
                invalid.append((folder / "result.json", str(error)))
        return Stored(tuple(records), tuple(invalid))

    def has(self, key: str) -> bool:
        """Whether a valid record of this trial with status ``done`` is stored, together with its examples."""
        record = self.find_record(key)
        return record is not None and record.status == "done"

    def done(self) -> frozenset[str]:
        """The keys of all trials that have a valid record with status ``done``."""
        return frozenset(record.key for record in self.records().records if record.status == "done")

    def unfinished(self, done: Collection[str]) -> dict[str, list[Any]]:
        """{label: configs} of the trials that were begun or stopped, without those whose keys are ``done``."""
        found: dict[str, list[Any]] = {}
        for folder in _folders(self.path / "trials"):
            content = _stored_config(folder)
            if content is not None and content["key"] not in done:
                found.setdefault(content["label"], []).append(content["config"])
        return found

    def find_record(self, key: str) -> Record | None:
        """The record of a trial; None if there is none, or none that is valid with its examples."""
        folder = self._find(key)
        if folder is None or not (folder / "result.json").exists():
            return None
        try:
            return self._read(folder)
        except DataError:
            return None

    def record(self, key: str) -> Record:
        """The stored record of a trial. ``DataError`` if there is none, or if it is damaged."""
        return self._read(self._started(key))

    def start(self, key: str, label: str, config: Mapping[str, Any]) -> Path:
        """Makes the trial's folder, or finds the one it has from an earlier attempt, and writes ``config.json``."""
        folder = self._find(key)
        if folder is None:
            taken = self._find_folder(f"{key[:8]}-") is not None
            folder = inside(self.path / "trials", f"{key[: 16 if taken else 8]}-{safe_name(label)}")
        if _stored_key(folder) is None:
            make_folder(folder)
            write_json(folder / "config.json", {"key": key, "label": label, "config": config})
        return folder

    def save(self, record: Record, examples: Examples | None = None) -> Path:
        """Stores a record with its per-example scores and losses (``[example]`` each); returns ``result.json``."""
        folder = self.start(record.key, record.label, record.config)
        digest = None
        if examples is not None:
            data = encode_examples(examples)
            digest = hashlib.sha256(data).hexdigest()
            write_bytes(folder / "examples.npz", data)
        write_bytes(folder / "result.json", encode_record(replace(record, examples_sha256=digest)))
        return folder / "result.json"

    def examples(self, record: Record) -> Examples | None:
        """The per-example scores and losses that were saved with a record; ``None`` if there were none."""
        folder = self._find(record.key)
        return None if folder is None else _examples(folder, record)

    def save_metrics(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the ``metrics.jsonl`` of a trial that was started, in place of what an earlier attempt left there."""
        path = self._started(key) / "metrics.jsonl"
        if rows or path.exists():
            write_text(path, render_json_lines(rows))

    def metrics(self, key: str) -> tuple[list[dict[str, Any]], int]:
        """The rows of a trial's ``metrics.jsonl``, and the number of torn lines that were left out."""
        path = self._started(key) / "metrics.jsonl"
        return read_json_lines(path) if path.exists() else ([], 0)

    def trial_folder(self, key: str) -> Path | None:
        """The folder of a trial, if it was begun."""
        return self._find(key)

    def _started(self, key: str) -> Path:
        folder = self._find(key)
        if folder is None:
            raise DataError(f"{self.path}: no trial {key[:8]}; start it first")
        return folder

    def _find(self, key: str) -> Path | None:
        """The folder of a trial, whatever label it was given. Refuses links that lead out of the run."""
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise DataError(f"trial key: expected 64 hexadecimal digits, got {key!r}")
        for digits in (8, 16):  # 16 where another trial has the same eight
            folder = self._find_folder(f"{key[:digits]}-")
            if folder is not None and _stored_key(folder) in (None, key):
                return folder
        return None

    def _find_folder(self, prefix: str) -> Path | None:
        try:
            with os.scandir(self.path / "trials") as entries:  # of ten thousand, a few milliseconds
                found = sorted(entry.name for entry in entries if entry.name.startswith(prefix))
        except FileNotFoundError:
            return None
        if len(found) > 1:
            raise DataError(f"{self.path}: two folders for one trial ({', '.join(found)}); remove the copy")
        return inside(self.path / "trials", found[0]) if found else None

    def _read(self, folder: Path) -> Record:
        """The record in a trial's folder. It is not searched for, so that reading all takes a time in their number."""
        inside(self.path / "trials", folder.name)
        record = read_record(folder / "result.json")
        own = folder.name.partition("-")[0] in (record.key[:8], record.key[:16])
        if not own or _stored_key(folder) not in (None, record.key):
            raise DataError(f"{folder}: holds the record of another trial ({record.key[:8]})")
        _examples(folder, record)
        return record


def create_run(
    output: Path,
    name: str,
    text: str,
    resolved: Mapping[str, Any],
    environment: Mapping[str, Any],
    settings: Sequence[str] = (),
) -> RunFolder:
    """The folder of a sweep: new, or the one that the same resolved sweep already has under ``output``.

    ``text`` is the source of the config and ``settings`` the ``key=value`` beside it, of which the last are kept;
    ``environment`` is what ``environment()`` returned.
    ``DataError`` if the folder of that name belongs to a different sweep.
    """
    digest, path = content_hash(resolved), run_path(output, name, resolved)
    make_folder(path / "trials")
    if not (path / "resolved.json").exists():
        if _folders(path / "trials"):
            raise DataError(f"{path}: holds trials but no resolved.json; choose another output folder")
        write_text(path / "sweep.yaml", text)
        write_json(path / "env.json", environment)
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(
            path / "resolved.json", {"name": name, "created": created, "sha256": digest, "sweep": dict(resolved)}
        )
    run = open_run(path)
    if run.digest != digest:
        raise DataError(f"{path}: belongs to a different sweep; choose another name or output folder")
    if not (path / "sweep.yaml").is_file() or read_bytes(path / "sweep.yaml") != text.encode():
        write_text(path / "sweep.yaml", text)
    if (
        not (path / "settings.json").is_file()
        or read_bytes(path / "settings.json") != render_json(list(settings)).encode()
    ):
        write_json(path / "settings.json", list(settings))
    return run


def run_path(output: Path, name: str, resolved: Mapping[str, Any]) -> Path:
    """Where ``create_run`` puts a sweep."""
    return inside(output, f"{safe_name(name)}-{content_hash(resolved)[:4]}")


def open_run(path: Path) -> RunFolder:
    """The run in a folder. ``DataError`` if it is not one, or if its ``resolved.json`` was altered."""
    file = path / "resolved.json"
    try:
        content = json.loads(read_bytes(file))
        run = RunFolder(path, content["name"], content["sha256"], content["created"], content["sweep"])
        intact = run.digest == content_hash(run.sweep) and isinstance(run.sweep, dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not the resolved config of a sweep ({error!r})") from error
    if not intact or not isinstance(run.name, str) or not isinstance(run.created, str):
        raise DataError(f"{file}: the config was altered after the run was made")
    return run


def safe_name(name: str) -> str:
    """The name itself, if it can be one part of a path on any system. ``DataError`` otherwise."""
    if not _SAFE.fullmatch(name) or name.endswith(".") or len(name) > _LONGEST_NAME:
        raise DataError(f"name {name[:60]!r}: expected up to {_LONGEST_NAME} letters, digits and _.+=,- only")
    return name


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. ``DataError`` if it lies outside the folder, by its name or through a link."""
    if not _SAFE.fullmatch(name):
        raise DataError(f"{folder}: {name[:60]!r} is not a name that qresearch gives; move it away")
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise DataError(f"{path}: is a link that leads out of {folder}; remove it")
    return path


def _folders(trials: Path) -> list[Path]:
    try:
        return sorted(trials.iterdir()) if trials.exists() else []
    except OSError as error:
        raise DataError(f"cannot list {trials}: {error.strerror}") from error


def _examples(folder: Path, record: Record) -> Examples | None:
    if record.examples_sha256 is None:
        return None
    path = folder / "examples.npz"
    return decode_examples(read_bytes(path), path, record.examples_sha256)


def _stored_key(folder: Path) -> str | None:
    """The key in ``config.json``; none if the file never got written or cannot be read."""
    content = _stored_config(folder)
    return None if content is None else content["key"]


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """What ``start`` wrote; none if it never did or the file cannot be read."""
    try:
        content = json.loads(read_bytes(folder / "config.json"))
        return {"key": str(content["key"]), "label": str(content["label"]), "config": content["config"]}
    except (DataError, ValueError, KeyError, TypeError, RecursionError):
        return None
