"""Cross-layer equalization: the channels between two layers get equal weight ranges on both sides."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.errors import ConfigError
from qresearch.graph.rescale import Freedom, find_freedoms, largest, rescale
from qresearch.graph.trace import Function
from qresearch.qmodel import Params


def equalize(fn: Function, params: Params, x: Any, *, iterations: int = 20) -> tuple[Function, Params]:
    """(fn, equalized params) with fn's outputs unchanged up to rounding.

    Channel i between a layer and the next ones, with largest absolute weights r1_i and r2_i, is divided by
    s_i = sqrt(r1_i / r2_i) on the way out (kernel and biases) and multiplied by it on the way in, after which both
    ranges are sqrt(r1_i r2_i). ``iterations`` sweeps over all such places, as a layer between two others takes part
    twice. A channel without weights on a side stays. The places are found from the dataflow: whatever positively
    homogeneous functions stand between, and depthwise layers like all others. x: a batch, or its shapes. Fold
    BatchNorm first (``fold_batchnorm``). A layer left out says why in ``why_not_equalized``; a function without such
    places comes back as it is.
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
    https://arxiv.org/abs/1906.04721, section 4.1. Where we differ: several layers may follow (r2 is their largest);
    ReLU6 ends the search, where the paper replaces it by ReLU, which changes the function; high biases are not
    absorbed, which changes it too.
    """
    if iterations < 1:
        raise ConfigError(f"equalize needs at least 1 iteration, got {iterations}")
    places = [place for place in find_freedoms(fn, params, x) if place.layer is not None and place.consumers]
    if not places:
        return fn, params

    def sweep(_: Any, leaves: list[Array]) -> list[Array]:
        for place in places:
            leaves = rescale(leaves, place, _factors(leaves, place))
        return leaves

    leaves, structure = jax.tree.flatten(params)
    equalized = jax.jit(lambda leaves: jax.lax.fori_loop(0, iterations, sweep, leaves))(list(map(jnp.asarray, leaves)))
    return fn, jax.tree.unflatten(structure, equalized)


def why_not_equalized(fn: Function, params: Params, x: Any) -> dict[str, str]:
    """The reason, by name, for every layer outside scans whose output channels keep their scales."""
    found = find_freedoms(fn, params, x)
    return {place.layer.base: place.why_not for place in found if place.layer is not None and place.why_not}


def _factors(leaves: list[Array], place: Freedom) -> Float[Array, "channels"]:
    assert place.divided is not None
    parts = [place.divided, *(consumer.kernel for consumer in place.consumers)]
    made, *used = (largest(leaves[part.leaf], part.channel, place.channels) for part in parts)
    met = functools.reduce(jnp.maximum, used)
    alive = (made > 0) & (met > 0)
    return jnp.where(alive, jnp.sqrt(jnp.where(alive, made, 1.0) / jnp.where(alive, met, 1.0)), 1.0)
