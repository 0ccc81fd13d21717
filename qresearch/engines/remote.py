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

# One worker for each thread that runs jobs here: it keeps its compiled programs from one job to the next. It ends when
# this process does.
_kept = threading.local()


def run_job(
    number: int,
    text: str,
    command: Sequence[str],
    folder: str,
    timeout: float | None,
    tell: Callable[[Message], None] = lambda message: None,
) -> tuple[str, Message]:
    """(kind, content) of the event that ends a job, see ``Event``; what comes before goes to ``tell``."""
    worker: Worker | None = getattr(_kept, "worker", None)
    if worker is None:
        log = Path(folder) / f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}.log"
        worker = _kept.worker = Worker(command, log, {})
    worker.send(number, text)
    with selectors.DefaultSelector() as selector:
        selector.register(worker, selectors.EVENT_READ)
        while True:
            selector.select(1.0)
            messages = worker.read()
            if messages is None:
                return _lost(worker, worker.ending())
            for event in worker.events(messages):
                if event.kind != "told":
                    return event.kind, dict(event.content)
                tell(event.content)
            if timeout is not None and time.monotonic() - worker.heard > timeout:
                return _lost(worker, f"the worker said nothing for {timeout:g} s and was stopped (engine.timeout)")


def _lost(worker: Worker, reason: str) -> tuple[str, Message]:
    _kept.worker = None
    worker.stop()
    return "lost", {"reason": reason}


def event_of(number: int, ending: tuple[str, Message]) -> Event:
    """What ``run_job`` returned, as the event of the job."""
    kind, content = ending
    return Event(number, "done" if kind == "done" else "refused" if kind == "refused" else "lost", content)
