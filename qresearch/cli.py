"""The command line: what it takes, and what it makes of errors and signals. JAX is never imported for ``--help``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qresearch import commands, export_commands, figure_commands
from qresearch.errors import ConfigError, QResearchError

# Adds a command by its name, what it does, and what it says of itself.
Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
BAD_INPUT, INTERRUPTED, PIPE, TERMINATED = 2, 130, 141, 143
EXIT_CODES = (
    "exit status: 0 done · 2 bad input, nothing started · 3 some trials failed · 4 a drop above --max-drop"
    " · 5 models that should agree do not · 130 interrupted · 143 terminated"
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
        if getattr(options, "distributed", None) is not None:
            commands.join(options)
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
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT


class _Engine(argparse.Action):
    """``--engine NAME``: an engine without options, but for those that ``--set`` gives after it."""

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, value: Any, flag: str | None = None
    ) -> None:
        options.set = [*options.set, "engine.options={}", f"engine.name={value}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qresearch", description="Mixed-precision quantization sweeps in JAX.", epilog=EXIT_CODES
    )
    known = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = known.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
        added.set_defaults(command=run)
        return added

    _add_sweeps(command)
    _add_runs(command)
    _add_compare(command)
    _add_exports(command)
    _add_figure(command)
    weights = command(
        "import-weights", commands.import_weights_of, "turn a public weight file into a checkpoint for model.weights"
    )
    weights.add_argument("npz", help="arrays named by parameter path, such as layer1/0/conv1/kernel")
    weights.add_argument("out", help="folder to write")
    weights.add_argument("--model", required=True, help="see 'qresearch list models'")
    weights.add_argument("--classes", type=int, default=10, help="outputs of the model (default: 10)")
    listing = command("list", commands.list_names, "list what a config can name")
    kinds = "quantizers, ranges, ptq, sensitivities, allocators, costs, models, data, tasks, suggesters or trackers"
    listing.add_argument("kind", nargs="?", help=kinds)
    doctor = command(
        "doctor", commands.doctor, "try what qresearch needs of this machine: packages, devices, folders, data sets"
    )
    doctor.add_argument("--output", default="results", help="where runs would be (default: results)")
    return parser


def _add_sweeps(command: Command) -> None:
    """The commands that take configs."""

    def configured(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument("config", help="YAML file")
        added.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. qat.epochs=2"
        )
        return _with_engine(added)

    configured("sweep", commands.sweep, "run every trial of a config that has no result yet, and report the front")
    configured("run", commands.run, "run a config that describes one trial")
    search = configured(
        "search", commands.search, "let allocators and searches choose the bits, and compare their fronts"
    )
    search.add_argument(
        "--budgets", help="comma-separated, in the unit of --cost, with PTQ (default: as in the config)"
    )
    search.add_argument("--allocators", help="comma-separated, with --budgets (default: exact)")
    search.add_argument("--cost", help="with --budgets, see 'qresearch list costs' (default: average_bits)")
    benchmark = command(
        "benchmark", commands.benchmark, "the score, size and bops of INT8, INT4 and mixed, against an acceptable drop"
    )
    benchmark.add_argument("configs", nargs="+", metavar="config", help="YAML files, one per task or model")
    benchmark.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, in all of them")
    benchmark.add_argument(
        "--max-drop", type=float, default=1.0, help="in hundredths of the score, such as accuracy points (default: 1.0)"
    )
    benchmark.add_argument("--budget", type=float, default=6.0, help="average_bits of the mixed row (default: 6)")
    _with_engine(benchmark)
    configured("check", commands.check, "check a config without running it, and count its trials")
    configured("plan", commands.plan, "say what a sweep would do: trials, groups, programs, pieces, time")


def _with_engine(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that say where trials run, of a command that has ``set``."""
    text = "where trials run, see 'qresearch list engines'; options of another engine in the config are dropped"
    added.add_argument("--engine", dest="set", action=_Engine, metavar="NAME", help=text)
    text = "how many workers at a time: --set engine.workers=N"
    form = "engine.workers={}".format
    added.add_argument("--workers", dest="set", action="append", type=form, metavar="N", help=text)
    added.add_argument(
        "--distributed",
        metavar="HOST:PORT,N,I",
        help="run trials together with other processes, which get the same command: the address of the first, how many"
        " they are, the number of this one from 0; or 'auto', as on Slurm and TPUs",
    )
    return added


