"""SAWB: a clipping range from two moments of the tensor, by coefficients fitted once for every width."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.moments import root_mean_square
from qresearch.numerics.range_method import Range

# (c1, c2) of α = c1 sqrt(E w²) - c2 E|w| for consecutive widths, fitted by us as the paper describes: the α of least
# squared error for six densities (normal, Laplace, logistic, uniform, triangular, von Mises with κ = 1), and the line
# through α / E|w| against sqrt(E w²) / E|w|. tests/numerics/test_ranges_sawb.py repeats the fit. IBM's public
# constants for the paper's own grid (PAPER) are 3.12, 2.064 at 2 bits, 7.509, 6.892 at 3 and 12.68, 12.80 at 4.
# FULL: codes -2^(b-1) to 2^(b-1) - 1 in steps of α / (2^(b-1) - 1), from 2 bits.
FULL = (
    (2.406, 1.702),
    (6.290, 5.658),
    (11.183, 11.165),
    (16.451, 17.279),
    (21.856, 23.636),
    (27.364, 30.158),
    (32.814, 36.634),
)
# NARROW: 2^b - 1 levels on [-α, α], from 2 bits. By symmetry also 2^b levels on [0, α], from 1 bit.
NARROW = (
    (2.532, 1.611),
    (6.945, 6.307),
    (11.829, 11.865),
    (16.930, 17.813),
    (22.207, 24.035),
    (27.557, 30.378),
    (33.039, 36.900),
    (38.573, 43.496),
)
# PAPER: 2^b levels on [-α, α], none of them zero, from 2 bits (at 1 bit α = E|w|).
PAPER = (
    (3.115, 2.051),
    (7.368, 6.740),
    (12.088, 12.153),
    (17.096, 18.005),
    (22.272, 24.110),
    (27.603, 30.432),
    (33.059, 36.924),
)


def sawb_range(
    x: Float[Array, "..."],
    bits: Float[Array, ""] | float,
    axes: tuple[int, ...],
    signed: bool,
    symmetric: bool,
    narrow: bool,
) -> Range:
    """Statistics-aware weight binning: [-α, α] with α = c1 sqrt(E x²) - c2 E|x|, c1 and c2 by the width.

    Choi et al., Accurate and Efficient 2-bit Quantized Neural Networks, 2019; https://arxiv.org/abs/1807.06964.
    Where we differ: the coefficients are ours, for our grids, which have a level at zero where the paper's has none;
    affine ranges, which [-α, α] cuts from the tensor's minimum and maximum, use those of the paper's grid. The line
    is within 4 % of the six optima up to 3 bits and within 12 % at 4, but off by -37 % (uniform) to +58 % (von Mises)
    at 8. So α is at least that of any smaller width, at least E|x| (its value below the table) and at most max|x|;
    widths above the table take its last entry. Unsigned: [0, α].
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    mean, deviation = jnp.mean(jnp.abs(x), axis=axes, keepdims=True), root_mean_square(x, axes)
    table = PAPER if not symmetric else NARROW if narrow or not signed else FULL
    alpha = mean
    for width, (c1, c2) in enumerate(table, start=2 if signed or not symmetric else 1):
        alpha = jnp.where(bits >= width, jnp.maximum(alpha, c1 * deviation - c2 * mean), alpha)
    bound = jnp.minimum(alpha, largest)
    if symmetric:
        return (-bound if signed else jnp.zeros_like(bound)), bound
    low, high = (f(x, axis=axes, keepdims=True) for f in (jnp.min, jnp.max))
    return jnp.clip(low, -bound, 0.0), jnp.clip(high, 0.0, bound)
