from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from closed_forms import compare
from conftest import golden_cases

from qresearch.quantizers.hard_concrete import (
    GateLogits,
    bops_regularizer,
    gate_is_open,
    hard_sigmoid,
    hc_prob_pos,
    l0_sample,
)


def slopes(function, phi, *arguments):
    return jax.jit(jax.vmap(jax.grad(function)))(phi, *arguments)


def test_the_authors_computed_the_same():
    """Three functions of a gate, and the regularizer with and without pruning."""
    compared = 0
    for case, arrays in golden_cases("bayesianbits"):
        name = case["case"]
        if name in ("hc_prob_pos", "hardsigmoid", "l0_sample"):
            function = {"hc_prob_pos": hc_prob_pos, "hardsigmoid": hard_sigmoid, "l0_sample": l0_sample}[name]
            inputs = [jnp.asarray(arrays[key]) for key in ("phi", "u") if key in arrays]
            value = next(arrays[key] for key in ("p", "y", "z") if key in arrays)
            compared += compare(name, "value", function(*inputs), value, 1e-6)
            compared += compare(name, "dphi", slopes(function, *inputs), arrays["dphi"], 2e-5)
        if name.startswith("regularizer"):
            gates = [jnp.float32(case[f"gamma_{width}"]) for width in (4, 8, 16, 32)]
            pruning = None if case["gamma_2"] is None else jnp.asarray(case["gamma_2"], jnp.float32)
            value, of_phi = jax.value_and_grad(bops_regularizer)(
                GateLogits(pruning, *gates), case["mac_count"], case["max_macs"]
            )
            compared += compare(name, "reg", value, arrays["reg"], 1e-6)
            flat = np.concatenate([np.reshape(leaf, -1) for leaf in jax.tree.leaves(of_phi)])
            compared += compare(name, "dgammas", flat, arrays["dgammas"], 2e-5)
    print(f"compared {compared} elements, none left out")
    assert compared == 2 * (8 + 8 + 33) + (1 + 4) + (1 + 7)


def test_a_sample_is_positive_as_often_as_it_should_be():
    uniform = jax.random.uniform(jax.random.key(0), (200_000,), minval=1e-7)
    for phi in (-3.0, -1.0, 0.0, 2.0):
        gates = l0_sample(jnp.float32(phi), uniform)
        assert abs((gates > 0).mean() - hc_prob_pos(jnp.float32(phi))) < 0.005
        assert 0 <= gates.min() <= gates.max() <= 1
    assert (gates == 1).any()


def test_a_gate_stays_open_above_minus_0_935():
    """[computed] in the project's notes: the threshold 0.34 on P(z = 0) is φ > -0.935."""
    np.testing.assert_array_equal(gate_is_open(jnp.asarray([-6.0, -0.94, -0.93, 6.0])), [0, 0, 1, 1])


def test_open_gates_cost_the_bops_of_all_widths_and_a_pruned_channel_none():
    gates = [jnp.float32(50.0)] * 4
    assert abs(bops_regularizer(GateLogits(None, *gates), 3.0, 10.0) - (1 + 0.3 * (4 + 8 + 16 + 32))) < 1e-4
    half = GateLogits(jnp.asarray([50.0, -50.0]), *gates)
    assert abs(bops_regularizer(half, 3.0, 10.0) - 0.3 * (2 + 4 + 8 + 16 + 32) / 2) < 1e-4


def test_extreme_draws_and_logits_are_finite():
    for uniform in (0.0, 1e-30, 0.5, 1.0):
        for phi in (-1e4, 0.0, 1e4):
            value, slope = jax.value_and_grad(l0_sample)(jnp.float32(phi), jnp.float32(uniform))
            assert np.isfinite(value)
            assert np.isfinite(slope)
