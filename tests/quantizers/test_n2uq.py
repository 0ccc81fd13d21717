from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare, float64

from qresearch.numerics.codes import decode
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.n2uq import N2UQ, SHORTEST, n2uq

INPUTS = n2uq(QuantSpec(signed=False))
WEIGHT = jax.random.normal(jax.random.key(0), (64, 48)) * jnp.linspace(0.1, 3, 48).reshape(1, 48)


@jax.jit
def run(qparams, x, bits, upstream):
    x_hat, pullback = jax.vjp(lambda q, x: INPUTS.apply(q, x, bits), qparams, x)
    return x_hat, *pullback(upstream)


def broken_line(x, start, lengths, input_scale, output_scale):
    """The backward pass as the paper draws it: one straight piece per interval, constant beyond the ends."""
    v, begin, line = x / input_scale, start, jnp.zeros_like(x)
    for i, length in enumerate(lengths):
        line = jnp.where((v > begin) & (v <= begin + length), i + (v - begin) / length, line)
        begin = begin + length
    return output_scale * jnp.where(v > begin, len(lengths), line)


def stairs(x, start, lengths, input_scale, output_scale):
    """The forward pass: the levels passed, each at the middle of its interval."""
    begins = start + np.cumsum(lengths) - lengths
    return output_scale * (x[:, None] / input_scale > begins + lengths / 2).sum(1)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_forward_and_backward_are_the_papers(bits):
    generator, count = np.random.default_rng(bits), 2**bits - 1
    single = lambda low, high, size=None: np.float64(np.float32(generator.uniform(low, high, size)))  # noqa: E731
    x, upstream = single(-0.5, 1.1 * count, 600), single(-1, 1, 600)
    values = single(-0.2, 0.3), single(0.2, 1.8, count), single(0.8, 1.2), single(0.5, 2)
    with float64():
        line, pullback = jax.vjp(broken_line, jnp.asarray(x), *(jnp.asarray(value) for value in values))
        slopes = pullback(jnp.asarray(upstream))
        line, (of_x, of_start, of_lengths, of_input, _) = jax.tree.map(np.asarray, (line, slopes))
    wanted = stairs(x, *values)
    assert np.abs(wanted - line).max() <= values[3] * 0.5 + 1e-9

    padded = np.full(255, 7.0)
    padded[:count] = values[1]
    arrays = (np.reshape(value, -1) for value in (values[0], padded, values[2], values[3]))
    qparams = N2UQ(*(jnp.asarray(value, jnp.float32) for value in arrays))
    x_hat, ours, ours_x = run(qparams, jnp.float32(x), jnp.float32(bits), jnp.float32(upstream))
    compared = compare("n2uq", "x_hat", x_hat, wanted, 1e-6) + compare("n2uq", "x", ours_x, of_x, 2e-5)
    compared += compare("n2uq", "start", ours.start, of_start, 2e-5)
    compared += compare("n2uq", "lengths", ours.lengths[:count], of_lengths, 2e-5)
    compared += compare("n2uq", "input_scale", ours.input_scale, of_input, 2e-5)
    of_output = (upstream * wanted).sum() / values[3]
    compared += compare("n2uq", "output_scale", ours.output_scale, of_output, 2e-5)
    assert compared == 1200 + 1 + count + 2
    assert (ours.lengths[count:] == 0).all()
    assert 0.02 < (of_x == 0).mean() < 0.9


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
def test_it_starts_as_uniform_rounding(granularity):
    x = jnp.abs(WEIGHT)
    quantizer = n2uq(QuantSpec(signed=False, granularity=granularity, range="minmax"))
    for bits in (1.0, 2.0, 4.0, 8.0):
        qparams = quantizer.init(x, bits)
        scale = x.max(granularity.shared_axes(2), keepdims=True) / (2.0**bits - 1)
        wanted = fake_quant(x, scale, 0.0, 0.0, 2.0**bits - 1)
        x_hat = quantizer.apply(qparams, x, bits)
        assert jnp.isclose(x_hat, wanted, rtol=1e-5, atol=1e-6).mean() > 0.999  # but for ties
        np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, bits)), x_hat)


def test_thresholds_learn_where_a_task_wants_them():
    """The task: a square root. Its thresholds are where sqrt(3 x) = 1/2, 3/2, 5/2; uniform ones are 1/2, 3/2, 5/2."""
    x = jnp.linspace(0, 3, 3001)
    start = N2UQ(jnp.zeros(1), jnp.ones(255), jnp.ones(1), jnp.ones(1))

    def loss(qparams):
        return ((INPUTS.apply(qparams, x, 2.0) - jnp.sqrt(3 * x)) ** 2).mean()

    @jax.jit
    def descend(qparams):
        def step(qparams, _):
            slopes = jax.grad(loss)(qparams)._replace(input_scale=jnp.zeros(1), output_scale=jnp.zeros(1))
            return jax.tree.map(lambda value, slope: value - 0.05 * slope, qparams, slopes), loss(qparams)

        return jax.lax.scan(step, qparams, None, length=500)

    learned, losses = descend(start)
    assert losses[-1] < 0.4 * losses[0]
    thresholds = [float(x[(INPUTS.apply(learned, x, 2.0) >= level).argmax()]) for level in (1, 2, 3)]
    np.testing.assert_allclose(thresholds, [(level - 0.5) ** 2 / 3 for level in (1, 2, 3)], atol=0.15)


def test_lengths_that_training_made_negative_are_short_and_finite():
    x = jnp.linspace(0, 4, 200)
    one, lengths = jnp.ones(1), jnp.ones(255).at[1].set(-3.0)
    x_hat, ours, of_x = run(N2UQ(0 * one, lengths, one, one), x, jnp.float32(2), jnp.ones(200))
    for value in (x_hat, of_x, *ours):
        assert np.isfinite(value).all()
    assert SHORTEST > 0
    np.testing.assert_array_equal(np.unique(x_hat), [0, 1, 2, 3])


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
def test_weights_are_the_papers_formula(granularity):
    quantizer = n2uq(QuantSpec(granularity=granularity))
    apply = jax.jit(lambda x, bits: quantizer.apply(quantizer.init(x, bits), x, bits))
    wide = np.asarray(WEIGHT, np.float64)
    for bits in (2, 3, 4, 8):
        n = 2.0**bits - 1
        gamma = n / 2 ** (bits - 1) * np.abs(wide).mean(granularity.shared_axes(2), keepdims=True)
        wanted = gamma * (2 * np.rint(n * (np.clip(wide / gamma, -1, 1) + 1) / 2) / n - 1)
        found = np.asarray(apply(WEIGHT, jnp.float32(bits)))
        assert (np.abs(found - wanted) <= 1e-6 * gamma).mean() > 0.9999  # γ in float32 may move one across a threshold
        assert len(np.unique(found[:, 0])) <= 2**bits
    upstream = jax.random.normal(jax.random.key(1), WEIGHT.shape)
    _, pullback = jax.vjp(lambda x: quantizer.apply(quantizer.init(x, 3.0), x, 3.0), WEIGHT)
    np.testing.assert_array_equal(pullback(upstream)[0], upstream)
    with pytest.raises(UnsupportedSpecError, match=r"n2uq.*range"):
        n2uq(QuantSpec(range="mse"))
