"""KL calibration: the clip whose quantized histogram is nearest to the histogram of the values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.range_method import Range, sample
from qresearch.numerics.ranges_statistics import minmax_range
from qresearch.numerics.rounding import in_steps

BINS = 2048
STRIDE = 16  # candidate clips are every 16th bin edge, 0.8 % of the maximum apart; NVIDIA's code tries all of them


def entropy_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """The min-max range cut at ±T: of 128 candidates the T of least KL(P || Q), for histograms of |x| in 2,048 bins.

    P is the histogram up to T, with all beyond in its last bin. Q is the histogram up to T merged into as many equal
    levels as the grid has on one side (2^(b-1) signed, 2^b unsigned), each spread over its bins that are not empty.
    As in NVIDIA's code, the first bin counts as many as the second: zeros are exact at any T.
    Migacz, 8-bit Inference with TensorRT, 2017, and the calibrator of https://github.com/NVIDIA/TensorRT.
    Where we differ: candidates are every 16th bin edge, and no fewer bins than levels; 2,048 levels or more give
    min-max. Q is at least half an element a bin, not 0: KL would be infinite, and small tensors without candidates. An
    affine grid has 2^b T / (high - low) levels on its longer side and is cut at ±T; for a per-tensor range the
    histogram is of at most 262,144 elements. Slow for many channels: about 3 ms each on a CPU core.
    """
    low, high = minmax_range(x, bits, axes, signed, symmetric, narrow)
    longest = jnp.maximum(-low, high)
    span = (2.0 * longest if signed else longest) if symmetric else high - low
    share = in_steps(longest, jnp.where(span > 0.0, span, 1.0))
    levels = jnp.clip(jnp.float32(2.0) ** clamp_bits(bits) * share, 1.0, BINS)
    values = sample(x.astype(jnp.float32), axes)
    values = values if symmetric and not signed else jnp.abs(values)
    # One row of elements for each range; mapped over, so that only one histogram is held.
    rows = jnp.moveaxis(values, axes, range(x.ndim - len(axes), x.ndim)).reshape(longest.size, -1)
    each = (rows, longest.reshape(-1), levels.reshape(-1))
    best = jax.lax.map(lambda one: _best_edge(_histogram(one[0], one[1]), one[2]), each)
    cut = longest * (best.reshape(longest.shape) / BINS)
    return jnp.maximum(low, -cut), jnp.minimum(high, cut)


def _histogram(x: Array, longest: Array) -> Array:
    """The counts of x in BINS bins over [0, longest], those of the first bin replaced by those of the second."""
    places = jnp.clip(jnp.floor(in_steps(x, jnp.where(longest > 0.0, longest, 1.0)) * BINS), 0, BINS - 1)
    counts = jnp.zeros(BINS, jnp.float32).at[places.astype(jnp.int32)].add(1.0)
    return counts.at[0].set(counts[1])


def _best_edge(counts: Array, levels: Array) -> Array:
    """The number of bins that are kept, as float32: the largest of those with the least divergence."""
    edges = jnp.arange(BINS, 0, -STRIDE, dtype=jnp.float32)
    count, entropy = _running(counts), _running(_times_log(counts))
    filled = _running((counts > 0.0).astype(jnp.float32))
    divergence = jax.vmap(lambda edge: _divergence(count, filled, entropy, levels, edge))(edges)
    allowed = (edges >= levels) | (edges == BINS)
    return edges[jnp.argmin(jnp.where(allowed, divergence, jnp.inf))]


def _divergence(count: Array, filled: Array, entropy: Array, levels: Array, edge: Array) -> Array:
    """KL(P || Q) of keeping ``edge`` bins with ``levels`` levels, from running sums of c, (c > 0) and c ln c.

    Q is constant over the filled bins of a level, so a sum over levels replaces one over bins: with T elements, of
    which K are kept, and level l having M_l of them in F_l filled bins, Σ p ln q = Σ (M_l / T) ln(M_l / (F_l K)).
    """
    last, end = (edge - 1.0).astype(jnp.int32), edge.astype(jnp.int32)
    total, kept = jnp.maximum(count[-1], 1.0), count[end]
    beyond = count[-1] - kept
    borders = jnp.ceil(in_steps(jnp.arange(BINS + 1, dtype=jnp.float32) * edge, levels))
    borders = jnp.minimum(borders, edge).astype(jnp.int32)
    merged, bins = jnp.diff(count[borders]), jnp.diff(filled[borders])
    mean = merged / jnp.maximum(bins, 1.0) / jnp.maximum(kept, 1.0)
    own = jnp.floor((edge - 1.0) * levels / edge).astype(jnp.int32)
    mean_of_last = jnp.where(filled[end] > filled[last], mean[jnp.minimum(own, BINS - 1)], 0.5 / total)
    p_log_p = entropy[last] + _times_log(count[end] - count[last] + beyond) - _times_log(total)
    p_log_q = jnp.sum(merged * _log(mean)) + beyond * _log(mean_of_last)
    return (p_log_p - p_log_q) / total


def _running(values: Array) -> Array:
    return jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(values)])


def _log(x: Array) -> Array:
    """ln x, 0 at 0: such terms have no weight."""
    return jnp.log(jnp.where(x > 0.0, x, 1.0))


def _times_log(x: Array) -> Array:
    return x * _log(x)
