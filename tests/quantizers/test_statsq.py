from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.statsq import statsq

WEIGHT = jax.random.normal(jax.random.key(0), (64, 48)) * jnp.linspace(0.1, 3, 48).reshape(1, 48)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
def test_it_is_the_papers_formula(granularity):
    """γ (round(clip(w / γ) 2^(b-1) - 1/2) + 1/2) / 2^(b-1) in float64; the 1-bit form of the paper leaves its grid."""
    quantizer = statsq(QuantSpec(granularity=granularity))
    run = jax.jit(lambda x, bits: quantizer.apply(quantizer.init(x, bits), x, bits))
    wide = np.asarray(WEIGHT, np.float64)
    gamma = 2 * np.abs(wide).mean(granularity.shared_axes(2), keepdims=True)
    for bits in (2, 3, 4, 8):
        n = 2.0 ** (bits - 1)
        wanted = gamma * (np.rint(np.clip(wide / gamma, -1, 1 - 1e-6) * n - 0.5) + 0.5) / n
        found = np.asarray(run(WEIGHT, jnp.float32(bits)))
        assert (np.abs(found - wanted) <= 1e-6 * gamma).mean() > 0.9999  # γ in float32 may move one across a threshold
    one_bit = run(WEIGHT, jnp.float32(1))
    np.testing.assert_allclose(one_bit, np.sign(wide) * np.broadcast_to(gamma / 2, wide.shape), rtol=1e-6)


def test_every_element_passes_its_gradient_and_the_scale_has_none():
    quantizer = statsq(QuantSpec())
    upstream = jax.random.normal(jax.random.key(1), WEIGHT.shape)
    for bits in (1.0, 4.0):
        _, pullback = jax.vjp(lambda x, bits=bits: quantizer.apply(quantizer.init(x, bits), x, bits), WEIGHT)
        np.testing.assert_array_equal(pullback(upstream)[0], upstream)


@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_the_middles_of_equal_cells(signed):
    x = jnp.linspace(-4, 4, 8001) if signed else jnp.linspace(0, 4, 4001)
    quantizer = statsq(QuantSpec(signed=signed))
    for bits in (1, 2, 3):
        qparams = quantizer.init(x, float(bits))
        levels = np.unique(quantizer.apply(qparams, x, float(bits)))
        gamma = 2 * float(jnp.abs(x).mean())
        low = -gamma if signed else 0.0
        cells = np.linspace(low, gamma, 2**bits + 1)
        np.testing.assert_allclose(levels, (cells[1:] + cells[:-1]) / 2, rtol=1e-5)
        codes = quantizer.encode(qparams, x, float(bits))
        np.testing.assert_array_equal(decode(codes), quantizer.apply(qparams, x, float(bits)))


def test_the_result_scales_with_the_tensor_where_it_is_dynamic_only():
    for dynamic in (True, False):
        quantizer = statsq(QuantSpec(), dynamic=dynamic)
        qparams = quantizer.init(WEIGHT, 3.0)
        assert (qparams.bound is None) == dynamic
        small, large = quantizer.apply(qparams, WEIGHT, 3.0), quantizer.apply(qparams, 8 * WEIGHT, 3.0)
        assert bool((large == 8 * small).all()) == dynamic
    assert statsq(QuantSpec(signed=False)).init(jnp.abs(WEIGHT), 3.0).bound is not None


def test_two_bits_of_laplace_weights_use_all_four_levels():
    """What the mean magnitude is for: the four cells hold between 18 and 32 % each."""
    x = jax.random.laplace(jax.random.key(0), (100_000,))
    quantizer = statsq(QuantSpec())
    values = np.asarray(quantizer.encode(quantizer.init(x, 2.0), x, 2.0).values)
    shares = [(values == code).mean() for code in (-2, -1, 0, 1)]
    assert 0.18 < min(shares) < max(shares) < 0.32 + 0.01
