from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare
from conftest import golden_cases

from qresearch.numerics.codes import decode
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import per_channel
from qresearch.numerics.residuals import decompose
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.bayesian_bits import BayesianBits, bayesian_bits

ALL_GATES = 31.0  # bits that close none


@cache
def compiled(signed: bool):
    """(qparams, x, bits, dy) -> (x̂, the gradients of qparams, the gradient of x)."""
    apply = bayesian_bits(QuantSpec(signed=signed)).apply

    @jax.jit
    def run(qparams, x, bits, upstream):
        x_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), qparams, x)
        return x_hat, *pullback(upstream)

    return run


def at(bound, *gates):
    return BayesianBits(*(jnp.full((1,), value, jnp.float32) for value in (bound, *gates)))


def test_the_authors_computed_the_same():
    """The 28 quantizer cases at their gates (a gate that is not pruning is 1) and the 6 of their PACTQuantizer."""
    compared, cases = 0, 0
    for case, arrays in golden_cases("bayesianbits"):
        if "x_max" not in case:
            continue  # gates and regularizer: test_hard_concrete.py
        name, x, upstream = case["case"], jnp.asarray(arrays["x"]), jnp.asarray(arrays["dy"])
        gates = [1.0 if gate is None else gate for gate in case.get("gates", [1.0] * 5)]
        bits = jnp.float32(case.get("bits", ALL_GATES))
        x_hat, ours, of_x = compiled(case["signed"])(at(case["x_max"], *gates), x, bits, upstream)
        compared += compare(name, "y", x_hat, arrays["y"], 1e-6)
        compared += compare(name, "dx", of_x, arrays["dx"], 2e-5)
        compared += compare(name, "dx_max", ours.bound, arrays["dx_max"], 2e-5)
        if "gates" in case:
            of_gates = np.concatenate(ours[1:])
            compared += compare(name, "dgates", of_gates, arrays["dgates"], 2e-5, ~np.isnan(arrays["dgates"]))
            steps = decompose(x, jnp.full((1,), case["x_max"] * (1 + case["signed"]), jnp.float32)).steps
            compared += compare(name, "scales", np.concatenate(steps), arrays["scales"], 1e-6)
        cases += 1
    print(f"compared {compared} elements of {cases} cases, none left out that has a value")
    given = 4 * (3 + 1 + 2 + 3 + 3 + 3 + 0)  # the gates that the authors' graph reached, by their seven settings
    assert (cases, compared) == (34, 28 * (54 + 54 + 1 + 5) + given + 6 * (45 + 45 + 1))


@pytest.mark.parametrize("signed", [True, False])
def test_hard_gates_are_the_direct_rounding(signed):
    x = jax.random.normal(jax.random.key(0), (5000,))
    run = compiled(signed)
    for width, gates in {2: [0, 0, 0, 0], 4: [1, 0, 0, 0], 8: [1, 1, 0, 0], 16: [1, 1, 1, 0]}.items():
        x_hat = run(at(1.7, 1, *gates), x, jnp.float32(ALL_GATES), x)[0]
        by_bits = run(at(1.7, 1, 1, 1, 1, 1), x, jnp.float32(width), x)[0]
        np.testing.assert_array_equal(x_hat, by_bits)
        step = (3.4 if signed else 1.7) / (2.0**width - 1)
        last = 2.0 ** (width - 1) - 1 if signed else 2.0**width - 1
        direct = fake_quant(x, step, 0.0, -last if signed else 0.0, last)
        flipped = jnp.abs(x_hat - direct) > 0.5 * step  # ties, at 16 bits float32's own rounding of the residuals
        assert flipped.mean() <= (0.02 if width == 16 else 0.001)
        np.testing.assert_allclose(x_hat[~flipped], direct[~flipped], atol=1e-6)
        assert len(np.unique(x_hat)) <= 2**width - signed


