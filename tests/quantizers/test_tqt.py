from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, gradients64, samples

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.tqt import SMALLEST, TQT, power_of_two_scale, tqt


def closed_form(x, log2_threshold, bits, signed, upstream):
    """TQT's x̂ and gradients as the paper prints them, to log2 t and to x."""
    qmin, qmax = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    s = 2.0 ** np.ceil(log2_threshold) / 2.0 ** (bits - 1 if signed else bits)
    code = np.rint(x / s)
    inside = (qmin <= code) & (code <= qmax)
    slope = s * np.log(2.0) * np.where(inside, code - x / s, np.clip(code, qmin, qmax))
    return s * np.clip(code, qmin, qmax), upstream * slope, upstream * inside


@pytest.mark.parametrize("bits", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradients_are_the_papers(signed, bits):
    x, upstream = samples(int(bits), 4000, 2.0)
    log2_threshold = np.resize([-0.7, 0.0, 0.3, 1.0, 1.6], 4000)
    apply = tqt(QuantSpec(signed=signed, granularity=per_channel(0))).apply
    wanted, of_threshold, of_x = closed_form(x, log2_threshold, bits, signed, upstream)
    x_hat, ours, ours_x = gradients64("tqt", apply, TQT(log2_threshold), x, bits, upstream)
    assert_exact(x_hat, wanted)
    assert_exact(ours.log2_threshold, of_threshold)
    assert_exact(ours_x, of_x)
    assert 0.05 < (of_x == 0).mean() < 0.8  # both inside and outside are compared

    qparams = TQT(jnp.float32(log2_threshold))
    low_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), qparams, jnp.float32(x))
    low, low_x = pullback(jnp.float32(upstream))
    np.testing.assert_array_equal(low_hat, wanted)  # steps are powers of two: float32 is exact
    np.testing.assert_array_equal(low_x, of_x)
    np.testing.assert_allclose(low.log2_threshold, of_threshold, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_steps_are_powers_of_two_exactly(signed):
    thresholds = jnp.asarray([-63.5, -20.0, -1.2, -1e-7, 0.0, 1e-7, 0.5, 1.0, 1.0000001, 13.0, 40.3], jnp.float32)
    wanted = np.ceil(np.asarray(thresholds, np.float64))
    scales = jax.jit(jax.vmap(lambda bits: power_of_two_scale(thresholds, bits, signed)))(jnp.arange(1.0, 17.0))
    for bits, scale in enumerate(scales, start=1):
        np.testing.assert_array_equal(scale, 2.0 ** (wanted - (bits - 1 if signed else bits)))


def test_the_step_doubles_when_the_threshold_passes_a_power_of_two():
    x = jax.random.normal(jax.random.key(0), (1000,))
    quantizer = tqt(QuantSpec())
    steps = [quantizer.encode(TQT(jnp.full((1,), t)), x, 4.0).scale.item() for t in (0.1, 0.9, 1.0, 1.1, 2.0)]
    assert steps == [0.25, 0.25, 0.25, 0.5, 0.5]
    for t in (0.1, 1.1, -3.0):
        qparams = TQT(jnp.full((1,), t))
        np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, 4.0)), quantizer.apply(qparams, x, 4.0))


@pytest.mark.parametrize("signed", [True, False])
def test_the_threshold_starts_at_the_calibrated_bound(signed):
    x = jnp.asarray([[0.1, -5.0, 3.0], [0.0, 0.0, 0.0]])
    init = tqt(QuantSpec(signed=signed, granularity=per_channel(0), range="minmax")).init
    np.testing.assert_allclose(2.0 ** init(x, 4.0).log2_threshold[0], 5.0 if signed else 3.0, rtol=1e-6)
    assert init(x, 4.0).log2_threshold[1] == np.log2(SMALLEST)


def test_gradient_descent_on_the_threshold_finds_the_best_power_of_two():
    """From far outside and far inside, log2 t settles at the power of two of least error, on N(0, 1) at 4 bits."""
    x = jax.random.normal(jax.random.key(0), (4096,))
    apply = tqt(QuantSpec()).apply

    def loss(t):
        return ((apply(TQT(t), x, 4.0) - x) ** 2).mean()

    best = min(loss(jnp.full((1,), t)) for t in (-1.0, 0.0, 1.0, 2.0, 3.0))

    @jax.jit
    def descend(t):  # steps of the sign of the gradient: the paper normalises gradients
        step = lambda t, _: (t - 0.02 * jnp.sign(jax.grad(loss)(t)), loss(t))  # noqa: E731
        return jax.lax.scan(step, t, None, length=400)[1]

    for start in (-2.0, 5.0):
        losses = descend(jnp.full((1,), start))
        assert losses[-20:].min() <= best * 1.001
        assert losses[0] > 5 * best


def test_the_default_mask_is_on_the_rounded_value_and_the_spec_may_choose_another():
    x = jnp.asarray([7.25, 7.0, -8.4, 7.75]) * 0.5
    for mask, passes in {None: [1, 1, 1, 0], "unrounded": [0, 1, 0, 0], "none": [1, 1, 1, 1]}.items():
        quantizer = tqt(QuantSpec(mask=mask))
        slope = jax.grad(lambda x, apply=quantizer.apply: apply(TQT(jnp.full((1,), 2.0)), x, 4.0).sum())(x)
        np.testing.assert_array_equal(slope, passes)
        assert ("passes_gradient" in quantizer.traits) == (mask == "none")


def test_an_affine_grid_is_refused():
    with pytest.raises(UnsupportedSpecError, match="tqt"):
        tqt(QuantSpec(symmetric=False))
