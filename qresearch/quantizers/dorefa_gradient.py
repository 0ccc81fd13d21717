"""DoReFa's third part: what flows backwards through a tensor is quantized stochastically."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.rounding import in_steps, rounding_noise
from qresearch.quantizers.base import Bits, at_width


@jax.custom_vjp
def quantize_gradient(x: Float[Array, "batch ..."], bits: Bits, key: PRNGKeyArray | Array) -> Float[Array, "batch ..."]:
    """The identity, whose gradient g becomes 2 m (q(g / 2m + 1/2 + N) - 1/2), m = max|g| of each example (axis 0).

    q(r) = round((2^b - 1) clip(r, 0, 1)) / (2^b - 1), N uniform on ±1/2 / (2^b - 1), so that the result is unbiased.
    A gradient of zeros stays zero; at 32 bits and above g is kept, at 0 bits it becomes zero. bits and key get no
    gradient; use a key for one tensor and one step only. Put it on a layer's output: what it changes is the gradient
    that the layer's weights and input see.
    Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160. Where we differ: nothing known.
    """
    return x


def _forward(x: Array, bits: Bits, key: Array) -> tuple[Array, tuple[Bits, Array]]:
    return x, (bits, key)


def _backward(residuals: tuple[Bits, Array], upstream: Array) -> tuple[Array, Array | None, None]:
    bits, key = residuals
    gradient, n = upstream.astype(jnp.float32), 2.0 ** clamp_bits(bits) - 1.0
    largest = jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
    noise = (rounding_noise(key, gradient) - 0.5) / n
    level = jnp.clip(in_steps(gradient / 2.0, jnp.maximum(largest, 1e-30)) + 0.5 + noise, 0.0, 1.0)
    quantized = 2.0 * largest * (jnp.round(n * level) / n - 0.5)
    return at_width(bits, upstream, quantized.astype(upstream.dtype)), jnp.zeros_like(bits), None


quantize_gradient.defvjp(_forward, _backward)
