"""The coordinator, the ledger and the files of a sweep at a scale that this machine does not have: workers are
simulated, everything else is real. Prints what a trial costs the coordinator, and so how many workers it can feed.

    python experiments/simulate_scale.py [--trials 1000 5000] [--workers 1000] [--seconds 60]
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
import time
from pathlib import Path

from qresearch.config import config_hash, expand, from_mapping, trial_label
from qresearch.engines import Deliver, Event, Job
from qresearch.results import create_run
from qresearch.results.ledger import open_ledger
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.plan import groups_of, read_piece, trial_pieces
from qresearch.sweep.progress import Silent

LOST = 0.01  # of all jobs lose their worker


class Simulated:
    """Workers in simulated time: a job takes ``seconds`` a trial, and one in a hundred is lost in its middle."""

    pieces = 4

    def __init__(self, slots: int, seconds: float, deliver: Deliver) -> None:
        self.slots, self._seconds, self._deliver = slots, seconds, deliver
        self._random, self._queue = random.Random(0), list[tuple[float, int, Job]]()
        self.now = 0.0

    def submit(self, job: Job) -> None:
        _, piece = read_piece(job.text)
        seconds = self._seconds * len(piece.configs) * self._random.uniform(0.5, 1.5)
        heapq.heappush(self._queue, (self.now + seconds, job.number, job))

    def wait(self, seconds: float) -> None:
        self.now, number, job = heapq.heappop(self._queue)
        _, piece = read_piece(job.text)
        lost = self._random.random() < LOST
        for config in piece.configs[: len(piece.configs) // 2 if lost else None]:
            self._deliver(Event(number, "told", {"trial": config_hash(config), "failure": None}))
        self._deliver(Event(number, "lost", {"reason": "simulated"}) if lost else Event(number, "done"))

    def close(self) -> None:
        self._queue.clear()


def simulate(trials: int, workers: int, seconds: float, folder: Path) -> None:
    """One sweep; prints the CPU and the time of the coordinator for each trial, and the makespan in simulated time."""
    rates = [float(f"{1e-3 * (1 + i / trials):.8g}") for i in range(trials)]
    base = {"name": "scale", "flow": "qat", "allocation": {"bits": [4, 4]}, "model": {"weights": "float.npz"}}
    started = time.monotonic()
    configs = expand(from_mapping({**base, "sweep": {"grid": {"qat.learning_rate": rates}}}))
    expanded = time.monotonic() - started
    run = create_run(folder, "scale", "", {"trials": trials}, {})
    with open_ledger(run.path) as ledger:
        ledger.add({config_hash(config): trial_label(config) for config in configs})
        engine: list[Simulated] = []

        def start(deliver: Deliver) -> Simulated:
            engine.append(Simulated(workers, seconds, deliver))
            return engine[0]

        cpu, started = time.process_time(), time.monotonic()
        tasks = (start, lambda config: True, lambda config, reason: None, lambda key: None)
        with Coordinator(run, ledger, Silent(), 3, *tasks) as coordinator:
            coordinator.work([], trial_pieces(groups_of(configs), workers, Simulated.pieces, 1))
        cpu, wall = time.process_time() - cpu, time.monotonic() - started
        done = sum(row.state == "done" for row in ledger.rows())
    assert done == trials
    ideal = trials * seconds / workers
    print(
        f"{trials} trials of {seconds:g} s, {workers} workers: {1e3 * cpu / trials:.2f} ms CPU and"
        f" {1e3 * wall / trials:.2f} ms a trial, so up to {trials / wall:.0f} trials/s;"
        f" {engine[0].now / ideal:.2f} times the ideal makespan;"
        f" reading the config {1e3 * expanded / trials:.2f} ms a trial"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    for trials in options.trials:
        with tempfile.TemporaryDirectory() as folder:
            simulate(trials, options.workers, options.seconds, Path(folder))


if __name__ == "__main__":
    main()
