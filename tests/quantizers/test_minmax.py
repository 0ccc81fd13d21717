from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers import QuantSpec, make_quantizer
from qresearch.quantizers.minmax import MinMax

X = np.random.default_rng(0).normal(0.4, 1, (4, 6, 32)).astype(np.float32)


def reference(x, low, high, bits, signed, symmetric):
    """Jacob et al.'s quantize and dequantize in NumPy, float32, from the values the grid covers."""
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if symmetric:
        scale, zero_point = np.maximum(abs(low), abs(high)) / np.float32(max(qmax, 1)), np.float32(0)
    else:
        scale = (high - low) / np.float32(qmax - qmin)
        zero_point = np.clip(np.rint(np.float32(qmin) - low / scale), qmin, qmax)
    return (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point) * scale


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 8)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_it_is_the_textbook_formula(signed, symmetric, granularity):
    quantizer = make_quantizer("minmax", QuantSpec(signed, symmetric, granularity))
    run = jax.jit(lambda bits: quantizer.apply(quantizer.init(X, bits), jnp.asarray(X), bits))
    view = np.asarray(granularity.view(X))
    axes = granularity.shared_axes(view.ndim)
    low, high = np.minimum(view.min(axes, keepdims=True), 0), np.maximum(view.max(axes, keepdims=True), 0)
    low = np.zeros_like(low) if symmetric and not signed else low
    for bits in (1, 2, 3, 4, 8):
        wanted = reference(view, low, high, bits, signed, symmetric).reshape(X.shape)
        # A last-bit difference in the scale may flip an element that lies on a tie.
        assert np.isclose(run(jnp.float32(bits)), wanted, rtol=1e-5, atol=1e-6).mean() > 0.995, bits


def test_one_calibration_serves_every_width():
    quantizer = make_quantizer("minmax", QuantSpec(symmetric=False, granularity=per_channel(1)))
    ranges = [quantizer.init(jnp.asarray(X), bits) for bits in (0.0, 2.0, 8.0, 32.0)]
    for other in ranges[1:]:
        assert jax.tree.all(jax.tree.map(np.array_equal, ranges[0], other))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_zero_is_represented_exactly_and_nothing_is_clipped(signed, symmetric):
    x = jnp.asarray(X if signed or not symmetric else np.abs(X)).at[0, 0, 0].set(0.0)
    quantizer = make_quantizer("minmax", QuantSpec(signed, symmetric))
    for bits in (2.0, 4.0, 8.0):
        qparams = quantizer.init(x, bits)
        x_hat, codes = quantizer.apply(qparams, x, bits), quantizer.encode(qparams, x, bits)
        assert x_hat[0, 0, 0] == 0.0
        # Rounding moves an element by half a step, rounding the zero-point moves the affine grid by another half.
        steps = jnp.abs(x_hat - x) / codes.scale
        assert steps.max() <= (0.5 if symmetric else 1.0) + 1e-4


def test_the_default_mask_tests_the_rounded_code():
    quantizer = make_quantizer("minmax", QuantSpec())
    qparams = MinMax(jnp.full((1,), -3.5), jnp.full((1,), 3.5))  # a step of 0.5 at 4 bits
    x = jnp.asarray([7.25, 7.0, 6.9, -8.4, 8.0]) * 0.5
    slope = jax.jit(jax.grad(lambda x: quantizer.apply(qparams, x, 4.0).sum()))(x)
    np.testing.assert_array_equal(slope, [1, 1, 1, 1, 0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_in_bits_is_that_of_the_range_and_the_step(symmetric):
    """By the chain rule through the step and the bounds, with a straight-through round: as for a learned width."""
    quantizer = make_quantizer("minmax", QuantSpec(signed=False, symmetric=symmetric))
    x = jnp.asarray(np.abs(X))
    qparams = MinMax(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 1.3))
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    found = jax.jit(jax.grad(lambda bits: (quantizer.apply(qparams, x, bits) * weights).sum()))(jnp.float32(3))
    # The range is kept: clipped elements stay at 1.3, the others move with the step, (x̂ - x) / s of it.
    step = 1.3 / 7
    dstep = -1.3 / 49 * 8 * np.log(2)
    inside = np.rint(np.asarray(x, np.float64) / step) <= 7
    moved = np.where(inside, (np.rint(np.asarray(x, np.float64) / step) - np.asarray(x) / step) * dstep, 0)
    np.testing.assert_allclose(found, (moved * np.asarray(weights)).sum(), rtol=1e-3, atol=1e-3)


def test_nothing_is_learned_and_the_codes_carry_the_zero_point():
    quantizer = make_quantizer("minmax", QuantSpec(signed=False, symmetric=False, granularity=per_channel(1)))
    assert quantizer.learnable == ()
    qparams = quantizer.init(jnp.asarray(X), 8.0)
    codes = quantizer.encode(qparams, jnp.asarray(X), 8.0)
    assert codes.zero_point.shape == codes.scale.shape == (1, 6, 1)
    assert (codes.zero_point > 0).all()
    np.testing.assert_array_equal(decode(codes), quantizer.apply(qparams, jnp.asarray(X), 8.0))
