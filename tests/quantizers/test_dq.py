from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, gradients64, samples

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.dq import DQU1, DQU2, DQU3, dq_u1, dq_u2, dq_u3, learned_bits

SIZE = 4000
FACTORIES = {"dq_u1": dq_u1, "dq_u2": dq_u2, "dq_u3": dq_u3}
PER_ELEMENT = per_channel(0)  # every element of a vector has its own parameters: gradients before they are summed


def qparams_for(name, bits, scale, signed, size=SIZE):
    """The three ways to write one quantizer, with one copy of each parameter per element."""
    qmax = 2.0 ** (bits - signed) - 1
    values = {"dq_u1": (scale, bits), "dq_u2": (bits, qmax * scale), "dq_u3": (scale, qmax * scale)}[name]
    return {"dq_u1": DQU1, "dq_u2": DQU2, "dq_u3": DQU3}[name](*(np.full(size, float(value)) for value in values))


def closed_form(name, x, bits, d, signed):
    """DQ's x̂ and its slopes in the parameters and x, as printed in the paper (figure 2 and section 2.2)."""
    largest = 2.0 ** (bits - signed) - 1
    q_max, growth = largest * d, 2.0 ** (bits - signed) * np.log(2.0)
    low = -q_max if signed else 0.0
    inside = (low <= x) & (x <= q_max)
    side = np.where(inside, 0.0, np.where(x > q_max, 1.0, -1.0 if signed else 0.0))
    x_hat = np.where(inside, d * np.rint(x / d), side * q_max)
    error = np.where(inside, x_hat - x, 0.0)
    slopes = {
        "dq_u1": (error / d + side * largest, side * growth * d),
        "dq_u2": (-growth / largest * error, error / q_max + side),
        "dq_u3": (error / d, side),
    }[name]
    return x_hat, slopes, 1.0 * inside


@pytest.mark.parametrize("bits", [2.0, 3.0, 8.0])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", FACTORIES)
def test_the_gradients_are_the_papers(name, signed, bits):
    x, upstream = samples(int(bits), SIZE, 2.0)
    d = 1.7 / (2.0 ** (bits - signed) - 1)
    wanted, slopes, of_x = closed_form(name, x, bits, d, signed)
    apply = FACTORIES[name](QuantSpec(signed=signed, granularity=PER_ELEMENT)).apply
    qparams = qparams_for(name, bits, d, signed)
    x_hat, ours, ours_x = gradients64("dq", apply, qparams, x, bits, upstream)
    assert_exact(x_hat, wanted)
    assert_exact(ours_x, upstream * of_x)
    for field, slope in zip(ours._fields, slopes, strict=True):
        assert_exact(getattr(ours, field), upstream * slope)
        assert (slope != 0).mean() > 0.1, field
    assert 0.2 < of_x.mean() < 0.8

    low = jax.tree.map(jnp.float32, qparams)
    x_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), low, jnp.float32(x))
    ours, ours_x = pullback(jnp.float32(upstream))
    away = np.abs(np.abs(x / d) % 1 - 0.5) > 1e-4  # from the ties, and below from the bounds, where float32 may differ
    away &= np.abs(np.abs(x) - 1.7) > 1e-5
    np.testing.assert_allclose(np.asarray(x_hat)[away], wanted[away], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours_x)[away], (upstream * of_x)[away])
    for field, slope in zip(ours._fields, slopes, strict=True):
        np.testing.assert_allclose(
            np.asarray(getattr(ours, field))[away], (upstream * slope)[away], rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("signed", [True, False])
def test_in_u3_the_gradients_have_disjoint_supports_and_bounds(signed):
    """What the paper recommends it for, exactly and not to rounding: each element moves one of the parameters."""
    x, _ = samples(0, SIZE, 2.0)
    apply = dq_u3(QuantSpec(signed=signed, granularity=PER_ELEMENT)).apply
    qparams = jax.tree.map(jnp.float32, qparams_for("dq_u3", 5.0, 0.11, signed))
    slopes = jax.grad(lambda q: apply(q, jnp.float32(x), 5.0).sum())(qparams)
    assert not ((slopes.scale != 0) & (slopes.bound != 0)).any()
    assert (jnp.abs(slopes.scale) <= 0.5 + 1e-5).all()
    assert set(np.unique(slopes.bound)) == ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})


@pytest.mark.parametrize("bits", [2.0, 5.0, 16.0])
@pytest.mark.parametrize("signed", [True, False])
def test_the_three_parametrizations_are_one_quantizer(signed, bits):
    x = jnp.float32(samples(3, 500, 2.0)[0])
    results = []
    for name, factory in FACTORIES.items():
        qparams = jax.tree.map(jnp.float32, qparams_for(name, bits, 2.0**-3, signed, size=1))
        quantizer = factory(QuantSpec(signed=signed))
        results.append(np.asarray(quantizer.apply(qparams, x, bits)))
        np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, bits)), results[-1])
        np.testing.assert_array_equal(learned_bits(qparams, signed), [bits])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", FACTORIES)
