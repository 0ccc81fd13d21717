"""What every command does: it asks the parts below, prints, and returns the exit status. JAX is imported inside."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qresearch.errors import ConfigError

if TYPE_CHECKING:
    from qresearch.config import SweepConfig
    from qresearch.results import RunFolder
    from qresearch.sweep.run import SweepResult

OK, UNFIT, FAILED, TOO_MUCH = 0, 2, 3, 4


def join(options: argparse.Namespace) -> None:
    """Makes this process one of several that do the command together, each its share of every trial."""
    from qresearch import devices

    parts = options.distributed.split(",")
    if parts == ["auto"]:
        devices.join()
    elif len(parts) == 3 and ":" in parts[0] and all(part.isdecimal() for part in parts[1:]):
        devices.join(parts[0], int(parts[1]), int(parts[2]))
    else:
        raise ConfigError(f"--distributed: expected auto or HOST:PORT,N,I, got '{options.distributed}'")
    options.set = [*options.set, "engine.options={}", "engine.name=inline"]


def sweep(options: argparse.Namespace) -> int:
    """All trials of a config that have no result yet, and the report."""
    from qresearch.config import load

    return _execute(load(options.config, options.set), options)


def run(options: argparse.Namespace) -> int:
    """A config that describes one trial."""
    from qresearch.config import expand, load

    sweep = load(options.config, options.set)
    count = len(expand(sweep))
    if count != 1:
        raise ConfigError(f"{options.config}: describes {count} trials; use 'qresearch sweep', or set 'sweep: null'")
    return _execute(sweep, options)


def search(options: argparse.Namespace) -> int:
    """A config's allocators and searches, or those of the options, as one sweep."""
    from qresearch.config import expand, load, suggest_ends

    sweep = load(options.config, options.set)
    trials = (*expand(sweep), *suggest_ends(sweep))
    if options.budgets is None:
        if not any(config.allocation.budget is not None for config in trials):
            raise ConfigError(
                f"{options.config}: no trial has a budget to search for; set 'allocation.budget' or --budgets"
            )
        return _execute(sweep, options)
    try:
        budgets = [float(budget) for budget in options.budgets.split(",")]
    except ValueError:
        raise ConfigError(f"--budgets: expected numbers such as 2.5,3,4, got {options.budgets!r}") from None
    first, seeds = trials[0], sorted({config.seed for config in trials})
    cost, allocators = options.cost or "average_bits", (options.allocators or "exact").split(",")
    grid = {"seed": seeds, "allocation.allocator": allocators, "allocation.budget": budgets}
    fixed = ["flow=ptq", "allocation.bits=null", f"allocation.cost={cost}", f"name={first.name[:57]}-search"]
    fixed.append(f"report.cost={cost}")
    return _execute(load(options.config, [*options.set, f"sweep={json.dumps({'grid': grid})}", *fixed]), options)


def benchmark(options: argparse.Namespace) -> int:
    """The table of INT8, INT4 and mixed against float, with a verdict."""
    from qresearch.config import expand, load, suggest_ends
    from qresearch.sweep.run import plan_sweep

    sweeps = []
    for path in options.configs:
        given = load(path, options.set)
        trials = (*expand(given), *suggest_ends(given))
        flow = next((config.flow for config in trials if config.flow != "float"), "ptq")
        variants = [{"bits": [8, 8]}, {"bits": [4, 4]}, {"allocator": "exact", "budget": options.budget}]
        listed = [{"flow": "float"}, *({"flow": flow, "allocation": variant} for variant in variants)]
        grid = {"seed": sorted({config.seed for config in trials})}
        fixed = [f"sweep={json.dumps({'grid': grid, 'list': listed})}", f"name={trials[0].name[:54]}-benchmark"]
        sweeps.append((path, load(path, [*options.set, *fixed])))
    for _, sweep in sweeps:
        plan_sweep(sweep)  # what is wrong with the last config is said before the first is run
    results = [_run_sweep(sweep, path) for path, sweep in sweeps]
    return _verdict([result.run for result in results], options.max_drop, any(result.failed for result in results))


def _verdict(runs: Sequence[RunFolder], max_drop: float, some_failed: bool) -> int:
    from qresearch import report
    from qresearch.results.atomic import write_text

    rows = []
    for run in runs:
        own = report.degradations(report.points_of(run.records().records), max_drop)
        write_text(run.path / "benchmark.csv", report.degradation_csv(own, max_drop))
        print(run.path / "benchmark.csv")
        rows += own
    print(report.plain_table(report.BENCHMARK_HEADER, report.degradation_rows(rows)))
    bad = [row for row in rows if row.passes is False]
    print(f"{len(bad)} of {sum(row.passes is not None for row in rows)} rows drop by more than {max_drop:g}")
    if some_failed:
        return FAILED
    return TOO_MUCH if bad else OK


def _execute(sweep: SweepConfig, options: argparse.Namespace) -> int:
    from qresearch.devices import is_first

    result = _run_sweep(sweep, options.config)
    if result.ran + result.found > len(result.failed) and is_first():
        _write_report(result.run)
    return FAILED if result.failed else OK


