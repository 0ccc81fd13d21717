from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from qresearch.numerics.ranges_entropy import BINS, STRIDE, entropy_range

DRAWS = {
    "normal": lambda g, n: g.normal(0, 1, n),
    "laplace": lambda g, n: g.laplace(0, 0.4, n),
    "relu": lambda g, n: np.maximum(g.normal(-0.3, 2, n), 0),
    "skewed": lambda g, n: g.gumbel(0.2, 1, n),
}


def draw(name: str, n: int = 40_000) -> np.ndarray:
    return DRAWS[name](np.random.default_rng(3), n).astype(np.float32)


def divergences(magnitudes: np.ndarray, levels: float) -> dict[int, float]:
    """KL(P || Q) for every candidate number of bins, by loops over bins, from the description of Migacz' slides."""
    counts, _ = np.histogram(magnitudes, bins=BINS, range=(0, magnitudes.max()))
    counts[0] = counts[1]
    found = {}
    for edge in range(STRIDE, BINS + 1, STRIDE):
        if edge < levels and edge != BINS:
            continue
        level = np.floor(np.arange(edge) * levels / edge).astype(int)
        q = np.zeros(edge)
        for one in np.unique(level):
            members = (level == one) & (counts[:edge] > 0)
            q[members] = counts[:edge][members].sum() / max(members.sum(), 1)
        p = counts[:edge].astype(float)
        p[-1] += counts[edge:].sum()
        floored = np.maximum(q / q.sum(), 0.5 / counts.sum())
        found[edge] = float((p[p > 0] / p.sum() * np.log(p[p > 0] / p.sum() / floored[p > 0])).sum())
        if counts[edge - 1] > 0:  # then nothing was floored, and NVIDIA's expression is finite
            assert abs(found[edge] - entropy(p, q)) < 1e-9
    return found


@pytest.fixture(scope="module")
def search():
    """Compiled per-tensor searches: True (signed), False (unsigned) and "affine"."""
    grids = {True: (True, True), False: (False, True), "affine": (True, False)}
    return {
        key: jax.jit(lambda x, bits, g=grid: entropy_range(x, bits, (0,), *g, False)) for key, grid in grids.items()
    }


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu"])
def test_it_is_the_candidate_of_least_divergence(search, name, signed):
    x = draw(name) if signed else np.maximum(draw(name), 0)
    low, high = None, None
    for bits in (2, 3, 4, 6, 8):
        wanted = divergences(np.abs(x), 2 ** (bits - signed))
        low, high = search[signed](jnp.asarray(x), jnp.float32(bits))
        bins = float(jnp.maximum(-low, high)[0]) / np.abs(x).max() * BINS
        # The float32 sums may prefer a neighbour whose divergence is the same to 1e-6.
        assert wanted[round(bins)] <= min(wanted.values()) + 2e-6, (bits, bins)
        assert abs(bins - round(bins)) < 1e-2
    assert low[0] == 0.0 or signed


def test_an_affine_grid_has_its_levels_in_proportion(search):
    """On data of one sign it is the unsigned search; on data of two signs the longer side has a share of the levels."""
    x = jnp.asarray(draw("relu"))
    low, high = search["affine"](x, jnp.float32(4))
    np.testing.assert_allclose((low, high), search[False](x, jnp.float32(4)), rtol=1e-6)
    skewed = draw("skewed")
    low, high = search["affine"](jnp.asarray(skewed), jnp.float32(4))
    wanted = divergences(np.abs(skewed), 16 * skewed.max() / (skewed.max() - skewed.min()))
    assert wanted[round(float(high[0]) / skewed.max() * BINS)] <= min(wanted.values()) * 1.02
    np.testing.assert_allclose(low, np.maximum(skewed.min(), -high))


def test_more_bits_keep_more_of_the_tail_and_many_levels_keep_all(search):
    x = jnp.asarray(draw("laplace"))
    kept = [float(search[True](x, jnp.float32(bits))[1][0]) for bits in (2, 4, 6, 8)]
    assert (np.diff(kept) > 0).all(), kept
    top = float(jnp.abs(x).max())
    for bits in (12, 16, 31, 32):
        low, high = search[True](x, jnp.float32(bits))
        assert float(jnp.maximum(-low, high)[0]) == pytest.approx(top)


def test_it_clips_outliers_and_not_uniform_data(search):
    x = draw("normal")
    outliers = np.concatenate([x[3:], np.full(3, 60, np.float32)])
    assert float(search[True](jnp.asarray(outliers), jnp.float32(8))[1][0]) < 20
    flat = np.random.default_rng(0).uniform(-1, 1, 40_000).astype(np.float32)
    low, high = search[True](jnp.asarray(flat), jnp.float32(8))
    assert min(-low[0], high[0]) > 0.98


def test_zeros_of_a_relu_do_not_move_it(search):
    x = draw("relu")
    fewer = np.sort(x)  # the first half of the zeros is dropped, and the rest stays as it was
    fewer = fewer[(fewer == 0).sum() // 2 :]
    for bits in (4.0, 8.0):
        one, other = (search[False](jnp.asarray(values), jnp.float32(bits))[1] for values in (x, fewer))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_range_of_a_channel_is_its_own():
    x = jnp.asarray(draw("laplace")).reshape(4, 10, 1000)
    size = jnp.asarray([2.0**-10, 1.0, 64.0, 2.0**13]).reshape(4, 1, 1)
    run = jax.jit(lambda x: entropy_range(x, 4.0, (1, 2), True, True, False))
    low, high = run(x)
    assert low.shape == high.shape == (4, 1, 1)
    np.testing.assert_array_equal(run(x * size), (low * size, high * size))
    assert len(np.unique(high)) == 4


def test_widths_are_mapped_in_one_program(search):
    x, widths = jnp.asarray(draw("normal")), jnp.asarray([2.0, 4.0, 8.0])
    traces = []

    @jax.jit
    def all_widths(x, widths):
        traces.append(1)
        return jax.vmap(lambda bits: entropy_range(x, bits, (0,), True, True, False)[1])(widths)

    many = all_widths(x, widths)
    assert len(traces) == 1
    for bits, found in zip((2.0, 4.0, 8.0), many):
        np.testing.assert_allclose(found, search[True](x, jnp.float32(bits))[1], rtol=1e-6)
