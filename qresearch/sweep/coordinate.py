"""The coordinator of a sweep: it hands pieces to an engine, keeps the ledger, and gives a piece again whose worker was
lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from qresearch.config import RunConfig, config_hash, trial_label
from qresearch.engines.base import Deliver, Engine, Event, Job, Message
from qresearch.engines.process import OUT_OF_MEMORY
from qresearch.errors import EngineError
from qresearch.results import RunFolder
from qresearch.results.ledger import Ledger
from qresearch.sweep.floats import float_key
from qresearch.sweep.plan import Piece, group_key
from qresearch.sweep.progress import Advance, Display

_POLL = 1.0  # seconds


class Attempt(NamedTuple):
    """A piece, and how often its worker was lost without anything done."""

    piece: Piece
    lost: int = 0


class Coordinator:
    """Runs pieces through an engine, one batch after the other (``work``); a context, whose end stops the engine.

    start: makes the engine, which calls ``deliver``.
    trained: whether the float model of a trial is there. fail: stores that a trial failed, and why. stored: is told of
    every record. failures: {key: reason} of all batches.
    """

    def __init__(
        self,
        run: RunFolder,
        ledger: Ledger,
        display: Display,
        attempts: int,
        start: Callable[[Deliver], Engine],
        trained: Callable[[RunConfig], bool],
        fail: Callable[[RunConfig, str], None],
        stored: Callable[[str], None],
    ) -> None:
        self._run, self._ledger, self._display, self._attempts = run, ledger, display, attempts
        self._start, self._trained, self._fail, self._stored = start, trained, fail, stored
        self.failures: dict[str, str] = {}
        self._advance: Advance = lambda done: None
        self._settled: set[str] = set()  # of this batch: finished, failed, or stopped on their way
        self._begun: set[int] = set()  # jobs whose worker said something
        self._unheard = 0  # workers that were lost in a row before they said anything
        self._running: dict[int, Attempt] = {}
        self._todo: list[Attempt] = []
        self._lacking: set[str] = set()  # float models that are still to be trained
        self._without: dict[str, str] = {}  # float models that cannot be, and why
        self._jobs = 0

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine, which begins when it is first asked for."""
        return self._start(self.deliver)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *error: object) -> None:
        if "engine" in vars(self):
            self.engine.close()
        self._ledger.release()

    def work(self, floats: Sequence[Piece], trials: Sequence[Piece]) -> None:
        """Returns when every trial of the pieces has a record, or has come as far as it should, or has failed."""
        self._settled, self._without = set(), {}
        self._lacking = {key for piece in floats for key in piece.floats}
        self._todo = [Attempt(piece) for piece in (*floats, *trials)]
        with self._display.trials(sum(len(piece.configs) for piece in trials)) as self._advance:
            while self._todo or self._running:
                self._hand_out()
                if self._running:
                    self.engine.wait(_POLL)

    def _hand_out(self) -> None:
        slots, waiting = self.engine.slots, 0
        while len(self._running) < slots and waiting < len(self._todo):
            piece = self._todo[waiting].piece
            if piece.kind == "trials" and self._lacking and piece.floats & self._lacking:
                waiting += 1
                continue
            attempt, piece = self._todo.pop(waiting), self._left(piece)
            if not piece.configs:
                continue
            self._jobs += 1
            self._running[self._jobs] = attempt._replace(piece=piece)
            if piece.kind == "trials":
                self._ledger.begin(map(config_hash, piece.configs))
            self.engine.submit(Job(self._jobs, piece.text(self._run.path)))

    def _left(self, piece: Piece) -> Piece:
        """The piece without the trials whose float model could not be trained, which fail for the same reason, and
        those that a worker which was thought lost has finished after all.
        """
        if piece.kind == "float":
            return piece
        for config in piece.configs if self._without else ():
            if float_key(config) in self._without:
                self._give_up(config, self._without[float_key(config)])
        return piece._replace(configs=tuple(c for c in piece.configs if config_hash(c) not in self._settled))

    def deliver(self, event: Event) -> None:
        """What the engine says about a job."""
        if event.kind == "told":
            self._unheard = 0
            self._begun.add(event.job)
            self._hear(event.job, event.content)
        elif event.kind == "refused":
            raise EngineError(event.content["reason"])
        elif event.job in self._running:  # a job that was lost may be heard of again
            if event.kind == "done":
                self._unheard = 0
            elif event.job not in self._begun:
                self._check_start(event.content["reason"])
            attempt = self._running.pop(event.job)
            self._display.hear(event.job, {"over": True})
            rest = self._rest(attempt.piece)
            if event.kind == "done" and not rest.configs:
                return
            self._again(attempt, rest, event.content.get("reason", "the worker left no record of it"))

    def _hear(self, job: int, message: Message) -> None:
        if "trial" in message:
            self._finish(message["trial"], message["failure"])
        elif "stopped" in message:
            self._settled.add(message["stopped"])
            self._advance(len(self._settled))
        elif "floats_failed" in message:
            self._without |= message["floats_failed"]
            self._lacking -= self._without.keys()
        else:
            self._display.hear(job, message)

    def _finish(self, key: str, reason: str | None) -> None:
        if key in self._settled:
            return
        self._settled.add(key)
        self._ledger.finish(key, reason)
        if reason is None:
            self.failures.pop(key, None)
        else:
            self.failures[key] = reason
        self._stored(key)
        self._advance(len(self._settled))

    def _rest(self, piece: Piece) -> Piece:
        """What of a piece is not done: by what the worker said, or else by what lies there."""
        if piece.kind == "float":
            done = {c for c in piece.configs if self._trained(c) or float_key(c) in self._without}
            self._lacking -= set(map(float_key, done))
        else:
            for config in piece.configs:
                key = config_hash(config)
                record = None if key in self._settled else self._run.find_record(key)
                if record is not None and record.status == "done":
                    self._finish(key, None)
            done = {config for config in piece.configs if config_hash(config) in self._settled}
        return piece._replace(configs=tuple(config for config in piece.configs if config not in done))

    def _again(self, attempt: Attempt, rest: Piece, reason: str) -> None:
        """Gives the rest again: a trial that ends its worker every time is found by halving."""
        progress = len(rest.configs) < len(attempt.piece.configs)
        lost = 0 if progress else attempt.lost + 1
        if not rest.configs:
            return
        names = (
            f"{len(rest.configs)} {'float model' if rest.kind == 'float' else 'trial'}{'s' * (len(rest.configs) != 1)}"
        )
        if OUT_OF_MEMORY in reason and len(rest.configs) > 1:
            self._make_smaller(rest, reason)
        elif lost < self._attempts:
            self._display.line(f"warning: {reason}; {names} again")
            self._todo.insert(0, Attempt(rest, lost))
        elif len(rest.configs) > 1:
            self._display.line(f"warning: {reason}; {names} again, in two parts")
            last = self._attempts - 1 if len(rest.configs) > 3 else 0
            self._todo[:0] = [Attempt(half, last) for half in rest.parts(-(-len(rest.configs) // 2))]
        elif rest.kind == "float":
            (config,) = rest.configs
            self._without[float_key(config)] = f"float training: {reason} ({lost} times)"
            self._lacking.discard(float_key(config))
        else:
            (config,) = rest.configs
            self._display.line(f"warning: {reason}; {trial_label(config)} has failed")
            self._give_up(config, f"{reason} ({lost} times)")

    def _make_smaller(self, piece: Piece, reason: str) -> None:
        """Halves a piece whose population did not fit into memory, and all of its group that are not smaller."""
        size = -(-len(piece.configs) // 2)
        self._display.line(f"warning: {reason}; from now on {size} {piece.kind} at a time")
        kind = (piece.kind, group_key(piece.configs[0]))
        smaller: list[Attempt] = []
        for attempt in (Attempt(piece), *self._todo):
            own = attempt.piece
            same = (own.kind, group_key(own.configs[0])) == kind and len(own.configs) > size
            smaller += [Attempt(part) for part in own.parts(size)] if same else [attempt]
        self._todo = smaller

    def _check_start(self, reason: str) -> None:
        """EngineError where workers end before they begin, again and again: that is not the trials' doing."""
        self._unheard += 1
        if self._unheard > self._attempts:
            raise EngineError(f"{self._unheard} workers in a row ended before they could begin: {reason}")

    def _give_up(self, config: RunConfig, reason: str) -> None:
        self._fail(config, reason)
        self._finish(config_hash(config), reason)