def test_bits_set_the_initial_width_and_afterwards_only_prune_or_pass(name, signed):
    x = jnp.float32(samples(5, 600, 1.0)[0])
    quantizer = FACTORIES[name](QuantSpec(signed=signed))
    run = jax.jit(lambda bits, later: (quantizer.init(x, bits), quantizer.apply(quantizer.init(x, bits), x, later)))
    for bits in range(1, 17):
        qparams, x_hat = run(float(bits), float(bits))
        assert learned_bits(qparams, signed).item() == max(bits, 2 if signed else 1)
        assert len(np.unique(x_hat)) <= 2 ** max(bits, 2 if signed else 1)
        for later in (1.0, 8.0, 31.0):
            np.testing.assert_array_equal(run(float(bits), later)[1], x_hat)
        np.testing.assert_array_equal(run(float(bits), 0.0)[1], jnp.zeros_like(x))
        np.testing.assert_array_equal(run(float(bits), 32.0)[1], x)


def test_every_code_range_of_u3_has_its_width_exactly():
    """b = ⌈log2(q_max / d + 1)⌉ + 1 for all 32767 ranges: a quotient of float32 logarithms is 1 too large for some."""
    for signed, most in ((True, 2**15), (False, 2**16)):
        largest = np.arange(1, most)
        for d in (1.0, 0.037):
            qparams = DQU3(jnp.full(largest.shape, d), jnp.asarray(largest * np.float64(d), jnp.float32))
            wanted = np.array([int(value).bit_length() for value in largest]) + signed
            np.testing.assert_array_equal(learned_bits(qparams, signed), wanted)


def test_a_bound_between_two_multiples_is_moved_onto_the_grid():
    """q_max = 1.1 with d = 0.4: rounding 1.1 / 0.4 = 2.75 would return 1.2 > q_max, and leak a gradient to d."""
    x = jnp.asarray([0.1, 0.5, 1.0, 1.1, 1.15, 1.3, 50.0])
    qparams = DQU3(jnp.full((1,), 0.4), jnp.full((1,), 1.1))
    quantizer = dq_u3(QuantSpec())
    x_hat = quantizer.apply(qparams, x, 4.0)
    np.testing.assert_allclose(x_hat, 0.4 * np.array([0, 1, 2, 3, 3, 3, 3]), rtol=1e-6)
    np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, 4.0)), x_hat)
    slopes = jax.grad(lambda q: quantizer.apply(q, x[-2:], 4.0).sum())(qparams)
    assert slopes.scale == 0.0
    assert slopes.bound == 2.0


def test_learned_bits_are_whole_and_have_the_gradient_of_the_width():
    for bits, wanted in {0.3: 2.0, 2.4: 2.0, 3.6: 4.0, 15.9: 16.0, 40.0: 16.0}.items():
        for signed in (True, False):
            width = partial(learned_bits, signed=signed)
            for qparams in (DQU1(jnp.ones(1), jnp.full((1,), bits)), DQU2(jnp.full((1,), bits), jnp.ones(1))):
                assert width(qparams).item() == (wanted if signed or bits > 1 else 1.0)
                assert (
                    jax.grad(lambda q, w=width: w(q).sum())(qparams).bits == 1.0
                )  # also beyond the ends: none is stuck
    slopes = jax.grad(lambda q: learned_bits(q, True).sum())(DQU3(jnp.full((1,), 0.5), jnp.full((1,), 3.5)))
    np.testing.assert_allclose(slopes.bound, 1 / np.log(2) / (3.5 / 0.5 + 1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(slopes.scale, -1 / np.log(2) / (3.5 / 0.5 + 1) * 3.5 / 0.5**2, rtol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_penalty_on_the_width_trades_bits_for_error(name):
    """Descent on the error plus a price for each bit: U2 and U3 settle at 3 to 6 bits. U1 goes down more slowly: its
    gradient to the width comes from clipped elements alone and is 2^(b-1) d large, the paper's case against it."""
    x = jnp.float32(samples(7, 2000, 1.0)[0])
    quantizer = FACTORIES[name](QuantSpec())

    def loss(qparams):
        return ((quantizer.apply(qparams, x, 8.0) - x) ** 2).mean() + 0.003 * learned_bits(qparams, True).mean()

    @jax.jit
    def descend(qparams):
        def step(qparams, _):
            slopes = jax.grad(loss)(qparams)
            rates = {"scale": 0.0005, "bits": 1.0, "bound": 0.02}
            moved = {f: getattr(qparams, f) - rates[f] * jnp.clip(getattr(slopes, f), -1, 1) for f in qparams._fields}
            return type(qparams)(**moved), None

        return jax.lax.scan(step, qparams, None, length=3000)[0]

    start = quantizer.init(x, 8.0)
    end = descend(start)
    assert 3 <= learned_bits(end, True).item() <= (7 if name == "dq_u1" else 6)
    assert loss(end) < loss(start)


def test_specs_without_mathematics_are_refused():
    for name, factory in FACTORIES.items():
        for fields in ({"symmetric": False}, {"mask": "none"}, {"signed": False, "narrow": True}):
            with pytest.raises(UnsupportedSpecError, match=name):
                factory(QuantSpec(**fields))
