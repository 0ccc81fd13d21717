"""The main job: from a configuration file to records and a report, doing only what has not been done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qresearch.config import FREE, RunConfig, SweepConfig, config_hash, expand, resolved, sweep_identity, trial_label
from qresearch.report.searches import keep_settings
from qresearch.results import RunFolder, create_run, environment
from qresearch.results.ledger import open_or_renew
from qresearch.results.lock import locked
from qresearch.sweep.assemble import known_names
from qresearch.sweep.bench import Bench
from qresearch.sweep.execute import run_bench
from qresearch.sweep.floats import obtain_floats
from qresearch.sweep.outcome import Outcome, checked, make_record, per_example
from qresearch.sweep.progress import Reporter, Silent

# What trials must agree on to share a bench: everything but these, which are traced or belong to a flow.
_OWN = {*FREE, "seed", "flow", "sensitivity", "allocation", "ptq", "qat"}


class SweepResult(NamedTuple):
    """What a sweep did: its folder, the trials it ran, those it found done, and the failures with their reasons."""

    run: RunFolder
    ran: int
    found: int
    failed: tuple[tuple[str, str], ...]


def plan_sweep(sweep: SweepConfig) -> tuple[RunConfig, ...]:
    """The trials of a sweep, in order; checks names, data, recipes, rules and budgets before anything is computed."""
    configs = expand(sweep, known_names())
    for bench, members in _benches(configs, Path(), Silent()):
        bench.check(members)
    return configs


def run_sweep(
    sweep: SweepConfig, source: str, reporter: Reporter, on_start: Callable[[RunFolder], None]
) -> SweepResult:
    """Runs the trials that have no valid record yet and stores one record for each as soon as it is known.

    source: the text of the configuration file. A trial that fails is recorded with its reason; the others go on.
    An interrupt leaves all finished records in place, and the same command continues. Trials that were added to the
    config's ``sweep`` join the run that is there. ``DataError`` if another process is writing the run.
    """
    configs = plan_sweep(sweep)
    identity = sweep_identity(sweep)
    run = create_run(Path(configs[0].output).expanduser(), configs[0].name, source, identity, environment())
    with locked(run.path), open_or_renew(run.path, reporter.line) as ledger:
        keep_settings(run, resolved(configs[0])["report"])
        on_start(run)
        pending = [config for config in configs if not run.has(config_hash(config))]
        keys = {config_hash(config): trial_label(config) for config in configs}
        ledger.reconcile(keys, keys.keys() - {config_hash(config) for config in pending})
        failed = []
        for bench, members in _benches(pending, run.path, reporter):
            ledger.begin(config_hash(config) for config in members)
            floats = obtain_floats(members, run.path / "float", reporter)
            for outcome in map(checked, run_bench(bench, members, floats)):
                _store(run, bench, outcome)
                ledger.finish(config_hash(outcome.config), outcome.failure)
                if outcome.failure is not None:
                    failed.append((outcome.config, outcome.failure))
    labels = tuple((trial_label(config), reason) for config, reason in failed)
    return SweepResult(run, len(pending), len(configs) - len(pending), labels)


def _benches(configs: Sequence[RunConfig], folder: Path, reporter: Reporter) -> Iterator[tuple[Bench, list[RunConfig]]]:
    groups: dict[Any, list[RunConfig]] = {}
    for config in configs:
        rest = {name: value for name, value in resolved(config).items() if name not in _OWN}
        rest["float"] = {name: value for name, value in rest["float"].items() if name != "learning_rate"}
        groups.setdefault(repr(rest), []).append(config)
    for members in groups.values():
        yield Bench(members[0], folder, reporter), members


def _store(run: RunFolder, bench: Bench, outcome: Outcome) -> None:
    model = bench.sketch
    record = make_record(outcome, model, bench.setup.task)
    examples = None if outcome.test is None else per_example(outcome.test, bench.setup.task)
    # The record comes last, because it says that the trial is finished; rows of an attempt that was not are dropped.
    folder = run.start(record.key, record.label, record.config)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    for epoch, row in outcome.extra.get("epochs", {}).items():
        run.append_metrics(record.key, {"epoch": int(epoch), **row})
    run.save(record, examples)
