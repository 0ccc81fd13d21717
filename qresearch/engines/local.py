"""Trials in worker processes on this machine, one per slot: the default."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections import deque

from qresearch.engines.base import KEPT, Deliver, Event, Job, Setting
from qresearch.engines.process import Worker


class Local:
    """In worker processes on this machine, one per slot: a crash, or memory that runs out, costs one attempt at what
    the worker was doing. ``workers``: one for each GPU, or one, whose programs use all cores; fewer than GPUs have
    several each, over which populations and batches are spread.
    """

    pieces = KEPT

    def __init__(self, setting: Setting, deliver: Deliver) -> None:
        self.slots = setting.workers or max(1, len(gpus()))
        self._setting, self._deliver = setting, deliver
        self._jobs: deque[Job] = deque()
        self._workers: dict[int, Worker] = {}  # by slot

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        self._hand_out()

    def wait(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            for slot, worker in self._workers.items():
                selector.register(worker, selectors.EVENT_READ, slot)
            ready = [key.data for key, _ in selector.select(seconds)] if self._workers else []
        for slot in ready:
            self._listen(slot)
        self._stop_silent()
        self._hand_out()

    def close(self) -> None:
        self._jobs.clear()
        for worker in self._workers.values():
            worker.ask_to_end()
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _hand_out(self) -> None:
        for slot in range(self.slots):
            if not self._jobs:
                return
            worker = self._workers.get(slot)
            if worker is None:
                log = self._setting.folder / f"{slot}.log"
                worker = self._workers[slot] = Worker(self._setting.command, log, variables(slot, self.slots))
            if worker.job is None:
                job = self._jobs.popleft()
                worker.send(job.number, job.text)

    def _listen(self, slot: int) -> None:
        worker = self._workers[slot]
        messages = worker.read()
        if messages is None:
            self._lose(slot, worker.ending())
            return
        for event in worker.events(messages):
            self._deliver(event)

    def _stop_silent(self) -> None:
        timeout = self._setting.timeout
        if timeout is None:
            return
        now = time.monotonic()
        silent = [
            slot for slot, worker in self._workers.items() if worker.job is not None and now - worker.heard > timeout
        ]
        for slot in silent:
            self._lose(slot, f"the worker said nothing for {timeout:g} s and was stopped (engine.timeout)")

    def _lose(self, slot: int, reason: str) -> None:
        worker = self._workers.pop(slot)
        worker.stop()
        if worker.job is not None:
            self._deliver(Event(worker.job, "lost", {"reason": reason}))


def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that we may use, as CUDA_VISIBLE_DEVICES calls them; CUDA is not started to find out."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # the program without a driver
    return tuple(answer.stdout.split())


def variables(slot: int, slots: int) -> dict[str, str]:
    """The environment variables that give a worker its GPUs, or its share of the memory of one that several share."""
    found = gpus()
    if not found:
        return {}
    if slots <= len(found):
        each = len(found) // slots
        return {"CUDA_VISIBLE_DEVICES": ",".join(found[slot * each : (slot + 1) * each])}
    sharing = -(-slots // len(found))
    return {
        "CUDA_VISIBLE_DEVICES": found[slot % len(found)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}",
    }
