"""The losses that the sensitivity posterior is fitted to, measured through the population evaluator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qresearch.allocation.bayes.measurements import Measurements, unit_of
from qresearch.allocation.problem import draw_options
from qresearch.calibration import MenuQParams
from qresearch.data.dataset import Prepare
from qresearch.errors import ConfigError, DataError
from qresearch.evaluation import Batches
from qresearch.population import evaluate_population, unchanged
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.sensitivities.subject import Subject
from qresearch.tasks import Task


def measure_losses(
    model: QuantizedModel,
    params: Params,
    qparams: QParams | MenuQParams,
    batches: Batches,
    task: Task,
    prepare: Prepare = unchanged,
    joint: int = 96,
    parts: int = 8,
    seed: int = 0,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Measurements:
    """Losses of single layers per part of the examples, and of ``joint`` random allocations of all layers together.

    single[part, layer, option]: the mean increase over the float model's loss, +inf where the layer may not take the
    option. Every layer of a joint allocation draws uniformly from its menu; its loss is over all examples. parts: how
    many (of equal size, but for a rest) the examples are cut into, at least 2, so that the noise of a batch shows.
    One compiled program serves them all; ``on_done`` is called with the number of single-layer losses finished.
    ``DataError`` where the float model's loss is not finite.
    """
    subject = Subject(model, params, qparams, batches, task, prepare, chunk, on_done)
    rows = subject.one_at_a_time()
    pairs, options = subject.pairs(), np.asarray(subject.options, np.float32)
    allowed = np.zeros((len(rows[0]), len(options)), bool)
    allowed[tuple(np.transpose(pairs))] = True
    drawn = draw_options(np.random.default_rng(seed), allowed, joint)
    if not 2 <= parts <= batches.examples:
        raise ConfigError(f"parts must be from 2 to the number of examples, {batches.examples}, got {parts}")
    alone = evaluate_population(model, params, qparams, rows, batches, task, prepare, chunk, on_done, True).loss
    together = evaluate_population(model, params, qparams, options[drawn], batches, task, prepare, chunk).loss
    alone = alone.astype(np.float64)
    if not np.isfinite(alone[-1]).all():
        raise DataError("the float model's loss is not finite on these examples, so nothing can be compared with it")
    single = np.full((parts, *allowed.shape), np.inf)
    for i, part in enumerate(np.array_split(alone[:-1] - alone[-1], parts, axis=1)):
        single[i][tuple(np.transpose(pairs))] = part.mean(axis=1)
    return Measurements(
        single, drawn, together.mean(axis=1, dtype=np.float64), (alone[-1].mean(), 0.0), unit_of(single)
    )
