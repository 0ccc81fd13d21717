from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.nipq import NIPQ, error_noise, learned_width, nipq

X = jax.random.normal(jax.random.key(0), (32, 1000))
KEY = jax.random.key(5)


@cache
def compiled(signed: bool, jitter: bool):
    """(qparams, x, bits, key, dy) -> (x̂, the gradients of qparams, x and bits) of the noisy forward pass."""
    apply = nipq(QuantSpec(signed=signed), jitter=jitter).apply

    @jax.jit
    def run(qparams, x, bits, key, upstream):
        x_hat, pullback = jax.vjp(lambda q, x, b: apply(q, x, b, key=key), qparams, x, bits)
        return x_hat, *pullback(upstream)

    return run


def at(alpha, width=0.0):
    return NIPQ(jnp.full((1, 1), np.log(np.expm1(alpha)), jnp.float32), jnp.full((1, 1), width, jnp.float32))


def test_noise_has_the_histogram_of_the_errors():
    """Two narrow peaks and an even part: the draws fall into the same bins with the same frequency."""
    which = np.random.default_rng(0)
    errors = np.where(which.random(200_000) < 0.5, 0.3, np.where(which.random(200_000) < 0.5, -0.2, 0.0))
    errors = np.float32(errors + 0.1 * (errors == 0) * (which.random(200_000) - 0.5))
    drawn = np.asarray(error_noise(KEY, jnp.asarray(errors), jnp.ones(200_000)))
    wanted, found = (np.histogram(values, 256, (-0.5, 0.5))[0] / 200_000 for values in (errors, drawn))
    assert np.abs(wanted - found).sum() / 2 < 0.01  # total variation; a uniform draw is 0.9 away
    assert abs(np.corrcoef(errors, drawn)[0, 1]) < 0.01  # drawn independently of the element


def test_only_errors_of_elements_that_count_are_drawn_and_else_any():
    errors = jnp.concatenate([jnp.full(50, 0.25), jnp.full(50, -0.4), jnp.full(50, 0.7)])
    counted = jnp.asarray([1.0] * 50 + [0.0] * 50 + [1.0] * 50)
    drawn = error_noise(KEY, errors, counted)
    assert (jnp.abs(drawn - 0.25) <= 1 / 256).all()
    none = error_noise(KEY, errors, 0 * counted)
    assert none.min() < -0.4 < 0.4 < none.max()
    assert (jnp.abs(none) <= 0.5).all()


def test_values_on_the_grid_get_almost_no_noise_where_uniform_noise_would_blur_them():
    grid = jnp.asarray(np.random.default_rng(0).integers(-6, 7, (8, 50)), jnp.float32) / 7
    noisy = compiled(True, False)(at(1.0), grid, jnp.float32(4), KEY, grid)[0]
    assert jnp.abs(noisy - grid).max() <= 1 / 7 / 256 + 1e-6


@pytest.mark.parametrize("signed", [True, False])
def test_the_noise_has_the_power_of_the_true_error(signed):
    x, alpha = (X if signed else jnp.abs(X)), 3.0
    for bits in (2.0, 3.0, 8.0):
        n = 2.0 ** (bits - signed) - 1
        hard = fake_quant(x, alpha / n, 0.0, -n if signed else 0.0, n)
        inside = np.asarray((jnp.abs(x) < alpha) & (x != 0))
        noisy = compiled(signed, False)(at(alpha), x, jnp.float32(bits), KEY, x)[0]
        true, drawn = (np.asarray(value - x, np.float64)[inside] for value in (hard, noisy))
        assert abs(drawn.std() / true.std() - 1) < 0.02
        assert abs(drawn.mean() - true.mean()) < 0.01 * alpha / n


@pytest.mark.parametrize("signed", [True, False])
def test_the_gradients_of_the_noisy_pass_are_the_papers(signed):
    x = X if signed else jnp.abs(X)
    alpha, bits = 1.5, 4.0
    n = 2.0 ** (bits - signed) - 1
    upstream = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    noisy, of_qparams, of_x, of_bits = compiled(signed, False)(at(alpha), x, jnp.float32(bits), KEY, upstream)
    wide, up = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    above, below = wide >= alpha, wide <= (-alpha if signed else 0)
    inside = ~(above | below)
    np.testing.assert_array_equal(of_x, np.float32(up * inside))
    noise = np.where(inside, np.asarray(noisy, np.float64) - wide, 0) / (alpha / n)
    assert np.abs(noise).max() <= 0.5 + 1e-3
    of_alpha = (up * (above - 1.0 * below * signed + noise / n)).sum()
    softplus = 1 - np.exp(-alpha)  # the derivative of softplus where its value is alpha
    np.testing.assert_allclose(of_qparams.alpha.item(), of_alpha * softplus, rtol=1e-3)
    of_step = -alpha / n**2 * 2 ** (bits - signed) * np.log(2)
    of_width = (up * noise).sum() * of_step
    np.testing.assert_allclose(of_bits, of_width, rtol=1e-3)
    np.testing.assert_allclose(of_qparams.width.item(), of_width * 12 / 4, rtol=1e-3)  # 12 sigmoid'(0)


