"""Progress: what workers say of what they do, and how it is shown: bars at a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
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
from qresearch.report import FRONT_HEADER, Point, front, front_rows, points_of, rich_table
from qresearch.results import Record

Advance = Callable[[int], None]  # called with the number of units done so far
Clock = Callable[[], float]
_PAUSE = 0.2  # seconds between two messages about the progress of one phase
_LINE = 60.0  # seconds between two lines about the progress of a sweep, where output is no terminal
_ROWS, _NAMED = 12, 6  # points of the front in a table, and in a line
_SHARE = 20  # of the time, at most one part in so many goes into the front


class Reporter(Protocol):
    """Is told what a trial does. ``phase`` is a context whose value is called with the units done so far."""

    def phase(self, name: str, total: int) -> contextlib.AbstractContextManager[Advance]: ...

    def line(self, text: str) -> None: ...


class Display(Protocol):
    """Shows a sweep: what workers say (``hear``), the trials that are done, their records, and lines of its own."""

    def record(self, record: Record) -> None: ...

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

    def record(self, record: Record) -> None:
        """Drops the record."""

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
    """Units per second, as of late; trials per minute since they began, because many may finish at once."""

    def render(self, task: Task) -> Text:
        """``12.3/s``, empty until it is known."""
        if task.fields.get("trials"):
            return Text(per_minute(task.completed, task.elapsed or 0.0))
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def per_minute(done: float, seconds: float) -> str:
    """``8.2/min``, empty until a trial is done."""
    return f"{60 * done / seconds:.1f}/min" if done and seconds > 0 else ""


class BestFront:
    """The front of the records that are there so far, made anew where it is asked for and records came, but at most for
    one part in 20 of the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._records, self._shown = clock, list[Record](), 0
        self._on: tuple[Point, ...] = ()
        self._next = 0.0

    def add(self, record: Record) -> None:
        """A trial that is done."""
        self._records.append(record)

    def update(self, at_last: bool = False) -> None:
        """Makes it anew, if that is due, or ``at_last``."""
        started = self._clock()
        if len(self._records) == self._shown or (started < self._next and not at_last):
            return
        records = tuple(self._records)
        points = points_of(records)
        self._on, self._shown = tuple(points[i] for i in front(points)), len(records)
        ended = self._clock()
        self._next = ended + max(1.0, _SHARE * (ended - started))

    def table(self) -> RenderableType:
        """Its points as rows; of many, evenly spaced ones."""
        on = self._on  # which another thread may be making anew
        if not on:
            return Text("")
        chosen = _spaced(on, _ROWS)
        more = f", {len(chosen)} of {len(on)} points" if len(chosen) < len(on) else ""
        title = Text(f"best front so far, by validation score{more}; scores: test")
        return Group(title, rich_table(FRONT_HEADER[1:], [row[1:] for row in front_rows(chosen, ())]))

    def line(self) -> str:
        """Its points in one line."""
        cells = (f"{point.costs['average_bits']:.2f} bits {point.test.mean:.4f}" for point in _spaced(self._on, _NAMED))
        return f"; front so far: {', '.join(cells)}" if self._on else ""


def _spaced(items: Sequence[Point], most: int) -> list[Point]:
    """Of many, evenly spaced ones, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


class Terminal:
    """A bar for the trials with their number per minute, one for each phase that a worker is in, and below them the
    best front so far; where output is no terminal, a line at the end of each phase, and one a minute about all that.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console = console
        self._clock, self._front = clock, BestFront(clock)
        self._bars: Progress | None = None
        self._phases: dict[tuple[int, str], TaskID] = {}

    def record(self, record: Record) -> None:
        """A trial that is done, now or before."""
        self._front.add(record)

    @contextlib.contextmanager
    def trials(self, total: int) -> Iterator[Advance]:
        """Shows ``total`` trials, and the phases of their workers meanwhile."""
        if not self.console.is_terminal:
            yield self._lines(total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bars = Progress(*columns, console=self.console, get_time=self._clock)

        def shown() -> RenderableType:
            self._front.update()
            return Group(bars, self._front.table())

        with Live(console=self.console, get_renderable=shown):
            self._bars = bars
            task = bars.add_task("trials", total=total, trials=True)
            try:
                yield lambda done: bars.update(task, completed=done)
            finally:
                self._front.update(at_last=True)
                self._bars = None
                self._phases.clear()

    def _lines(self, total: int) -> Advance:
        """Prints a line, but not before a minute has passed since the last one."""
        started = last = self._clock()

        def advance(done: int) -> None:
            nonlocal last
            now = self._clock()
            if now - last >= _LINE:
                last = now
                self._front.update()
                self.line(f"{done} of {total} trials, {per_minute(done, now - started)}{self._front.line()}")

        return advance

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
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def epochs_done(advance: Advance, epochs: int) -> Callable[[int, dict[str, float]], None]:
    """A training's ``on_epoch`` that counts the epochs of all trials, which run one after the other."""

    def on_epoch(trial: int, row: dict[str, float]) -> None:
        advance(trial * epochs + int(row["epoch"]))

    return on_epoch
