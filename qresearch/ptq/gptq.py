"""GPTQ: weights are rounded one input at a time, and those still to come make up for the error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.graph.contract import as_matrices
from qresearch.programs import run
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.soft_rounding import Grid, is_rounded, weight_grid
from qresearch.ptq.state import Method, Quantized, with_kernel
from qresearch.qmodel import QParams


def gptq(*, damping: float = 0.01, act_order: bool = True) -> Method:
    """Optimal brain quantization with a fixed order, layer by layer: min ‖(W̃ - W)ᵀ x̂‖² over rounded W̃.

    With H = x̂ᵀx̂ + damping mean(diag) I over the calibration rows x̂ (quantized inputs; patches of a convolution) and the
    upper Cholesky factor U of H⁻¹: for every input i, W̃ᵢ = round(Wᵢ), Wⱼ -= Uᵢⱼ (Wᵢ - W̃ᵢ) / Uᵢᵢ for the j after i.
    ``act_order``: inputs in the order of falling diag(H). Scales, also those of groups, stay as they were calibrated.
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023,
    https://arxiv.org/abs/2210.17323. Where we differ: no blocks of lazy updates, which change nothing but speed.
    """

    def method(quantized: Quantized, key: Array) -> Quantized:
        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            own, bits = qparams[layer.unit.layer.name], quantized.bits[layer.row]
            if not is_rounded(layer.unit, bits):
                return own
            grid = weight_grid(layer.unit, own["weight"], layer.weight, bits[0])
            return with_kernel(own, round_layer(layer, grid, layer.quantized_inputs(own, bits), damping, act_order))

        return quantized._replace(qparams=visit_layers(quantized, visit))

    return method


def round_layer(
    layer: Layer, grid: Grid, inputs: Float[Array, "examples ..."], damping: float, act_order: bool
) -> Float[Array, "..."]:
    """The kernel of one layer, rounded on its grid; every group of its contraction on its own."""
    matrices = as_matrices(layer.unit.layer.contraction)
    shape, view = layer.weight.shape, grid.down.shape
    scale, zero_point = (matrices.split(jnp.broadcast_to(part, view).reshape(shape)) for part in grid[2:4])
    rows = matrices.rows(inputs.astype(jnp.float32))
    hessian = jnp.einsum("gnf,gnh->gfh", rows, rows, precision="highest")

    def solve(qmin: Array, qmax: Array, *groups: Array) -> Array:
        return jax.vmap(lambda w, h, s, z: _round(w, h, s, z, qmin, qmax, damping, act_order))(*groups)

    return matrices.join(run(solve, grid.qmin, grid.qmax, matrices.split(layer.weight), hessian, scale, zero_point))


def _round(
    weight: Array,
    hessian: Array,
    scale: Array,
    zero_point: Array,
    qmin: Array,
    qmax: Array,
    damping: float,
    act_order: bool,
) -> Array:
    """weight, scale, zero_point: [fan_in, channels]; hessian: [fan_in, fan_in]."""
    diagonal = jnp.diag(hessian)
    idle = diagonal <= 0.0  # an input that is always zero: any weight will do, and rounding is as good as any
    hessian = hessian + jnp.diag(jnp.where(idle, 1.0, 0.0) + damping * jnp.mean(diagonal))
    order = jnp.argsort(-diagonal) if act_order else jnp.arange(len(diagonal))
    upper = jnp.linalg.cholesky(jnp.linalg.inv(hessian[order][:, order]), upper=True)
    weight, scale, zero_point = weight[order], scale[order], zero_point[order]
    pruned = weight == 0.0  # and stays so

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, rounded = state
        codes = jnp.clip(jnp.round(weight[i] / scale[i]) + zero_point[i], qmin, qmax)
        value = jnp.where(pruned[i], 0.0, (codes - zero_point[i]) * scale[i])
        error = (weight[i] - value) / upper[i, i]
        later = jnp.arange(len(weight)) > i
        weight = weight - jnp.outer(jnp.where(later, upper[i], 0.0), error)
        return weight, rounded.at[i].set(value)

    _, rounded = jax.lax.fori_loop(0, len(weight), step, (weight, jnp.zeros_like(weight)))
    return jnp.zeros_like(rounded).at[order].set(rounded)
