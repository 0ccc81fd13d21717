"""AdaRound: every weight is rounded down or up so that its layer's output stays what it was."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.graph.contract import contraction_of
from qresearch.programs import run
from qresearch.ptq.optimise import Recipe, beta_at, minimise
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.soft_rounding import Grid, indecision, is_rounded, rounded, soft, start, weight_grid
from qresearch.ptq.state import Method, Quantized, with_kernel
from qresearch.qmodel import QParams


def adaround(
    *, iterations: int = 2000, batch: int = 32, learning_rate: float = 1e-2, warmup: float = 0.2, weight: float = 0.01
) -> Method:
    """Adaptive rounding, layer by layer: min ‖contract(W̃, x̂) - contract(W, x)‖² + λ Σ(1 - |2h - 1|^β).

    W̃ = s clip(⌊W/s⌋ + h(V), qmin, qmax) with h from ``soft_rounding``; x̂ are the inputs after the layers before it are
    quantized (its own input's quantizer included), x the float ones. β falls from 20 to 2 after the warmup. At the end
    h is rounded. Scales stay as they were calibrated.
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020, https://arxiv.org/abs/2004.10568.
    Where we differ: 2,000 iterations of 32 examples instead of 10,000 to 20,000; no activation function inside the
    objective (``brecq`` has them, over blocks).
    """
    recipe = Recipe(iterations, batch, learning_rate, warmup, weight)

    def method(quantized: Quantized, key: Array) -> Quantized:
        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            own, bits = qparams[layer.unit.layer.name], quantized.bits[layer.row]
            if not is_rounded(layer.unit, bits):
                return own
            kernel = reconstruct(layer, own, bits, recipe, jax.random.fold_in(key, layer.row))
            return with_kernel(own, kernel)

        return quantized._replace(qparams=visit_layers(quantized, visit))

    return method


def reconstruct(
    layer: Layer, own: dict[str, Any], bits: Float[Array, "2"], recipe: Recipe, key: Array
) -> Float[Array, "..."]:
    """The kernel of one layer, on its grid, whose output on x̂ is nearest to the float one on x."""
    unit, shape = layer.unit, layer.weight.shape
    grid = weight_grid(unit, own["weight"], layer.weight, bits[0])
    contract = contraction_of(unit.layer.contraction)
    inputs = layer.quantized_inputs(own, bits)
    targets = run(contract, layer.float_weight, layer.float_inputs)
    channels = targets.shape[-1]

    def loss(logits: Array, grid: Grid, batch: tuple[Array, Array], progress: Array, key: Array) -> Array:
        x, y = batch
        error = contract(rounded(grid, soft(logits), shape), x) - y
        decided = jnp.where(progress < recipe.warmup, 0.0, indecision(logits, beta_at(progress, recipe.warmup)))
        return channels * jnp.mean(error * error) + recipe.weight * decided

    rates = jnp.float32(recipe.learning_rate)
    logits = minimise(loss, start(grid), grid, (inputs, targets), recipe, rates, key)
    return rounded(grid, (soft(logits) >= 0.5).astype(jnp.float32), shape)
