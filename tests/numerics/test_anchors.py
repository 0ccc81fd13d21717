"""Numbers of the literature that the library reproduces. The data are quantiles, so that nothing is random."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.numerics.kmeans import kmeans_levels
from qresearch.numerics.ranges_aciq import gauss_clip, laplace_clip
from qresearch.quantizers.base import QuantSpec
from qresearch.quantizers.midpoint import Midpoint, midpoint
from qresearch.quantizers.minmax import minmax

PROBABILITIES = (np.arange(2**16) + 0.5) / 2**16
NORMAL = norm.ppf(PROBABILITIES).astype(np.float32)
HALF_NORMAL = norm.ppf((1 + PROBABILITIES) / 2).astype(np.float32)
UNIFORM = PROBABILITIES.astype(np.float32)

# Banner et al. 2019 (https://arxiv.org/abs/1810.05723), the tables of 1 to 8 bits in the public code.
ACIQ = {
    laplace_clip: [1.86, 2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89],
    gauss_clip: [1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92],
}
# Cai et al. 2017 (https://arxiv.org/abs/1702.00953): the code books of 2 to 5 bits of a public implementation.
HWGQ = {2: 0.5380, 3: 0.3218, 4: 0.1813, 5: 0.1029}
# Max 1960 (https://doi.org/10.1109/TIT.1960.1057548), equal steps without a level zero: bits: (step, error).
MAX_1960 = {2: (0.9957, 0.1188), 3: (0.5860, 0.03744), 4: (0.3352, 0.01154), 5: (0.1881, 0.003495)}


def error(x_hat: jax.Array, x: np.ndarray) -> float:
    return float(np.mean((np.asarray(x_hat, np.float64) - x) ** 2))


def best(quantize: Callable[[jax.Array], jax.Array], x: np.ndarray, near: float) -> tuple[float, float]:
    """(argument, error) of the least error of ``quantize``, within a factor of 1.5 of ``near``."""
    run = jax.jit(quantize)
    found = minimize_scalar(
        lambda value: error(run(jnp.float32(value)), x), bounds=(near / 1.5, near * 1.5), options={"xatol": 1e-5}
    )
    return found.x, found.fun


@pytest.mark.parametrize("clip", ACIQ)
def test_aciq_clips(clip):
    np.testing.assert_allclose(clip(jnp.arange(1.0, 9.0)), ACIQ[clip], atol=0.01)


@pytest.mark.parametrize("clip", ACIQ)
def test_aciq_clips_of_half_a_distribution_are_those_of_one_bit_more(clip):
    """The tables of ReLU inputs in public code are the same numbers, moved by one bit."""
    last = {laplace_clip: 11.16, gauss_clip: 4.21}[clip]
    np.testing.assert_allclose(clip(jnp.arange(1.0, 9.0) + 1.0), [*ACIQ[clip][1:], last], atol=0.01)


@pytest.mark.parametrize("bits", HWGQ)
def test_hwgq_steps(bits):
    """The best equal steps for positive normals with the levels s, 2s, ..., (2^b - 1) s and none at zero."""
    x = jnp.asarray(HALF_NORMAL)
    step, _ = best(lambda s: fake_quant(x, s, 0.0, 1.0, 2.0**bits - 1.0), HALF_NORMAL, HWGQ[bits])
    assert step == pytest.approx(HWGQ[bits], rel=0.02)
    # The published 4-bit step is the one that is off: least error needs 0.1842.
    assert step == pytest.approx({2: 0.5388, 3: 0.3217, 4: 0.1842, 5: 0.1030}[bits], rel=1e-3)


@pytest.mark.parametrize("bits", MAX_1960)
def test_equal_steps_of_max(bits):
    x, quantizer = jnp.asarray(NORMAL), midpoint(QuantSpec())
    wanted, least = MAX_1960[bits]

    def quantize(step: jax.Array) -> jax.Array:
        bound = (step * 2.0 ** (bits - 1)).reshape(1)
        return quantizer.apply(Midpoint(-bound, bound), x, float(bits))

    step, found = best(quantize, NORMAL, wanted)
    assert step == pytest.approx(wanted, rel=0.005)
    assert found == pytest.approx(least, rel=0.005)


def test_lloyd_max_of_sixteen_levels():
    levels = np.asarray(kmeans_levels(jnp.asarray(NORMAL), jnp.int32(16), 16))
    nearest = levels[np.abs(NORMAL[:, None] - levels).argmin(1)]
    assert error(nearest, NORMAL) == pytest.approx(0.00950, rel=0.01)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-3)


def test_equal_steps_stay_above_the_rate_distortion_bound():
    """2^(-2b) for N(0, 1); the equal steps lose 2.8 dB to it at 2 bits and 5.5 dB at 5."""
    lost = [10 * np.log10(least * 4.0**bits) for bits, (_, least) in MAX_1960.items()]
    np.testing.assert_allclose(lost, [2.8, 3.8, 4.7, 5.5], atol=0.1)


@pytest.mark.parametrize("factory", [midpoint, minmax])
def test_six_decibels_per_bit_on_uniform_data(factory):
    quantizer, x = factory(QuantSpec(signed=False)), jnp.asarray(UNIFORM)
    run = jax.jit(lambda bits: quantizer.apply(quantizer.init(x, bits), x, bits))
    decibels = np.array([10 * np.log10(error(run(jnp.float32(bits)), UNIFORM)) for bits in range(3, 11)])
    # Half of the first and of the last step of a min-max grid lies outside [0, 1]: 2^b - 1 steps, not 2^b bins.
    theory = [20 * np.log10(np.diff(integer_range(float(b), False))[0] + (factory is midpoint)) for b in range(3, 11)]
    np.testing.assert_allclose(-np.diff(decibels), np.diff(theory), atol=0.2)
    np.testing.assert_allclose(-np.diff(decibels)[1:], 6.02, atol=0.5)


def test_sixteen_bins_between_minimum_and_maximum_of_a_thousand_normals():
    """A field guide claims an error of 0.000345 for it. It is 0.0138 ± 0.0022 (mean and deviation of 200 samples).

    The range of 1,000 normals is 6.5 ± 0.5, a bin 0.4 and Δ² / 12 = 0.0138: forty times the claim. In units of the
    range squared it is 0.000327 ± 0.000009 (1 / 3072 = 0.0003255): the claim is what a sample scaled to [0, 1] before
    it is quantized gives (or any data on an interval of length 1), in an unlucky draw.
    """
    quantizer = midpoint(QuantSpec(symmetric=False))
    run = jax.jit(lambda x: quantizer.apply(quantizer.init(x, 4.0), x, 4.0))
    found, relative = [], []
    for seed in range(200):
        x = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
        found.append(error(run(jnp.asarray(x)), x))
        relative.append(found[-1] / np.ptp(x) ** 2)
    assert np.mean(found) == pytest.approx(0.0138, rel=0.03)
    assert np.std(found) == pytest.approx(0.0022, rel=0.2)
    assert min(found) > 20 * 0.000345
    assert np.mean(relative) == pytest.approx(1 / 3072, rel=0.01)
    assert 0.000345 < max(relative) < 0.00036
