"""The one primitive that uniform quantizers share: quantize, dequantize, and five gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qresearch.numerics.rounding import ROUNDINGS, in_steps, rounding_noise, stochastic_round, wide_dtype

MASKS = ("rounded", "unrounded", "none")


def fake_quant(
    x: Float[Array, "..."],
    scale: Float[Array, "..."] | float,
    zero_point: Float[Array, "..."] | float,
    qmin: Float[Array, "..."] | float,
    qmax: Float[Array, "..."] | float,
    *,
    mask: str = "rounded",
    rounding: str = "half_even",
    key: PRNGKeyArray | Array | None = None,
) -> Float[Array, "..."]:
    """Rounds x onto an integer grid and back: scale * (clip(round(x / scale) + zero_point, qmin, qmax) - zero_point).

    scale, zero_point, qmin, qmax are scalars or have the rank of x with ones on shared axes; the zero-point is rounded.
    Computed in float32 (``wide_dtype``); the result has the dtype of x. qmin and qmax should be integers (they are
    clipped to as given).

    Gradients, with G the upstream gradient, "below" and "above" the elements that are clipped, "inside" the others:
      x           G inside, 0 elsewhere (the clipped straight-through estimator)
      scale       sum of G * {qmin - zero_point below, qmax - zero_point above, (result - x) / scale inside}: LSQ,
                  Esser et al. 2020, https://arxiv.org/abs/1902.08153
      zero_point  sum of G * (-scale) where clipped: LSQ+, Bhalgat et al. 2020, https://arxiv.org/abs/2004.09576
      qmin, qmax  sum of G * scale below / above; with the chain rule through ``integer_range`` this is the gradient in
                  the bit-width: DQ, Uhlich et al. 2020, https://arxiv.org/abs/1905.11452

    ``mask`` says what counts as clipped, because public libraries differ: "rounded" tests the rounded code (torch),
    "unrounded" tests x / scale + zero_point itself (LSQ's own code: no gradient to x between qmax and qmax + 1/2),
    "none" passes every gradient (Brevitas' default for weights; then zero_point, qmin and qmax get none).
    ``rounding``: half_even, floor, ceil, toward_zero, or stochastic, which needs a ``key`` used for this tensor only.
    """
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
    if rounding != "stochastic" and rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be 'stochastic' or one of {tuple(ROUNDINGS)}, got {rounding!r}")
    if rounding == "stochastic" and key is None:
        raise ValueError("rounding='stochastic' needs a key: pass key=jax.random.key(...)")
    noise = rounding_noise(key, x) if rounding == "stochastic" and key is not None else None
    scalars = (jnp.asarray(value, wide_dtype(x)) for value in (scale, zero_point, qmin, qmax))
    return _fake_quant(mask, rounding, x, *scalars, noise)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fake_quant(
    mask: str,
    rounding: str,
    x: Array,
    scale: Array,
    zero_point: Array,
    qmin: Array,
    qmax: Array,
    noise: Array | None,
) -> Array:
    units = in_steps(x, scale)
    codes = jnp.clip(_round(units, rounding, noise) + jnp.round(zero_point), qmin, qmax)
    return ((codes - jnp.round(zero_point)) * scale).astype(x.dtype)


def _round(units: Array, rounding: str, noise: Array | None) -> Array:
    return ROUNDINGS[rounding](units) if noise is None else stochastic_round(units, noise)


def _forward(mask: str, rounding: str, *arguments: Array) -> tuple[Array, tuple[Array, ...]]:
    return _fake_quant(mask, rounding, *arguments), arguments


def _backward(mask: str, rounding: str, arguments: tuple[Array, ...], upstream: Array) -> tuple[Array | None, ...]:
    x, scale, zero_point, qmin, qmax, noise = arguments
    gradient = upstream.astype(wide_dtype(upstream))
    units = in_steps(x, scale)
    offset = jnp.round(zero_point)
    rounded = _round(units, rounding, noise)
    below, above = _clipped(mask, units + offset, rounded + offset, qmin, qmax)
    inside = ~(below | above)
    codes = jnp.clip(rounded + offset, qmin, qmax) - offset
    in_scale = jnp.where(inside, codes - units, codes)
    return (
        jnp.where(inside, gradient, 0.0).astype(x.dtype),
        _sum_to(gradient * in_scale, scale),
        _sum_to(jnp.where(inside, 0.0, -gradient * scale), zero_point),
        _sum_to(jnp.where(below, gradient * scale, 0.0), qmin),
        _sum_to(jnp.where(above, gradient * scale, 0.0), qmax),
        None if noise is None else jnp.zeros_like(noise),
    )


def _clipped(mask: str, unrounded: Array, rounded: Array, qmin: Array, qmax: Array) -> tuple[Array, Array]:
    """The elements that count as below and above the grid. Exact ties with a bound are inside (``jnp.clip``: half)."""
    if mask == "none":
        nowhere = jnp.zeros(rounded.shape, bool)
        return nowhere, nowhere
    position = rounded if mask == "rounded" else unrounded
    return position < qmin, position > qmax


def _sum_to(gradient: Array, parameter: Array) -> Array:
    """Sums a gradient over the axes along which the parameter was broadcast."""
    if parameter.ndim == 0:
        return jnp.sum(gradient)
    axes = tuple(i for i, size in enumerate(parameter.shape) if size == 1 and gradient.shape[i] != 1)
    return jnp.sum(gradient, axis=axes, keepdims=True)


_fake_quant.defvjp(_forward, _backward)


@jax.custom_vjp
def scale_gradient(x: Float[Array, "..."], factor: Float[Array, ""]) -> Float[Array, "..."]:
    """The identity, whose gradient is multiplied by ``factor`` (a scalar). LSQ's gradient scale is one use."""
    return x


def _scale_gradient_forward(x: Array, factor: Array) -> tuple[Array, Array]:
    return x, factor


def _scale_gradient_backward(factor: Array, upstream: Array) -> tuple[Array, Array]:
    return upstream * factor.astype(upstream.dtype), jnp.zeros_like(factor)


scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)
