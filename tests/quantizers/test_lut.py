from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.lut import LUT, lut
from qresearch.quantizers.minmax import minmax

X = jax.random.laplace(jax.random.key(0), (16, 250)) * jnp.linspace(0.2, 2, 16).reshape(16, 1)


def table(levels, scale=1.0):
    padded = np.zeros(256, np.float32)
    padded[: len(levels)] = levels
    return LUT(jnp.asarray(padded), jnp.full((1,), scale, jnp.float32))


def test_sixteen_levels_of_a_normal_have_lloyd_and_maxs_error():
    size = 2**15
    x = jnp.asarray([NormalDist().inv_cdf((i + 0.5) / size) for i in range(size)], jnp.float32)
    quantizer = lut(QuantSpec())
    error = jax.jit(lambda bits: ((quantizer.apply(quantizer.init(x, bits), x, bits) - x) ** 2).mean())
    for bits, least in {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}.items():
        assert abs(error(jnp.float32(bits)) / least - 1) < 0.01


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0)])
def test_it_errs_less_than_a_uniform_grid_of_as_many_levels(granularity):
    def error(method):
        quantizer = method(QuantSpec(granularity=granularity))
        return jax.jit(lambda bits: ((quantizer.apply(quantizer.init(X, bits), X, bits) - X) ** 2).mean())

    ours, uniform = error(lut), error(minmax)
    for bits in (2.0, 3.0, 4.0, 6.0):
        assert ours(jnp.float32(bits)) < 0.6 * uniform(jnp.float32(bits))


def test_the_nearest_level_is_taken_and_gets_the_gradient():
    generator = np.random.default_rng(0)
    levels = np.float32(generator.uniform(-1, 1, 8))  # in no order
    x, upstream = (np.float32(generator.normal(0, width, 500)) for width in (1.0, 1.0))
    quantizer = lut(QuantSpec())
    x_hat, pullback = jax.vjp(lambda q, x: quantizer.apply(q, x, 3.0), table(levels, 1.5), jnp.asarray(x))
    of_qparams, of_x = pullback(jnp.asarray(upstream))
    nearest = np.abs(x[:, None] - 1.5 * levels).argmin(1)
    np.testing.assert_allclose(x_hat, 1.5 * levels[nearest], rtol=1e-6)
    wanted = np.bincount(nearest, 1.5 * upstream.astype(np.float64), 8)
    np.testing.assert_allclose(of_qparams.levels[:8], wanted, rtol=1e-5, atol=1e-5)
    assert (of_qparams.levels[8:] == 0).all()
    assert (of_qparams.scale == 0).all()
    np.testing.assert_array_equal(of_x, upstream)


def test_the_order_of_the_levels_does_not_matter():
    levels = np.float32([-0.9, -0.2, 0.1, 0.8])
    quantizer, x = lut(QuantSpec()), X[:1, :].reshape(-1)
    straight, turned = (quantizer.encode(table(values), x, 2.0) for values in (levels, levels[[2, 0, 3, 1]]))
    np.testing.assert_array_equal(straight.values, turned.values)
    np.testing.assert_array_equal(decode(straight), decode(turned))


def test_training_the_levels_lowers_the_error():
    quantizer = lut(QuantSpec())
    x = X.reshape(-1) / jnp.abs(X).max()
    qparams = table([-0.4, -0.1, 0.1, 0.2])

    def loss(levels):
        return ((quantizer.apply(qparams._replace(levels=levels), x, 2.0) - x) ** 2).mean()

    @jax.jit
    def descend(levels):
        step = lambda levels, _: (levels - 1.0 * jax.grad(loss)(levels), loss(levels))  # noqa: E731
        return jax.lax.scan(step, levels, None, length=500)

    levels, losses = descend(qparams.levels)
    best = loss(quantizer.init(x, 2.0).levels)
    assert losses[-1] < 1.1 * best < losses[0]
    assert (levels[4:] == 0).all()


def test_the_mask_says_where_gradients_pass():
    x, qparams = jnp.asarray([-3.0, -0.5, 0.5, 3.0]), table([-0.6, 0.6])
    for signed, mask, wanted in (
        (True, None, [1, 1, 1, 1]),
        (True, "unrounded", [0, 1, 1, 0]),
        (False, None, [0, 1, 1, 0]),
        (False, "none", [1, 1, 1, 1]),
    ):
        apply = lut(QuantSpec(signed=signed, mask=mask)).apply
        np.testing.assert_array_equal(jax.grad(lambda x, f=apply: f(qparams, x, 1.0).sum())(x), wanted)
    with pytest.raises(UnsupportedSpecError, match=r"lut.*'rounded'"):
        lut(QuantSpec(mask="rounded"))


def test_widths_above_eight_use_the_table_of_eight():
    quantizer, x = lut(QuantSpec()), X[:2]
    eight, twelve = (quantizer.apply(quantizer.init(x, bits), x, bits) for bits in (8.0, 12.0))
    np.testing.assert_array_equal(eight, twelve)
