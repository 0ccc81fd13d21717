"""Scans: one layer per iteration where the scan hands out the kernel, one with several calls where it reuses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO, X, kernel
from jax import lax

from qresearch.graph import trace
from qresearch.graph.handlers import identity, record

# Models whose scanned kernels are used once an iteration: scaling a layer's kernel is scaling its parameter.
STACKED = ["scan_stack", "scan_reverse", "scan_single", "scan_nested", "linen_scan", "nnx_scan", "scan_rnn", "looped"]
stacked = pytest.mark.parametrize("name", STACKED)


def scaled(call):
    """Multiplies a layer's kernel by its state; aux: the state it got, and the iteration."""
    return call.contract(call.weight * call.state, call.input), {"state": call.state, "index": jnp.asarray(call.index)}


def iteration(name):
    """The indices after the @ marks: where a layer's kernel lies in its parameter."""
    return tuple(int(part) for part in name.split("@")[1:])


def factors(graph):
    """A power of two for every layer, all neighbours different, so that scaling is exact."""
    return {layer.name: jnp.float32(2.0 ** (1 - i % 3)) for i, layer in enumerate(graph.layers)}


def scale_parameters(params, graph, states):
    """What the states should amount to: every layer's part of its parameter multiplied by its state."""
    leaves, structure = jax.tree.flatten(params)
    paths = ["/".join(str(getattr(key, "key", getattr(key, "name", ""))) for key in path)
             for path, _ in jax.tree.leaves_with_path(params)]  # fmt: skip
    for layer in graph.layers:
        position = next(i for i, path in enumerate(paths) if path.removesuffix("/value") == layer.parameter)
        index = iteration(layer.name)
        leaves[position] = leaves[position].at[index or ...].multiply(states[layer.name])
    return jax.tree.unflatten(structure, leaves)


