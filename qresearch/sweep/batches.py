"""Trials of a sweep, batch after batch, through one engine: those of the file, then what suggesters propose."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from qresearch.config import (
    RunConfig,
    SweepConfig,
    config_hash,
    distinct_labels,
    halving_of,
    identity_of,
    suggest_ends,
    trial_label,
)
from qresearch.devices import is_first
from qresearch.engines import ENGINES, Deliver, Engine, Setting
from qresearch.engines.local import gpus
from qresearch.evaluation import ACCELERATED, default_chunk
from qresearch.results import RunFolder
from qresearch.results.ledger import Ledger
from qresearch.sweep.bench import Bench
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.floats import float_key, is_stored
from qresearch.sweep.halving import halve
from qresearch.sweep.job import Jobs, store_failure
from qresearch.sweep.plan import Group, float_pieces, groups_of, trial_pieces
from qresearch.sweep.progress import Display, Silent
from qresearch.trackers.mirror import Mirrors

# -P: what lies in the folder where the command was given is not what workers import.
WORKER = (sys.executable, "-P", "-m", "qresearch.sweep.worker")


class Batches:
    """Runs trials; made by ``batches``. ran, found: how many it ran and how many had a record. stopped: how many were
    not worth their end.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        run: RunFolder,
        ledger: Ledger,
        done: Iterable[str],
        mirrors: Mirrors,
        display: Display,
    ) -> None:
        self._halving, self._run, self._ledger = halving_of(sweep), run, ledger
        self._seen = dict.fromkeys(suggest_ends(sweep))  # for the widths of groups, which no batch may change
        self.ran = self.found = self.stopped = 0
        self._labels: dict[str, str] = {}
        self._done, self._mirrors, self._display = set(done), mirrors, display

    coordinator: Coordinator

    def execute(self, configs: Sequence[RunConfig]) -> None:
        """Runs those that have no record yet; returns when all have one, or are not worth it."""
        self._seen |= dict.fromkeys(configs)
        # Among all that are known, so that what a suggester proposes later has its entries in its label, too.
        labels = distinct_labels(self._seen)
        self._labels |= {config_hash(config): labels[config_hash(config)] for config in configs}
        self._ledger.add({config_hash(config): labels[config_hash(config)] for config in configs})
        pending = [config for config in configs if config_hash(config) not in self._done]
        self._remove_checkpoints(set(configs) - set(pending))
        self.found += len(configs) - len(pending)
        if self._halving is not None:
            worth = halve(self._halving, self._run, configs, self._work, self._stop)
            self.stopped += len(set(pending) - worth - self._failed(pending))
            self._work([config for config in pending if config in worth])
            self.ran += len(set(pending) & (worth | self._failed(pending)))
        else:
            self._work(pending)
            self.ran += len(pending)

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """(label, reason) of the trials that failed, also when they were run again."""
        return tuple((self._labels[key], reason) for key, reason in self.coordinator.failures.items())

    def stored(self, key: str) -> None:
        """A trial has a record."""
        if key not in self.coordinator.failures:
            self._done.add(key)
            if (record := self._run.find_record(key)) is not None:
                self._display.record(record)
        self._mirrors.log(key)

    def _failed(self, configs: Sequence[RunConfig]) -> set[RunConfig]:
        return {config for config in configs if config_hash(config) in self.coordinator.failures}

    def _stop(self, config: RunConfig, why: str) -> None:
        self._ledger.stop(config_hash(config), why)
        if is_first():  # its config stays, so that the front can say which of several trials was left
            self._run.start(config_hash(config), trial_label(config), identity_of(config))
        self._remove_checkpoints([config])

    def _remove_checkpoints(self, configs: Iterable[RunConfig]) -> None:
        """Of trainings that nobody will go on with: a worker that was killed may have left some."""
        for config in configs if is_first() else ():
            for key in (config_hash(config)[:16], *([float_key(config)] if self.is_trained(config) else [])):
                shutil.rmtree(self._run.path / "training" / key, ignore_errors=True)

    def _work(self, configs: Sequence[RunConfig], until: int | None = None) -> None:
        if not configs:
            return
        wanted, groups = set(configs), list[Group]()
        for group in groups_of(tuple(self._seen)):
            members = tuple(config for config in group.members if config in wanted)
            groups += [group._replace(members=members)] if members else []
        engine = self.coordinator.engine
        floats = float_pieces(groups, self.is_trained, engine.slots)
        together = ACCELERATED if gpus() else default_chunk()
        self.coordinator.work(floats, trial_pieces(groups, engine.slots, engine.pieces, together, until))

    def is_trained(self, config: RunConfig) -> bool:
        """Whether the float model of a trial is there."""
        return bool(config.model.weights) or is_stored(config, self._run.path / "float")

    def fail(self, config: RunConfig, reason: str) -> None:
        """Stores that a trial cannot be run."""
        store_failure(self._run, Bench(config, self._run.path, Silent()), config, reason)


@contextlib.contextmanager
def batches(
    sweep: SweepConfig,
    first: RunConfig,
    run: RunFolder,
    ledger: Ledger,
    done: Iterable[str],
    display: Display,
    mirrors: Mirrors,
) -> Iterator[Batches]:
    """The engine of the sweep, of which ``first`` is any trial, starts with the first job and is stopped at the end.
    done: the keys of trials that have a record.
    """
    chosen, made = first.engine, Batches(sweep, run, ledger, done, mirrors, display)
    setting = Setting(chosen.workers, chosen.timeout, run.path.absolute() / "workers", WORKER, Jobs().run)

    def start(deliver: Deliver) -> Engine:
        return ENGINES[chosen.name](setting, deliver, **dict(chosen.options))

    tasks = (made.is_trained, made.fail, made.stored)
    with Coordinator(run, ledger, display, chosen.attempts, start, *tasks) as made.coordinator:
        yield made
