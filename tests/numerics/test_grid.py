from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.grid import clamp_bits, integer_range, scale_from_range

WIDTHS = tuple(range(1, 17))


def exact_range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("mode", ["eager", "jit", "vmap"])
def test_integer_range_is_exact(mode, signed, narrow):
    bits = jnp.asarray(WIDTHS, jnp.float32)
    function = lambda b: integer_range(b, signed, narrow)  # noqa: E731
    if mode == "vmap":
        found = jax.jit(jax.vmap(function))(bits)
    else:
        one = jax.jit(function) if mode == "jit" else function
        found = tuple(jnp.stack(ends) for ends in zip(*(one(b) for b in bits)))
    wanted = np.array([exact_range(b, signed, narrow) for b in WIDTHS], np.float32).T
    for ends, exact in zip(found, wanted):
        assert ends.dtype == jnp.float32
        np.testing.assert_array_equal(ends, exact)


@pytest.mark.parametrize("bits", [*range(2, 17), 2.5, 7.25])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_in_bits_is_that_of_the_power_of_two(bits, signed):
    low, high = (jax.grad(lambda b, i=i: integer_range(b, signed)[i])(jnp.float32(bits)) for i in (0, 1))
    power = 2.0 ** (bits - 1) if signed else 2.0**bits
    np.testing.assert_allclose(high, np.log(2.0) * power, rtol=1e-6)
    np.testing.assert_allclose(low, -np.log(2.0) * power if signed else 0.0, rtol=1e-6)


@pytest.mark.parametrize("bits", [-1.0, 0.0, 1.0, 31.0, 32.0, 200.0])
@pytest.mark.parametrize("signed", [True, False])
def test_no_width_gives_an_infinite_grid_or_a_nan_gradient(bits, signed):
    for end in (0, 1):
        value, slope = jax.value_and_grad(lambda b, end=end: integer_range(b, signed)[end])(jnp.float32(bits))
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope)
        assert slope == 0.0 or 1.0 <= bits <= 31.0


def test_clamped_bits_keep_the_gradient_inside_and_lose_it_outside():
    bits = jnp.asarray([-3.0, 0.0, 0.5, 1.0, 1.5, 8.0, 31.0, 31.5, 32.0, 200.0])
    np.testing.assert_array_equal(clamp_bits(bits), np.clip(bits, 1, 31))
    slopes = jax.vmap(jax.grad(clamp_bits))(bits)
    np.testing.assert_array_equal(slopes, [0, 0, 0, 1, 1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_the_grid_covers_the_range_and_represents_zero(bits, signed, symmetric):
    low = jnp.asarray([[-3.0], [-0.01], [0.0], [2.0], [-7.0], [-0.5]])
    high = jnp.asarray([[5.0], [4.0], [3.0], [6.0], [-2.0], [0.5]])
    if symmetric and not signed:
        low = jnp.zeros_like(high)
        high = jnp.abs(high)
    qmin, qmax = integer_range(float(bits), signed)
    scale, zero_point = scale_from_range(low, high, qmin, qmax, symmetric)
    assert scale.dtype == zero_point.dtype == jnp.float32
    assert scale.shape == zero_point.shape == low.shape
    assert (scale > 0).all()
    np.testing.assert_array_equal(zero_point, np.round(zero_point))
    assert ((zero_point >= qmin) & (zero_point <= qmax)).all()
    # The zero-point is rounded, so the range moves by at most half a step.
    slack = 0.5 * scale * (1 + 1e-5) if not symmetric else 1e-6 * jnp.abs(high)
    assert ((qmax - zero_point) * scale >= jnp.maximum(high, 0.0) - slack).all()
    assert ((qmin - zero_point) * scale <= jnp.minimum(low, 0.0) + slack).all()
    if symmetric:
        assert (zero_point == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_of_the_step_in_bits_is_whole_at_every_width(signed, symmetric):
    """jnp.maximum(qmax, 1) would halve it where qmax is 1: at 2 bits signed and at 1 bit unsigned."""
    high = jnp.float32(3.0)

    @jax.jit
    @jax.grad
    def found(bits):
        return scale_from_range(jnp.zeros_like(high), high, *integer_range(bits, signed), symmetric)[0]

    for bits in range(2 if signed and symmetric else 1, 9):
        levels = 2.0 ** (bits - 1) if signed and symmetric else 2.0**bits
        np.testing.assert_allclose(found(jnp.float32(bits)), -3 * np.log(2) * levels / (levels - 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [0.0, 1.0])
def test_a_narrow_grid_of_a_single_code_has_a_finite_scale_and_gradient(bits, signed, symmetric):
    def scale(bits, high):
        return scale_from_range(-high, high, *integer_range(bits, signed, narrow=True), symmetric)[0]

    for high in (0.0, 3.0):
        value, slopes = jax.value_and_grad(scale, (0, 1))(jnp.float32(bits), jnp.float32(high))
        assert jnp.isfinite(jnp.stack([value, *slopes])).all()
        assert value > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_zero_gets_a_positive_scale(symmetric):
    zero = jnp.zeros((1, 1))
    scale, zero_point = scale_from_range(zero, zero, *integer_range(4.0, True), symmetric)
    assert 0 < scale.item() < 1e-30
    assert jnp.isfinite(zero_point).all()
