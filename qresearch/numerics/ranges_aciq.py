"""ACIQ: the clip of least expected error under a Laplace or normal distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float

from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.moments import mean_and_deviation
from qresearch.numerics.range_method import Range
from qresearch.numerics.ranges_statistics import minmax_range
from qresearch.numerics.rounding import in_steps

LARGEST = 64.0  # deviations; the clips of 32 bits are 41.8 (Laplace) and 9.0 (normal)
HALVINGS = 36  # of the interval up to LARGEST: to the last bit of a float32


def laplace_clip(bits: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """α / b, the clip at ``bits`` bits of Laplace(0, b): minimises 2 e^-α + α² / (3 4^bits).

    The first term is the error of the clipped elements, the second that of 2^bits equal bins over [-α, α]. The
    derivative is zero where α + ln α = ln(3 4^bits).
    """
    bits = jnp.asarray(bits, jnp.float32)
    return _largest(lambda alpha: alpha + jnp.log(alpha) < math.log(3.0) + bits * math.log(4.0), bits)


def gauss_clip(bits: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """α / σ, the clip at ``bits`` bits of N(0, σ²): minimises 2 [(α² + 1) Q(α) - α φ(α)] + α² / (3 4^bits).

    Its derivative is zero where φ(α) - α Q(α) = α / (6 4^bits), φ and Q being the normal density and upper tail.
    """
    bits = jnp.asarray(bits, jnp.float32)
    quarter = jnp.float32(0.25) ** bits / 6.0
    return _largest(lambda alpha: norm.pdf(alpha) - alpha * norm.sf(alpha) > alpha * quarter, bits)


def aciq_laplace_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """μ ± α b cut to min and max, with b = mean|x - μ| and α = ``laplace_clip(bits)``.

    Banner et al., Post training 4-bit quantization of convolutional networks for rapid-deployment, 2019,
    https://arxiv.org/abs/1810.05723. An unsigned symmetric grid is their ReLU case: half a distribution around 0 has
    bins of half the width, which is the clip of one bit more. There b is the mean of the positive elements: for the
    ReLU of Laplace data it is the b of the data before the ReLU (public code takes mean|x - μ| after it, 0.61 b).
    Where we differ: the equation is solved for the traced width instead of read from a table of 1 to 8 bits; an affine
    grid over data of one sign is treated as any other (public code has a switch for it).
    """
    if signed or not symmetric:
        mean, _ = mean_and_deviation(x, axes)
        reach = laplace_clip(clamp_bits(bits)) * mean_magnitude(x.astype(jnp.float32) - mean, axes)
    else:
        mean = jnp.zeros((), jnp.float32).reshape([1] * x.ndim)
        reach = laplace_clip(clamp_bits(bits) + 1.0) * mean_magnitude(x, axes, x > 0)
    return _cut(minmax_range(x, bits, axes, signed, symmetric, narrow), mean, reach)


def aciq_gauss_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """μ ± α σ cut to min and max, with σ the standard deviation and α = ``gauss_clip(bits)``.

    As ``aciq_laplace_range``; on an unsigned symmetric grid σ is the root mean square of the positive elements, which
    is the σ of normal data before a ReLU.
    """
    if signed or not symmetric:
        mean, deviation = mean_and_deviation(x, axes)
        reach = gauss_clip(clamp_bits(bits)) * deviation
    else:
        mean = jnp.zeros((), jnp.float32).reshape([1] * x.ndim)
        reach = gauss_clip(clamp_bits(bits) + 1.0) * _root_mean_square(x.astype(jnp.float32), axes, x > 0)
    return _cut(minmax_range(x, bits, axes, signed, symmetric, narrow), mean, reach)


def _largest(holds: Callable[[Array], Array], like: Array) -> Array:
    """The largest number up to LARGEST for which a condition holds that holds below it and not above: bisection."""

    def halve(_: int, ends: Range) -> Range:
        middle = (ends[0] + ends[1]) / 2.0
        low = holds(middle)
        return jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)

    return jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(like), jnp.full_like(like, LARGEST)))[0]


def _cut(ends: Range, mean: Array, reach: Array) -> Range:
    """The part of the min-max range ``ends`` within ``reach`` of the mean, zero included."""
    low, high = jnp.maximum(ends[0], mean - reach), jnp.minimum(ends[1], mean + reach)
    return jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)


def _root_mean_square(x: Array, axes: tuple[int, ...], kept: Bool[Array, "..."]) -> Array:
    """Over the kept elements. The largest is divided out first: squares of 1e30 are infinite."""
    x = jnp.where(kept, x, 0.0)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    parts = in_steps(x, jnp.where(largest > 0.0, largest, 1.0))
    count = jnp.maximum(jnp.sum(kept.astype(jnp.float32), axis=axes, keepdims=True), 1.0)
    return largest * jnp.sqrt(jnp.sum(parts * parts, axis=axes, keepdims=True) / count)
