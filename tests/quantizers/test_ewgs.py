from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare, samples

from qresearch.numerics.codes import decode
from qresearch.numerics.fake_quant import fake_quant
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.ewgs import EWGS, HALF_NORMAL, ewgs, scaled_gradient


def compiled(signed: bool, delta: float):
    """(qparams, x, bits, dy) -> (x̂, the gradients of qparams, the gradient of x)."""
    apply = ewgs(QuantSpec(signed=signed), delta=delta).apply

    @jax.jit
    def run(qparams, x, bits, upstream):
        x_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), qparams, x)
        return x_hat, *pullback(upstream)

    return run


def at(lower, upper, output_scale):
    return EWGS(*(jnp.full((1,), value, jnp.float32) for value in (lower, upper, output_scale)))


def by_hand(x, lower, upper, scale, n, signed, delta, upstream):
    """The paper's forward and backward pass in float64: x̂ and the gradients of x, l, u and the output scale."""
    x_n = (x - lower) / (upper - lower)
    inside = (x_n >= 0) & (x_n <= 1)
    x_n = np.clip(x_n, 0, 1)
    q = np.rint(n * x_n) / n
    size, offset = (2, -1) if signed else (1, 0)
    g_q = upstream * scale * size
    g_n = g_q * (1 + delta * np.sign(g_q) * (x_n - q)) * inside
    of_lower, of_upper = (g_n * (x_n - 1)).sum() / (upper - lower), (-g_n * x_n).sum() / (upper - lower)
    return (
        scale * (size * q + offset),
        g_n / (upper - lower),
        of_lower,
        of_upper,
        (upstream * (size * q + offset)).sum(),
    )


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize(("signed", "lower"), [(True, -1.9), (True, -1.3), (False, 0.0), (False, 0.2)])
def test_forward_and_backward_are_the_papers(signed, lower, delta):
    run, compared = compiled(signed, delta), 0
    for bits in (1, 2, 4, 8):
        x, upstream = samples(bits, 400, 1.5)
        lower64, upper64, scale64 = (np.float64(np.float32(value)) for value in (lower, 1.9, 1.2))
        wanted = by_hand(x, lower64, upper64, scale64, 2.0**bits - 1, signed, delta, upstream)
        arguments = at(lower, 1.9, 1.2), jnp.float32(x), jnp.float32(bits), jnp.float32(upstream)
        x_hat, ours, of_x = run(*arguments)
        compared += compare(f"{bits} bits", "x_hat", x_hat, wanted[0], 1e-6)
        compared += compare(f"{bits} bits", "x", of_x, wanted[1], 2e-5)
        for name, found, sum64 in zip(("lower", "upper", "output_scale"), ours, wanted[2:], strict=True):
            compared += compare(f"{bits} bits", name, found, sum64, 2e-5)
        assert (wanted[1] == 0).any()
    assert compared == 4 * (400 + 400 + 3)


def test_without_scaling_it_is_the_straight_through_estimator():
    x, upstream = (jax.random.normal(jax.random.key(seed), (1000,)) for seed in (0, 1))
    x_hat, _, of_x = compiled(False, 0.0)(at(0, 2, 2), x, jnp.float32(3), upstream)
    value, pullback = jax.vjp(lambda x: fake_quant(x, 2 / 7, 0.0, 0.0, 7.0, mask="unrounded"), x)
    np.testing.assert_allclose(x_hat, value, atol=1e-6)
    np.testing.assert_allclose(of_x, pullback(upstream)[0], rtol=1e-6)


def test_a_gradient_grows_where_its_step_crosses_the_nearest_threshold():
    """Descent moves x against g: away from its level where x - q and g differ in sign, so there less is needed."""
    x, quantized = jnp.asarray([0.3, -0.3, 0.3, -0.3]), jnp.zeros(4)
    upstream = jnp.asarray([1.0, 1.0, -1.0, -1.0])
    _, pullback = jax.vjp(lambda x: scaled_gradient(0.5, x, quantized), x)
    np.testing.assert_allclose(pullback(upstream)[0], [1.15, 0.85, -0.85, -1.15])


def test_the_initial_interval_is_three_deviations():
    normal = jax.random.normal(jax.random.key(0), (100_000,)) * 0.7
    weights = ewgs(QuantSpec()).init(normal, 4.0)
    np.testing.assert_allclose([v.item() for v in weights], [-2.1, 2.1, 2.1], rtol=0.01)
    inputs = ewgs(QuantSpec(signed=False)).init(jnp.abs(normal), 4.0)  # half of a normal has 0.603 of its deviation
    assert inputs.lower.item() == 0
    np.testing.assert_allclose([inputs.upper.item(), inputs.output_scale.item()], 2.1, rtol=0.01)
    assert abs(HALF_NORMAL - 0.6028) < 1e-4


def test_weights_have_a_level_at_either_end_and_none_at_zero():
    quantizer, x = ewgs(QuantSpec()), jnp.linspace(-2, 2, 4001)
    qparams = at(-1, 1, 1)
    for bits in (1, 2, 3, 5):
        levels = np.unique(quantizer.apply(qparams, x, float(bits)))
        np.testing.assert_allclose(levels, np.linspace(-1, 1, 2**bits), atol=1e-6)
        codes = quantizer.encode(qparams, x, float(bits))
        assert (codes.zero_point == -0.5).all()
        np.testing.assert_array_equal(np.unique(codes.values), np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))
        np.testing.assert_array_equal(decode(codes), quantizer.apply(qparams, x, float(bits)))


def test_ends_that_cross_leave_finite_gradients():
    x = jax.random.normal(jax.random.key(0), (100,))
    for signed in (True, False):
        x_hat, ours, of_x = compiled(signed, 1e-3)(at(1, -1, 1), x, jnp.float32(4), x)
        for value in (x_hat, of_x, *ours):
            assert np.isfinite(value).all()
