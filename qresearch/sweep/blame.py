"""What gives a loss that is not finite to a quantized model that nobody trained: the float model, or quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qresearch.evaluation import Batches, Forward, evaluate
from qresearch.models import Model, Variables
from qresearch.qmodel import QParams, QuantizedModel
from qresearch.sweep.assemble import Setup
from qresearch.sweep.bench import Bench
from qresearch.sweep.outcome import FLOAT_BITS, Outcome, not_finite
from qresearch.units import site_text

_NAMED = 3  # sites in a message; mostly all of a model are alike


def blamed(bench: Bench, outcome: Outcome, key: str, variables: Variables, qparams: Callable[[], QParams]) -> Outcome:
    """The outcome of the quantized float model ``key``, which says what gives it a loss that is not finite if the float
    model's own loss is finite on the same split. variables: the float model's. qparams: gives those of the outcome.
    """
    found = not_finite(outcome)
    if found is None or outcome.failure is not None:
        return outcome
    split, reason = found
    if (key, split) not in bench.finite:
        bench.finite[key, split] = _is_finite(bench.setup, variables, getattr(bench, split))
    if not bench.finite[key, split]:
        return outcome
    model = bench.model(key, variables)
    why = unsound(model, qparams(), outcome.bits) or (
        f"a quantizer or a post-training method gives it: {', '.join(_names(model, outcome))}"
    )
    return outcome._replace(failure=f"{reason}; the float model's loss is finite, so {why}")


def unsound(model: QuantizedModel, qparams: QParams, bits: np.ndarray) -> str:
    """Which quantizers gave qparams that are not finite, and where, in words; "" if none did. Of sites at 0 or 32 bits
    nothing is used.
    """
    sites = [
        site_text(unit, operand)
        for unit, row in zip(model.units, np.asarray(bits))
        for operand, width in zip(("weight", "input"), row)
        if 0 < width < FLOAT_BITS and not _all_finite(qparams[unit.layer.name][operand])
    ]
    more = f" and {len(sites) - _NAMED} more" if len(sites) > _NAMED else ""
    return f"qparams that are not finite give it: quantizer {', '.join(sites[:_NAMED])}{more}" if sites else ""


def _names(model: QuantizedModel, outcome: Outcome) -> Sequence[str]:
    rules = [site for unit in model.units for site in (unit.rule.weight, unit.rule.input) if site is not None]
    return list(dict.fromkeys([*(site.quantizer for site in rules), *(method.name for method in outcome.config.ptq)]))


def _all_finite(tree: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(tree))


def _is_finite(setup: Setup, variables: Variables, batches: Batches) -> bool:
    """Whether the float model itself, with no quantizer in it, has a finite loss on every example."""
    alone = np.zeros((1, 0), np.float32)  # a population of one, with nothing of its own
    scores = evaluate(_forward(setup.model), setup.task, setup.data.prepare, variables, alone, batches, chunk=1)
    return bool(np.isfinite(scores.loss).all())


@functools.lru_cache(maxsize=8)
def _forward(model: Model) -> Forward:
    return lambda shared, own, x: model.apply(shared, x)
