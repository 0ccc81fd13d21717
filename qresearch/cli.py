"""The command line. It parses, calls and prints; jax is imported by the commands that compute, never for ``--help``."""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qresearch.errors import ConfigError, QResearchError

if TYPE_CHECKING:
    from qresearch.config import SweepConfig
    from qresearch.results import RunFolder
    from qresearch.sweep.run import SweepResult

OK, BAD_INPUT, FAILED, TOO_MUCH, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 130, 143
EXIT_CODES = (
    "exit status: 0 done · 2 bad input, nothing started · 3 some trials failed · 4 a drop above --max-drop"
    " · 130 interrupted · 143 terminated"
)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill: it ends a command as an interrupt does."""


def entry() -> None:
    """The ``qresearch`` program."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # A pipe on a system that is not set to UTF-8 takes no "±" and no "x̂": better a substitute than a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))


def _terminate(number: int, frame: object) -> None:
    raise TerminatedError


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status. What a user can mend is one line on stderr, not a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except QResearchError as error:
        lines = str(error).splitlines()
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        if isinstance(error, ConfigError):
            print(f"{len(lines)} problem{'s' * (len(lines) != 1)}, nothing started", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        print("stopped: finished trials are kept; the same command continues", file=sys.stderr)
        return TERMINATED if isinstance(error, TerminatedError) else INTERRUPTED
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qresearch", description="Mixed-precision quantization sweeps in JAX.", epilog=EXIT_CODES
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
        added.set_defaults(command=run)
        return added

    def configured(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument("config", help="YAML file")
        added.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. qat.epochs=2"
        )
        return added

    configured("sweep", _sweep, "run every trial of a config that has no result yet, and report the front")
    configured("run", _run, "run a config that describes one trial")
    search = configured("search", _search, "let allocators and searches choose the bits, and compare their fronts")
    search.add_argument(
        "--budgets", help="comma-separated, in the unit of --cost, with PTQ (default: as in the config)"
    )
    search.add_argument("--allocators", help="comma-separated, with --budgets (default: exact)")
    search.add_argument("--cost", help="with --budgets, see 'qresearch list costs' (default: average_bits)")
    benchmark = command(
        "benchmark", _benchmark, "the score, size and bops of INT8, INT4 and mixed, against an acceptable drop"
    )
    benchmark.add_argument("configs", nargs="+", metavar="config", help="YAML files, one per task or model")
    benchmark.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, in all of them")
    benchmark.add_argument(
        "--max-drop", type=float, default=1.0, help="in hundredths of the score, such as accuracy points (default: 1.0)"
    )
    benchmark.add_argument("--budget", type=float, default=6.0, help="average_bits of the mixed row (default: 6)")
    configured("check", _check, "check a config without running it, and count its trials")
    report = command("report", _report, "write front.csv, allocations.csv, front.png and report.html of a run again")
    show = command("show", _show, "print a run: its front, failures and damaged files")
    for added in (report, show):
        added.add_argument("run", help="folder of a run, or its name or the beginning of it")
    status = command("status", _status, "say how far a run is, also while it is written: states, attempts, failures")
    status.add_argument("run", help="folder of a run, or its name or the beginning of it")
    runs = command("runs", _runs, "list the runs in the output folder")
    for added in (report, show, status, runs):
        added.add_argument("--output", default="results", help="where runs are (default: results)")
    weights = command(
        "import-weights", _import_weights, "turn a public weight file into a checkpoint for model.weights"
    )
    weights.add_argument("npz", help="arrays named by parameter path, such as layer1/0/conv1/kernel")
    weights.add_argument("out", help="folder to write")
    weights.add_argument("--model", required=True, help="see 'qresearch list models'")
    weights.add_argument("--classes", type=int, default=10, help="outputs of the model (default: 10)")
    listing = command("list", _list, "list what a config can name")
    kinds = "quantizers, ranges, ptq, sensitivities, allocators, costs, models, data or tasks"
    listing.add_argument("kind", nargs="?", help=kinds)
    return parser


def _sweep(options: argparse.Namespace) -> int:
    from qresearch.config import load

    return _execute(load(options.config, options.set), options)


def _run(options: argparse.Namespace) -> int:
    from qresearch.config import expand, load

    sweep = load(options.config, options.set)
    count = len(expand(sweep))
    if count != 1:
        raise ConfigError(f"{options.config}: describes {count} trials; use 'qresearch sweep', or set 'sweep: null'")
    return _execute(sweep, options)


def _search(options: argparse.Namespace) -> int:
    from qresearch.config import expand, load

    trials = expand(load(options.config, options.set))
    if options.budgets is None:
        if not any(config.allocation.budget is not None for config in trials):
            raise ConfigError(
                f"{options.config}: no trial has a budget to search for; set 'allocation.budget' or --budgets"
            )
        return _execute(load(options.config, options.set), options)
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


def _benchmark(options: argparse.Namespace) -> int:
    from qresearch.config import expand, load
    from qresearch.sweep.run import plan_sweep

    sweeps = []
    for path in options.configs:
        trials = expand(load(path, options.set))
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
    result = _run_sweep(sweep, options.config)
    if result.ran + result.found > len(result.failed):
        _write_report(result.run)
    return FAILED if result.failed else OK


def _run_sweep(sweep: SweepConfig, path: str) -> SweepResult:
    from rich.console import Console

    from qresearch.sweep.progress import Terminal
    from qresearch.sweep.run import run_sweep

    source = Path(path).read_text(encoding="utf-8")
    result = run_sweep(sweep, source, Terminal(Console()), lambda run: print(f"folder  {run.path}", flush=True))
    print(f"{result.ran} trials run, {result.found} found done, {len(result.failed)} failed")
    for label, reason in result.failed:
        print(f"failed  {label}: {reason}", file=sys.stderr)
    return result


def _check(options: argparse.Namespace) -> int:
    from qresearch.config import load

    sweep = load(options.config, options.set)
    # Structure first: importing jax to compare names costs seconds, and is not needed to find a misspelt key.
    from qresearch.sweep.run import plan_sweep

    configs = plan_sweep(sweep)
    flows = {flow: sum(config.flow == flow for config in configs) for flow in ("float", "ptq", "qat")}
    counts = ", ".join(f"{n} {flow}" for flow, n in flows.items() if n)
    print(f"{options.config}: fine, {len(configs)} trial{'s' * (len(configs) != 1)} ({counts})")
    return OK


def _report(options: argparse.Namespace) -> int:
    from qresearch.results import find_run

    _write_report(find_run(Path(options.output).expanduser(), options.run))
    return OK


def _status(options: argparse.Namespace) -> int:
    from qresearch.results import find_run
    from qresearch.results.status import status_lines

    print("\n".join(status_lines(find_run(Path(options.output).expanduser(), options.run))))
    return OK


def _show(options: argparse.Namespace) -> int:
    from qresearch.results import find_run

    run = find_run(Path(options.output).expanduser(), options.run)
    _print_tables(run)
    return OK


def _runs(options: argparse.Namespace) -> int:
    from qresearch.report import plain_table
    from qresearch.results import list_runs

    rows = list_runs(Path(options.output).expanduser())
    header = ("run", "done", "failed", "invalid", "created", "best score")
    print(plain_table(header, [_run_row(row) for row in rows]) if rows else f"no runs in {options.output}")
    return OK


def _run_row(row: Any) -> tuple[str, ...]:
    best = row.problem or ("-" if row.best_score is None else f"{row.best_score:.4f} {row.score_name}")
    return (row.name, str(row.done), str(row.failed), str(row.invalid), row.created, best)


def _import_weights(options: argparse.Namespace) -> int:
    from qresearch.sweep.import_weights import import_weights

    source, out = (Path(path).expanduser() for path in (options.npz, options.out))
    parameters = import_weights(source, out, options.model, options.classes)
    print(f"{out}: {options.model}, {parameters:,} parameters; name it in model.weights of a config")
    return OK


def _list(options: argparse.Namespace) -> int:
    from qresearch.sweep.catalogue import catalogue

    print(catalogue(options.kind))
    return OK


def _write_report(run: RunFolder) -> None:
    from qresearch.report import write_report

    paths = write_report(run)
    _print_tables(run)
    for path in paths:
        print(path)


def _print_tables(run: RunFolder) -> None:
    from qresearch.report import run_tables

    for text in run_tables(run):
        print(text, end="\n\n")


if __name__ == "__main__":
    entry()
