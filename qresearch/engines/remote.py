"""A job done by a worker process on whatever machine this is called on: what a cluster's own workers run."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qresearch.engines.base import Event, Message
from qresearch.engines.process import Worker

# The worker of each thread that runs jobs here, and the sweep that it belongs to: it keeps its compiled programs from
# one job to the next. It ends with its sweep (``end_workers``), or with this process.
_kept: dict[int, tuple[str, Worker]] = {}


def run_job(
    number: int,
    text: str,
    command: Sequence[str],
    folder: str,
    timeout: float | None,
    tell: Callable[[Message], None] = lambda message: None,
    session: str = "",
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[str, Message]:
    """(kind, content) of the event that ends a job, see ``Event``; what comes before goes to ``tell``.

    session: of the sweep; another one gets another worker. given_up: whether nobody waits for this job any more.
    """
    worker = _worker(session, command, folder)
    worker.send(number, text)
    with selectors.DefaultSelector() as selector:
        selector.register(worker, selectors.EVENT_READ)
        while True:
            selector.select(1.0)
            messages = worker.read()
            if messages is None:
                return _lost(worker.ending())
            for event in worker.events(messages):
                if event.kind == "refused":
                    _lost("")
                if event.kind != "told":
                    return event.kind, dict(event.content)
                tell(event.content)
            if timeout is not None and time.monotonic() - worker.heard > timeout:
                return _lost(f"the worker said nothing for {timeout:g} s and was stopped (engine.timeout)")
            if given_up():
                return _lost("nobody waits for this job any more")


def end_workers(session: str) -> None:
    """Ends the workers of a sweep on this machine."""
    for thread, (own, worker) in list(_kept.items()):
        if own == session:
            _kept.pop(thread, None)
            worker.stop()


def event_of(number: int, ending: tuple[str, Message]) -> Event:
    """What ``run_job`` returned, as the event of the job."""
    kind, content = ending
    return Event(number, "done" if kind == "done" else "refused" if kind == "refused" else "lost", content)


def _worker(session: str, command: Sequence[str], folder: str) -> Worker:
    thread = threading.get_native_id()
    kept = _kept.get(thread)
    if kept is not None and kept[0] == session:
        return kept[1]
    if kept is not None:
        kept[1].stop()
    worker = Worker(command, Path(folder) / f"{socket.gethostname()}-{os.getpid()}-{thread}.log", {})
    _kept[thread] = (session, worker)
    return worker


def _lost(reason: str) -> tuple[str, Message]:
    kept = _kept.pop(threading.get_native_id(), None)
    if kept is not None:
        kept[1].stop()
    return "lost", {"reason": reason}
