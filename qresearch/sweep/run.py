"""The main job: from a configuration file to records and a report, doing only what has not been done."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qresearch.compat import stay_on_cpu
from qresearch.config import (
    RunConfig,
    SweepConfig,
    any_run,
    config_hash,
    distinct_labels,
    expand,
    halving_of,
    located,
    resolved,
    suggest_ends,
    suggestion_of,
    sweep_identity,
)
from qresearch.devices import all_begin, is_first, meet
from qresearch.engines import check_engine
from qresearch.errors import GraphError, QResearchError
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.report.searches import keep_settings
from qresearch.results import RunFolder, create_run, environment, open_run
from qresearch.results.atomic import make_folder, remove_unfinished
from qresearch.results.ledger import open_or_renew
from qresearch.results.lock import locked
from qresearch.results.run_folder import run_path
from qresearch.sweep.assemble import known_names, site_rule, sites_of
from qresearch.sweep.batches import batches
from qresearch.sweep.bench import Bench
from qresearch.sweep.halving import check_halving
from qresearch.sweep.plan import groups_of
from qresearch.sweep.progress import Display, Silent
from qresearch.sweep.sources import changed_line
from qresearch.sweep.suggest import make_suggester, run_suggested
from qresearch.trackers.mirror import mirrors


class SweepResult(NamedTuple):
    """What a sweep did: its folder, the trials it ran, those it found done, those that were stopped early, and the
    failures with their reasons.
    """

    run: RunFolder
    ran: int
    found: int
    stopped: int
    failed: tuple[tuple[str, str], ...]


def plan_sweep(sweep: SweepConfig) -> tuple[RunConfig, ...]:
    """The trials of a sweep's file, in order; checks names, data, recipes, rules and budgets before anything is
    computed; of what a suggester may propose, names and values at the ends of the space.
    """
    configs = expand(sweep, known_names())
    every = (*configs, *suggest_ends(sweep, known_names()))
    check_engine(every[0].engine.name, dict(every[0].engine.options))
    if every[0].engine.name != "inline":
        stay_on_cpu()  # the accelerator is for the workers
    suggestion, halving = suggestion_of(sweep), halving_of(sweep)
    if suggestion is not None:
        make_suggester(suggestion)
    if halving is not None:
        check_halving(halving, every[0])
    try:
        check_trials(configs)
    except GraphError as error:
        raise _placed(error, sweep, configs) from error
    return configs


def _placed(error: GraphError, sweep: SweepConfig, configs: Sequence[RunConfig]) -> QResearchError:
    """The error at the key and the line of the site that cannot be; as it is where it is about something else."""
    for config in {config.quantize: config for config in reversed(configs) if config.flow != "float"}.values():
        for path, site in sites_of(config.quantize).items():
            try:
                _ = site_rule(site).width
            except GraphError as found:
                options = () if isinstance(found, UnsupportedSpecError) else ("options",)
                if str(found) == str(error):
                    return located(sweep, config, (*path, *options), str(error))
    return error


def check_trials(configs: Sequence[RunConfig]) -> None:
    """Raises a QResearchError for what these trials could not do; nothing is computed."""
    for group in groups_of(configs):
        Bench(group.members[0], Path(), Silent()).check(group.members)


def run_sweep(sweep: SweepConfig, source: str, display: Display, on_start: Callable[[RunFolder], None]) -> SweepResult:
    """Runs the trials that have no valid record yet and stores one record for each as soon as it is known.

    source: the text of the configuration file. A trial that fails is recorded with its reason; the others go on.
    An interrupt leaves all finished records in place, and the same command continues. Trials that were added to the
    config's ``sweep`` join the run that is there. ``DataError`` if another process is writing the run. Processes that
    ``devices.join`` has joined all call this, with the engine ``inline``, and do it together.
    """
    configs = plan_sweep(sweep)
    first = any_run(sweep)
    output, identity = Path(first.output).expanduser(), sweep_identity(sweep)
    # Where the run is now is where it will go on.
    settings = [setting for setting in sweep.settings if not setting.startswith("output=")]
    with contextlib.ExitStack() as stack:
        folder, problem = run_path(output, first.name, identity), None
        if is_first():
            try:
                make_folder(folder)
                stack.enter_context(locked(folder))
                run = create_run(output, first.name, source, identity, environment(), settings)
                remove_unfinished(folder)
                stack.callback(remove_unfinished, folder)
                keep_settings(run, resolved(first)["report"])
                on_start(run)
            except QResearchError as error:
                problem = error
        all_begin(problem)
        run = open_run(folder)
        if not is_first():  # of several processes the first one writes; the others need a ledger, and nobody reads it
            folder, display = Path(stack.enter_context(tempfile.TemporaryDirectory())), Silent()
        ledger = stack.enter_context(open_or_renew(folder, display.line))
        found = [record for record in run.records().records if record.status == "done"]
        done = frozenset(record.key for record in found)
        planned = {config_hash(config) for config in configs} if suggestion_of(sweep) is None else done
        if line := changed_line(run, [record for record in found if record.key in planned], configs):
            display.line(f"warning: {line}")
        for record in found:
            display.record(record)
        ledger.reconcile(distinct_labels(configs), done)
        mirrored = stack.enter_context(mirrors(first.trackers if is_first() else (), run, display.line))
        made = stack.enter_context(batches(sweep, first, run, ledger, done, display, mirrored))
        meet("all know what is done")
        made.execute(configs)
        run_suggested(sweep, run, made.execute, lambda config: check_trials([config]), display.line)
    return SweepResult(run, made.ran, made.found, made.stopped, made.failed)