def _add_runs(command: Command) -> None:
    """The commands that take a run, and the list of all."""
    for name, run, text in (
        ("resume", commands.resume, "run what a run has not finished, from the config that it keeps"),
        ("report", commands.report, "write the interactive page of runs, and the tables and pictures of a single one"),
        ("show", commands.show, "print a run: its front, failures and damaged files"),
        ("status", commands.status, "say how far a run is, also while it is written: states, attempts, failures"),
        ("runs", commands.runs, "list the runs in the output folder"),
    ):
        added = command(name, run, text)
        if name == "resume":
            added.set_defaults(set=[])
            _with_engine(added)
        if name == "report":
            added.add_argument("--out", metavar="PATH", help="the page (default: explorer.html in the first run)")
        if name != "runs":
            several: dict[str, Any] = {"nargs": "+"} if name == "report" else {}
            added.add_argument("run", help="folder of a run, or its name or the beginning of it", **several)
        added.add_argument("--output", default="results", help="where runs are (default: results)")


def _add_compare(command: Command) -> None:
    """The command that takes two runs."""
    text = "print and draw the difference between two runs, of the trials that both have, with confidence intervals"
    added = command("compare", commands.compare, text)
    for name in ("run_a", "run_b"):
        added.add_argument(name, help="folder of a run, or its name or the beginning of it")
    added.add_argument("--out", metavar="FOLDER", help="where compare-RUN_A.csv and .png go (default: the second run)")
    added.add_argument("--output", default="results", help="where runs are (default: results)")


def _add_exports(command: Command) -> None:
    """The commands that take a finished trial of a run."""

    def of_trial(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument("run", help="folder of a run, or its name or the beginning of it")
        added.add_argument(
            "--trial",
            metavar="KEY|LABEL",
            help="the beginning of either (default: the best quantized one on the front)",
        )
        added.add_argument(
            "--requantize",
            choices=("float", "fixed"),
            default="float",
            help="how integer sums become values: by a float, or by a whole multiplier and a shift (default: float)",
        )
        added.add_argument("--output", default="results", help="where runs are (default: results)")
        return added

    export = of_trial("export", export_commands.export, "write a trial's model, or its allocation, for another tool")
    formats = "onnx, stablehlo, safetensors, qwix, json or csv"
    export.add_argument("--format", required=True, help=formats)
    export.add_argument("--out", metavar="PATH", help="the file (default: in the folder exports of the run)")
    export.add_argument(
        "--batch", type=_count, metavar="N", help="examples at a time, of onnx and stablehlo (default: any)"
    )
    export.add_argument(
        "--reduce-range", action="store_true", help="7 bits where weights have 8, for x86 CPUs without VNNI"
    )
    verify = of_trial(
        "verify", export_commands.verify, "run a trial simulated, in integers and exported, and compare the outputs"
    )
    verify.add_argument("--examples", type=_count, metavar="N", help="of the test set (default: as in the config)")
    verify.add_argument(
        "--bound",
        type=_share,
        metavar="SHARE",
        default=0.005,
        help="share of predictions that may be others than simulated (default: 0.005)",
    )


def _add_figure(command: Command) -> None:
    """The command that takes names of figures."""
    added = command(
        "figure", figure_commands.figure, "draw figures of papers from records, with ours beside the published numbers"
    )
    added.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    added.add_argument("--all", action="store_true", help="every figure")
    added.add_argument("--list", action="store_true", help="print every figure, its state and its command")
    added.add_argument(
        "--run", action="store_true", help="make the records first; with --all, of what the device can do in minutes"
    )
    added.add_argument(
        "--table",
        nargs="?",
        const="numbers",
        choices=("numbers", "figures", "commands"),
        help="print the reproduction table as markdown: every number (default), a row per figure, or how each was made",
    )
    added.add_argument("--output", default="results/figures", help="folder to write (default: results/figures)")


def _count(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # written so that a NaN is none
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return share


if __name__ == "__main__":
    entry()
