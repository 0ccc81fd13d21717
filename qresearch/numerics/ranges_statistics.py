"""Ranges from statistics of the values alone: they do not depend on the bit-width."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.range_method import Range, RangeMethod, sample

MOMENTUM = 0.9  # of the moving average; torch's observer has 0.99 a batch, TensorFlow's 0.999, both for long streams
SUB_BATCHES = 16  # after which the first one still weighs 0.9^15 = 0.21


def minmax_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """The smallest and largest value, zero included. No value is clipped; one outlier sets the scale."""
    x = x.astype(jnp.float32)
    return _around_zero(jnp.min(x, axis=axes, keepdims=True), jnp.max(x, axis=axes, keepdims=True), signed, symmetric)


def absmax_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """The largest magnitude on both sides of zero: min-max for symmetric signed grids, mirrored for affine ones."""
    bound = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)
    return _around_zero(-bound, bound, signed, symmetric)


def moving_average_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """The exponential moving averages of min and max over sub-batches: m_0, then 0.9 m + 0.1 new.

    The sub-batches are up to 16 equal parts of the leading axis (of the first one along which elements share a scale),
    in order; the last may be smaller. Outliers of one sub-batch are averaged down, so that values can be clipped.
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018,
    https://arxiv.org/abs/1712.05877, section 3.1. Where we differ: 0.9 for a few sub-batches, not 0.99 for thousands.
    """
    x = x.astype(jnp.float32)
    if not axes:
        return minmax_range(x, bits, axes, signed, symmetric, narrow)
    lead, others = axes[0], axes[1:]
    lows, highs = (reduce(x, axis=others, keepdims=True) for reduce in (jnp.min, jnp.max))
    low = _averaged(_parts(lows, lead).min(1), lead, lows.ndim)
    high = _averaged(_parts(highs, lead).max(1), lead, highs.ndim)
    return _around_zero(low, high, signed, symmetric)


def percentile_range(percentile: float = 99.9) -> RangeMethod:
    """The range between the percentiles 100 - ``percentile`` and ``percentile``, zero included.

    A per-tensor range of more than 262,144 elements is taken from an evenly strided sample.
    Wu et al., Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation, 2020,
    https://arxiv.org/abs/2004.09602. Where we differ: both tails are cut, theirs is the percentile of |x|, so that a
    symmetric range keeps 0.1 % on each side instead of on both together.
    """
    upper = percentile / 100.0

    def method(
        x: Array, bits: Array | float, axes: tuple[int, ...], signed: bool, symmetric: bool, narrow: bool
    ) -> Range:
        ends = jnp.asarray([1.0 - upper, upper], jnp.float32)
        low, high = jnp.quantile(sample(x.astype(jnp.float32), axes), ends, axis=axes, keepdims=True)
        return _around_zero(low, high, signed, symmetric)

    method.__doc__ = percentile_range.__doc__
    return method


def _around_zero(low: Array, high: Array, signed: bool, symmetric: bool) -> Range:
    """The range with zero in it; an unsigned symmetric grid begins there."""
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    return (low if signed or not symmetric else jnp.zeros_like(high)), high


def _parts(x: Array, axis: int) -> Array:
    """x as [parts, elements, ...] along ``axis``. The last part is filled with its own last element."""
    x = jnp.moveaxis(x, axis, 0)
    length = -(-x.shape[0] // SUB_BATCHES)
    x = jnp.pad(x, [(0, -x.shape[0] % length), *[(0, 0)] * (x.ndim - 1)], mode="edge")
    return x.reshape(-1, length, *x.shape[1:])


def _averaged(parts: Array, axis: int, ndim: int) -> Array:
    """The moving average after the last of ``parts`` [parts, ...], with a one put back at ``axis``."""
    age = jnp.arange(len(parts) - 1, -1, -1, dtype=jnp.float32)
    weights = MOMENTUM**age * jnp.where(jnp.arange(len(parts)) > 0, 1.0 - MOMENTUM, 1.0)
    return jnp.expand_dims(jnp.sum(parts * weights.reshape(-1, *[1] * (ndim - 1)), axis=0), axis)
