from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics import residuals
from qresearch.numerics.residuals import RATIOS, WIDTHS, decompose, gated_sum


def hard(width, dtype=jnp.float32):
    """The gates z4 ... z32 that open the widths up to this one."""
    return [jnp.asarray([float(width >= other)], dtype) for other in WIDTHS[1:]]


@pytest.mark.parametrize("signed", [True, False])
def test_at_hard_gates_the_sum_is_the_direct_rounding(signed):
    """In float64 exactly, as the paper says; that the decomposition then has 2^b - 1 or 2^b levels follows."""
    generator = np.random.default_rng(0)
    bound = 1.7
    x = np.clip(generator.normal(0, 1, 20_000), -bound if signed else 0, bound) * (1 - 1e-7)
    extent = 2 * bound if signed else bound
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(residuals, "in_steps", lambda x, scale: x / scale)
        parts = decompose(jnp.asarray(x), jnp.asarray([extent]))
        for width in WIDTHS[:4]:
            steps, unit = gated_sum(parts, hard(width, jnp.float64))
            assert steps.dtype == jnp.float64
            np.testing.assert_allclose(unit, extent / (2.0**width - 1), rtol=1e-14)
            direct = np.rint(x / unit)
            np.testing.assert_array_equal(steps, direct)
            assert len(np.unique(direct)) <= 2**width - signed


@pytest.mark.parametrize("signed", [True, False])
def test_in_float32_the_sum_is_the_direct_rounding_up_to_ties(signed):
    bound = jnp.asarray([1.7], jnp.float32)
    x = jnp.clip(jax.random.normal(jax.random.key(0), (20_000,)), -bound if signed else 0, bound) * (1 - 1e-7)
    parts = decompose(x, 2 * bound if signed else bound)
    for width, allowed in zip(WIDTHS[:4], (0, 0, 1e-4, 2e-2)):
        steps, unit = gated_sum(parts, hard(width))
        assert (steps == jnp.round(steps)).all()
        different = steps != jnp.round(x / unit)
        assert different.mean() <= allowed
        assert (jnp.abs(steps * unit - x) <= unit * 0.502).all()


def test_the_ratios_make_grids_that_refine_each_other():
    for width, ratio in zip(WIDTHS[1:], RATIOS[1:]):
        assert ratio == (2**width - 1) / (2 ** (width // 2) - 1)


def test_gates_between_zero_and_one_weigh_all_residuals_behind_them():
    x, one = jnp.linspace(-1, 1, 101), jnp.ones(1, jnp.float32)
    parts = decompose(x, 2 * one)
    values = [code * step for code, step in zip(*parts)]
    z4, z8, z16, z32 = (jnp.full(1, z, jnp.float32) for z in (0.7, 0.4, 0.2, 0.5))
    wanted = values[0] + z4 * (values[1] + z8 * (values[2] + z16 * (values[3] + z32 * values[4])))
    steps, unit = gated_sum(parts, [z4, z8, z16, z32])
    np.testing.assert_allclose(steps * unit, wanted, atol=3e-7)
    closed, unit = gated_sum(parts, [z4, 0 * z8, z16, z32])  # what is behind a closed gate does not count
    np.testing.assert_allclose(closed * unit, values[0] + z4 * values[1], atol=3e-7)
