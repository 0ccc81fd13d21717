"""DoReFa: weights through a hyperbolic tangent, inputs clipped to [0, 1], gradients rounded stochastically."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

from qresearch.numerics.codes import Codes
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width
from qresearch.quantizers.require import require

TINY = 1e-30  # a divisor for tensors that are zero everywhere


class DoReFa(NamedTuple):
    """Nothing: weights take their range from the tensor that is quantized, inputs always have [0, 1]."""


def dorefa(spec: QuantSpec, /, *, multiply_back: bool = True, one_bit_input: str = "round") -> Quantizer:
    """DoReFa-Net, with q(r) = round((2^b - 1) r) / (2^b - 1): weights m (2 q(tanh w / 2m + 1/2) - 1), m = max|tanh w|.

    1-bit weights are sign(w) mean|w|. Inputs (unsigned specs) are q(clip(x, 0, 1)). The rounding passes the gradient:
    ∂ŵ/∂w = 1 - tanh² w (1 at 1 bit, mean|w| and m held constant), ∂x̂/∂x = 1 where 0 <= x <= 1.
    Zhou et al., DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients, 2016,
    https://arxiv.org/abs/1606.06160. For gradients, see ``quantize_gradient`` in ``dorefa_gradient``.
    Where we differ: as in public code, m multiplies the result and is held constant; the paper's weights are in
    [-1, 1] (``multiply_back=False``, for networks that normalise after the layer) with m differentiated. m and mean|w|
    follow the granularity. sign(0) is 1. ``one_bit_input="sign"`` is public code's 1-bit input, 1 for every x > 0.
    Levels of weights are odd multiples of half a step, without zero: codes with zero-point -1/2. Half to even.
    """
    require("dorefa", spec, "has one grid, which uses every code", symmetric=True, narrow=False)
    require("dorefa", spec, "takes its range from tanh or [0, 1], and clips there", range=None, mask=None)
    if one_bit_input not in ("round", "sign"):
        raise UnsupportedSpecError(f"dorefa: one_bit_input must be 'round' or 'sign', got {one_bit_input!r}")

    def levels(smooth: Array, n: Array, rounding: str, key: Array | None) -> Array:
        """round(n smooth), 0 to n."""
        return fake_quant(n * smooth, 1.0, 0.0, 0.0, n, mask="none", rounding=rounding, key=key)

    def weights(w: Array, bits: Array, rounding: str, key: Array | None) -> tuple[_Grid, Array]:
        axes, one_bit = spec.granularity.shared_axes(w.ndim), bits <= 1.0
        n, bent = 2.0**bits - 1.0, jnp.tanh(w)
        m = stop_gradient(jnp.maximum(jnp.max(jnp.abs(bent), axis=axes, keepdims=True), TINY))
        mean = stop_gradient(jnp.mean(jnp.abs(w), axis=axes, keepdims=True))
        level = levels(in_steps(bent / 2.0, m) + 0.5, n, rounding, key)
        level = jnp.where(one_bit, jnp.where(w >= 0.0, 1.0, 0.0), level)
        top = m if multiply_back else jnp.ones_like(m)
        scale = jnp.where(one_bit, 2.0 * mean, in_steps(2.0 * top, n))
        smooth = jnp.where(one_bit, w, bent * (top / m))
        return _Grid(level - (n + 1.0) / 2.0, scale, jnp.full_like(scale, -0.5)), smooth

    def inputs(x: Array, bits: Array, rounding: str, key: Array | None) -> tuple[_Grid, Array]:
        n, clipped = 2.0**bits - 1.0, jnp.where(x > 1.0, 1.0, jnp.where(x < 0.0, 0.0, x))
        level = levels(clipped, n, rounding, key)
        if one_bit_input == "sign":
            level = jnp.where(bits <= 1.0, jnp.ceil(clipped), level)
        one = jnp.ones_like(jnp.max(x, axis=spec.granularity.shared_axes(x.ndim), keepdims=True))
        return _Grid(level, in_steps(one, n), 0.0 * one), clipped

    quantize = weights if spec.signed else inputs

    def init(x: Array, bits: Bits) -> DoReFa:
        return DoReFa()

    def apply(qparams: DoReFa, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        grid, smooth = quantize(x.astype(jnp.float32), clamp_bits(bits), spec.rounding, key)
        value = (grid.code - grid.zero_point) * grid.scale
        x_hat = straight_through(stop_gradient(value), smooth, jnp.ones_like(value))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: DoReFa, x: Array, bits: Bits) -> Codes:
        rounding = "half_even" if spec.rounding == "stochastic" else spec.rounding
        grid, _ = quantize(x.astype(jnp.float32), clamp_bits(bits), rounding, None)
        return Codes(grid.code.astype(jnp.int32), grid.scale, grid.zero_point)

    traits = frozenset({"rescales", "no_zero_level", "not_idempotent"} if spec.signed else ())
    return Quantizer(init, apply, encode, traits=traits)


class _Grid(NamedTuple):
    code: Array
    scale: Array
    zero_point: Array
