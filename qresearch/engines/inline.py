"""Trials in this process, one job after the other: for debugging, and as the one process of a gang."""

from __future__ import annotations

from collections import deque

from qresearch.engines.base import Deliver, Event, Job, Setting


class Inline:
    """In this process: no start-up, and a debugger sees everything; a crash ends the sweep, and workers and timeout
    mean nothing.
    """

    slots = pieces = 1

    def __init__(self, setting: Setting, deliver: Deliver) -> None:
        self._run, self._deliver = setting.run, deliver
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> None:
        if not self._jobs:
            return
        job = self._jobs.popleft()
        self._run(job.text, lambda message: self._deliver(Event(job.number, "told", message)))
        self._deliver(Event(job.number, "done"))

    def close(self) -> None:
        self._jobs.clear()
