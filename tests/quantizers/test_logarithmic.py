from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError
from qresearch.quantizers.logarithmic import Logarithmic, logarithmic, nearest_exponent

X = np.random.default_rng(0).normal(0, 1, (4, 6, 32)).astype(np.float32)
X *= np.float32(10.0) ** np.random.default_rng(1).uniform(-4, 1, X.shape).astype(np.float32)


def reference(x: np.ndarray, top: int, bits: int, signed: bool, narrow: bool) -> np.ndarray:
    """The definition, element by element: the nearest exponent that has a code on its side of zero, or zero."""
    half = 2 ** (bits - 1)
    above, below = (half - 1, half - narrow) if signed else (2**bits - 1 - narrow, 0)
    smallest = top - max(above, 1) + 1
    result = np.zeros_like(x, np.float64)
    for index, value in np.ndenumerate(x.astype(np.float64)):
        codes = above if value > 0 else below
        if codes > 0 and abs(value) > 2.0 ** (smallest - 1):
            exponent = np.clip(np.rint(np.log2(abs(value))), smallest, smallest + codes - 1)
            result[index] = np.sign(value) * 2.0**exponent
    return result


@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False), (False, True)])
def test_it_is_the_definition(signed, narrow):
    quantizer = logarithmic(QuantSpec(signed, narrow=narrow))
    run = jax.jit(lambda qparams, bits: quantizer.apply(qparams, jnp.asarray(X), bits))
    for top in (2, 0, -1):
        qparams = Logarithmic(jnp.full((1, 1, 1), float(top)))
        for bits in (1, 2, 3, 4, 6, 8):
            wanted = reference(X, top, bits, signed, narrow)
            np.testing.assert_array_equal(run(qparams, jnp.float32(bits)), wanted, err_msg=f"{bits} bits, top {top}")


def test_exponents_are_exact_next_to_powers_of_two_and_to_their_middles():
    powers = 2.0 ** np.arange(-126, 127, dtype=np.float64)
    for factor, offset in ((1.0, 0), (np.sqrt(2), 0.5)):
        exact = (powers * factor).astype(np.float32)
        for x in (np.nextafter(exact, np.float32(0)), exact, np.nextafter(exact, np.float32(np.inf))):
            keep = np.abs(x) >= 2.0**-126
            wanted = np.rint(np.log2(x.astype(np.float64)))
            np.testing.assert_array_equal(nearest_exponent(jnp.asarray(x))[keep], wanted[keep], err_msg=str(offset))


def test_the_exponent_is_that_of_the_largest_value_of_each_channel():
    quantizer = logarithmic(QuantSpec(granularity=per_channel(1)))
    found = quantizer.init(jnp.asarray(X), 4.0).exponent
    assert found.shape == (1, 6, 1)
    np.testing.assert_array_equal(found, np.rint(np.log2(np.abs(X).max((0, 2), keepdims=True))))


@pytest.mark.parametrize("signed", [True, False])
def test_the_levels_of_three_bits(signed):
    quantizer = logarithmic(QuantSpec(signed))
    x = jnp.linspace(-5, 5, 4001)
    levels = np.unique(quantizer.apply(Logarithmic(jnp.zeros(1)), x, 3.0))
    wanted = [-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1] if signed else [0, *2.0 ** np.arange(-6, 1)]
    np.testing.assert_array_equal(levels, wanted)


def test_the_relative_error_is_that_of_an_octave_and_does_not_fall_with_bits():
    quantizer = logarithmic(QuantSpec())
    x = jnp.asarray(2.0 ** np.random.default_rng(0).uniform(-5, 0, 20_000), jnp.float32)
    errors = [
        float(jnp.abs(quantizer.apply(Logarithmic(jnp.zeros(1)), x, bits) / x - 1).max()) for bits in (4.0, 6.0, 8.0)
    ]
    np.testing.assert_allclose(errors, np.sqrt(2) - 1, atol=1e-3)
    assert "saturates" in quantizer.traits


def test_masks_end_at_the_largest_level_or_where_rounding_to_it_ends():
    x = jnp.asarray([0.9, 1.3, 1.5, 3.0, -1.5, -2.7, -3.0, 0.01])
    wanted = {None: [1, 1, 0, 0, 1, 1, 0, 1], "unrounded": [1, 0, 0, 0, 1, 0, 0, 1], "none": [1] * 8}
    for mask, expected in wanted.items():
        quantizer = logarithmic(QuantSpec(mask=mask))
        gradient = jax.grad(lambda x, q=quantizer: q.apply(Logarithmic(jnp.zeros(1)), x, 4.0).sum())(x)
        np.testing.assert_array_equal(gradient, expected, err_msg=str(mask))
    gradient = jax.grad(lambda x: logarithmic(QuantSpec(False)).apply(Logarithmic(jnp.zeros(1)), x, 4.0).sum())(x)
    np.testing.assert_array_equal(gradient, [1, 1, 0, 0, 0, 0, 0, 1])  # what is below an unsigned grid is clipped


def test_codes_are_decoded_to_the_result_at_any_width_and_size():
    x = jnp.asarray(X)
    for signed in (True, False):
        quantizer = logarithmic(QuantSpec(signed))
        run = jax.jit(lambda q, x, bits, f=quantizer: (f.encode(q, x, bits), f.apply(q, x, bits)))
        for size in (1e-36, 1.0, 1e34):
            qparams = quantizer.init(size * x, 4.0)
            for bits in (1, 2, 5, 8, 12, 24):
                codes, x_hat = run(qparams, size * x, jnp.float32(bits))
                np.testing.assert_array_equal(decode(codes), x_hat)
                assert codes.codebook.shape == (256,)
                assert 0 <= codes.values.min() <= codes.values.max() < 2**bits


@pytest.mark.parametrize("fields", [{"symmetric": False}, {"rounding": "floor"}, {"rounding": "stochastic"}])
def test_what_it_does_not_define_is_refused(fields):
    with pytest.raises(UnsupportedSpecError, match="logarithmic"):
        logarithmic(QuantSpec(**fields))
