"""BRECQ: the rounding of a whole block is learned at once, with errors weighted by what they do to the loss."""

from __future__ import annotations

from jaxtyping import Array

from qresearch.ptq.optimise import Recipe
from qresearch.ptq.reconstruction import Objective, reconstruct_segments
from qresearch.ptq.state import Method, Quantized


def brecq(
    *,
    iterations: int = 2000,
    batch: int = 32,
    learning_rate: float = 1e-2,
    warmup: float = 0.2,
    weight: float = 0.01,
    range_rate: float = 1e-3,
    fisher: bool = True,
) -> Method:
    """Block reconstruction: min Σ F (block(W̃, x̂) - block(W, x))² + λ Σ(1 - |2h - 1|^β), block after block.

    W̃ as in ``adaround``; blocks are the segments of the graph (residual blocks, where there are any); x̂ is what the
    quantized blocks before it give, x the float input; F are squared gradients of the loss (``output_importance``).
    The ranges of inputs are learned along, as the factor exp(f), where the paper does so after the weights.
    Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, 2021,
    https://arxiv.org/abs/2102.05426. Where we differ: the gradients are those of the data's targets instead of a
    divergence from the float outputs; 2,000 iterations instead of 20,000.
    """
    recipe, objective = Recipe(iterations, batch, learning_rate, warmup, weight), Objective(fisher, 0.0, range_rate)

    def method(quantized: Quantized, key: Array) -> Quantized:
        return reconstruct_segments(quantized, recipe, objective, key)

    return method
