"""Progress: what workers say of what they do, and how it is shown: bars at a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from qresearch.engines.base import Message, Tell

Advance = Callable[[int], None]  # called with the number of units done so far
_PAUSE = 0.2  # seconds between two messages about the progress of one phase


class Reporter(Protocol):
    """Is told what a trial does. ``phase`` is a context whose value is called with the units done so far."""

    def phase(self, name: str, total: int) -> contextlib.AbstractContextManager[Advance]: ...

    def line(self, text: str) -> None: ...


class Display(Protocol):
    """Shows a sweep: what workers say (``hear``), the trials that are done, and lines of its own."""

    def trials(self, total: int) -> contextlib.AbstractContextManager[Advance]: ...

    def hear(self, job: int, message: Message) -> None: ...

    def line(self, text: str) -> None: ...


class Silent:
    """A reporter and a display that show nothing."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """A phase that nobody sees."""
        yield lambda done: None

    @contextlib.contextmanager
    def trials(self, total: int) -> Iterator[Advance]:
        """Trials that nobody sees."""
        yield lambda done: None

    def hear(self, job: int, message: Message) -> None:
        """Drops the message."""

    def line(self, text: str) -> None:
        """Drops the text."""


class Relay:
    """The reporter of a worker: everything becomes a message to ``tell``."""

    def __init__(self) -> None:
        self.tell: Tell = lambda message: None

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Tells the beginning, now and then how far it is, and the end with its seconds."""
        started = last = time.monotonic()
        self.tell({"phase": name, "total": total, "done": 0})

        def advance(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PAUSE:
                last = now
                self.tell({"phase": name, "total": total, "done": done})

        yield advance
        self.tell({"phase": name, "total": total, "done": total, "seconds": time.monotonic() - started})

    def line(self, text: str) -> None:
        """Tells the text."""
        self.tell({"line": text})


class Rate(ProgressColumn):
    """Units per second, as of late."""

    def render(self, task: Task) -> Text:
        """``12.3/s``, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Terminal:
    """A bar for the trials and one for each phase that a worker is in; where output is no terminal, a line at the end
    of each phase.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._phases: dict[tuple[int, str], TaskID] = {}

    @contextlib.contextmanager
    def trials(self, total: int) -> Iterator[Advance]:
        """Shows ``total`` trials, and the phases of their workers meanwhile."""
        if not self.console.is_terminal:
            yield lambda done: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            self._bars = bars
            task = bars.add_task("trials", total=total)
            try:
                yield lambda done: bars.update(task, completed=done)
            finally:
                self._bars = None
                self._phases.clear()

    def hear(self, job: int, message: Message) -> None:
        """Shows what the worker of a job says."""
        if "line" in message:
            self.line(message["line"])
        if "over" in message:
            self._take_down(job)
        if "phase" not in message:
            return
        name, total, seconds = message["phase"], message["total"], message.get("seconds")
        if self._bars is not None:
            self._show(self._bars, (job, name), message)
        elif seconds is not None:
            self.line(f"{name}: {total} in {seconds:.1f} s ({total / max(seconds, 1e-9):.1f}/s)")

    def _show(self, bars: Progress, phase: tuple[int, str], message: Message) -> None:
        if "seconds" in message:
            if phase in self._phases:
                bars.remove_task(self._phases.pop(phase))
        elif phase in self._phases:
            bars.update(self._phases[phase], completed=message["done"])
        else:
            self._phases[phase] = bars.add_task(f"  {phase[1]}", total=message["total"])

    def _take_down(self, job: int) -> None:
        """The bars of a job that is over, perhaps in the middle of a phase."""
        for phase in [phase for phase in self._phases if phase[0] == job]:
            if self._bars is not None:
                self._bars.remove_task(self._phases.pop(phase))

    def line(self, text: str) -> None:
        """Prints a line above the bars."""
        console = self.console if self._bars is None else self._bars.console
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def epochs_done(advance: Advance, epochs: int) -> Callable[[int, dict[str, float]], None]:
    """A training's ``on_epoch`` that counts the epochs of all trials, which run one after the other."""

    def on_epoch(trial: int, row: dict[str, float]) -> None:
        advance(trial * epochs + int(row["epoch"]))

    return on_epoch
