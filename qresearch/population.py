"""A population of allocations through one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qresearch.calibration import MenuQParams, select_many
from qresearch.data.dataset import Prepare
from qresearch.errors import GraphError
from qresearch.evaluation import Batches, Scores, evaluate
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.tasks import Task


def unchanged(inputs: Any) -> Any:
    """The preparation of inputs that need none."""
    return inputs


def evaluate_population(
    model: QuantizedModel,
    params: Params,
    qparams: QParams | MenuQParams,
    allocations: Float[np.ndarray, "n layers 2"],
    batches: Batches,
    task: Task,
    prepare: Prepare = unchanged,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Scores:
    """Loss and score per example of n allocations of one model: [n, example] (see ``Scores``), in one compilation.

    allocations: (weight_bits, input_bits) per layer. qparams: one set for all allocations, or a calibrated menu from
    which each takes the qparams of its widths. chunk: allocations in one program, 1 on CPU and 32 elsewhere by default.
    """
    bits = np.asarray(allocations, np.float32)
    if bits.ndim != 3 or bits.shape[1:] != (len(model.layers), 2) or not len(bits):
        raise GraphError(f"allocations must have shape [n >= 1, {len(model.layers)}, 2], got {list(bits.shape)}")
    if isinstance(qparams, MenuQParams):
        chosen = select_many(qparams, bits)
    else:
        chosen = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(bits), *jnp.shape(leaf))), qparams)
    return evaluate(model.forward, task, prepare, params, (chosen, bits), batches, chunk, on_done)
