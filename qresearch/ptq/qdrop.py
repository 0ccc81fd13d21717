"""QDrop: block reconstruction in which elements of the inputs are left in float at random."""

from __future__ import annotations

from jaxtyping import Array

from qresearch.ptq.optimise import Recipe
from qresearch.ptq.reconstruction import Objective, reconstruct_segments
from qresearch.ptq.state import Method, Quantized


def qdrop(
    *,
    iterations: int = 2000,
    batch: int = 32,
    learning_rate: float = 1e-2,
    warmup: float = 0.2,
    weight: float = 0.01,
    range_rate: float = 1e-3,
    drop: float = 0.5,
    fisher: bool = False,
) -> Method:
    """``brecq`` in which elements of all inputs stay in float at random, with probability ``drop`` in every step.

    Inputs of the block and of its layers: the rounding that is found serves more than one quantization of them.

    Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, 2022,
    https://arxiv.org/abs/2203.05740. Where we differ: 2,000 iterations instead of 20,000.
    """
    recipe, objective = Recipe(iterations, batch, learning_rate, warmup, weight), Objective(fisher, drop, range_rate)

    def method(quantized: Quantized, key: Array) -> Quantized:
        return reconstruct_segments(quantized, recipe, objective, key)

    return method
