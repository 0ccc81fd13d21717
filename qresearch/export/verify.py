"""Whether all that a frozen model can be run as says the same: simulated, in integers, and exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.data.dataset import Prepare
from qresearch.evaluation import Batches, Scores
from qresearch.tasks import Task

REFERENCE = "simulated"
INTEGER, CODES, STABLEHLO = "integer", "codes", "stablehlo"
LATENCY_BATCHES = (1, 128)
BOUND = 0.005  # of predictions: 99.5 % top-1 agreement
HEADER = ("", "score", "equal predictions", "largest difference", "size kB", "ms, batch 1", "ms, batch 128")

Run = Callable[[Any], Any]  # prepared inputs [batch, ...] -> outputs [batch, ..., classes]


class Execution(NamedTuple):
    """One way to run a model. size: of its file in bytes, None where it has none."""

    run: Run
    size: int | None


class Latency(NamedTuple):
    """Seconds of a call: the median and the quartiles around it, of so many calls."""

    median: float
    quartiles: tuple[float, float]
    calls: int


class Row(NamedTuple):
    """One execution against the simulation. equal: the share of predictions (argmax over the last axis) that are equal.

    difference: the largest of any output. other_bits: examples whose outputs are not those of the integers, bit for
    bit. latencies: by batch size.
    """

    name: str
    loss: float
    score: float
    equal: float
    difference: float
    other_bits: int
    size: int | None
    latencies: Mapping[int, Latency]


class Comparison(NamedTuple):
    """largest: the largest output of the simulation."""

    rows: tuple[Row, ...]
    examples: int
    largest: float

    def bits(self) -> list[str]:
        """What is said of the executions that are to equal the integers bit for bit."""
        found = {row.name: row.other_bits for row in self.rows if row.name in (CODES, STABLEHLO)}
        return [
            f"{name} and {INTEGER}: " + (f"differ in {n} of {self.examples} examples" if n else "equal in every bit")
            for name, n in found.items()
        ]

    def problems(self, bound: float) -> list[str]:
        """What must not be: a bit between codes and integers, or more than this share of other predictions."""
        found = []
        for row in self.rows:
            if row.name == CODES and row.other_bits:
                found.append(f"{CODES} and {INTEGER} differ in {row.other_bits} of {self.examples} examples")
            if not np.isfinite(row.difference):
                found.append(f"{row.name}: its outputs, or those of the simulation, are not finite")
            elif 1 - row.equal > bound:
                share = f"{1 - row.equal:.2%} of its predictions are not those of the simulation"
                found.append(f"{row.name}: {share}; the bound is {bound:.2%}")
        return found


def compare(executions: Mapping[str, Execution], task: Task, prepare: Prepare, batches: Batches) -> Comparison:
    """Runs all executions on the same examples; the first of them, the simulation, is what the others are held against.

    One batch is held at a time, so that outputs of any size will do. Latencies are of the same examples.
    """
    totals = {name: _Total() for name in executions}
    scored = jax.jit(lambda outputs, y: (task.loss(outputs, y), task.score(outputs, y)))
    for x, y, count in _prepared(batches, prepare):
        outputs = {name: np.asarray(execution.run(x)) for name, execution in executions.items()}
        for name, total in totals.items():
            loss, score = (np.asarray(part)[:count] for part in scored(jnp.asarray(outputs[name]), y))
            total.add(Scores(loss, score), *(outputs[other][:count] for other in (name, REFERENCE, INTEGER)))
    rows = [
        totals[name].row(name, task, execution, _latencies(execution.run, batches, prepare))
        for name, execution in executions.items()
    ]
    return Comparison(tuple(rows), batches.examples, totals[REFERENCE].largest)


class _Total:
    """What is summed up of one execution, batch after batch."""

    def __init__(self) -> None:
        self.scores: list[Scores] = []
        self.equal = self.predictions = self.other_bits = 0
        self.difference = self.largest = 0.0

    def add(self, scores: Scores, outputs: np.ndarray, reference: np.ndarray, integer: np.ndarray) -> None:
        self.scores.append(scores)
        equal = np.argmax(outputs, axis=-1) == np.argmax(reference, axis=-1)
        self.equal, self.predictions = self.equal + int(np.sum(equal)), self.predictions + equal.size
        self.other_bits += int(np.sum(np.any(_bytes(outputs.astype(integer.dtype)) != _bytes(integer), axis=1)))
        with np.errstate(invalid="ignore"):  # infinity less infinity is a NaN, which is the answer
            difference = np.max(np.abs(outputs.astype(np.float64) - reference))
        # Not max(): that of a number and a NaN depends on their order.
        self.difference = float(np.maximum(self.difference, difference))
        self.largest = float(np.maximum(self.largest, np.max(np.abs(outputs))))

    def row(self, name: str, task: Task, execution: Execution, latencies: Mapping[int, Latency]) -> Row:
        loss, evidence = (np.concatenate(parts) for parts in zip(*self.scores))
        share = self.equal / self.predictions
        scores = float(np.mean(loss, dtype=np.float64)), task.reduce(evidence)
        return Row(name, *scores, share, self.difference, self.other_bits, execution.size, latencies)


def _bytes(outputs: np.ndarray) -> np.ndarray:
    """The bytes of every example, [example, byte]: a NaN has some too, and those of 0 and −0 differ."""
    return np.ascontiguousarray(outputs).reshape(len(outputs), -1).view(np.uint8)


def _prepared(batches: Batches, prepare: Prepare) -> Iterator[tuple[Any, Any, int]]:
    """(inputs as the model takes them, targets, how many of them are real)."""
    ready, size = jax.jit(prepare), batches.targets.shape[1]
    for start, x, y in zip(range(0, batches.examples, size), batches.inputs, batches.targets):
        yield ready(x), y, min(size, batches.examples - start)


def _latencies(run: Run, batches: Batches, prepare: Prepare) -> dict[int, Latency]:
    x = np.asarray(prepare(jnp.asarray(batches.inputs[0])))
    return {size: latency(run, jnp.asarray(x[np.arange(size) % len(x)])) for size in LATENCY_BATCHES}


def latency(run: Run, x: Any, seconds: float = 1.0, fewest: int = 5, most: int = 50) -> Latency:
    """How long a call takes once it is compiled: of calls in turn for so many seconds, within these numbers of them."""
    for _ in range(2):
        jax.block_until_ready(run(x))
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < seconds):
        started = time.perf_counter()
        jax.block_until_ready(run(x))
        times.append(time.perf_counter() - started)
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Latency(float(median), (float(low), float(high)), len(times))


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The cells under ``HEADER``."""
    return [
        (
            row.name,
            f"{row.score:.4f}",
            f"{row.equal:.2%}",
            f"{row.difference:.2g}",
            "-" if row.size is None else f"{row.size / 1000:.1f}",
            *(_milliseconds(row.latencies[size]) for size in LATENCY_BATCHES),
        )
        for row in comparison.rows
    ]


def comparison_json(comparison: Comparison, bound: float) -> dict[str, Any]:
    """What ``verify.json`` holds of a comparison: numbers in full, latencies in ms, null for what is not finite."""
    rows = [
        {
            "name": row.name,
            "loss": _finite(row.loss),
            "score": _finite(row.score),
            "equal_predictions": row.equal,
            "largest_difference": _finite(row.difference),
            "examples_unlike_integer": row.other_bits,
            "size_bytes": row.size,
            "latency_ms": {
                str(size): {
                    "median": 1e3 * own.median,
                    "quartiles": [1e3 * q for q in own.quartiles],
                    "calls": own.calls,
                }
                for size, own in row.latencies.items()
            },
        }
        for row in comparison.rows
    ]
    return {
        "examples": comparison.examples,
        "largest_output": _finite(comparison.largest),
        "bound": bound,
        "executions": rows,
        "problems": comparison.problems(bound),
    }


def _milliseconds(found: Latency) -> str:
    low, high = (1e3 * quartile for quartile in found.quartiles)
    return f"{1e3 * found.median:.3g} [{low:.3g}, {high:.3g}]"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
