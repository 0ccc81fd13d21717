from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.numerics.straight_through import straight_through

X = jax.random.normal(jax.random.key(0), (50,)) * 3
SLOPE = jnp.linspace(-1, 2, 50)
UPSTREAM = jnp.cos(jnp.arange(50.0))


def test_the_value_is_the_quantized_one_bit_for_bit():
    quantized = 0.1 * jnp.round(X / 0.1) + 1e-7
    np.testing.assert_array_equal(jax.jit(straight_through)(quantized, X, SLOPE), quantized)
    np.testing.assert_array_equal(straight_through(quantized, jnp.full(50, jnp.inf), SLOPE), quantized)


def test_the_gradient_goes_to_x_by_the_slope_and_to_the_value_unchanged():
    _, pullback = jax.vjp(straight_through, jnp.round(X), X, SLOPE)
    to_value, to_x, to_slope = pullback(UPSTREAM)
    np.testing.assert_array_equal(to_value, UPSTREAM)
    np.testing.assert_array_equal(to_x, UPSTREAM * SLOPE)
    np.testing.assert_array_equal(to_slope, jnp.zeros(50))


def test_what_the_value_depends_on_gets_its_own_gradient():
    scale = jnp.float32(0.3)
    slope = jax.grad(lambda s: (straight_through(s * jnp.round(X / 0.3), X, SLOPE) * UPSTREAM).sum())(scale)
    np.testing.assert_allclose(slope, (UPSTREAM * jnp.round(X / 0.3)).sum(), rtol=1e-5)
