"""What a sweep calls: its trackers, none of which can stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from qresearch.results import Record, RunFolder
from qresearch.trackers import TRACKERS
from qresearch.trackers.tracker import Tracker


class Mirrors:
    """The open trackers of a run; made by ``mirrors``."""

    def __init__(self, run: RunFolder, report: Callable[[str], None]) -> None:
        self._run, self._report = run, report
        self._open: dict[str, Tracker] = {}

    def log(self, key: str) -> None:
        """Mirrors the stored record of a trial and the rows of its metrics. What a mirror holds already is left."""
        for name in list(self._open):
            with self._guarded(name):
                self._log(name, self._run.record(key))

    def _start(self, name: str) -> None:
        """Opens a tracker, and lets it catch up with all records that it does not hold."""
        with self._guarded(name):
            self._open[name] = TRACKERS[name](self._run.path / name, self._run.path.name)
            for record in self._run.records().records:
                self._log(name, record)

    def _log(self, name: str, record: Record) -> None:
        self._open[name].log(record, self._run.metrics(record.key)[0])

    def _close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        # Whatever a foreign package raises, a mirror of the records is not worth a trial: it is switched off.
        except Exception as error:
            self._open.pop(name, None)
            self._report(f"warning: tracker '{name}' is off: {_reason(name, error)}")


@contextlib.contextmanager
def mirrors(names: Sequence[str], run: RunFolder, report: Callable[[str], None]) -> Iterator[Mirrors]:
    """Opens these trackers, each in the folder of its name in the run's, and mirrors the records that it lacks.

    Every failure of a tracker is one line to ``report``, and it is not called again; the next sweep catches up.
    """
    opened = Mirrors(run, report)
    try:
        for name in dict.fromkeys(names):
            opened._start(name)
        yield opened
    finally:
        opened._close()


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"its package cannot be imported ({error}); pip install 'qresearch[{name}]'"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
