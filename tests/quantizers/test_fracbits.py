from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, float64, samples

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.fracbits import FracBits, fracbits, fractional

BOUND = 1.7


def level(x, bound, bits, signed, upstream):
    """In NumPy: q at an integer width, and the gradients of the bound and of x."""
    qmin, qmax = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if bits == 0:
        return 0 * x, 0 * x, 0 * x
    steps = max(qmax, 1)
    scale = bound / steps
    v = x / scale
    inside = (v >= qmin) & (v <= qmax)
    code = np.clip(np.rint(v), qmin, qmax)
    return code * scale, upstream * np.where(inside, code - v, code) / steps, upstream * inside


@pytest.mark.parametrize("bits", [1.25, 2.0, 3.5, 6.8125, 8.0])
@pytest.mark.parametrize("signed", [True, False])
def test_the_closed_form_is_autodiff_in_float64(signed, bits):
    x, upstream = samples(int(8 * bits), 2000, 1.2)
    apply = fracbits(QuantSpec(signed=signed, granularity=per_channel(0))).apply
    low, high = (level(x, BOUND, np.floor(bits) + more, signed, upstream) for more in (0, 1))
    share = bits - np.floor(bits)
    with float64("fracbits"):
        arguments = FracBits(jnp.full(2000, BOUND, jnp.float64)), jnp.asarray(x), jnp.asarray(bits)
        x_hat, pullback = jax.vjp(lambda q, x, bits: apply(q, x, bits), *arguments)
        of_qparams, of_x, of_bits = pullback(jnp.asarray(upstream))
        assert x_hat.dtype == of_bits.dtype == of_qparams.bound.dtype == jnp.float64
    assert_exact(x_hat, (1 - share) * low[0] + share * high[0])
    assert_exact(of_qparams.bound, (1 - share) * low[1] + share * high[1])
    assert_exact(of_x, (1 - share) * low[2] + share * high[2])
    assert_exact(of_bits, (upstream * (high[0] - low[0])).sum())
    assert abs(of_bits) > 1e-3


def test_the_interpolation_itself_in_float64():
    with jax.enable_x64(True):
        values = jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)))
        for bits in (0.0, 2.0, 3.3, 7.999):
            found, slope = jax.jvp(lambda b: fractional(lambda w: values[w.astype(int)], b), (bits,), (1.0,))
            lower = int(bits)
            assert_exact(found, values[lower] + (bits - lower) * (values[lower + 1] - values[lower]))
            assert_exact(slope, values[lower + 1] - values[lower])


@pytest.mark.parametrize("signed", [True, False])
def test_in_float32_it_passes_through_the_integer_widths_and_is_straight_between(signed):
    quantizer = fracbits(QuantSpec(signed=signed))
    x = jax.random.normal(jax.random.key(0), (400,))
    qparams = quantizer.init(x, 4.0)
    run = jax.jit(lambda bits: quantizer.apply(qparams, x, bits))
    slope = jax.jit(lambda bits: jax.jvp(lambda b: quantizer.apply(qparams, x, b), (bits,), (jnp.float32(1),))[1])
    whole = [run(jnp.float32(bits)) for bits in range(34)]
    np.testing.assert_array_equal(whole[0], jnp.zeros(400))
    np.testing.assert_array_equal(whole[32], x)
    for bits in (0, 1, 4, 8, 31):
        np.testing.assert_allclose(slope(jnp.float32(bits)), whole[bits + 1] - whole[bits], atol=5e-7)
        half = run(jnp.float32(bits + 0.5))
        np.testing.assert_allclose(half, (whole[bits] + whole[bits + 1]) / 2, atol=1e-6)


def test_a_pruned_tensor_has_a_gradient_to_its_bits():
    quantizer = fracbits(QuantSpec(signed=False))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (100,)))
    error = lambda bits: ((quantizer.apply(quantizer.init(x, 1.0), x, bits) - x) ** 2).sum()  # noqa: E731
    assert jax.grad(error)(jnp.float32(0)) < 0


def test_the_error_between_two_widths_is_below_the_mixture_of_theirs():
    """A mean of two roundings errs less than either on the whole: the errors of neighbouring widths are not alike."""
    quantizer = fracbits(QuantSpec())
    x = jax.random.normal(jax.random.key(0), (4000,))
    qparams = quantizer.init(x, 4.0)
    errors = jax.jit(jax.vmap(lambda bits: ((quantizer.apply(qparams, x, bits) - x) ** 2).mean()))
    found = errors(jnp.linspace(2.0, 8.0, 25)).reshape(-1)
    whole = found[::4]
    assert (jnp.diff(whole) < 0).all()
    for quarter in (1, 2, 3):
        assert (found[quarter::4] < (1 - quarter / 4) * whole[:-1] + quarter / 4 * whole[1:]).all()


def test_codes_are_those_of_the_nearest_whole_width():
    quantizer = fracbits(QuantSpec())
    x = jax.random.normal(jax.random.key(0), (400,))
    qparams = quantizer.init(x, 4.0)
    for bits, whole in ((3.4, 3.0), (3.6, 4.0), (4.0, 4.0)):
        np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, bits)), quantizer.apply(qparams, x, whole))