@stacked
def test_every_iteration_has_a_state_and_a_gradient_of_its_own(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    states = factors(graph)

    def actual(states):
        return jax.tree.leaves(graph.run(scaled, params, x, states)[0])[0].sum()

    def expected(states):
        return jax.tree.leaves(fn(scale_parameters(params, graph, states), x))[0].sum()

    values, reference = (jax.jit(jax.value_and_grad(loss))(states) for loss in (actual, expected))
    np.testing.assert_array_equal(values[0], reference[0])
    for layer in states:
        np.testing.assert_allclose(values[1][layer], reference[1][layer], rtol=1e-4, atol=1e-4)
        assert values[1][layer] != 0


@stacked
def test_aux_comes_back_by_layer_with_an_axis_of_calls(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    states = factors(graph)
    _, aux = graph.run(scaled, params, x, states)
    assert list(aux) == [layer.name for layer in graph.layers]
    for layer in graph.layers:
        np.testing.assert_array_equal(aux[layer.name]["state"], [states[layer.name]] * layer.calls)


def test_recorded_kernels_are_the_slices_of_the_stack():
    for name, path in (("scan_stack", "blocks/w"), ("scan_reverse", "w"), ("scan_nested", "stack")):
        fn, params, x = ZOO[name]
        graph = trace(fn, params, x)
        recorded = graph.run(record, params, x)[1]
        stack = params["blocks"]["w"] if name == "scan_stack" else params[path]
        for layer in graph.layers:
            if layer.parameter == path:
                np.testing.assert_array_equal(recorded[layer.name]["weight"][0], stack[iteration(layer.name)])


def test_recorded_inputs_are_in_the_order_of_execution():
    fn, params, x = ZOO["scan_stack"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    h, before = x, []
    for w, b in zip(params["blocks"]["w"], params["blocks"]["b"]):
        before.append(h)
        h = jnp.tanh(h @ w + b)
        h = h + 0.1 * h @ params["every"]
    for i in range(3):
        np.testing.assert_allclose(recorded[f"blocks/w@{i}"]["input"][0], before[i], rtol=1e-5, atol=1e-6)
    assert recorded["every"]["input"].shape == (3, *x.shape)
    assert recorded["every"]["weight"].shape == (3, 8, 8)


def test_a_reversed_scan_keeps_the_names_of_its_slices():
    # Iteration @0 is the slice 0, though it runs last.
    fn, params, x = ZOO["scan_reverse"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    np.testing.assert_array_equal(recorded["w@2"]["input"][0], x)
    np.testing.assert_array_equal(recorded["w@0"]["weight"][0], params["w"][0])
    np.testing.assert_allclose(fn(params, x)[1][0], recorded["w@0"]["input"][0], rtol=1e-6)


def test_the_index_tells_all_executions_apart():
    fn, params, x = ZOO["scan_nested"]
    graph = trace(fn, params, x)
    aux = graph.run(scaled, params, x, factors(graph))[1]
    for layer in graph.layers:
        index = iteration(layer.name)
        expected = {
            "stack": lambda index: [2 * index[0] + index[1]],
            "own": lambda index: [2 * index[0], 2 * index[0] + 1],
            "again": lambda index: [index[0], 2 + index[0], 4 + index[0]],
        }[layer.parameter](index)
        assert aux[layer.name]["index"].tolist() == expected


def test_calls_and_macs_of_kernels_that_a_scan_reuses():
    layers = {layer.name: layer for layer in trace(*ZOO["scan_nested"]).layers}
    assert (layers["stack@1@0"].calls, layers["own@2"].calls, layers["again@0"].calls) == (1, 2, 3)
    assert (layers["stack@1@0"].macs, layers["own@2"].macs, layers["again@0"].macs) == (64, 128, 192)


def test_a_layer_without_a_state_is_seen_without_one():
    fn, params, x = ZOO["scan_stack"]
    graph = trace(fn, params, x)

    def handler(call):
        weight = call.weight if call.state is None else 0 * call.weight
        return call.contract(weight, call.input), None

    (outputs, _), aux = graph.run(handler, params, x, {f"blocks/w@{i}": jnp.float32(0) for i in range(3)})
    assert aux == dict.fromkeys(layer.name for layer in graph.layers)
    assert not np.allclose(outputs, graph.run(identity, params, x)[0][0])
    bias = ZOO["scan_stack"].params["blocks"]["b"]
    expected = fn(params | {"blocks": {"w": 0 * params["blocks"]["w"], "b": bias}}, x)[0]
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def test_carried_values_are_never_kernels():
    # The carry starts as a parameter, and changes: what multiplies x is no longer the parameter.
    def fn(p, x):
        w, outputs = lax.scan(lambda w, _: (jnp.tanh(w + x.mean()), x @ w), p["w"], None, 3)
        return outputs.sum(0) @ w

    graph = trace(fn, {"w": kernel(0, 8, 8)}, X)
    assert graph.layers == ()
    assert [found.macs for found in graph.unassigned] == [3 * 64, 64]


def test_a_parameter_that_is_only_handed_through_the_carry_is_still_a_kernel():
    graph = trace(
        lambda p, x: lax.fori_loop(0, 3, lambda _, c: (jnp.tanh(c[0] @ c[1]), c[1]), (x, p["w"]))[0],
        {"w": kernel(0, 8, 8)},
        X,
    )
    assert [(layer.name, layer.calls) for layer in graph.layers] == [("w", 3)]


def test_states_are_traced_through_vmap_and_scan():
    fn, params, x = ZOO["scan_nested"]
    graph = trace(fn, params, x)
    many = {layer.name: jnp.array([0.5, 1.0, 2.0]) * (1 + i % 2) for i, layer in enumerate(graph.layers)}
    outputs = jax.vmap(lambda states: graph.run(scaled, params, x, states)[0])(many)
    for i in range(3):
        one = graph.run(scaled, params, x, jax.tree.map(lambda leaf, i=i: leaf[i], many))[0]
        np.testing.assert_allclose(outputs[i], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["scan_stack", "scan_nested", "scan_remat", "linen_scan"])
def test_states_may_be_trees_of_any_structure(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    states = {
        layer.name: {"none": None, "key": jax.random.key(i), "array": jnp.full((2, 1), float(i)), "pair": (1.0, i)}
        for i, layer in enumerate(graph.layers)
    }

    def handler(call):
        assert call.state["none"] is None
        noise = jax.random.uniform(call.state["key"], ())
        return call.contract(call.weight, call.input), {"noise": noise, "array": call.state["array"]}

    aux = graph.run(handler, params, x, states)[1]
    for i, layer in enumerate(graph.layers):
        np.testing.assert_array_equal(aux[layer.name]["array"], np.full((layer.calls, 2, 1), float(i)))
        np.testing.assert_array_equal(
            aux[layer.name]["noise"], [jax.random.uniform(jax.random.key(i), ())] * layer.calls
        )
