from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError
from qresearch.quantizers.ttq import TTQ, ttq

X = np.random.default_rng(0).normal(0.1, 0.7, (4, 6, 32)).astype(np.float32)
UPSTREAM = np.cos(np.arange(X.size)).reshape(X.shape).astype(np.float32)
ONE = jnp.ones((1, 1, 1))
LEARNED = TTQ(0.9 * ONE, 0.4 * ONE, None)


def regions(factor=0.05):
    threshold = np.float32(factor) * np.abs(X).max()
    return threshold < X, -threshold > X


@pytest.mark.parametrize("factor", [0.05, 0.3])
def test_it_is_the_papers_formula(factor):
    above, below = regions(factor)
    found = ttq(QuantSpec(), threshold=factor).apply(LEARNED, jnp.asarray(X), 2.0)
    np.testing.assert_array_equal(found, np.where(above, np.float32(0.9), np.where(below, np.float32(-0.4), 0)))


def test_the_gradients_are_the_papers():
    above, below = regions(0.3)
    quantizer = ttq(QuantSpec(), threshold=0.3)
    loss = lambda qparams, x: (quantizer.apply(qparams, x, 2.0) * UPSTREAM).sum()  # noqa: E731
    of_levels, of_x = jax.grad(loss, (0, 1))(LEARNED, jnp.asarray(X))
    dy = UPSTREAM.astype(np.float64)
    np.testing.assert_allclose(of_levels.positive.item(), (dy * above).sum(), rtol=1e-5)
    np.testing.assert_allclose(of_levels.negative.item(), -(dy * below).sum(), rtol=1e-5)
    np.testing.assert_allclose(of_x, dy * np.where(above, 0.9, np.where(below, 0.4, 1)), rtol=1e-6)


def test_the_levels_start_as_the_means_and_descent_returns_them_there():
    quantizer, x = ttq(QuantSpec()), jnp.asarray(X)
    above, below = regions()
    start = quantizer.init(x, 2.0)
    np.testing.assert_allclose(start.positive.item(), X[above].mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(start.negative.item(), -X[below].mean(dtype=np.float64), rtol=1e-6)
    slope = jax.jit(jax.grad(lambda qparams: ((quantizer.apply(qparams, x, 2.0) - x) ** 2).mean()))
    qparams = TTQ(2.0 * ONE, 0.01 * ONE, None)
    for _ in range(100):
        qparams = jax.tree.map(lambda value, step: value - 0.5 * step, qparams, slope(qparams))
    np.testing.assert_allclose(qparams.positive.item(), start.positive.item(), rtol=1e-4)
    np.testing.assert_allclose(qparams.negative.item(), start.negative.item(), rtol=1e-4)


def test_a_level_pushed_through_zero_keeps_its_sign_and_a_gradient():
    quantizer = ttq(QuantSpec())
    pushed = TTQ(-0.2 * ONE, -0.3 * ONE, None)
    x_hat = np.asarray(quantizer.apply(pushed, jnp.asarray(X), 2.0))
    assert (x_hat * X >= 0).all()
    slope = jax.grad(lambda qparams: (quantizer.apply(qparams, jnp.asarray(X), 2.0) * UPSTREAM).sum())(pushed)
    assert slope.positive.item() != 0
    assert slope.negative.item() != 0


def test_codes_index_the_three_levels():
    quantizer = ttq(QuantSpec())
    codes = quantizer.encode(LEARNED, jnp.asarray(X), 2.0)
    np.testing.assert_array_equal(codes.codebook, np.asarray([-0.4, 0, 0.9], np.float32))
    np.testing.assert_array_equal(decode(codes), quantizer.apply(LEARNED, jnp.asarray(X), 2.0))


def test_an_unsigned_tensor_has_one_level_beside_zero():
    quantizer = ttq(QuantSpec(signed=False), threshold=0.2)
    qparams = quantizer.init(jnp.asarray(np.maximum(X, 0)), 2.0)
    assert quantizer.learnable == ("positive",)
    assert qparams.negative is None
    above, _ = regions(0.2 * X.max() / np.abs(X).max())
    found = quantizer.apply(qparams, jnp.asarray(X), 2.0)
    np.testing.assert_allclose(found, above * X[above].mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(quantizer.apply(qparams, jnp.asarray(X[:1]), 2.0), found[:1])  # not of the batch


@pytest.mark.parametrize(
    "field",
    [
        {"symmetric": False},
        {"granularity": per_channel(0)},
        {"granularity": per_group(-1, 8)},
        {"range": "minmax"},
        {"rounding": "stochastic"},
        {"mask": "none"},
    ],
)
def test_what_it_has_no_use_for_is_refused(field):
    with pytest.raises(UnsupportedSpecError, match=f"ttq .*{next(iter(field))}"):
        ttq(QuantSpec(**field))
