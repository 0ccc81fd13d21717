"""What an engine costs: CPU per trial of a sweep whose trials do nothing, and a real sweep against one process for each
of its trials.

    python experiments/bench_engine.py [--trials 1000] [--sample 8]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from qresearch.config import config_hash, from_mapping
from qresearch.evaluation import Scores
from qresearch.results import open_run
from qresearch.results.atomic import make_folder
from qresearch.results.sealed import write_sealed
from qresearch.sweep import batches, worker
from qresearch.sweep.bench import Bench
from qresearch.sweep.floats import float_key
from qresearch.sweep.job import store
from qresearch.sweep.outcome import Outcome
from qresearch.sweep.plan import read_piece
from qresearch.sweep.progress import Silent
from qresearch.sweep.run import run_sweep

EXAMPLES = 100
SITE = {"quantizer": "lsq", "granularity": "per_tensor", "range": "minmax"}
BASE = {
    "name": "engine",
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "float": {"epochs": 5, "batch_size": 128},
    "quantize": {
        site: {"quantizer": "lsq", "granularity": "per_tensor", "range": "minmax"} for site in ("weight", "input")
    },
    "calibration": {"examples": 64},
    "evaluate": {"batch_size": 100},
    "qat": {"epochs": 3, "batch_size": 128},
    "flow": "qat",
    "allocation": {"bits": [4, 4]},
}


class Nothing:
    """Stores what a trial would, and does nothing else."""

    def run(self, text: str, tell: worker.Tell) -> None:
        path, piece = read_piece(text)
        if piece.kind == "float":
            for config in piece.configs:
                make_folder(path / "float" / float_key(config))
                write_sealed(path / "float" / f"{float_key(config)}.json", {"history": [], "best_epoch": 0})
            return
        run, bench = open_run(path), Bench(piece.configs[0], path, Silent())
        for config in piece.configs:
            scores = Scores(np.ones(EXAMPLES, np.float32), np.ones(EXAMPLES, np.float32))
            outcome = Outcome(config, np.full((len(bench.sketch.layers), 2), 4.0), 0.0, scores, scores)
            store(run, bench, outcome)
            tell({"trial": config_hash(config), "failure": None})


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def overhead(trials: int, folder: Path) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, seconds of ``qresearch status``) of a sweep of so many trials that do nothing."""
    rates = [float(f"{1e-3 * (1 + i / trials):.8g}") for i in range(trials)]
    output = folder / f"out{trials}"
    sweep = from_mapping({**BASE, "output": str(output), "sweep": {"grid": {"qat.learning_rate": rates}}})
    command = (sys.executable, str(Path(__file__).resolve()), "--worker")
    before, started = cpu_seconds(), time.monotonic()
    with mock.patch.object(batches, "WORKER", command):
        result = run_sweep(sweep, "", Silent(), lambda run: None)
    used, wall = cpu_seconds() - before, time.monotonic() - started
    assert (result.ran, len(result.failed)) == (trials, 0)
    started = time.monotonic()
    qresearch("status", str(result.run.path))
    return used, wall, time.monotonic() - started


def qresearch(*arguments: str) -> None:
    """The program, in a process of its own."""
    command = [sys.executable, "-m", "qresearch.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def together_and_apart(sample: int, folder: Path) -> tuple[float, float]:
    """Seconds of a sweep of 256 trials on two workers, and of the same trials in a process each, two at a time, from
    the mean of ``sample`` of them: each starts, compiles, and trains its float model, of which the sweep trains one a
    seed.
    """
    seeds, bits, rates = range(8), [[2, 2], [3, 3], [4, 4], [8, 8]], [1e-4 * 2**i for i in range(8)]
    grid = {"seed": list(seeds), "allocation.bits": bits, "qat.learning_rate": rates}
    path = folder / "sweep.json"  # which is YAML too
    path.write_text(json.dumps({**BASE, "sweep": {"grid": grid}}))
    started = time.monotonic()
    qresearch("sweep", str(path), "--workers", "2", "--set", f"output={folder / 'together'}")
    together = time.monotonic() - started
    points = [(seed, option, rate) for seed in seeds for option in bits for rate in rates]
    chosen = random.Random(0).sample(points, sample)
    single = {**BASE, "sweep": None}
    path.write_text(json.dumps(single))

    def command(i: int, extra: Sequence[str]) -> list[str]:
        seed, option, rate = chosen[i]
        values = (f"seed={seed}", f"allocation.bits={option}", f"qat.learning_rate={rate}", f"output={folder / str(i)}")
        settings = [argument for value in (*values, *extra) for argument in ("--set", value)]
        return [sys.executable, "-m", "qresearch.cli", "run", str(path), "--engine", "inline", *settings]

    started = time.monotonic()
    for i in range(0, sample, 2):
        running = [subprocess.Popen(command(j, []), stdout=subprocess.DEVNULL) for j in (i, i + 1)]
        assert [process.wait() for process in running] == [0, 0]
    both = (time.monotonic() - started) / sample
    return together, both * len(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker.main(Nothing)
        return
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overhead(2, folder)  # imports
        least, _, _ = overhead(1, folder)
        used, wall, status = overhead(options.trials, folder)
        each = (used - least) / (options.trials - 1)
        print(f"{options.trials} trials that do nothing: {1e3 * each:.1f} ms CPU each, {wall:.1f} s in all")
        print(f"qresearch status of them: {status:.2f} s")
        together, apart = together_and_apart(options.sample, folder)
        print(f"256 trials: {together:.0f} s as a sweep, {apart:.0f} s in a process each: 1/{apart / together:.1f}")


if __name__ == "__main__":
    main()
