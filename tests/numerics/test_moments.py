from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.moments import mean_and_deviation, root_mean_square

X = np.random.default_rng(0).normal(1, 3, (4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e34])
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (1,)])
def test_they_are_numpys_at_every_magnitude(axes, scale):
    x = X * np.float32(scale)
    mean, deviation = mean_and_deviation(jnp.asarray(x), axes)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axes, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(deviation, wide.std(axes, ddof=1, keepdims=True), rtol=1e-6)
    root = np.sqrt((wide**2).mean(axes, keepdims=True))
    np.testing.assert_allclose(root_mean_square(jnp.asarray(x), axes), root, rtol=1e-6)


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.full((2, 3), 2.5), np.full((1, 1), -7.0)])
def test_equal_elements_have_the_deviation_one_and_zeros_the_root_zero(x):
    mean, deviation = mean_and_deviation(jnp.asarray(x, jnp.float32), (0, 1))
    assert mean.item() == x.flat[0]
    assert deviation.item() == 1
    np.testing.assert_allclose(root_mean_square(jnp.asarray(x, jnp.float32), (0, 1)).item(), abs(x.flat[0]), rtol=1e-6)
