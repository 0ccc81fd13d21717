"""The program of a worker process: jobs come in, messages go out, as ``qresearch.engines.process`` says.

``python -m qresearch.sweep.worker``; for engines, not for people.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from qresearch.engines.base import Tell
from qresearch.errors import QResearchError


class Doer(Protocol):
    """Does a job of this text; ``tell`` takes its messages."""

    def run(self, text: str, tell: Tell) -> None: ...


def main(make: Callable[[], Doer] | None = None) -> int:
    """Does jobs until standard input ends, which ends this process at once, whatever it is doing. make: makes what
    does them (None: ``Jobs``).
    """
    # Libraries print to standard output now and then: what they say goes into the log, messages go where it was.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    lock = threading.Lock()  # a checkpoint's thread may have something to say too

    def tell(message: Any) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    worker = (make or _jobs)()
    begun = False
    while True:
        text = jobs.get()
        if not begun:
            tell({"begun": True})  # what goes wrong from here on has to do with the job
            begun = True
        try:
            worker.run(text, tell)
        except QResearchError as error:
            tell({"error": str(error)})
            return error.exit_status
        tell({"end": True})


def _jobs() -> Doer:
    from qresearch.sweep.job import Jobs  # after the thread begins: JAX takes seconds to import, and may hang

    return Jobs()


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    # Nobody waits for what we do. Whatever we started is in our group, if we lead one.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
