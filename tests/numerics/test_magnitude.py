from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.numerics.magnitude import mean_magnitude

X = np.random.default_rng(0).normal(0, 2, (4, 6, 37)).astype(np.float32)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (1,)])
def test_it_is_the_mean_of_the_absolute_values(axes):
    wanted = np.abs(X.astype(np.float64)).mean(axes, keepdims=True)
    np.testing.assert_allclose(mean_magnitude(jnp.asarray(X), axes), wanted, rtol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (1,)])
def test_only_the_kept_elements_count(axes):
    kept = np.abs(X) > 0.3
    assert kept.any(axes).all()
    wanted = np.abs(X.astype(np.float64)).sum(axes, keepdims=True, where=kept) / kept.sum(axes, keepdims=True)
    np.testing.assert_allclose(mean_magnitude(jnp.asarray(X), axes, jnp.asarray(kept)), wanted, rtol=1e-6)


@settings(deadline=None, derandomize=True, database=None)  # the first example compiles
@given(st.integers(1, 5000), st.floats(2.0**-100, 2.0**100, width=32), st.booleans())
def test_equal_magnitudes_have_exactly_that_mean(size, value, some_are_zero):
    """Any other mean would quantize a quantized tensor to other values: n times s, over n, is not always s."""
    signs = np.where(np.arange(5000) % 3 == 0, -1, 1).astype(np.float32)
    kept = np.arange(5000) < size  # one shape, one compilation
    values = jnp.asarray(np.float32(value) * signs * (kept if some_are_zero else 1))
    assert MEAN(values, jnp.asarray(kept))[0] == np.float32(value)


MEAN = jax.jit(lambda x, kept: mean_magnitude(x, (0,), kept))


def test_large_numbers_do_not_overflow_and_zeros_have_a_positive_mean():
    assert mean_magnitude(jnp.full((1000,), 3e38), (0,))[0] == np.float32(3e38)
    assert 0 < mean_magnitude(jnp.zeros((5,)), (0,))[0] < 1e-37
    assert 0 < mean_magnitude(jnp.ones((5,)), (0,), jnp.zeros((5,), bool))[0] < 1e-37


def test_the_gradient_is_that_of_the_mean():
    kept = np.abs(X) > 1
    of_x = jax.grad(lambda x: (mean_magnitude(x, (0, 2), jnp.asarray(kept)) * jnp.arange(6.0)[None, :, None]).sum())(
        jnp.asarray(X)
    )
    wanted = np.sign(X) * kept / kept.sum((0, 2), keepdims=True) * np.arange(6.0)[None, :, None]
    np.testing.assert_allclose(of_x, wanted, rtol=1e-5, atol=1e-8)
    for value in (0.0, 1e30, 1e-30):
        assert jnp.isfinite(jax.grad(lambda x: mean_magnitude(x, (0,))[0])(jnp.full((7,), value))).all()
