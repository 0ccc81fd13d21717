from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import QuantSpec, on_view
from qresearch.quantizers.dynamic import Dynamic, dynamic
from qresearch.quantizers.minmax import minmax

X = np.random.default_rng(0).normal(0.3, 1, (4, 6, 32)).astype(np.float32)
TOKENS = per_channel(0, 1)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(2), TOKENS, per_group(-1, 8)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("range_name", [None, "mse"])
def test_it_is_minmax_calibrated_on_the_tensor_itself(signed, symmetric, granularity, range_name):
    spec = QuantSpec(signed, symmetric, granularity, range=range_name)
    static, own = on_view(granularity, minmax(spec)), on_view(granularity, dynamic(spec))

    @jax.jit
    def both(x, bits):
        return own.apply(own.init(10 * x, bits), x, bits), static.apply(static.init(x, bits), x, bits)

    for bits in (2.0, 8.0):
        np.testing.assert_array_equal(*both(jnp.asarray(X), jnp.float32(bits)))


@pytest.mark.parametrize("name", RANGES)
def test_every_range_serves(name):
    quantizer = dynamic(QuantSpec(range=name))
    x_hat = jax.jit(lambda x: quantizer.apply(Dynamic(), x, 6.0))(jnp.asarray(X))
    assert 0 < np.abs(x_hat - X).mean() < 0.1


def test_a_token_is_quantized_alike_in_any_batch():
    quantizer = dynamic(QuantSpec(granularity=TOKENS))
    run = jax.jit(lambda x: quantizer.apply(Dynamic(), x, 4.0))
    whole = run(jnp.asarray(X * np.array([1, 100, 1e-3, 1e3], np.float32).reshape(4, 1, 1)))
    # Divisions by scales of another batch shape may round otherwise: to a last bit, and on ties to the next code.
    np.testing.assert_allclose(run(jnp.asarray(X[:1])), whole[:1], rtol=1e-6)
    per_tensor = dynamic(QuantSpec())
    one, other = (per_tensor.apply(Dynamic(), jnp.asarray(x), 4.0)[:1] for x in (X, X * 3))
    assert not np.array_equal(one * 3, other) or np.isclose(one * 3, other).all()


def test_the_range_is_a_constant_to_the_gradient():
    quantizer = dynamic(QuantSpec())
    gradient = jax.grad(lambda x: quantizer.apply(Dynamic(), x, 4.0).sum())(jnp.asarray(X))
    np.testing.assert_array_equal(
        gradient, np.ones_like(X)
    )  # min-max clips nothing, and the largest element is not special
    in_bits = jax.grad(lambda b: (quantizer.apply(Dynamic(), jnp.asarray(X), b) ** 2).sum())(jnp.float32(4))
    assert np.isfinite(in_bits)
    assert in_bits != 0


def test_it_has_no_state_and_codes_carry_the_scales_of_the_tensor():
    quantizer = dynamic(QuantSpec(granularity=TOKENS))
    qparams = quantizer.init(jnp.asarray(X), 4.0)
    assert jax.tree.leaves(qparams) == []
    assert quantizer.learnable == ()
    assert {"calibrates_in_apply", "passes_gradient"} <= quantizer.traits
    codes = jax.jit(lambda x: quantizer.encode(qparams, x, 4.0))(jnp.asarray(X))
    assert codes.scale.shape == (4, 6, 1)
    np.testing.assert_array_equal(decode(codes), jax.jit(lambda x: quantizer.apply(qparams, x, 4.0))(jnp.asarray(X)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_extremes_of_a_rounded_tensor_give_the_same_grid_again(symmetric):
    spec = QuantSpec(symmetric=symmetric)
    quantizer = dynamic(spec)
    run = jax.jit(lambda x, bits: quantizer.apply(Dynamic(), x, bits))
    for bits in range(1, 9):
        once = run(jnp.asarray(X), jnp.float32(bits))
        np.testing.assert_allclose(run(once, jnp.float32(bits)), once, rtol=1e-6)
    assert "not_idempotent" not in quantizer.traits
    assert "not_idempotent" in dynamic(QuantSpec(range="mse")).traits
