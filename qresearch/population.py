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
from qresearch.evaluation import Batches, Scores, default_chunk, evaluate
from qresearch.prefixes import evaluate_prefixes, make_tree
from qresearch.prequantized import Prequantized, forward_of, prequantize
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.tasks import Task


def unchanged(inputs: Any) -> Any:
    """The preparation of inputs that need none."""
    return inputs


def evaluate_population(
    model: QuantizedModel,
    params: Params,
    qparams: QParams | MenuQParams | Prequantized,
    allocations: Float[np.ndarray, "n layers 2"],
    batches: Batches,
    task: Task,
    prepare: Prepare = unchanged,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
    share_prefixes: bool = False,
) -> Scores:
    """Loss and score per example of n allocations of one model: [n, example] (see ``Scores``), in one compilation.

    allocations: (weight_bits, input_bits) per layer. qparams: one set for all allocations, or a calibrated menu from
    which each takes the qparams of its widths; a menu's kernels are quantized once, here or before by ``prequantize``.
    chunk: allocations in one program on each device, 1 on CPU and 32 elsewhere by default. share_prefixes: where
    allocations agree in the first layers, these are run once, if that saves a quarter of the work (one device and
    chunk 1 only); programs of parts of the model may round a tie otherwise than the program of the whole.
    """
    bits = np.asarray(allocations, np.float32)
    if bits.ndim != 3 or bits.shape[1:] != (len(model.layers), 2) or not len(bits):
        raise GraphError(f"allocations must have shape [n >= 1, {len(model.layers)}, 2], got {list(bits.shape)}")
    if isinstance(qparams, MenuQParams):
        qparams = prequantize(model, params, qparams)
    if not isinstance(qparams, Prequantized):
        chosen = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(bits), *jnp.shape(leaf))), qparams)
        return evaluate(model.forward, task, prepare, params, (chosen, bits), batches, chunk, on_done)
    if not qparams.serves(bits):  # widths that no table holds, such as learned fractions: quantized in the program
        own = (select_many(qparams.menu, bits), bits)
        return evaluate(model.forward, task, prepare, params, own, batches, chunk, on_done)
    if share_prefixes and jax.device_count() == 1 and (chunk or default_chunk()) == 1:
        tree = make_tree(model, params, bits, batches, prepare)
        if tree.saved >= 0.25:
            return evaluate_prefixes(tree, model, params, qparams, batches, task, prepare, on_done)
    return evaluate(forward_of(model), task, prepare, (params, qparams), bits, batches, chunk, on_done)
