from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError
from qresearch.quantizers.power_of_two import TURNING, PowerOfTwo, nearest_power, power_of_two

X = np.random.default_rng(0).normal(0.3, 1, (4, 6, 32)).astype(np.float32)
ROUND = {"nearest": np.rint, "ceil": np.ceil, "floor": np.floor}


@pytest.mark.parametrize("exponent", TURNING)
def test_scales_go_to_the_power_that_the_option_says(exponent):
    generator = np.random.default_rng(1)
    scale = np.concatenate([2.0 ** generator.uniform(-125, 125, 5000), 2.0 ** np.arange(-126.0, 127)]).astype(
        np.float32
    )
    found = jax.jit(lambda s: nearest_power(s, TURNING[exponent]))(jnp.asarray(scale))
    np.testing.assert_array_equal(found, 2.0 ** ROUND[exponent](np.log2(scale.astype(np.float64))))


def test_the_largest_scale_has_a_power():
    assert nearest_power(jnp.float32(3e38), TURNING["ceil"]) == 2.0**127


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
@pytest.mark.parametrize("exponent", TURNING)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_it_is_the_textbook_formula_with_a_power_of_two(signed, symmetric, exponent, granularity):
    quantizer = power_of_two(QuantSpec(signed, symmetric, granularity), exponent=exponent)
    x = X if signed or not symmetric else np.abs(X)
    run = jax.jit(lambda bits: quantizer.apply(quantizer.init(jnp.asarray(x), bits), jnp.asarray(x), bits))
    axes = granularity.shared_axes(3)
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    for bits in (2, 3, 4, 8):
        qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        scale = np.maximum(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
        scale = 2.0 ** ROUND[exponent](np.log2(scale))
        zero_point = 0 if symmetric else np.clip(np.rint(qmin - low / scale), qmin, qmax)
        wanted = (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point) * scale
        np.testing.assert_array_equal(run(jnp.float32(bits)), wanted)  # dividing by a power of two is exact


@pytest.mark.parametrize("symmetric", [True, False])
def test_ceil_clips_nothing_of_the_range(symmetric):
    quantizer = power_of_two(QuantSpec(symmetric=symmetric))
    for bits in (2.0, 4.0, 8.0):
        qparams = quantizer.init(jnp.asarray(X), bits)
        codes = quantizer.encode(qparams, jnp.asarray(X), bits)
        steps = jnp.abs(quantizer.apply(qparams, jnp.asarray(X), bits) - X) / codes.scale
        assert steps.max() <= (0.5 if symmetric else 1.0)
        assert jnp.log2(codes.scale).item() % 1 == 0


def test_the_gradient_in_bits_is_that_of_the_scale_with_a_straight_through_exponent():
    quantizer = power_of_two(QuantSpec(signed=False))
    qparams = PowerOfTwo(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 1.3))
    x = jnp.abs(jnp.asarray(X))
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    found = jax.grad(lambda bits: (quantizer.apply(qparams, x, bits) * weights).sum())(jnp.float32(3))
    step, exact = 0.25, 1.3 / 7  # the scale that covers 1.3 with 7 steps, and the power of two above it
    dstep = -1.3 / 49 * 8 * np.log(2) * step / exact
    units = np.asarray(x, np.float64) / step
    moved = np.where(np.rint(units) <= 7, (np.rint(units) - units) * dstep, 7 * dstep + step * 8 * np.log(2))
    np.testing.assert_allclose(found, (moved * np.asarray(weights)).sum(), rtol=1e-4)


def test_an_unknown_exponent_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedSpecError, match=r"power_of_two: unknown exponent 'nearst'.*'nearest'"):
        power_of_two(QuantSpec(), exponent="nearst")
