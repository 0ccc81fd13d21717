from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from qresearch.numerics.ranges import RANGES
from qresearch.numerics.ranges_aciq import gauss_clip, laplace_clip

SAMPLES = 2**17
GRIDS = {"signed": (True, True), "unsigned": (False, True), "affine": (False, False)}
LAWS = {"aciq_laplace": ("laplace", laplace_clip), "aciq_gauss": ("normal", gauss_clip)}


def draw(law: str, shape=(SAMPLES,)) -> np.ndarray:
    return getattr(np.random.default_rng(1), law)(0, 1, shape).astype(np.float32)


def laplace_error(alpha: float, bits: float) -> float:
    return 2 * np.exp(-alpha) + alpha**2 / (3 * 4**bits)


def gauss_error(alpha: float, bits: float) -> float:
    return 2 * ((alpha**2 + 1) * norm.sf(alpha) - alpha * norm.pdf(alpha)) + alpha**2 / (3 * 4**bits)


@cache
def compiled(name: str, grid: str):
    return jax.jit(lambda x, bits: RANGES[name](x, bits, (0,), *GRIDS[grid], False))


@pytest.mark.parametrize(("clip", "error"), [(laplace_clip, laplace_error), (gauss_clip, gauss_error)])
def test_the_clip_minimises_the_expected_error_at_any_width(clip, error):
    widths = np.array([1, 1.5, 2, 3, 4, 5.25, 6, 8, 10, 12])
    found = jax.jit(clip)(jnp.asarray(widths, jnp.float32))
    for bits, alpha in zip(widths, found):
        best = minimize_scalar(error, bounds=(0.1, 30), args=(bits,), method="bounded", options={"xatol": 1e-10})
        assert abs(alpha - best.x) < 1e-3, bits


def test_the_clips_of_wide_grids_solve_their_equations():
    widths = np.arange(1, 32)
    alpha = np.asarray(laplace_clip(jnp.asarray(widths, jnp.float32)), np.float64)
    np.testing.assert_allclose(alpha + np.log(alpha), np.log(3) + widths * np.log(4), rtol=1e-6)
    alpha = np.asarray(gauss_clip(jnp.asarray(widths, jnp.float32)), np.float64)
    ratio = (norm.pdf(alpha) - alpha * norm.sf(alpha)) * 6 * 4.0**widths / alpha
    # A last bit of α moves this ratio by α times as much: 1e-4 of it is 1e-5 of α.
    np.testing.assert_allclose(ratio, 1, atol=2e-3)
    assert (np.diff(alpha) > 0).all()


@pytest.mark.parametrize("name", LAWS)
def test_a_range_is_the_clip_times_the_deviation(name):
    law, clip = LAWS[name]
    x = draw(law)
    for bits in (2.0, 3.0, 4.0):
        alpha, half = clip(bits).item(), clip(bits + 1).item()
        low, high = compiled(name, "signed")(jnp.asarray(x), jnp.float32(bits))
        assert abs(high.item() / alpha - 1) < 0.02
        assert abs(low.item() / -alpha - 1) < 0.02
        low, high = compiled(name, "unsigned")(jnp.asarray(np.abs(x)), jnp.float32(bits))
        assert (low.item(), abs(high.item() / half - 1) < 0.02) == (0.0, True)
        low, high = compiled(name, "affine")(jnp.asarray(x + np.float32(1.5)), jnp.float32(bits))
        assert abs(low.item() - min(1.5 - alpha, 0)) < 0.04
        assert abs(high.item() - (1.5 + alpha)) < 0.04


@pytest.mark.parametrize("name", LAWS)
def test_the_zeros_of_a_relu_do_not_move_an_unsigned_range(name):
    x = draw(LAWS[name][0])
    positive, with_zeros = np.abs(x), np.maximum(x, 0)
    one, other = (compiled(name, "unsigned")(jnp.asarray(v), jnp.float32(4))[1].item() for v in (positive, with_zeros))
    assert abs(one / other - 1) < 0.02


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", LAWS)
def test_a_range_never_exceeds_the_values(name, grid):
    x = draw("uniform") + np.float32(0.25)
    for bits in (1, 4, 8, 31, 32):
        low, high = compiled(name, grid)(jnp.asarray(x), jnp.float32(bits))
        assert low.item() == 0.0
        assert high.item() <= x.max()
    assert high.item() == x.max()


@pytest.mark.parametrize("name", LAWS)
def test_on_its_own_law_the_error_is_what_the_equation_says_and_below_that_of_minmax(name):
    law, clip = LAWS[name]
    x = draw(law)
    expected = {"aciq_laplace": laplace_error, "aciq_gauss": gauss_error}[name]

    def error(bound: float, steps: int) -> float:
        step = bound / steps
        return float(np.mean((np.clip(np.rint(x / step), -steps, steps) * step - x) ** 2))

    for bits in (3, 4, 6):
        steps = 2 ** (bits - 1) - 1  # the grid has this many steps on a side, where the equation has 2^(bits - 1)
        bound = compiled(name, "signed")(jnp.asarray(x), jnp.float32(bits))[1].item()
        assert error(bound, steps) < error(float(np.abs(x).max()), steps)
        assert error(bound, steps) == pytest.approx(expected(clip(float(bits)).item(), np.log2(2 * steps)), rel=0.1)


@pytest.mark.parametrize("name", LAWS)
def test_every_channel_has_its_own_range_whatever_its_size(name):
    x = draw(LAWS[name][0], (4, 3000)) * np.array([[1e-30], [1.0], [30.0], [1e30]], np.float32)
    run = jax.jit(lambda x: RANGES[name](x, 3.0, (1,), True, True, False))
    low, high = run(jnp.asarray(x))
    alone = run(jnp.asarray(np.broadcast_to(x[3:], x.shape)))
    np.testing.assert_allclose((low[3], high[3]), (alone[0][0], alone[1][0]), rtol=1e-6)
    size = np.abs(x).max(1, keepdims=True)
    np.testing.assert_allclose(high / size, np.broadcast_to(high[1] / size[1], (4, 1)), rtol=0.5)
