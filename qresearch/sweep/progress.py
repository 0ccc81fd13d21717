"""Progress: one stable bar per phase at a terminal, plain lines elsewhere, nothing in tests."""

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
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]  # called with the number of units done so far


class Reporter(Protocol):
    """Shows what a sweep does. ``phase`` is a context whose value is called with the units done so far."""

    def phase(self, name: str, total: int) -> contextlib.AbstractContextManager[Advance]: ...

    def line(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """A phase that nobody sees."""
        yield lambda done: None

    def line(self, text: str) -> None:
        """Drops the text."""


class Rate(ProgressColumn):
    """Units per second, as of late."""

    def render(self, task: Task) -> Text:
        """``12.3/s``, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Terminal:
    """A bar at a terminal; a line at the beginning and end of each phase where output is not one."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Shows one phase of ``total`` units."""
        started = time.monotonic()
        if not self.console.is_terminal:
            yield lambda done: None
            seconds = time.monotonic() - started
            self.line(f"{name}: {total} in {seconds:.1f} s ({total / max(seconds, 1e-9):.1f}/s)")
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total)
            yield lambda done: progress.update(task, completed=done)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def epochs_done(advance: Advance, epochs: int) -> Callable[[int, dict[str, float]], None]:
    """A training's ``on_epoch`` that counts the epochs of all trials, which run one after the other."""

    def on_epoch(trial: int, row: dict[str, float]) -> None:
        advance(trial * epochs + int(row["epoch"]))

    return on_epoch
