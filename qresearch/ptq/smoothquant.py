"""SmoothQuant: the channels of a layer's input are scaled, so that outliers move from the input to the kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.errors import ConfigError, DataError
from qresearch.graph import Call
from qresearch.graph.program import Shapes, program_of
from qresearch.graph.rescale import Freedom, find_freedoms, largest, rescale
from qresearch.graph.trace import Function
from qresearch.qmodel import Params

BATCH = 64  # examples that run at once
SMALLEST = 1e-5  # of a scale, as in the authors' code: a channel that is never active must not blow up its producer


def smoothquant(fn: Function, params: Params, x: Any, *, alpha: float = 0.5) -> tuple[Function, Params]:
    """(fn, smoothed params) with fn's outputs unchanged up to rounding.

    Channel j of a layer's input is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) where it is made: in a
    LayerNorm's scale and bias, or in the layer before; the kernel W takes it up. X: the inputs on x, calibration
    examples; layers that read the same input (query, key, value) share s, with W the largest of theirs. alpha: how
    much moves, 0 to 1. A layer whose input is made by neither stays as it is (``smoothed_layers``).
    Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, 2022,
    https://arxiv.org/abs/2211.10438, equation 4. Where we differ: producers are found from the dataflow, so that also
    what follows ReLU, or attention's values, is smoothed; there only what follows a LayerNorm.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"smoothquant's alpha must be between 0 and 1, got {alpha}")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((params, x))):
        raise DataError("smoothquant needs calibration examples to look at: pass arrays")
    places = _nearest(find_freedoms(fn, params, _batch(x, 0)))
    if not places:
        return fn, params
    inputs = _input_ranges(fn, params, x, places)

    def smooth(leaves: list[Array], inputs: list[Array]) -> list[Array]:
        # The last first: what divides a kernel's outputs is done before its own inputs are balanced against it.
        for place, activations in zip(places[::-1], inputs[::-1]):
            leaves = rescale(leaves, place, _factors(leaves, place, activations, alpha))
        return leaves

    leaves, structure = jax.tree.flatten(params)
    return fn, jax.tree.unflatten(structure, jax.jit(smooth)(list(map(jnp.asarray, leaves)), inputs))


def smoothed_layers(fn: Function, params: Params, x: Any) -> tuple[str, ...]:
    """The names of the layers whose inputs ``smoothquant`` scales."""
    places = _nearest(find_freedoms(fn, params, _batch(x, 0)))
    return tuple(consumer.site.base for place in places for consumer in place.consumers)


def _nearest(found: list[Freedom]) -> list[Freedom]:
    """Of the places where the channels of the same layers can be scaled the last, which is nearest to them."""
    return list({tuple(c.site.base for c in place.consumers): place for place in found if place.consumers}.values())


def _factors(
    leaves: list[Array], place: Freedom, activations: Float[Array, "channels"], alpha: float
) -> Float[Array, "channels"]:
    kernels = [consumer.kernel for consumer in place.consumers]
    weights = functools.reduce(
        jnp.maximum, (largest(leaves[part.leaf], part.channel, place.channels) for part in kernels)
    )
    alive = (activations > 0) & (weights > 0)
    factors = jnp.where(alive, activations, 1.0) ** alpha / jnp.where(alive, weights, 1.0) ** (1 - alpha)
    return jnp.where(alive, jnp.maximum(factors, SMALLEST), 1.0)


def _input_ranges(fn: Function, params: Params, x: Any, places: list[Freedom]) -> list[Float[Array, "channels"]]:
    """The largest absolute input of every channel of each place, over all examples."""
    index = {place.consumers[0].site.base: (place.consumers[0].input, place.channels) for place in places}

    def handler(call: Call) -> tuple[Array, Any]:
        own = index.get(call.site.base)
        return call.contract(call.weight, call.input), own and largest(call.input, *own)

    @jax.jit
    def measure(params: Params, x: Any) -> list[Array]:
        aux = program_of(fn, Shapes(params), Shapes(x))[0].run(handler, params, x)[1]
        return [jnp.max(aux[name], axis=0) for name in index]

    starts = range(0, len(jax.tree.leaves(x)[0]), BATCH)
    found = [measure(params, _batch(x, start)) for start in starts]
    return jax.tree.map(lambda *parts: functools.reduce(jnp.maximum, parts), *found)


def _batch(x: Any, start: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[start : start + BATCH], x)
