from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.ratio import clipped_ratio
from qresearch.numerics.rounding import in_steps


@pytest.mark.parametrize("size", [1e-34, 1.0, 1e34])
def test_value_and_slopes_at_every_magnitude(size):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(0, 2 * size, (6, 50)), jnp.float32)
    scale = jnp.asarray(generator.uniform(0.5, 2, (6, 1)) * size, jnp.float32)
    value, pullback = jax.vjp(lambda x, s: clipped_ratio(x, s, -1.0, 2.0), x, scale)
    of_x, of_scale = pullback(jnp.full(x.shape, size, jnp.float32))  # as if the result were multiplied by the scale
    np.testing.assert_array_equal(value, jnp.clip(in_steps(x, scale), -1, 2))
    v = np.asarray(x, np.float64) / np.asarray(scale, np.float64)
    inside = (v >= -1) & (v <= 2)
    assert 0.2 < inside.mean() < 0.9
    wide = np.asarray(scale, np.float64)
    np.testing.assert_allclose(of_x, inside * size / wide, rtol=1e-6)
    np.testing.assert_allclose(of_scale, (-v * inside * size / wide).sum(1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_a_tie_with_a_bound_is_inside_and_far_outside_nothing_is_infinite():
    x = jnp.asarray([-1.0, 2.0, 3e38, -jnp.inf], jnp.float32)
    slopes = jax.jacobian(lambda x, s: clipped_ratio(x, s, -1.0, 2.0), (0, 1))(x, jnp.float32(1))
    np.testing.assert_array_equal(np.diag(slopes[0]), [1, 1, 0, 0])
    np.testing.assert_array_equal(slopes[1], [1, -2, 0, 0])
    tiny = jax.grad(lambda x: clipped_ratio(x, jnp.float32(1e-35), -1.0, 2.0).sum())(x)
    np.testing.assert_array_equal(tiny, 0)
