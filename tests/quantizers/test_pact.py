from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, compare, composition, float64, gradients64, on_cpu, samples
from conftest import golden_cases
from jax.lax import stop_gradient

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.pact import PACT, pact

BOUND = 1.7


def closed_form(x, bound, signed, upstream):
    """PACT's gradients: 1 to the bound where clipped (-1 at the lower bound), 1 to x inside."""
    low = -bound if signed else 0.0
    above, below = x > bound, x < low
    return upstream * (above - 1.0 * (below & signed)), upstream * ~(above | below)


@pytest.mark.parametrize("even_levels", [False, True])
@pytest.mark.parametrize("bits", [2.0, 3.0, 8.0])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradients_are_the_papers(signed, bits, even_levels):
    x, upstream = samples(int(bits), 4000, 2.0)
    apply = pact(QuantSpec(signed=signed, granularity=per_channel(0)), even_levels=even_levels).apply
    bound = np.full(4000, BOUND)
    of_bound, of_x = closed_form(x, bound, signed, upstream)
    _, ours, ours_x = gradients64("pact", apply, PACT(bound), x, bits, upstream)
    assert_exact(ours.bound, of_bound)
    assert_exact(ours_x, of_x)
    assert (of_bound != 0).mean() > 0.1  # the comparison has something to compare

    _, pullback = jax.vjp(lambda q, x: apply(q, x, bits), PACT(jnp.asarray(bound, jnp.float32)), jnp.float32(x))
    low, low_x = pullback(jnp.float32(upstream))
    inside = np.abs(np.abs(x) - BOUND) > 1e-6
    np.testing.assert_array_equal(np.asarray(low.bound)[inside], of_bound[inside])
    np.testing.assert_array_equal(np.asarray(low_x)[inside], of_x[inside])


def test_plain_autodiff_would_give_a_saw_tooth_instead():
    """What the stopped gradient is for: the composition's own gradient inside is not 0, up to 1/6 at 2 bits."""
    x = np.linspace(0, BOUND, 1001)[1:-1]
    with float64():
        bound, arrays = jnp.full(x.shape, BOUND, jnp.float64), jnp.asarray(x)
        wrong = jax.grad(lambda a: composition(arrays, a / 3, 0.0, 0.0, 3.0).sum())(bound)
        right = jax.grad(lambda a: composition(arrays, stop_gradient(a) / 3, 0.0, 0.0, 3.0).sum())(bound)
    assert abs(float(np.abs(wrong).max()) - 1 / 6) < 2e-3
    assert (np.asarray(right) == 0).all()


@on_cpu
def test_mqbench_computed_the_same():
    """Its signed step 2 alpha / (2^b - 1) puts every clipped element on a tie, which it then rounds by x (1 / step):
    where that leaves the grid, torch drops the gradient. Those ties, and they alone, are left out."""
    compared = ties = number = 0
    methods = {signed: pact(QuantSpec(signed=signed), alpha=2.0, even_levels=True) for signed in (True, False)}

    @partial(jax.jit, static_argnums=0)
    def run(signed, x, bits, dy, kept):
        quantizer = methods[signed]
        qparams = quantizer.init(x, bits)
        value, pullback = jax.vjp(lambda q, x: quantizer.apply(q, x, bits), qparams, x)
        return value, pullback(dy)[1], pullback(dy * kept)[0].bound, quantizer.encode(qparams, x, bits).scale

    for case, arrays in golden_cases("mqbench"):
        if not case["case"].startswith("pact"):
            continue
        x, dy, bits = arrays["x"], arrays["dy"], float(case["bits"])
        assert case["alpha"] == 2.0
        y = np.clip(x, -case["alpha"] if case["signed"] else 0, case["alpha"])
        steps = y * (np.float32(1) / arrays["scale"])
        tied = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 4 * np.finfo(np.float32).eps * np.abs(steps)
        assert (tied <= (case["signed"] & (np.abs(x) >= case["alpha"]))).all()
        kept = ~((np.rint(steps) > case["qmax"]) | (np.rint(steps) < case["qmin"]))  # torch's mask on those ties
        value, dx, dalpha, scale = run(case["signed"], jnp.asarray(x), bits, jnp.asarray(dy), jnp.float32(kept))
        assert scale.item() == arrays["scale"].item()
        compared += compare(case["case"], "y", value, arrays["y"], 1e-6, ~tied)
        compared += compare(case["case"], "dx", dx, arrays["dx"], 2e-5, ~tied | (np.abs(x) > case["alpha"]))
        compared += compare(case["case"], "dalpha", dalpha, arrays["dalpha"], 2e-5)
        ties, number = ties + tied.sum(), number + 1
    print(f"MQBench PACT: {number} cases, {compared} values compared, {ties} ties left out of y")
    assert (number, compared, ties) == (8, 973, 71)


def test_the_bound_starts_as_asked():
    x, granularity = jax.random.normal(jax.random.key(0), (4, 50)), per_channel(0)
    for signed in (True, False):
        spec = QuantSpec(signed=signed, granularity=granularity)
        assert (pact(spec, alpha=8.0).init(x, 4.0).bound == 8.0).all()
        for name, method in {None: RANGES["mse"], "minmax": RANGES["minmax"]}.items():
            low, high = jax.jit(lambda x, method=method, s=signed: method(x, 4.0, (1,), s, True, False))(x)
            ours = jax.jit(pact(replace(spec, range=name)).init)(x, 4.0)
            np.testing.assert_array_equal(ours.bound, np.maximum(-low, high))


def test_one_bound_serves_every_width_and_a_negative_one_is_its_magnitude():
    x = jnp.linspace(-3.0, 3.0, 601)
    for signed in (True, False):
        quantizer = pact(QuantSpec(signed=signed))
        for bits in (2.0, 3.0, 8.0, 16.0):
            x_hat = quantizer.apply(PACT(jnp.full((1,), BOUND)), x, bits)
            np.testing.assert_allclose(x_hat.max(), BOUND, rtol=1e-6)
            np.testing.assert_allclose(x_hat.min(), -BOUND if signed else 0.0, rtol=1e-6)
            np.testing.assert_array_equal(quantizer.apply(PACT(jnp.full((1,), -BOUND)), x, bits), x_hat)
            np.testing.assert_array_equal(decode(quantizer.encode(PACT(jnp.full((1,), BOUND)), x, bits)), x_hat)


def test_the_l2_penalty_alone_pulls_the_bound_down():
    """Inside the bound the data give no gradient: a bound beyond the data stays unless it is penalised."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), (1000,)))
    apply = pact(QuantSpec(signed=False)).apply

    def loss(bound, penalty):
        return ((apply(PACT(bound), x, 3.0) - x) ** 2).mean() + penalty * (bound**2).sum()

    slope = jax.jit(jax.grad(loss))
    assert slope(jnp.full((1,), 8.0), 0.0) == 0.0
    assert slope(jnp.full((1,), 8.0), 0.01) > 0.0
    assert slope(jnp.full((1,), 0.5), 0.0) < 0.0


@pytest.mark.parametrize("fields", [{"symmetric": False}, {"mask": "rounded"}])
def test_a_spec_without_mathematics_is_refused(fields):
    with pytest.raises(UnsupportedSpecError, match="pact"):
        pact(QuantSpec(**fields))
