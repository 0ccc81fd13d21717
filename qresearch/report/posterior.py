"""What searches believe of their answers: the probability of every option in every layer, and bands of losses."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qresearch.report.front import Point
from qresearch.results.record import Record

HEADER = (
    "trial",
    "seed",
    "P(optimal)",
    "regret",
    "loss",
    "50 % band",
    "90 % band",
    "divergent",
    "r-hat",
    "draws",
    "least p",
)
LEVELS = ("5 %", "25 %", "50 %", "75 %", "95 %")  # the quantiles in records
ABOUT = (
    "Of the allocation of least expected loss: the probability that no other within the budget loses less; by how much,"
    " in expectation, the best one does; its validation loss, median and bands. Of the sampler: the share of divergent"
    " draws, r-hat (1 where chains agree), how many independent draws the worst known unknown has; of the model: the"
    " least posterior predictive p-value (below 0.01, measurements contradict it)."
)


class Belief(NamedTuple):
    """What one trial's search believes. probabilities: {operand: {layer: {option: P}}}, the operand "" where an option
    is of weight and input together. posterior: what its record has of a posterior, or empty.
    """

    label: str
    record: Record
    probabilities: Mapping[str, Mapping[str, Mapping[str, float]]]
    posterior: Mapping[str, Any]


def beliefs(points: Sequence[Point]) -> list[Belief]:
    """The beliefs in the records of these points, those of the first seed of each."""
    firsts = ((point.label, min(point.records, key=lambda record: record.seed)) for point in points)
    return [belief for label, record in firsts if (belief := belief_of(label, record)) is not None]


def belief_of(label: str, record: Record) -> Belief | None:
    """The belief in a record; None where its bits were not searched for, or nothing is said of how sure that is."""
    taken = record.metrics.get("search", {})
    if posterior := taken.get("posterior"):
        return Belief(label, record, {"": posterior["probabilities"]}, posterior)
    if shares := taken.get("shares"):
        operands = {
            operand: {layer: both[operand] for layer, both in shares.items() if len(both[operand]) > 1}
            for operand in ("weight", "input")
        }
        return Belief(label, record, {name: own for name, own in operands.items() if own}, {})
    return None


def posterior_rows(found: Sequence[Belief]) -> list[tuple[str, ...]]:
    """The cells under ``HEADER``, of the beliefs that have bands."""
    rows: list[tuple[str, ...]] = []
    for belief in found:
        own = belief.posterior
        if "loss" not in own:
            continue
        low, first, median, third, high = (f"{own['loss'][level]:.4g}" for level in LEVELS)
        told = own["diagnostics"]
        least = min(told["single_p"], told["joint_p"], told["trend_p"])
        cells = (f"{own['optimal']:.2f}", f"{own['regret']:.3g}", median, f"{first} to {third}", f"{low} to {high}")
        sampler = (f"{told['divergent']:.1%}", f"{told['r_hat']:.3f}", f"{told['samples']:.0f}", f"{least:.3f}")
        rows.append((belief.label, str(belief.record.seed), *cells, *sampler))
    return rows


def probabilities_csv(found: Sequence[Belief]) -> str:
    """Every probability in one row: trial, seed, operand, layer, option, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trial", "seed", "operand", "layer", "option", "probability"))
    writer.writerows(_cells(found))
    return text.getvalue()


def _cells(found: Sequence[Belief]) -> Iterator[tuple[Any, ...]]:
    for belief in found:
        for operand, layers in belief.probabilities.items():
            for layer, options in layers.items():
                for option, share in options.items():
                    yield belief.label, belief.record.seed, operand or "both", layer, option, f"{share:.6g}"