def test_at_eight_bits_the_learned_width_is_the_authors():
    for logit in (-3.0, 0.0, 1.3):
        wanted = 2 + 12 / (1 + np.exp(-logit))
        assert abs(learned_width(at(1.0, logit), 8.0).item() - wanted) < 1e-5
    assert learned_width(at(1.0, -50.0), 2.0) == 1  # never below one bit


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0)])
@pytest.mark.parametrize("signed", [True, False])
def test_without_a_key_it_is_lsqs_forward_and_backward_pass(signed, granularity):
    spec = QuantSpec(signed=signed, granularity=granularity)
    quantizer, x = nipq(spec), (X if signed else jnp.abs(X))
    qparams = quantizer.init(0.8 * x, 3.0)  # some elements of every channel are clipped
    alpha = jax.nn.softplus(qparams.alpha)
    np.testing.assert_allclose(alpha, 0.8 * jnp.abs(x).max(granularity.shared_axes(2), keepdims=True), rtol=1e-6)
    n = 2.0 ** (3 - signed) - 1
    wanted, pull = jax.vjp(lambda x, s: fake_quant(x, s, 0.0, -n if signed else 0.0, n, mask="unrounded"), x, alpha / n)
    found, ours = jax.vjp(lambda x, q, b: quantizer.apply(q, x, b), x, qparams, jnp.float32(3))
    assert jnp.isclose(found, wanted, atol=1e-5).mean() > 0.999
    upstream = jnp.sin(x)
    assert jnp.isclose(ours(upstream)[0], pull(upstream)[0]).mean() > 0.999
    softplus = 1 - jnp.exp(-alpha)
    np.testing.assert_allclose(ours(upstream)[1].alpha, pull(upstream)[1] / n * softplus, rtol=1e-4, atol=1e-4)
    assert ours(upstream)[1].width == ours(upstream)[2] == 0  # the bit-width is trained by noise alone


def test_the_learned_width_moves_the_grid():
    quantizer = nipq(QuantSpec())
    qparams = quantizer.init(X, 4.0)
    logit = np.log(2 / 1)  # 12 (sigmoid - 1/2) = 2
    wider = quantizer.apply(qparams._replace(width=jnp.full((1, 1), logit, jnp.float32)), X, 4.0)
    np.testing.assert_array_equal(wider, quantizer.apply(qparams, X, 6.0))


def test_jitter_rounds_the_width_up_or_down():
    """b + U[-1/2, 1/2] rounded: at 4.5 bits both 4 and 5 occur, at 4.0 only 4."""
    quantizer, x = nipq(QuantSpec()), jnp.full((1, 1), 0.87)
    qparams = at(1.0)
    draw = jax.jit(jax.vmap(lambda key, b: quantizer.apply(qparams, x, b, key=key)[0, 0], (0, None)))
    keys = jax.random.split(KEY, 400)
    errors = [np.asarray(draw(keys, jnp.float32(bits))) - 0.87 for bits in (4.0, 4.5)]
    hard = {bits: np.rint(0.87 * (2 ** (bits - 1) - 1)) / (2 ** (bits - 1) - 1) - 0.87 for bits in (4, 5)}
    near = lambda error, bits: np.abs(error - hard[bits]) < 1 / 7 / 256 + 1e-6  # noqa: E731
    assert near(errors[0], 4).all()
    assert 0.35 < near(errors[1], 4).mean() < 0.65
    assert (near(errors[1], 4) | near(errors[1], 5)).all()


def test_noise_on_degenerate_tensors_is_finite():
    for x in (jnp.zeros((4, 3)), 3 * jnp.ones((4, 3)), -3 * jnp.ones((4, 3)), 1e30 * X[:4, :3], 1e-30 * X[:4, :3]):
        for signed in (True, False):
            qparams = nipq(QuantSpec(signed=signed)).init(x, 4.0)
            for bits in (0.0, 1.0, 4.0, 31.0, 32.0):
                for leaf in jax.tree.leaves(
                    compiled(signed, True)(qparams, x, jnp.float32(bits), KEY, jnp.cos(X[:4, :3]))
                ):
                    assert np.isfinite(leaf).all(), (bits, signed)
