"""How far the outputs move when one layer alone is quantized: no targets are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qresearch.evaluation import Batches
from qresearch.population import evaluate_population
from qresearch.sensitivities.subject import Sensitivity, Subject
from qresearch.tasks.task import Divergence, Task


def outputs_moved(subject: Subject, divergence: Divergence) -> Sensitivity:
    """The mean over examples of ``divergence(outputs, float outputs)`` for every pair; no targets are needed."""
    model, params, qparams, batches, task, prepare, chunk, on_done = subject
    rows = subject.one_at_a_time()
    in_float = jnp.asarray(rows[-1])
    run = jax.jit(lambda params, x: model.apply(params, subject.qparams_at(32.0), prepare(x), in_float))
    reference = jnp.stack([run(params, x) for x in batches.inputs])
    moved = _as_task(divergence)
    apart = Batches(batches.inputs, reference, batches.examples)
    found = evaluate_population(model, params, qparams, rows[:-1], apart, moved, prepare, chunk, on_done, True).loss
    losses = jax.jit(jax.vmap(task.loss))(reference, batches.targets)
    float_loss = np.asarray(losses, np.float64).reshape(-1)[: batches.examples].mean()
    return subject.table(found.astype(np.float64), float(float_loss))


@functools.cache
def _as_task(divergence: Callable[[Array, Array], Array]) -> Task:
    """A task whose targets are the float model's outputs; one object, so that equal calls share their program."""
    return Task(loss=divergence, score=divergence, score_name="divergence", higher_is_better=False)
