"""What an engine is: it takes jobs, runs them somewhere, and delivers what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

Message = Mapping[str, Any]  # what a worker says while it runs a job: plain JSON
Tell = Callable[[Message], None]


class Job(NamedTuple):
    """Work for one worker. ``text``: one line of JSON, which only the worker reads."""

    number: int
    text: str


class Event(NamedTuple):
    """Something about a job. ``told``: its worker said ``content``; ``done``: it ended as it should; ``lost``: its
    worker did not survive it; ``refused``: it is no use to go on. Of these two, ``content["reason"]`` says why.
    """

    job: int
    kind: Literal["told", "done", "lost", "refused"]
    content: Message = MappingProxyType({})


class Setting(NamedTuple):
    """What every engine gets. workers: how many at once, None for the
    engine's own choice. timeout: seconds without a message after which a worker is
    stopped. folder: for the logs of workers, on a file system that they share. command: starts a worker, which is
    spoken to as ``process`` says. run: does a job in this process, if an engine has no workers.
    """

    workers: int | None
    timeout: float | None
    folder: Path
    command: Sequence[str]
    run: Callable[[str, Tell], None]


KEPT = 4  # jobs for each worker, so that a slow one is not alone at the end


class Engine(Protocol):
    """Runs jobs, at most ``slots`` at a time. Events are delivered by ``wait``, in the thread of the caller."""

    @property
    def slots(self) -> int:
        """How many jobs run at a time, now."""
        ...

    @property
    def pieces(self) -> int:
        """Jobs for each slot: several where workers keep their programs, one where every job starts anew."""
        ...

    def submit(self, job: Job) -> None:
        """Takes a job, which begins at once if a slot is free."""
        ...

    def wait(self, seconds: float) -> None:
        """Delivers what happened; returns when something did, or after so many seconds."""
        ...

    def close(self) -> None:
        """Stops what still runs. Afterwards no process of the engine is left."""
        ...


Deliver = Callable[[Event], None]
MakeEngine = Callable[..., Engine]  # (Setting, Deliver, **options)