def _run_sweep(sweep: SweepConfig, path: str) -> SweepResult:
    from rich.console import Console

    from qresearch.devices import is_first
    from qresearch.sweep.progress import Terminal
    from qresearch.sweep.run import run_sweep

    source = Path(path).read_text(encoding="utf-8")
    result = run_sweep(sweep, source, Terminal(Console()), lambda run: print(f"folder  {run.path}", flush=True))
    if not is_first():  # of several processes one speaks
        return result
    stopped = f", {result.stopped} stopped early" if result.stopped else ""
    print(f"{result.ran} trials run, {result.found} found done, {len(result.failed)} failed{stopped}")
    for label, reason in result.failed:
        print(f"failed  {label}: {reason}", file=sys.stderr)
    return result


def check(options: argparse.Namespace) -> int:
    """Everything that can be found wrong with a config without running it."""
    from qresearch.config import load

    sweep = load(options.config, options.set)
    # Structure first: importing jax to compare names costs seconds, and is not needed to find a misspelt key.
    from qresearch.sweep.forecast import flow_counts
    from qresearch.sweep.run import plan_sweep

    configs = plan_sweep(sweep)
    print(f"{options.config}: fine, {len(configs)} trial{'s' * (len(configs) != 1)} ({flow_counts(configs)})")
    return OK


def plan(options: argparse.Namespace) -> int:
    """What a sweep would do."""
    from qresearch.config import any_run, load
    from qresearch.engines import workers_of
    from qresearch.sweep.forecast import forecast_lines

    sweep = load(options.config, options.set)
    engine = any_run(sweep).engine
    print("\n".join(forecast_lines(sweep, workers_of(engine.name, engine.workers))))
    return OK


def resume(options: argparse.Namespace) -> int:
    """The sweep of a run, with the config and the settings that the run keeps."""
    from qresearch.results import find_run
    from qresearch.sweep.resume import config_of

    run = find_run(Path(options.output).expanduser(), options.run)
    return _execute(config_of(run, options.set), argparse.Namespace(config=run.path / "sweep.yaml"))


def report(options: argparse.Namespace) -> int:
    """The interactive page of some runs; of a single one its other files, too, written again."""
    from qresearch.report import write_explorer
    from qresearch.results import find_run

    runs = [find_run(Path(options.output).expanduser(), run) for run in options.run]
    if len(runs) == 1:
        _write_report(runs[0])
    out = runs[0].path / "explorer.html" if options.out is None else Path(options.out).expanduser()
    print(write_explorer(runs, out))
    return OK


def compare(options: argparse.Namespace) -> int:
    """What differs between two runs."""
    from qresearch.report.compare_runs import compare_runs, comparison_text, write_comparison
    from qresearch.results import find_run

    a, b = (find_run(Path(options.output).expanduser(), run) for run in (options.run_a, options.run_b))
    found = compare_runs(a, b)
    print(comparison_text(found))
    for path in write_comparison(found, b.path if options.out is None else Path(options.out).expanduser()):
        print(path)
    return OK


def status(options: argparse.Namespace) -> int:
    """How far a run is."""
    from qresearch.results import find_run
    from qresearch.results.status import status_lines

    print("\n".join(status_lines(find_run(Path(options.output).expanduser(), options.run))))
    return OK


def show(options: argparse.Namespace) -> int:
    """The tables of a run."""
    from qresearch.results import find_run

    run = find_run(Path(options.output).expanduser(), options.run)
    _print_tables(run)
    return OK


def runs(options: argparse.Namespace) -> int:
    """The runs of an output folder."""
    from qresearch.report import plain_table
    from qresearch.results import list_runs

    rows = list_runs(Path(options.output).expanduser())
    header = ("run", "done", "failed", "invalid", "created", "best score")
    print(plain_table(header, [_run_row(row) for row in rows]) if rows else f"no runs in {options.output}")
    return OK


def _run_row(row: Any) -> tuple[str, ...]:
    best = row.problem or ("-" if row.best_score is None else f"{row.best_score:.4f} {row.score_name}")
    return (row.name, str(row.done), str(row.failed), str(row.invalid), row.created, best)


def import_weights_of(options: argparse.Namespace) -> int:
    """A public weight file as a checkpoint."""
    from qresearch.sweep.import_weights import import_weights

    source, out = (Path(path).expanduser() for path in (options.npz, options.out))
    parameters = import_weights(source, out, options.model, options.classes)
    print(f"{out}: {options.model}, {parameters:,} parameters; name it in model.weights of a config")
    return OK


def list_names(options: argparse.Namespace) -> int:
    """What a config can name."""
    from qresearch.sweep.catalogue import catalogue

    print(catalogue(options.kind))
    return OK


def doctor(options: argparse.Namespace) -> int:
    """What qresearch needs of this machine."""
    from qresearch.doctor import examine

    failed = 0
    for check in examine(Path(options.output).expanduser()):
        print(check.line, flush=True)
        failed += check.level == "FAIL"
    print(f"{failed} of these must be mended" if failed else "everything that is needed is there")
    return UNFIT if failed else OK


def _write_report(run: RunFolder) -> None:
    from qresearch.report import write_report

    paths = write_report(run)
    _print_tables(run)
    for path in paths:
        print(path)


def _print_tables(run: RunFolder) -> None:
    from qresearch.report import run_tables

    for text in run_tables(run):
        print(text)  # a table ends its last line, so that this is one empty line