@pytest.mark.parametrize("signed", [True, False])
def test_bits_are_rounded_down_to_a_width_that_exists(signed):
    x, full = jax.random.normal(jax.random.key(0), (500,)), at(1.7, 1, 1, 1, 1, 1)
    results = {
        bits: compiled(signed)(full, x, jnp.float32(bits), x)[0] for bits in (0, 1, 2, 3, 4, 6, 7, 8, 15, 16, 31, 32)
    }
    for bits, as_bits in ((3, 2), (6, 4), (7, 4), (15, 8)):
        np.testing.assert_array_equal(results[bits], results[as_bits])
    for bits in (0, 1):
        assert (results[bits] == 0).all()
    np.testing.assert_array_equal(results[32], x)
    clipped = jnp.clip(x, -1.7 if signed else 0, 1.7)
    np.testing.assert_allclose(results[31], clipped, atol=5e-7)


def test_closed_gates_get_a_gradient_and_gates_behind_them_none():
    x = jax.random.normal(jax.random.key(0), (500,))
    ours = compiled(True)(at(1.7, 1, 1, 0, 1, 1), x, jnp.float32(ALL_GATES), jnp.sin(7 * x))[1]
    assert all(gate.item() != 0 for gate in ours[1:4])
    assert ours.z16.item() == ours.z32.item() == 0
    by_bits = compiled(True)(at(1.7, 1, 1, 1, 1, 1), x, jnp.float32(4), jnp.sin(7 * x))[1]
    assert by_bits.z8.item() == 0  # bits close it for good


def test_pruning_gates_are_per_channel_of_their_axis():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 6))
    quantizer = bayesian_bits(QuantSpec(granularity=per_channel(3)), prune_axis=-1)
    qparams = quantizer.init(kernel, 4.0)
    assert qparams.z2.shape == (1, 1, 1, 6)
    kept = jnp.asarray([1.0, 0, 1, 1, 0, 1]).reshape(1, 1, 1, 6)
    apply, closed = jax.jit(quantizer.apply), qparams._replace(z2=kept)
    pruned = apply(closed, kernel, 4.0)
    np.testing.assert_array_equal(pruned, kept * apply(qparams, kernel, 4.0))
    np.testing.assert_array_equal(decode(jax.jit(quantizer.encode)(closed, kernel, 4.0)), pruned)


@pytest.mark.parametrize("signed", [True, False])
def test_stored_codes_fit_their_width_and_round_the_gates(signed):
    quantizer = bayesian_bits(QuantSpec(signed=signed))
    x = jax.random.normal(jax.random.key(0), (500,))
    for gates, width in (([1, 0.9, 0.7, 0.2, 1], 8), ([1, 0.4, 1, 1, 1], 2), ([0.3, 1, 1, 1, 1], 0)):
        codes = quantizer.encode(at(1.7, *gates), x, ALL_GATES)
        rounded = quantizer.apply(at(1.7, *np.round(gates)), x, ALL_GATES)
        np.testing.assert_array_equal(decode(codes), rounded)
        low = -(2 ** (width - 1)) + 1 if signed and width else 0
        assert low <= codes.values.min() <= codes.values.max() <= low + 2 ** max(width, 1) - 1


def test_sixteen_bit_floats_would_have_a_level_too_many():
    """Why internals are float32: 1 - 1e-7 is 1 in float16, where the bound of a signed 2-bit grid becomes 4/3 of it."""
    low = jnp.asarray([-1.0, 1.0], jnp.float16)
    assert jnp.float16(1 - 1e-7) == 1
    assert (jnp.abs(jnp.round(low / jnp.float16(2 / 3)) * jnp.float16(2 / 3)) > 1.3).all()
    x_hat = bayesian_bits(QuantSpec()).apply(at(1.0, 1, 1, 1, 1, 1), low, 2.0)
    assert x_hat.dtype == jnp.float16
    np.testing.assert_allclose(x_hat, [-2 / 3, 2 / 3], atol=1e-3)
