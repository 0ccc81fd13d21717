"""Gates over the widths of a menu: against the authors' vectors, and against the quantizer of doubling widths."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_cases
from search_cases import plain_subject

from qresearch.numerics.residuals import decompose
from qresearch.qmodel import quantize_model
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.bayesian_bits import BayesianBits, bayesian_bits
from qresearch.quantizers.hard_concrete import hc_prob_pos
from qresearch.rules import Rule, SiteRule
from qresearch.search.bayesian_bits import _sites, learner
from qresearch.search.gates import Gated, Phi, gated, opened, shares_of
from qresearch.search.svi import HardConcrete

DOUBLING = (2.0, 4.0, 8.0, 16.0, 32.0)
ALL_GATES = 31.0
STARTS = jnp.asarray([6.0, 6.0, 6.0, -6.0])  # of the gates of 4, 8, 16 and 32 bits
SIGNS = pytest.mark.parametrize("signed", [True, False])


@functools.cache
def gated_at(signed, widths=DOUBLING):
    """(bound, gates (z_2, z_4, ...), x) -> x̂; the first gate prunes."""
    quantizer = gated(bayesian_bits(QuantSpec(signed=signed)), widths)

    def run(bound, gates, x):
        share = shares_of(gates[1:], (True,) * len(widths)).dense(len(widths))
        return quantizer.apply(Gated(bound, gates[:1], share), x, 8.0)

    return jax.jit(run)


def ties(run, bound, x, extent):
    """Σ_w |R_w - x_w| per element: what rounding directly and by residuals, each to even, makes of ties."""
    parts, total, found = decompose(x, extent), jnp.zeros_like(x), jnp.zeros_like(x)
    for reached, (code, step) in enumerate(zip(parts.codes, parts.steps)):
        total = total + code * step
        hard = jnp.asarray([1.0] * (reached + 1) + [0.0] * (4 - reached))
        found = found + jnp.abs(run(bound, hard, x) - total)
    return np.where(found > 2e-6, found, 0.0)


def test_the_authors_computed_the_same():
    """Their cases of given gates: the mixture of direct roundings is the gated sum of residuals, but for ties."""
    cases, exact = 0, 0
    for case, arrays in golden_cases("bayesianbits"):
        if "gates" not in case or case.get("bits", ALL_GATES) < ALL_GATES:
            continue
        gates = [1.0 if gate is None else gate for gate in case["gates"]]
        name, bound = case["case"], jnp.asarray([case["x_max"]], jnp.float32)
        run, z, x = gated_at(case["signed"]), jnp.asarray(gates, jnp.float32), jnp.asarray(arrays["x"])
        limit = bound * (1 - 1e-7)
        tied = ties(run, bound, jnp.clip(x, -limit if case["signed"] else 0.0, limit), bound * (1 + case["signed"]))
        x_hat, pullback = jax.vjp(run, bound, z, x)
        of_bound, of_gates, of_x = pullback(jnp.asarray(arrays["dy"]))
        assert (np.abs(x_hat - arrays["y"]) <= 2e-6 + tied).all(), name
        np.testing.assert_allclose(of_x, arrays["dx"], rtol=2e-5, atol=2e-5, err_msg=name)
        given, slack = ~np.isnan(arrays["dgates"]), np.abs(arrays["dy"]) @ tied
        assert (np.abs(of_gates - arrays["dgates"])[given] <= 1e-4 + slack).all(), name
        assert np.abs(of_bound.sum() - arrays["dx_max"].sum()) <= 1e-3 + slack / case["x_max"], name
        cases, exact = cases + 1, exact + (slack == 0)
    print(f"{cases} cases, {exact} without ties")
    assert cases == 28
    assert exact >= 10


@SIGNS
def test_gates_between_0_and_1_are_those_of_the_quantizer(signed):
    x, gates = jax.random.normal(jax.random.key(0), (400,)), (0.7, 0.9, 0.4, 0.8, 0.3)
    run, bound, z = gated_at(signed), jnp.full(1, 1.7), jnp.asarray(gates)
    own = BayesianBits(bound, *(z[i : i + 1] for i in range(5)))
    apply = bayesian_bits(QuantSpec(signed=signed)).apply
    wanted, of_own = jax.vjp(lambda q, x: apply(q, x, ALL_GATES), own, x)
    found, of_ours = jax.vjp(run, bound, z, x)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    upstream = jnp.sin(7 * x)
    (bound_slope, *gate_slopes), x_slope = of_own(upstream)
    ours = of_ours(upstream)
    np.testing.assert_allclose(ours[0], bound_slope, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours[1], jnp.concatenate(gate_slopes), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours[2], x_slope, atol=1e-6)


@SIGNS
@pytest.mark.parametrize("reached", range(6))
def test_hard_gates_are_the_direct_rounding(signed, reached):
    widths = (0.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    x = jax.random.normal(jax.random.key(1), (2000,))
    run, bound = gated_at(signed, widths), jnp.full(1, 1.7)
    z = jnp.asarray([1.0] * (reached + 1) + [0.0] * (5 - reached))
    found, step = run(bound, z, x), (3.4 if signed else 1.7) / (2.0 ** widths[reached] - 1.0 or np.inf)
    low, high = (-1.7 * (1 - 1e-7) if signed else 0.0), 1.7 * (1 - 1e-7)
    clipped = np.clip(np.asarray(x, np.float64), low, high)
    wanted = 0.0 * clipped if not reached else step * np.round(clipped / step)
    assert (np.abs(found - wanted) > 1e-6).mean() <= 0.001  # ties of float32
    assert len(np.unique(found)) <= max(2 ** widths[reached] - (signed and reached > 0), 1)
    if widths[reached] in (2.0, 4.0, 8.0):
        quantizer = bayesian_bits(QuantSpec(signed=signed))
        own = BayesianBits(bound, *[jnp.ones(1)] * 5)
        np.testing.assert_allclose(found, quantizer.apply(own, x, widths[reached]), atol=1e-6)


def test_shares_of_gates_are_probabilities_of_widths():
    chance = hc_prob_pos(jnp.asarray([2.0, -1.0]))
    share = shares_of(chance, (True, False, True, True)).dense(4)
    p, q = np.asarray(chance)
    np.testing.assert_allclose(share, [1 - p, 0.0, p * (1 - q), p * q], rtol=1e-6)
    np.testing.assert_allclose(opened(chance), [1.0, p, p * q], rtol=1e-6)
    np.testing.assert_array_equal(shares_of(jnp.zeros(0), (False, True)).dense(2), [0.0, 1.0])


def test_a_pruned_channel_is_0_and_passes_no_gradient():
    quantizer = gated(bayesian_bits(QuantSpec()), (2.0, 4.0))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    qparams = Gated(jnp.ones((1, 1)), jnp.asarray([[1.0, 0.0, 1.0]]), jnp.asarray([0.25, 0.75]))
    found, pullback = jax.vjp(lambda x, z: quantizer.apply(qparams._replace(channels=z), x, 8.0), x, qparams.channels)
    of_x, of_channels = pullback(jnp.ones_like(x))
    assert not found[:, 1].any()
    assert not of_x[:, 1].any()
    assert of_x[:, 0].any()
    assert of_channels.shape == (1, 3)
    assert of_channels[0, 1] != 0  # a closed gate may open again


def test_a_draw_of_the_search_is_the_authors_sample(monkeypatch):
    """Given their uniform draw: the gate, and its slope in φ."""
    (sampled,) = [arrays for case, arrays in golden_cases("bayesianbits") if case["case"] == "l0_sample"]
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray(sampled["u"]).reshape(shape))

    def draw(phi):
        gates = HardConcrete(phi).sample(jax.random.key(0))
        return gates.sum(), gates

    (_, gates), slopes = jax.value_and_grad(draw, has_aux=True)(jnp.asarray(sampled["phi"]))
    np.testing.assert_allclose(gates, sampled["z"], atol=1e-6)
    np.testing.assert_allclose(slopes, sampled["dphi"], rtol=2e-5, atol=2e-5)
    assert {0.0, 1.0} < set(gates.tolist())


@pytest.mark.parametrize(("name", "operand"), [("regularizer_prune", "weight"), ("regularizer_noprune", "input")])
def test_the_prior_is_what_the_authors_computed(name, operand):
    """Of one site of a model of 9 and 30 multiply-accumulates; without channel gates they take 1 for 2 bits."""
    (case, arrays), *_ = [found for found in golden_cases("bayesianbits") if found[0]["case"] == name]
    sites, learned = two_layers()
    assert case["mac_count"] / case["max_macs"] == 9 / 30
    wide = jnp.asarray([case[f"gamma_{width}"] for width in (4, 8, 16, 32)], jnp.float32) - STARTS
    pruned = None if case["gamma_2"] is None else jnp.asarray([case["gamma_2"]], jnp.float32) - 6.0

    def prior(phi):
        return sites.prior({**learned, "moved": {**learned["moved"], ("first", operand): phi}}, 1.0)

    steps = Phi(wide, pruned)
    closed = jax.tree.map(lambda leaf: leaf - 100.0, steps)
    value, slopes = jax.value_and_grad(prior)(steps)
    constant = 1.0 if pruned is None else 0.0  # what their regularizer has left where all gates are closed
    np.testing.assert_allclose(value - prior(closed), arrays["reg"] - constant, rtol=1e-5)
    flat = slopes.widths if pruned is None else jnp.concatenate([slopes.channels.ravel(), slopes.widths])
    np.testing.assert_allclose(flat, arrays["dgammas"], rtol=1e-4, atol=1e-6)


@functools.cache
def two_layers():
    """The sites of two dense layers, 3 to 3 and 3 to 10, with a choice of all doubling widths; what is learned."""
    params = {"first": jnp.ones((3, 3)), "second": jnp.ones((3, 10))}
    site = SiteRule("bayesian_bits", options=(("prune_axis", -1),))
    menu = tuple((weight, input) for weight in (2, 4, 8, 16, 32) for input in (2, 4, 8, 16, 32))
    rules = (Rule("*", site, SiteRule("bayesian_bits"), menu),)
    x = jnp.ones((1, 3))
    model = quantize_model(lambda params, x: x @ params["first"] @ params["second"], params, x, rules)
    subject = plain_subject(model, params, x)
    return _sites(subject), learner(subject).start(subject)
