"""A coordinator with an engine that does as a test tells it."""

from __future__ import annotations

from qresearch.config import config_hash, expand, from_mapping, trial_label
from qresearch.engines import Event
from qresearch.results import create_run
from qresearch.results.ledger import open_ledger
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.floats import float_key
from qresearch.sweep.plan import Piece, read_piece
from qresearch.sweep.progress import Silent

BASE = {"name": "a", "flow": "ptq", "sweep": {"grid": {"allocation.bits": [[n, n] for n in range(2, 8)]}}}
TRIALS = expand(from_mapping(BASE))
SEEDS = expand(from_mapping({"name": "a", "flow": "float", "sweep": {"grid": {"seed": [0, 1, 2]}}}))


class Scripted:
    """An engine: ``play(piece, attempt)`` yields the messages of a job and at last how it ends."""

    def __init__(self, play, deliver, slots=2):
        self.slots, self._play, self._deliver, self._jobs = slots, play, deliver, []
        self.most = self.jobs = 0
        self.pieces = 1
        self.closed = False

    def submit(self, job):
        self._jobs.append(job)
        self.most = max(self.most, len(self._jobs))

    def wait(self, seconds):
        job = self._jobs.pop(0)
        self.jobs += 1
        _, piece = read_piece(job.text)
        for what in self._play(piece):
            kind, content = what if isinstance(what, tuple) else ("told", what)
            self._deliver(Event(job.number, kind, content))

    def close(self):
        self.closed = True


class Lines(Silent):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


class Desk:
    """A coordinator with its ledger; ``stored`` are the keys that it told of, ``failed`` {label: reason}."""

    def __init__(self, folder, play, attempts=3, trained=()):
        self.run = create_run(folder, "a", "", {}, {})
        self.trained, self.failed, self.stored, self.display = set(trained), {}, [], Lines()
        self.play, self.attempts = play, attempts

    def work(self, floats, trials):
        def fail(config, reason):
            self.failed[config_hash(config)] = reason

        def start(deliver):
            self.engine = Scripted(self.play, deliver)
            return self.engine

        with open_ledger(self.run.path) as ledger:
            ledger.add({config_hash(c): trial_label(c) for piece in trials for c in piece.configs})
            tasks = (start, lambda config: float_key(config) in self.trained, fail, self.stored.append)
            try:
                with Coordinator(self.run, ledger, self.display, self.attempts, *tasks) as coordinator:
                    coordinator.work(floats, trials)
            finally:
                self.rows = {row.key: row for row in ledger.rows()}
        return coordinator


def finished(config):
    return {"trial": config_hash(config), "failure": None}


def done(piece):
    yield from map(finished, piece.configs)
    yield "done", {}


LOST = ("lost", {"reason": "the worker was ended by SIGKILL"})
BEGUN = {"begun": True}


def pieces(configs, size=2, kind="trials"):
    return [Piece(kind, configs[i : i + size], ()) for i in range(0, len(configs), size)]


def states(desk):
    return [desk.rows[config_hash(config)].state for config in TRIALS]
