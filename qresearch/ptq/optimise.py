"""The inner loop of reconstruction: Adam on random batches, one compiled program for problems of equal shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from qresearch.programs import compiled


class Recipe(NamedTuple):
    """iterations of Adam on ``batch`` examples; the rounding is free for the first ``warmup`` share, then β falls from
    20 to 2. weight: of the rounding regulariser.
    """

    iterations: int = 2000
    batch: int = 32
    learning_rate: float = 1e-2
    warmup: float = 0.2
    weight: float = 0.01


def minimise(
    loss: Callable[[Any, Any, Any, Float[Array, ""], Array], Float[Array, ""]],
    learned: Any,
    constants: Any,
    examples: Any,
    recipe: Recipe,
    rates: Any,
    key: Array,
) -> Any:
    """``learned`` after Adam on loss(learned, constants, batch of examples, progress in [0, 1], key).

    rates: a learning rate for every leaf of learned. examples: arrays [examples, ...], of which every step draws a
    batch. The step is compiled once for all problems that lower to the same text, whatever layer they come from.
    """
    optimiser = optax.scale_by_adam()
    count = len(jax.tree.leaves(examples)[0])

    def step(
        learned: Any, state: Any, constants: Any, examples: Any, rates: Any, position: Array, key: Array
    ) -> tuple[Any, Any]:
        draw, inner = jax.random.split(jax.random.fold_in(key, position))
        index = jax.random.randint(draw, (min(recipe.batch, count),), 0, count)
        batch = jax.tree.map(lambda array: array[index], examples)
        progress = position.astype(jnp.float32) / recipe.iterations
        gradient = jax.grad(loss)(learned, constants, batch, progress, inner)
        update, state = optimiser.update(gradient, state)
        return jax.tree.map(lambda leaf, rate, change: leaf - rate * change, learned, rates, update), state

    state, examples = optimiser.init(learned), jax.tree.map(jnp.asarray, examples)
    run = compiled(step, (learned, state, constants, examples, rates, jnp.int32(0), key))
    for position in range(recipe.iterations):
        learned, state = run(learned, state, constants, examples, rates, jnp.int32(position), key)
    return learned


def beta_at(progress: Float[Array, ""], warmup: float) -> Float[Array, ""]:
    """β of the rounding regulariser: 20 until ``warmup``, then a half cosine down to 2."""
    rest = jnp.clip((progress - warmup) / (1.0 - warmup), 0.0, 1.0)
    return 2.0 + 9.0 * (1.0 + jnp.cos(jnp.pi * rest))
