"""A worker process and how it is spoken to: one line of JSON a job on its standard input, one a message on its output.

A worker is started anew (never forked: JAX's threads do not survive that), leads a process group of its own, and ends
when its standard input does, so that nothing outlives the process that started it, however that one ends. What it
writes besides messages goes into its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qresearch.engines.base import Event, Message
from qresearch.errors import DataError

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # as XLA says it
_TRACEBACK = "Traceback (most recent call last):"
_GRACE = 1.0  # seconds between asking a worker to end and making it


class Worker:
    """A running worker. ``job``: the number of the job that it has, None where it waits for one."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        self.log, self.job, self.heard = log, None, time.monotonic()
        self._rest = b""
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as stream:
                self._begin = stream.seek(0, os.SEEK_END)
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    start_new_session=True,
                    env={**os.environ, **variables},
                )
        except OSError as error:
            raise DataError(f"cannot start a worker ({log}): {error.strerror or error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)

    job: int | None

    def fileno(self) -> int:
        """Of its output, for selectors."""
        return self._output.fileno()

    def send(self, number: int, text: str) -> None:
        """Gives it a job. A worker that is gone already is noticed by ``read``."""
        self.job, self.heard = number, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._input.write(text.encode() + b"\n")
            self._input.flush()

    def read(self) -> list[Message] | None:
        """The messages that have arrived; None when the worker has ended and everything was read."""
        try:
            data = os.read(self._output.fileno(), 1 << 20)
        except BlockingIOError:
            return []
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def events(self, messages: list[Message]) -> list[Event]:
        """What the messages say about its job; the worker's own ``end`` and ``error`` are the end of it."""
        found = []
        for message in messages:
            if self.job is None:  # said after the end of its job
                continue
            if "end" in message:
                found.append(Event(self.job, "done"))
                self.job = None
            elif "error" in message:
                found.append(Event(self.job, "refused", {"reason": message["error"]}))
            else:
                found.append(Event(self.job, "told", message))
        return found

    def ending(self) -> str:
        """How a worker that ended did so, in words, with the last line that it logged."""
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "the worker closed its output and was stopped"
        if status < 0:
            name = signal.Signals(-status).name
            why = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the worker was ended by {name}{why}"
        said = _telling_line(self.log, self._begin, raised=status == 1)
        return f"the worker ended with status {status}: {said} (see {self.log})"

    def ask_to_end(self) -> None:
        """Asks the worker to end, and does not wait for it."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            self._input.close()

    def stop(self) -> None:
        """Ends the worker and all processes that it started."""
        self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        # The group outlives its leader as long as any process of it runs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _telling_line(log: Path, begin: int, raised: bool) -> str:
    """The last line that was logged since ``begin``, or the one that says that a device's memory ran out. raised: by an
    exception, of whose message, perhaps of many lines, it is the first: JAX adds lines about itself at its end.
    """
    try:
        with log.open("rb") as stream:
            stream.seek(max(begin, log.stat().st_size - 1_000_000))
            lines = [line.rstrip()[:300] for line in stream.read().decode(errors="replace").split("\n") if line.strip()]
    except OSError:
        return "no log"
    last = lines[-1] if lines else "nothing logged"
    starts = [i for i, line in enumerate(lines) if line == _TRACEBACK]
    if raised and starts:  # its frames are indented
        last = next((line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")), last)
    return next((line for line in lines if OUT_OF_MEMORY in line), last).strip()
