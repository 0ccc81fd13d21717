from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import FITTED, RANGES, minmax_range, mse_range

DRAWS = {
    "normal": lambda g, shape: g.normal(0, 1.7, shape),
    "laplace": lambda g, shape: g.laplace(0, 0.3, shape),
    "uniform": lambda g, shape: g.uniform(-2, 3, shape),
}
GRIDS = {"signed": (True, True), "unsigned": (False, True), "affine": (False, False), "signed_affine": (True, False)}


def draw(name: str, signed: bool, symmetric: bool, shape=(4, 1500)) -> np.ndarray:
    x = DRAWS[name](np.random.default_rng(7), shape)
    return (np.abs(x) if symmetric and not signed else x).astype(np.float32)


@cache
def compiled_search(grid: str):
    return jax.jit(lambda x, bits: mse_range(x, bits, (0, 1), *GRIDS[grid], False))


def numpy_error(x, low, high, bits, signed, symmetric, axes=(0, 1)):
    """The squared error of the grid over [low, high] in float64, written from the definition."""
    qmin, qmax = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    x, low, high = (np.asarray(value, np.float64) for value in (x, low, high))
    if symmetric:
        scale, zero_point = np.maximum(abs(low), abs(high)) / qmax, 0.0
    else:
        scale = (high - low) / (qmax - qmin)
        zero_point = np.clip(np.rint(qmin - low / scale), qmin, qmax)
    result = (np.clip(np.rint(x / scale) + zero_point, qmin, qmax) - zero_point) * scale
    return ((result - x) ** 2).mean(axes, keepdims=True)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_range_has_the_rank_of_x_and_is_float32(name, grid, axes, dtype):
    x = jax.ShapeDtypeStruct((4, 30, 50), dtype)
    low, high = jax.eval_shape(lambda x: RANGES[name](x, 4.0, axes, *GRIDS[grid], False), x)
    assert low.shape == high.shape == tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    assert low.dtype == high.dtype == jnp.float32


def test_minmax_is_the_smallest_and_largest_value():
    x = jnp.asarray([[-1.0, 2.0, 0.5], [3.0, 4.0, 5.0], [-6.0, -5.0, -7.0]])
    low, high = minmax_range(x, 8.0, (1,), True, True, False)
    np.testing.assert_array_equal(low, [[-1.0], [0.0], [-7.0]])
    np.testing.assert_array_equal(high, [[2.0], [5.0], [0.0]])
    low, _ = minmax_range(x, 8.0, (1,), False, True, False)  # an unsigned symmetric grid holds nothing negative
    np.testing.assert_array_equal(low, np.zeros((3, 1)))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DRAWS)
def test_the_mse_range_is_near_the_best_factor_and_never_worse_than_minmax(name, grid):
    x = draw(name, *GRIDS[grid])
    search = compiled_search(grid)
    low, high = minmax_range(jnp.asarray(x), 4.0, (0, 1), *GRIDS[grid], False)
    for bits in (2, 3, 4, 6, 8):
        found = numpy_error(x, *search(x, jnp.float32(bits)), bits, *GRIDS[grid])
        scan = [numpy_error(x, low * f, high * f, bits, *GRIDS[grid]) for f in np.linspace(0.02, 1, 200)]
        assert found <= numpy_error(x, low, high, bits, *GRIDS[grid]) * (1 + 1e-5)
        assert found <= min(scan) * 1.02, bits


def test_the_mse_range_of_a_channel_is_that_of_the_channel_alone():
    x = jnp.asarray(draw("laplace", True, True)) * jnp.asarray([[0.01], [1.0], [30.0], [1e4]])
    search = jax.jit(lambda x: mse_range(x, 3.0, (1,), True, True, False))
    low, high = search(x)
    for i in range(4):
        alone = search(x[i : i + 1])
        np.testing.assert_allclose((low[i : i + 1], high[i : i + 1]), alone, rtol=1e-6)


def test_the_sampled_search_of_a_large_tensor_is_as_good_as_the_full_one():
    x = jnp.asarray(np.random.default_rng(0).laplace(0, 1, (512, 513)), jnp.float32)  # a little more than the sample
    low, high = compiled_search("signed")(x, jnp.float32(3))
    lows, highs = minmax_range(x, 3.0, (0, 1), True, True, False)
    scan = [numpy_error(x, lows * f, highs * f, 3, True, True) for f in np.geomspace(0.1, 0.4, 15)]
    assert numpy_error(x, low, high, 3, True, True) <= min(scan) * 1.02


def test_the_mse_optimal_step_of_normal_data():
    """The optimal steps of the signed grids on N(0, 1), computed by quadrature; the error is flat around them."""
    x = jax.random.normal(jax.random.key(11), (2**17,))

    @jax.jit
    def step(bits):
        qmin, qmax = integer_range(bits, signed=True)
        low, high = mse_range(x, bits, (0,), True, True, False)
        return scale_from_range(low, high, qmin, qmax, symmetric=True)[0]

    for bits, optimal in {2: 1.0484, 3: 0.6018, 4: 0.3386, 8: 0.0308}.items():
        assert abs(step(jnp.float32(bits)).item() / optimal - 1) < 0.03, bits


@pytest.mark.parametrize("name", RANGES)
def test_six_decibels_per_bit_on_uniform_data(name):
    """But for ranges that declare that they do not promise it, whose error falls all the same, and by less."""
    x = jax.random.uniform(jax.random.key(2), (2**17,))

    def noise(bits):
        qmin, qmax = integer_range(bits, signed=False)
        low, high = RANGES[name](x, bits, (0,), False, True, False)
        scale, zero_point = scale_from_range(low, high, qmin, qmax, symmetric=True)
        return 10 * jnp.log10(jnp.mean((fake_quant(x, scale, zero_point, qmin, qmax) - x) ** 2))

    # From 4 bits: below, (2^b - 1) is not yet close to 2^b, and theory itself says 6.6 dB from 3 to 4 bits.
    decibels = np.asarray(jax.lax.map(noise, jnp.arange(4.0, 13.0)))
    assert (abs(-np.diff(decibels) - 20 * np.log10(2)) < 0.5).all() == (name not in FITTED), decibels
    assert (np.diff(decibels) < 0).all(), decibels


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("grid", GRIDS)
def test_degenerate_tensors_have_finite_ranges_that_hold_zero(name, grid):
    calibrate = jax.jit(lambda x, bits: RANGES[name](x, bits, (1,), *GRIDS[grid], False))
    for value in (0.0, 3.0, -3.0, 1e30, -1e30, 1e-30):
        for bits in (0, 1, 4, 31, 32):
            low, high = calibrate(jnp.full((2, 8), value, jnp.float32), jnp.float32(bits))
            assert jnp.isfinite(low).all(), (value, bits)
            assert jnp.isfinite(high).all(), (value, bits)
            assert (low <= 0).all()
            assert (high >= 0).all()
