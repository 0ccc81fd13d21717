from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare, float64
from conftest import golden_cases
from jax.lax import stop_gradient

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.dsq import DSQ, SHARPEST, SOFTEST, dsq, soft_round


def compiled(signed: bool):
    """(qparams, x, bits, dy) -> (x̂, the gradients of qparams, the gradient of x)."""
    apply = dsq(QuantSpec(signed=signed)).apply

    @jax.jit
    def run(qparams, x, bits, upstream):
        x_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), qparams, x)
        return x_hat, *pullback(upstream)

    return run


def at(scale, alpha):
    return DSQ(jnp.full((1,), scale, jnp.float32), jnp.full((1,), alpha, jnp.float32))


def test_mqbench_computed_the_same():
    run, compared = compiled(True), 0
    for case, arrays in golden_cases("mqbench"):
        if case["case"].startswith("dsq"):
            x, upstream = (jnp.asarray(arrays[key]) for key in ("x", "dy"))
            x_hat, _, of_x = run(at(case["scale"], case["alpha"]), x, jnp.float32(case["bits"]), upstream)
            compared += compare(case["case"], "y", x_hat, arrays["y"], 1e-6)
            compared += compare(case["case"], "dx", of_x, arrays["dx"], 2e-5)
    print(f"compared {compared} elements, none left out")
    assert compared == 8 * 2 * 60


@pytest.mark.parametrize("signed", [True, False])
def test_the_gradients_are_those_of_the_soft_staircase(signed):
    """Autodiff in float64 of s (φ(clip(x / s)) + stop_gradient(round - φ)), against the slopes that are used."""
    generator = np.random.default_rng(0)
    x, upstream = (np.float64(np.float32(generator.normal(0, deviation, 300))) for deviation in (2, 1))
    run = compiled(signed)
    for bits, scale, alpha in ((2, 0.9, 0.4), (4, 0.3, 0.05), (8, 0.02, 0.8)):
        scale, alpha = np.float64(np.float32(scale)), np.float64(np.float32(alpha))
        qmin, qmax = (float(end) for end in integer_range(bits, signed))

        def composed(x, scale, alpha, qmin=qmin, qmax=qmax):
            v = x / scale
            v = jnp.where(v < qmin, qmin, jnp.where(v > qmax, qmax, v))
            soft = soft_round(v, alpha)
            return scale * (soft + stop_gradient(jnp.round(v) - soft))

        with float64():
            wanted, pullback = jax.vjp(composed, jnp.asarray(x), jnp.asarray(scale), jnp.asarray(alpha))
            of_x, of_scale, of_alpha = (np.asarray(slope) for slope in pullback(jnp.asarray(upstream)))
        found, ours, ours_x = run(at(scale, alpha), jnp.float32(x), jnp.float32(bits), jnp.float32(upstream))
        compare("dsq", "x_hat", found, wanted, 1e-6)
        compare("dsq", "x", ours_x, of_x, 1e-4)  # the tanh is steep: a last bit of x / s moves its slope
        compare("dsq", "scale", ours.scale, of_scale, 1e-5 * qmax)
        compare("dsq", "alpha", ours.alpha, of_alpha, 1e-4)
        assert abs(of_alpha) > 1e-3


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.85])
def test_soft_rounding_keeps_integers_rises_and_sharpens(alpha):
    v = jnp.linspace(-3, 3, 601)
    soft = soft_round(v, jnp.float32(alpha))
    whole = jnp.arange(-3.0, 3.0)
    np.testing.assert_allclose(soft_round(whole, jnp.float32(alpha)), whole, atol=1e-6)
    assert (jnp.diff(soft) > -1e-6).all()
    assert (jnp.abs(soft - jnp.round(v)).max() <= 0.5 + 1e-6).all()
    sharper = soft_round(v, jnp.float32(alpha / 2))
    assert jnp.abs(sharper - jnp.round(v)).mean() < jnp.abs(soft - jnp.round(v)).mean()


def test_the_forward_pass_is_plain_rounding_whatever_alpha_is():
    x = jax.random.normal(jax.random.key(0), (500,)) * 3
    run = compiled(True)
    wanted = fake_quant(x, 0.25, 0.0, -8.0, 7.0)
    for alpha in (-1.0, 0.0, 0.2, 0.6, 2.0):
        x_hat, ours, of_x = run(at(0.25, alpha), x, jnp.float32(4), jnp.ones(500))
        np.testing.assert_array_equal(x_hat, wanted)
        assert np.isfinite(of_x).all()
        assert (ours.alpha == 0) == (not SHARPEST < alpha < SOFTEST)


def test_the_slope_is_small_on_the_plateaus_and_large_at_the_thresholds():
    run, x = compiled(True), jnp.asarray([0.0, 0.5, 1.0, 1.5])
    slopes = run(at(1.0, 0.1), x, jnp.float32(4), jnp.ones(4))[2]
    np.testing.assert_allclose(slopes[0::2], slopes[0])
    assert slopes[0] < 0.35
    assert slopes[1] > 1.5
