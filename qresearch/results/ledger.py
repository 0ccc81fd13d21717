"""The ledger of a run: the state, the attempts and the last failure of every trial, in one SQLite file.

It is written by the process that holds the run's lock and read by any other. What it says of finished trials is a copy:
a trial is done when its result file is there and valid, and ``reconcile`` makes the ledger agree with those. So a
ledger that is lost or damaged costs the counts of attempts and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from qresearch.errors import DataError

State = Literal["todo", "running", "done", "stopped", "failed"]
STATES: tuple[State, ...] = ("todo", "running", "done", "stopped", "failed")
NAME = "ledger.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY CHECK (length(key) = 64),
    label TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('todo', 'running', 'done', 'stopped', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    reason TEXT,
    updated TEXT NOT NULL
) STRICT
"""


class Row(NamedTuple):
    """One trial. attempts: how often it was started. reason: of its last failure. updated: ISO 8601, UTC."""

    key: str
    label: str
    state: State
    attempts: int
    reason: str | None
    updated: str


_COLUMNS = ", ".join(Row._fields)


class Ledger:
    """Made by ``open_ledger``. Every method is one transaction, on the disk when it returns."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    def reconcile(self, labels: Mapping[str, str], done: Iterable[str]) -> None:
        """Adds the trials of ``labels`` ({key: label}) that are missing; ``done`` are those with valid results.

        What was left running by a process that died, or is called done without a result, is to do.
        """
        finished = set(done)
        self.add(labels)
        with self._transaction() as cursor:
            known = cursor.execute("SELECT key, state FROM trials").fetchall()
            changed = []
            for key, state in known:
                wanted = "done" if key in finished else "todo" if state in ("running", "done") else state
                if wanted != state:
                    changed.append((wanted, _now(), key))
            cursor.executemany("UPDATE trials SET state = ?, updated = ? WHERE key = ?", changed)

    def add(self, labels: Mapping[str, str]) -> None:
        """Adds the trials of ``labels`` that are missing."""
        with self._transaction() as cursor:
            rows = [(key, label, "todo", _now()) for key, label in labels.items()]
            cursor.executemany("INSERT OR IGNORE INTO trials (key, label, state, updated) VALUES (?, ?, ?, ?)", rows)

    def begin(self, keys: Iterable[str]) -> None:
        """These trials are running, one attempt more."""
        with self._transaction() as cursor:
            for key in keys:
                self._change(cursor, "state = 'running', attempts = attempts + 1", (), key)

    def release(self) -> None:
        """What is running is to do again: nobody runs it any more."""
        with self._transaction() as cursor:
            cursor.execute("UPDATE trials SET state = 'todo', updated = ? WHERE state = 'running'", (_now(),))

    def finish(self, key: str, reason: str | None = None) -> None:
        """The trial is done; or failed, with the reason in one line."""
        state = "done" if reason is None else "failed"
        with self._transaction() as cursor:
            self._change(cursor, "state = ?, reason = ?", (state, reason), key)

    def stop(self, key: str, reason: str) -> None:
        """The trial is not worth its end, for the reason in one line."""
        with self._transaction() as cursor:
            self._change(cursor, "state = 'stopped', reason = ?", (reason,), key)

    def rows(self) -> tuple[Row, ...]:
        """All trials, in the order in which they were added."""
        with self._transaction() as cursor:
            found = cursor.execute(f"SELECT {_COLUMNS} FROM trials ORDER BY rowid")
            return tuple(Row(*row) for row in found.fetchall())

    def _change(self, cursor: sqlite3.Cursor, what: str, values: tuple[str | None, ...], key: str) -> None:
        cursor.execute(f"UPDATE trials SET {what}, updated = ? WHERE key = ?", (*values, _now(), key))
        if cursor.rowcount != 1:
            raise DataError(f"{self.path}: no trial {key[:8]}; it was not planned")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        cursor = self._connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor
            cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(f"cannot write {self.path}: {error}") from error
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()
            cursor.close()


@contextlib.contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of a run's folder, made if there is none. ``DataError`` that names the file if it is damaged."""
    path = folder / NAME
    try:
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    except sqlite3.Error as error:
        raise DataError(f"cannot open {path}: {error}") from error
    try:
        try:
            # FULL: a commit is on the disk, also if the power fails; WAL: readers do not wait for the writer.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_SCHEMA)
            (answer,) = connection.execute("PRAGMA quick_check").fetchone()
            columns = [row[1] for row in connection.execute("PRAGMA table_info(trials)")]
        except (
            sqlite3.OperationalError
        ) as error:  # a full disk, a lock, a folder that is read-only: not the file's fault
            raise DataError(f"cannot write {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, str(error)) from error
        if answer != "ok" or columns != list(Row._fields):
            raise _damaged(path, answer if answer != "ok" else "other columns")
        yield Ledger(path, connection)
    finally:
        connection.close()


@contextlib.contextmanager
def open_or_renew(folder: Path, report: Callable[[str], None]) -> Iterator[Ledger]:
    """The ledger of a folder; a damaged one is moved aside, with a line to ``report``, and begun anew."""
    with contextlib.ExitStack() as stack:
        try:
            ledger = stack.enter_context(open_ledger(folder))
        except _DamagedError as error:
            aside = folder / f"ledger-damaged-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}.sqlite"
            for suffix in ("", "-wal", "-shm"):
                file = folder / f"{NAME}{suffix}"
                with contextlib.suppress(FileNotFoundError):
                    file.rename(aside.with_name(aside.name + suffix))
            report(f"{error} (moved to {aside.name})")
            ledger = stack.enter_context(open_ledger(folder))
        yield ledger


def read_ledger(folder: Path) -> tuple[Row, ...]:
    """The trials of a run as they are now, also while it is written; none where a run has no ledger."""
    path = folder / NAME
    if not path.exists():
        return ()
    # Nothing is written, not even a lock: the folder may be a colleague's. Without a log beside it, nobody writes it.
    writing = path.with_name(f"{NAME}-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'mode=ro' if writing else 'immutable=1'}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return tuple(Row(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM trials ORDER BY rowid"))
    except sqlite3.OperationalError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


class _DamagedError(DataError):
    """A file that is not a ledger, or no longer."""


def _damaged(path: Path, reason: str) -> _DamagedError:
    return _DamagedError(
        f"{path}: is damaged ({reason}); nothing else depends on it, and the next sweep begins it anew"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
