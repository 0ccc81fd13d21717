"""The main job: from a configuration file to records and a report, doing only what has not been done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from qresearch.compat import stay_on_cpu
from qresearch.config import RunConfig, SweepConfig, config_hash, expand, resolved, sweep_identity, trial_label
from qresearch.engines import ENGINES, Engine, Setting, check_engine
from qresearch.engines.local import gpus
from qresearch.evaluation import ACCELERATED, default_chunk
from qresearch.report.searches import keep_settings
from qresearch.results import RunFolder, create_run, environment
from qresearch.results.ledger import Ledger, open_or_renew
from qresearch.results.lock import locked
from qresearch.sweep.assemble import known_names
from qresearch.sweep.bench import Bench
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.floats import is_stored
from qresearch.sweep.job import Jobs, store_failure
from qresearch.sweep.plan import float_pieces, group_key, groups_of, trial_pieces
from qresearch.sweep.progress import Display, Silent

WORKER = (sys.executable, "-m", "qresearch.sweep.worker")


class SweepResult(NamedTuple):
    """What a sweep did: its folder, the trials it ran, those it found done, and the failures with their reasons."""

    run: RunFolder
    ran: int
    found: int
    failed: tuple[tuple[str, str], ...]


def plan_sweep(sweep: SweepConfig) -> tuple[RunConfig, ...]:
    """The trials of a sweep, in order; checks names, data, recipes, rules and budgets before anything is computed."""
    configs = expand(sweep, known_names())
    check_engine(configs[0].engine.name, dict(configs[0].engine.options))
    if configs[0].engine.name != "inline":
        stay_on_cpu()  # the accelerator is for the workers
    for group in groups_of(configs):
        Bench(group.members[0], Path(), Silent()).check(group.members)
    return configs


def run_sweep(sweep: SweepConfig, source: str, display: Display, on_start: Callable[[RunFolder], None]) -> SweepResult:
    """Runs the trials that have no valid record yet and stores one record for each as soon as it is known.

    source: the text of the configuration file. A trial that fails is recorded with its reason; the others go on.
    An interrupt leaves all finished records in place, and the same command continues. Trials that were added to the
    config's ``sweep`` join the run that is there. ``DataError`` if another process is writing the run.
    """
    configs = plan_sweep(sweep)
    output, identity = Path(configs[0].output).expanduser(), sweep_identity(sweep)
    run = create_run(output, configs[0].name, source, identity, environment(), sweep.settings)
    with locked(run.path), open_or_renew(run.path, display.line) as ledger:
        keep_settings(run, resolved(configs[0])["report"])
        on_start(run)
        done = run.done()
        labels = {config_hash(config): trial_label(config) for config in configs}
        ledger.reconcile(labels, labels.keys() & done)
        pending = [config for config in configs if config_hash(config) not in done]
        failures = _run_trials(run, ledger, configs, pending, display) if pending else {}
    failed = tuple((labels[key], reason) for key, reason in failures.items())
    return SweepResult(run, len(pending), len(configs) - len(pending), failed)


def _run_trials(
    run: RunFolder, ledger: Ledger, configs: Sequence[RunConfig], pending: Sequence[RunConfig], display: Display
) -> dict[str, str]:
    """{key: reason} of those that failed."""
    benches = {group_key(group.members[0]): group for group in groups_of(configs)}

    def fail(config: RunConfig, reason: str) -> None:
        store_failure(run, Bench(config, run.path, Silent()), config, reason)

    def stored(config: RunConfig) -> bool:
        return is_stored(config, run.path / "float")

    coordinator = Coordinator(run, ledger, display, configs[0].engine.attempts, stored, fail, lambda key: None)
    todo = set(pending)
    groups = [group._replace(members=tuple(c for c in group.members if c in todo)) for group in benches.values()]
    with _engine(configs[0], run, coordinator) as engine, display.trials(len(pending)) as advance:
        floats = float_pieces(groups, stored, engine.slots)
        trials = trial_pieces(groups, engine.slots, ACCELERATED if gpus() else default_chunk())
        try:
            coordinator.work(floats, trials, advance)
        finally:
            ledger.release()
    return coordinator.failures


@contextlib.contextmanager
def _engine(config: RunConfig, run: RunFolder, coordinator: Coordinator) -> Iterator[Engine]:
    """The engine of the config, at the service of the coordinator."""
    chosen = config.engine
    setting = Setting(chosen.workers, chosen.timeout, run.path.absolute() / "workers", WORKER, Jobs().run)
    engine = ENGINES[chosen.name](setting, coordinator.deliver, **dict(chosen.options))
    coordinator.engine = engine
    try:
        yield engine
    finally:
        engine.close()
