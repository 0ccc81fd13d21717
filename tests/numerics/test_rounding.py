from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.rounding import ROUNDINGS, in_steps, rounding_noise, ste_round, stochastic_round

NUMPY = {"half_even": np.rint, "floor": np.floor, "ceil": np.ceil, "toward_zero": np.trunc}
VALUES = np.concatenate([np.arange(-6, 6.25, 0.25), np.random.default_rng(0).normal(0, 9, 400), [-0.0, 8388607.5]])


def test_every_rounding_has_a_reference():
    assert set(NUMPY) == set(ROUNDINGS)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_rounding_equals_numpy_ties_included(name):
    x = VALUES.astype(np.float32)
    np.testing.assert_array_equal(ROUNDINGS[name](jnp.asarray(x)), NUMPY[name](x))


@pytest.mark.parametrize("name", ROUNDINGS)
def test_the_straight_through_gradient_is_one(name):
    x = jnp.asarray(VALUES[:-1], jnp.float32)
    np.testing.assert_array_equal(ste_round(x, name), ROUNDINGS[name](x))
    np.testing.assert_array_equal(jax.grad(lambda x: ste_round(x, name).sum())(x), jnp.ones_like(x))


@pytest.mark.parametrize("value", [0.3, -0.3, 2.75, -7.5, 5.0, -5.0, 0.0])
def test_stochastic_rounding_is_unbiased_between_the_two_neighbours(value):
    draws = 100_000
    x = jnp.full(draws, value, jnp.float32)
    rounded = np.asarray(stochastic_round(x, rounding_noise(jax.random.key(3), x)), np.float64)
    assert set(np.unique(rounded)) <= {np.floor(value), np.ceil(value)}
    fraction = value - np.floor(value)
    deviation = np.sqrt(fraction * (1 - fraction) / draws)
    assert abs(rounded.mean() - value) <= 4 * deviation + 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_noise_is_float32_uniform_and_belongs_to_its_key(dtype):
    x = jnp.zeros((64, 64), dtype)
    noise = rounding_noise(jax.random.key(0), x)
    assert noise.dtype == jnp.float32
    assert noise.shape == x.shape
    assert (noise >= 0).all()
    assert (noise < 1).all()
    np.testing.assert_array_equal(noise, rounding_noise(jax.random.key(0), x))
    assert (noise != rounding_noise(jax.random.key(1), x)).mean() > 0.99


@pytest.mark.parametrize("shape", [(), (1, 1), (40, 1), (1, 500), (40, 500)])
@pytest.mark.parametrize("mode", ["eager", "jit", "vmap", "map"])
def test_the_division_is_correctly_rounded_in_every_mode(mode, shape):
    """XLA turns x / broadcast(scale) into x * (1 / scale), which is wrong in the last bit of one element in seven."""
    if jax.default_backend() != "cpu":
        pytest.skip("only XLA's CPU backend promises a correctly rounded float32 division")
    generator = np.random.default_rng(1)
    x = generator.normal(0, 5, (40, 500)).astype(np.float32)
    scale = generator.uniform(0.01, 3, (3, *shape)).astype(np.float32)
    run = {
        "eager": lambda x, s: jnp.stack([in_steps(x, one) for one in s]),
        "jit": lambda x, s: jnp.stack([jax.jit(in_steps)(x, one) for one in s]),
        "vmap": jax.jit(jax.vmap(in_steps, in_axes=(None, 0))),
        "map": jax.jit(lambda x, s: jax.lax.map(lambda one: in_steps(x, one), s)),
    }[mode]
    exact = x / scale.reshape(3, *(shape or (1, 1)))
    np.testing.assert_array_equal(run(jnp.asarray(x), jnp.asarray(scale)), exact)
    reciprocal = x * (np.float32(1) / scale.reshape(3, *(shape or (1, 1))))
    assert (exact != reciprocal).mean() > 0.05  # else this test could not fail


def test_the_division_keeps_nan_and_infinity():
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 0.0], jnp.float32)
    np.testing.assert_array_equal(in_steps(x, jnp.float32(0.5)), [np.nan, np.inf, -np.inf, 0.0])
