from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.errors import GraphError
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.diffq import diffq
from qresearch.quantizers.minmax import minmax

X = jax.random.normal(jax.random.key(0), (64, 500)) * jnp.linspace(0.2, 2, 64).reshape(64, 1)
KEY = jax.random.key(7)


def step(spec, bits):
    axes = spec.granularity.shared_axes(2)
    x = X if spec.signed else jnp.abs(X)
    return x, jnp.abs(x).max(axes, keepdims=True) / (2.0 ** (bits - spec.signed) - 1)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_noise_has_the_width_of_a_step_and_no_mean(signed, granularity):
    spec = QuantSpec(signed=signed, granularity=granularity)
    for noise, deviation, largest in (("uniform", 1 / np.sqrt(12), 0.5), ("gaussian", 0.5, np.inf)):
        quantizer = diffq(spec, noise=noise)
        for bits in (2.0, 3.7, 8.0):
            x, delta = step(spec, bits)
            noisy = quantizer.apply(quantizer.init(x, bits), x, bits, key=KEY)
            drawn = np.asarray((noisy - x) / delta, np.float64)
            assert np.abs(drawn).max() <= largest + 1e-4
            assert abs(drawn.mean()) < 4 * deviation / np.sqrt(drawn.size)
            assert abs(drawn.std() / deviation - 1) < 0.02
            assert abs(np.corrcoef(drawn.ravel(), np.asarray(x).ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("bits", [2.0, 3.5, 6.0])
def test_the_gradients_are_those_of_the_noise(bits):
    """∂x̂/∂b = (U / 2) ∂Δ/∂b with Δ = bound / (2^(b-1) - 1), and 1 to x."""
    quantizer, (x, delta) = diffq(QuantSpec()), step(QuantSpec(), bits)
    upstream = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    noisy, pullback = jax.vjp(lambda x, b: quantizer.apply(quantizer.init(x, b), x, b, key=KEY), x, jnp.float32(bits))
    of_x, of_bits = pullback(upstream)
    np.testing.assert_array_equal(of_x, upstream)
    slope = -np.float64(delta.item()) * 2 ** (bits - 1) * np.log(2) / (2 ** (bits - 1) - 1)
    drawn = np.asarray(noisy, np.float64) - np.asarray(x, np.float64)
    wanted = (np.asarray(upstream, np.float64) * drawn / delta.item()).sum() * slope
    assert abs(of_bits - wanted) < 1e-3 * abs(wanted) + 1e-3


def test_without_a_key_it_is_the_plain_quantizer():
    for spec in (QuantSpec(), QuantSpec(symmetric=False, granularity=per_channel(0)), QuantSpec(signed=False)):
        x = X if spec.signed else jnp.abs(X)
        ours, plain = diffq(spec), minmax(spec)
        for bits in (2.0, 8.0):
            wanted = plain.apply(plain.init(x, bits), x, bits)
            np.testing.assert_array_equal(ours.apply(ours.init(x, bits), x, bits), wanted)


def test_two_keys_give_two_draws_and_one_key_one():
    quantizer = diffq(QuantSpec())
    draw = lambda seed: quantizer.apply(quantizer.init(X, 4.0), X, 4.0, key=jax.random.key(seed))  # noqa: E731
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).mean() > 0.99


def test_noise_on_a_fixed_range_stays_at_its_ends():
    quantizer = diffq(QuantSpec(signed=False))
    x = jnp.abs(X)
    qparams = quantizer.init(x, 4.0)
    noisy, pullback = jax.vjp(lambda x: quantizer.apply(qparams, x, 4.0, key=KEY), 10 * x)
    assert noisy.max() <= x.max() * (1 + 0.5 / 15) + 1e-5
    slopes = pullback(jnp.ones_like(x))[0]
    np.testing.assert_array_equal(slopes, (10 * x <= x.max()).astype(jnp.float32))


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_on_degenerate_tensors_is_finite(noise):
    for x in (jnp.zeros((4, 3)), 3 * jnp.ones((4, 3)), 1e30 * X[:4, :3], 1e-30 * X[:4, :3]):
        for bits in (0.0, 1.0, 4.0, 31.0, 32.0):
            quantizer = diffq(QuantSpec(), noise=noise)
            total = lambda x, b, q=quantizer: q.apply(q.init(x, b), x, b, key=KEY).sum()  # noqa: E731
            assert all(np.isfinite(v).all() for v in jax.value_and_grad(total, (0, 1))(x, jnp.float32(bits))[1])


def test_what_it_cannot_do_is_refused():
    with pytest.raises(GraphError, match=r"no noise 'gausian'.*'gaussian'"):
        diffq(QuantSpec(), noise="gausian")
    with pytest.raises(UnsupportedSpecError, match=r"diffq.*stochastic"):
        diffq(QuantSpec(rounding="stochastic"))
