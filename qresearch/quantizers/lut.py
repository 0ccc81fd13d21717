"""A look-up table: any levels, placed by k-means and then learned."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.kmeans import kmeans_levels, thresholds
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.search import count_below
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width
from qresearch.quantizers.require import require

MAX_WIDTH = 8  # the table has 2^8 entries; wider widths use them all


class LUT(NamedTuple):
    """The levels [256], the first 2^bits of which are used, in units of the scale (x's rank with ones on shared axes).

    One table serves the whole tensor; scales differ by channel or group. The levels belong to the width of ``init``.
    """

    levels: Float[Array, " 256"]
    scale: Float[Array, "..."]


def lut(spec: QuantSpec, /) -> Quantizer:
    """A codebook: x̂ = s level[k], k the nearest of 2^b learned levels to x / s, s = max|x| of calibration, fixed.

    ∂x̂/∂level[k] = s for the elements that it replaces (a scatter of the upstream gradient). ∂x̂/∂x = 1, everywhere for
    weights (mask "none"), from the lowest to the highest level for inputs ("unrounded"). A tie goes to the lower level.
    Levels start at the k-means of the calibration tensor (``kmeans_levels``).
    Han, Mao and Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
    Huffman Coding, 2016, https://arxiv.org/abs/1510.00149.
    Where we differ: assignments follow the weights (there they are frozen after clustering), so that weights train too;
    levels are sorted before use, since training may swap two. Above 8 bits there are 256 levels.
    """
    require("lut", spec, "places its levels anywhere, by k-means", symmetric=True, narrow=False, range=None)
    require("lut", spec, "takes the nearest level", rounding="half_even")
    mask = spec.mask or ("none" if spec.signed else "unrounded")
    if mask == "rounded":
        raise UnsupportedSpecError("lut clips at its outer levels: got mask 'rounded', expected 'unrounded' or 'none'")

    def init(x: Array, bits: Bits) -> LUT:
        axes = spec.granularity.shared_axes(x.ndim)
        largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)
        scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
        return LUT(kmeans_levels(in_steps(x, scale), _count(bits), 2**MAX_WIDTH), scale)

    def nearest(qparams: LUT, x: Array, bits: Bits) -> tuple[Array, Array]:
        """The table in ascending order, infinite beyond 2^bits, and the place of the nearest level."""
        used = jnp.arange(2**MAX_WIDTH) < _count(bits)
        levels = jnp.sort(jnp.where(used, qparams.levels, jnp.inf))
        return levels, count_below(thresholds(stop_gradient(levels), _count(bits)), in_steps(x, qparams.scale))

    def encode(qparams: LUT, x: Array, bits: Bits) -> Codes:
        levels, place = nearest(qparams, x, bits)
        codebook = jnp.where(jnp.isfinite(levels), levels, 0.0)
        return Codes(place, qparams.scale, jnp.zeros_like(qparams.scale), codebook)

    def apply(qparams: LUT, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value, scale = x.astype(jnp.float32), stop_gradient(qparams.scale)
        levels, place = nearest(qparams, stop_gradient(value), bits)
        outer = stop_gradient(jnp.where(jnp.isfinite(levels), levels, -jnp.inf))
        v = in_steps(stop_gradient(value), scale)
        inside = (v >= outer[0]) & (v <= jnp.max(outer)) | (mask == "none")
        x_hat = straight_through(levels[place] * scale, value, inside.astype(jnp.float32))
        return at_width(bits, x, x_hat.astype(x.dtype))

    traits = {"no_zero_level", "spare_levels"} | ({"passes_gradient"} if mask == "none" else set())
    return Quantizer(init, apply, encode, ("levels",), frozenset(traits))


def _count(bits: Bits) -> Array:
    return jnp.left_shift(1, jnp.minimum(jnp.floor(clamp_bits(bits)), MAX_WIDTH).astype(jnp.int32))
