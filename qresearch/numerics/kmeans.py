"""K-means on the line, with a traced number of clusters: the levels of a codebook."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qresearch.numerics.search import count_below

ITERATIONS = 60  # Lloyd's steps: 16 levels of a normal then have an error within 0.1 % of the optimal quantizer's
BINS = 1024
SAMPLE = 2**17  # elements: a level of 256 is then the mean of about 500 of them


def thresholds(levels: Float[Array, " size"], count: Int[Array, ""]) -> Float[Array, " size-1"]:
    """The midpoints between the first ``count`` levels, which ascend; infinity from there on: no value is beyond."""
    middle = (levels[1:] + levels[:-1]) / 2.0
    return jnp.where(jnp.arange(middle.size) < count - 1, middle, jnp.inf)


def kmeans_levels(x: Float[Array, "..."], count: Int[Array, ""], size: int) -> Float[Array, " size"]:
    """``count`` levels that locally minimise the squared distance to x, ascending; the other ``size - count`` are 0.

    Lloyd, Least Squares Quantization in PCM, 1982. They start where the density's cube root is divided evenly, which is
    optimal for many levels (Panter and Dite, 1951); a level that no element is nearest to stays where it is. More than
    131,072 elements are sampled at an even stride, coprime with their number.
    """
    x = _sample(x.astype(jnp.float32).reshape(-1))

    def lloyd(_: int, levels: Array) -> Array:
        nearest = count_below(thresholds(levels, count), x)
        sums = jax.ops.segment_sum(x, nearest, size)
        members = jax.ops.segment_sum(jnp.ones_like(x), nearest, size)
        return jnp.where(members > 0.0, sums / jnp.maximum(members, 1.0), levels)

    levels = jax.lax.fori_loop(0, ITERATIONS, lloyd, _start(x, count, size))
    return jnp.where(jnp.arange(size) < count, levels, 0.0)


def _start(x: Array, count: Array, size: int) -> Array:
    low, high = jnp.min(x), jnp.max(x)
    width = jnp.maximum(high - low, 1e-30) / BINS  # of a constant tensor too
    bins = jnp.clip((x - low) / width, 0, BINS - 1).astype(jnp.int32)
    density = jnp.cbrt(jax.ops.segment_sum(jnp.ones_like(x), bins, BINS))
    share = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(density)]) / jnp.sum(density)
    wanted = (jnp.arange(size, dtype=jnp.float32) + 0.5) / count.astype(jnp.float32)
    return jnp.interp(wanted, share, low + width * jnp.arange(BINS + 1, dtype=jnp.float32))


def _sample(x: Array) -> Array:
    stride = max(math.ceil(x.size / SAMPLE), 1)
    while math.gcd(stride, x.size) > 1:
        stride += 1
    return x[::stride]
