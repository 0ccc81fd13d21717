"""A kernel that the interpreter cannot reach is refused by name, unless a rule leaves it in float."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import X, kernel
from jax import lax
from jax.sharding import PartitionSpec

from qresearch.errors import GraphError
from qresearch.graph import find_layers, trace
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

QUICK = Rule(weight=SiteRule(range="minmax"), input=SiteRule(range="minmax"))  # calibrates without a search
PARAMS = {"hidden": {"w": kernel(0, 8, 8)}, "out": {"w": kernel(1, 8, 3)}}


@jax.custom_jvp
def jvp_dense(w, x):
    return x @ w


jvp_dense.defjvp(lambda primals, tangents: (jvp_dense(*primals), tangents[1] @ primals[0] + primals[1] @ tangents[0]))


@jax.custom_vjp
def vjp_dense(w, x):
    return x @ w


vjp_dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))


def cond_dense(w, x):
    return lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)


def cond_operand(w, x):
    return lax.cond(x.sum() > 0, lambda w, x: x @ w, lambda w, x: x @ w + 1, w, x)


def while_dense(w, x):
    return lax.while_loop(lambda h: h.sum() > 1e3, lambda h: h @ w, x)


def while_test(w, x):
    return lax.while_loop(lambda h: (h @ w).sum() > 1e3, lambda h: 0.5 * h, x)


def ragged(w, x):
    return lax.ragged_dot(x, w[None], jnp.full((1,), x.shape[0], jnp.int32))


def linear_call(w, x):
    return jax.custom_derivatives.linear_call(lambda w, x: x @ w, lambda w, g: g @ w.T, w, x)


def shard_map(w, x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec()
    return jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(w, x)


# What the reason must say, for every way to hide a layer.
HIDDEN = {
    jvp_dense: "custom_jvp function",
    vjp_dense: "custom_vjp function",
    cond_dense: "only one branch",
    cond_operand: "only one branch",
    while_dense: "while loop",
    while_test: "while loop",
    ragged: "ragged dot",
    linear_call: "linear_call",
    shard_map: "shard_map",
}


def model(hide):
    return lambda p, x: jax.nn.relu(hide(p["hidden"]["w"], x)) @ p["out"]["w"]


def in_jit(fn):
    return jax.jit(fn)


def in_remat(fn):
    return jax.checkpoint(fn)


def in_scan(fn):
    return lambda p, x: lax.scan(lambda _, x: (None, fn(p, x)), None, x[None])[1][0]


def plain(fn):
    return fn


every_hiding = pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)
around = pytest.mark.parametrize("wrap", [plain, in_jit, in_remat, in_scan])


@around
@every_hiding
def test_it_is_refused_by_name_and_reason(hide, wrap):
    with pytest.raises(GraphError, match=HIDDEN[hide]) as raised:
        find_layers(wrap(model(hide)), PARAMS, X)
    message = str(raised.value)
    assert "hidden/w" in message
    assert "leave it in float" in message
    assert ".py:" in message  # where in the model
    with pytest.raises(GraphError, match=HIDDEN[hide]):
        quantize_model(wrap(model(hide)), PARAMS, X)


@every_hiding
def test_it_is_reported_with_its_macs_and_the_other_layers_are_found(hide):
    graph = trace(model(hide), PARAMS, X)
    assert [layer.name for layer in graph.layers] == ["out/w"]
    refused = [found for found in graph.unassigned if found.refused]
    assert len(refused) == (2 if hide is cond_operand else 1)
    assert all(found.macs == 64 for found in refused)


@pytest.mark.parametrize("wrap", [plain, in_scan])
@every_hiding
def test_a_rule_leaves_it_in_float(hide, wrap):
    fn = wrap(model(hide))
    name = next(found.name for found in trace(fn, PARAMS, X).unassigned if found.refused)
    in_float = [Rule(f"{name}*", weight=None, input=None), QUICK]
    quantized = quantize_model(fn, PARAMS, X, in_float)
    assert [layer.name for layer in quantized.layers] == ["out/w"]
    qparams = quantized.init(PARAMS, X, jnp.full((1, 2), 8.0))
    output = quantized.apply(PARAMS, qparams, X, jnp.full((1, 2), 32.0))
    np.testing.assert_allclose(output, fn(PARAMS, X), rtol=1e-6)
    assert not np.allclose(quantized.apply(PARAMS, qparams, X, jnp.full((1, 2), 2.0)), output, atol=1e-3)


def test_a_rule_with_only_one_operand_in_float_is_not_enough():
    with pytest.raises(GraphError, match="hidden/w"):
        quantize_model(model(cond_dense), PARAMS, X, [Rule("hidden/*", input=None), Rule()])


def test_the_gradient_of_a_layer_left_inside_a_custom_rule_is_the_users():
    @jax.custom_vjp
    def doubled(w, x):
        return x @ w

    doubled.defvjp(lambda w, x: (x @ w, None), lambda _, g: (jnp.full((8, 8), 5.0), g))
    fn = model(doubled)
    quantized = quantize_model(fn, PARAMS, X, [Rule("hidden/*", None, None), QUICK])
    qparams = quantized.init(PARAMS, X, jnp.full((1, 2), 8.0))
    bits = jnp.full((1, 2), 4.0)
    gradient = jax.grad(lambda p: quantized.apply(p, qparams, X, bits).sum())(PARAMS)
    np.testing.assert_array_equal(gradient["hidden"]["w"], jnp.full((8, 8), 5.0))


@pytest.mark.parametrize("hide", [jvp_dense, vjp_dense, cond_dense, while_dense], ids=lambda hide: hide.__name__)
def test_activation_products_inside_are_reported_but_not_refused(hide):
    # No kernel in there: nothing is lost by leaving it as it is.
    graph = trace(lambda p, x: hide(x.T @ x, x) @ p["out"]["w"], PARAMS, X)
    assert [layer.name for layer in graph.layers] == ["out/w"]
    assert len(graph.unassigned) == 2
    assert not any(found.refused for found in graph.unassigned)
