from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError
from qresearch.quantizers.midpoint import Midpoint, midpoint

X = np.random.default_rng(0).normal(0.3, 1, (4, 6, 32)).astype(np.float32)
GRIDS = {"signed": (True, True), "unsigned": (False, True), "affine": (False, False), "signed_affine": (True, False)}


def tensor(grid: str) -> np.ndarray:
    return np.abs(X) if grid == "unsigned" else X


def ends(x: np.ndarray, grid: str, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    bound = np.maximum(-low, high)
    return {"signed": (-bound, bound), "unsigned": (0 * bound, bound)}.get(grid, (low, high))


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_element_goes_to_the_middle_of_its_bin(grid, granularity):
    quantizer, x = midpoint(QuantSpec(*GRIDS[grid], granularity)), tensor(grid)
    run = jax.jit(lambda bits: quantizer.apply(quantizer.init(jnp.asarray(x), bits), jnp.asarray(x), bits))
    low, high = (end.astype(np.float64) for end in ends(x, grid, granularity.shared_axes(3)))
    for bits in (1, 2, 4, 8):
        step = (high - low) / 2**bits
        wanted = low + (np.clip(np.floor((x - low) / step), 0, 2**bits - 1) + 0.5) * step
        found = run(jnp.float32(bits))
        # float32 may see an element that is on an edge to seven digits in the other bin.
        np.testing.assert_allclose(np.isclose(found, wanted, rtol=1e-5, atol=1e-6).mean(), 1, atol=2e-3)
        assert (np.abs(found - x) <= step * (0.5 + 1e-4)).all()


def test_sixteen_bins_between_minus_one_and_one():
    quantizer = midpoint(QuantSpec())
    x = jnp.linspace(-1.5, 1.5, 3001)
    qparams = Midpoint(-jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose(np.unique(quantizer.apply(qparams, x, 4.0)), np.arange(-15, 16, 2) / 16)
    codes = quantizer.encode(qparams, x, 4.0)
    assert (codes.values.min(), codes.values.max(), codes.zero_point.item()) == (-8, 7, -0.5)


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_are_decoded_to_the_result(grid):
    quantizer, x = midpoint(QuantSpec(*GRIDS[grid], per_channel(1))), jnp.asarray(tensor(grid))
    run = jax.jit(lambda q, x, bits: (quantizer.encode(q, x, bits), quantizer.apply(q, x, bits)))
    for bits in (1, 2, 4, 8, 16, 24):
        codes, x_hat = run(quantizer.init(x, bits), x, jnp.float32(bits))
        np.testing.assert_array_equal(decode(codes), x_hat)
        assert codes.values.max() - codes.values.min() < 2**bits


def test_masks_end_at_the_range_or_at_the_outermost_middles():
    x = jnp.asarray([0.0, 0.8, 0.95, 1.05, -0.95, -1.05])
    wanted = {None: [1, 1, 1, 0, 1, 0], "unrounded": [1, 1, 0, 0, 0, 0], "none": [1] * 6}
    for mask, expected in wanted.items():
        quantizer = midpoint(QuantSpec(mask=mask))
        qparams = Midpoint(-jnp.ones(1), jnp.ones(1))
        gradient = jax.grad(lambda x, q=quantizer, p=qparams: q.apply(p, x, 3.0).sum())(x)
        np.testing.assert_array_equal(gradient, expected, err_msg=str(mask))


@pytest.mark.parametrize("grid", ["signed", "unsigned", "signed_affine"])
def test_the_gradient_in_bits_moves_the_middles(grid):
    """The ends are kept: elements outside move as the outermost middles, those inside as their error, with Δ."""
    quantizer = midpoint(QuantSpec(*GRIDS[grid]))
    low, high = {"signed": (-1.1, 1.1), "unsigned": (0.0, 1.1), "signed_affine": (-0.7, 1.1)}[grid]
    qparams, x = Midpoint(jnp.full((1, 1, 1), low), jnp.full((1, 1, 1), high)), jnp.asarray(X)
    weights = np.cos(np.arange(X.size)).reshape(X.shape)
    found = jax.grad(lambda bits: (quantizer.apply(qparams, x, bits) * weights.astype(np.float32)).sum())(
        jnp.float32(3)
    )
    step = (high - low) / 8
    error = low + (np.floor((X.astype(np.float64) - low) / step) + 0.5) * step - X
    in_step = np.select([high < X, low > X], [-0.5, 0.5], error / step)
    np.testing.assert_allclose(found, (in_step * weights).sum() * -step * np.log(2), rtol=2e-4)


def test_there_is_no_level_zero_and_narrow_is_refused():
    quantizer = midpoint(QuantSpec())
    assert quantizer.traits == {"no_zero_level"}
    assert abs(quantizer.apply(quantizer.init(jnp.asarray(X), 4.0), jnp.zeros((1, 1, 1)), 4.0).item()) > 0.01
    with pytest.raises(UnsupportedSpecError, match="midpoint"):
        midpoint(QuantSpec(narrow=True))
