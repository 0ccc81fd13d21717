"""Trials of a sweep, batch after batch, through one engine: those of the file, then what suggesters propose."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from qresearch.config import RunConfig, SweepConfig, config_hash, halving_of, suggest_ends, trial_label
from qresearch.devices import is_first
from qresearch.engines import ENGINES, Deliver, Engine, Setting
from qresearch.engines.local import gpus
from qresearch.evaluation import ACCELERATED, default_chunk
from qresearch.results import RunFolder
from qresearch.results.ledger import Ledger
from qresearch.sweep.bench import Bench
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.floats import is_stored
from qresearch.sweep.halving import halve
from qresearch.sweep.job import Jobs, store_failure
from qresearch.sweep.plan import Group, float_pieces, groups_of, trial_pieces
from qresearch.sweep.progress import Display, Silent
from qresearch.trackers.mirror import Mirrors

WORKER = (sys.executable, "-m", "qresearch.sweep.worker")


class Batches:
    """Runs trials; made by ``batches``. ran, found: how many it ran and how many had a record. failed: reasons by
    label. stopped: how many were not worth their end.
    """

    def __init__(self, sweep: SweepConfig, first: RunConfig, run: RunFolder, ledger: Ledger, display: Display) -> None:
        self._halving, self._first, self._run, self._ledger = halving_of(sweep), first, run, ledger
        self._seen = [*suggest_ends(sweep)]  # for the widths of groups, which no batch may change
        self.ran = self.found = self.stopped = 0
        self.failed: list[tuple[str, str]] = []
        self._display = display

    coordinator: Coordinator

    def execute(self, configs: Sequence[RunConfig]) -> None:
        """Runs those that have no record yet; returns when all have one, or are not worth it."""
        self._seen += configs
        self._ledger.add({config_hash(config): trial_label(config) for config in configs})
        done = self._run.done()
        pending = [config for config in configs if config_hash(config) not in done]
        self._remove_checkpoints(set(configs) - set(pending))
        self.found += len(configs) - len(pending)
        before = len(self.coordinator.failures)
        if self._halving is not None:
            worth = halve(self._halving, self._run, configs, self._work, self._stop)
            self.stopped += len(set(pending) - worth - self._failed(pending))
            pending = [config for config in pending if config in worth]
        self._work(pending)
        self.ran += len(pending)
        labels = {config_hash(config): trial_label(config) for config in configs}
        self.failed += [(labels[key], reason) for key, reason in [*self.coordinator.failures.items()][before:]]

    def _failed(self, configs: Sequence[RunConfig]) -> set[RunConfig]:
        return {config for config in configs if config_hash(config) in self.coordinator.failures}

    def _stop(self, config: RunConfig, why: str) -> None:
        self._ledger.stop(config_hash(config), why)
        self._remove_checkpoints([config])

    def _remove_checkpoints(self, configs: Iterable[RunConfig]) -> None:
        """Of trainings that nobody will go on with: a worker that was killed may have left some."""
        for config in configs if is_first() else ():
            shutil.rmtree(self._run.path / "training" / config_hash(config)[:16], ignore_errors=True)

    def _work(self, configs: Sequence[RunConfig], until: int | None = None) -> None:
        if not configs:
            return
        wanted, groups = set(configs), list[Group]()
        for group in groups_of(self._seen):
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
    sweep: SweepConfig, first: RunConfig, run: RunFolder, ledger: Ledger, display: Display, mirrors: Mirrors
) -> Iterator[Batches]:
    """The engine of the sweep, of which ``first`` is any trial, starts with the first job and is stopped at the end."""
    chosen, made = first.engine, Batches(sweep, first, run, ledger, display)
    setting = Setting(chosen.workers, chosen.timeout, run.path.absolute() / "workers", WORKER, Jobs().run)

    def start(deliver: Deliver) -> Engine:
        return ENGINES[chosen.name](setting, deliver, **dict(chosen.options))

    tasks = (made.is_trained, made.fail, mirrors.log)
    with Coordinator(run, ledger, display, chosen.attempts, start, *tasks) as made.coordinator:
        yield made
