"""jit, remat and custom derivatives: what holds no layer keeps its rule, what holds one keeps its meaning."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO, X, draw, kernel, leaky, reversed_gradient
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from qresearch.graph import trace
from qresearch.graph.handlers import identity

W = kernel(0, 8, 8)
EIGHT = {"w": W}


def interpret(fn, params=EIGHT, x=X, handler=identity):
    graph = trace(fn, params, x)
    return lambda params, x: graph.run(handler, params, x)[0]


def primitives(fn, *arguments):
    """The names of all primitives in the jaxpr of fn, inner jaxprs included."""

    def walk(jaxpr):
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            yield equation.primitive.name
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(fn)(*arguments)))


def gradient(fn):
    return jax.grad(lambda p, x: jax.tree.leaves(fn(p, x))[0].sum())


# --- rules of derivatives ------------------------------------------------------------------------------------------


def through_jit(rule):
    return jax.jit(rule)


def through_remat(rule):
    return jax.checkpoint(rule)


def through_scan(rule):
    return lambda h: jax.lax.scan(lambda h, _: (rule(h), None), h, None, 1)[0]


def through_cond(rule):
    return lambda h: jax.lax.cond(h.sum() > -1e9, rule, lambda h: h, h)


def unwrapped(rule):
    return rule


wrapped = pytest.mark.parametrize("wrap", [unwrapped, through_jit, through_remat, through_scan, through_cond])


@wrapped
@pytest.mark.parametrize(
    ("rule", "slope"),
    # What plain autodiff of the bodies would give: 0.5, 0.1, 1.
    [(jax.nn.relu, 0.0), (leaky, 3.0), (reversed_gradient, -7.0), (jax.nn.relu6, 0.0)],
    ids=["relu", "custom_jvp", "custom_vjp", "relu6"],
)
def test_a_custom_derivative_is_kept(wrap, rule, slope):
    # At an input of exactly zero, where relu's own rule says 0 and the autodiff of its maximum says 1/2.
    ones = {"w": jnp.ones((8, 8))}
    fn = interpret(lambda p, x: wrap(rule)(x @ p["w"]), ones)
    zeros = jnp.zeros_like(X)
    in_x = jax.grad(lambda x: fn(ones, x).sum())(zeros)
    np.testing.assert_array_equal(in_x, jnp.full_like(X, 8 * slope))


def test_forward_mode_keeps_the_rule_too():
    fn = interpret(lambda p, x: leaky(x @ p["w"]))
    _, tangent = jax.jvp(lambda x: fn(EIGHT, x), (X,), (jnp.ones_like(X),))
    np.testing.assert_allclose(tangent, 3.0 * jnp.ones_like(X) @ W, rtol=1e-6)


def test_a_rule_on_the_kernel_is_part_of_the_kernel():
    # Straight-through weights, or weights behind a softplus, are computed from parameters alone.
    def fn(p, x):
        return x @ reversed_gradient(p["w"])

    assert [layer.name for layer in trace(fn, EIGHT, X).layers] == ["w"]
    np.testing.assert_array_equal(gradient(interpret(fn))(EIGHT, X)["w"], gradient(fn)(EIGHT, X)["w"])


# --- jit -----------------------------------------------------------------------------------------------------------


def test_layers_under_nested_jit_reach_the_handler():
    fn, params, x = ZOO["nested_jit"]
    run = interpret(fn, params, x, lambda call: (call.contract(2 * call.weight, call.input), None))
    np.testing.assert_allclose(run(params, x), fn(jax.tree.map(lambda w: 2 * w, params), x), rtol=1e-6)


def test_a_function_that_is_jitted_as_a_whole_is_interpreted():
    fn, params, x = ZOO["mlp"]
    assert [layer.name for layer in trace(jax.jit(fn), params, x).layers] == ["hidden/w", "out/w"]


def test_a_jit_with_static_arguments_used_twice_gives_two_layers():
    # jit caches the inner jaxpr, so the two calls share one object.
    @functools.partial(jax.jit, static_argnums=2)
    def dense(w, x, power):
        return (x @ w) ** power

    fn = interpret(lambda p, x: dense(p["b"], dense(p["a"], x, 1), 1), {"a": W, "b": 2 * W})
    graph = trace(lambda p, x: dense(p["b"], dense(p["a"], x, 1), 1), {"a": W, "b": W}, X)
    assert [layer.name for layer in graph.layers] == ["a", "b"]
    np.testing.assert_array_equal(fn({"a": W, "b": 2 * W}, X), X @ W @ (2 * W))


# --- remat ---------------------------------------------------------------------------------------------------------

POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("hidden"),
}


def rematerialized(policy, prevent_cse=True):
    @functools.partial(jax.checkpoint, policy=policy, prevent_cse=prevent_cse)
    def block(w, x):
        h = jnp.sin(checkpoint_name(x @ w, "hidden"))
        return jnp.sin(jnp.sin(h @ w) @ w)

    return lambda p, x: block(p["w"], x)


@pytest.mark.parametrize("policy", POLICIES)
def test_remat_recomputes_what_its_policy_does_not_save(policy):
    fn = rematerialized(POLICIES[policy])
    expected, actual = (primitives(gradient(f), EIGHT, X) for f in (fn, interpret(fn)))
    assert actual.count("dot_general") == expected.count("dot_general")
    assert actual.count("sin") == expected.count("sin")
    assert sum("remat" in name or "checkpoint" in name for name in actual) >= 1
    # Three dots forward and five backward; the policies differ in how many are computed again.
    assert actual.count("dot_general") == 8 + {"none": 3, "dots": 0, "everything": 0, "nothing": 3, "names": 2}[policy]


def test_remat_inside_scan_is_kept():
    fn, params, x = ZOO["scan_remat"]
    expected, actual = (primitives(gradient(f), params, x) for f in (fn, interpret(fn, params, x)))
    assert actual.count("dot_general") == expected.count("dot_general") > 4 + 2
    fn, params, x = ZOO["linen_scan"]
    expected, actual = (primitives(gradient(f), params, x) for f in (fn, interpret(fn, params, x)))
    assert sorted(set(actual)) == sorted(set(expected))
    assert actual.count("dot_general") == expected.count("dot_general")


@pytest.mark.parametrize("prevent_cse", [True, False])
def test_remat_keeps_prevent_cse(prevent_cse):
    found = []

    def look(jaxpr):
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            found.extend([equation.params["prevent_cse"]] if "prevent_cse" in equation.params else [])
            for inner in core.jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(interpret(rematerialized(None, prevent_cse)))(EIGHT, X))
    assert found
    assert all((value if isinstance(value, bool) else all(value)) == prevent_cse for value in found)


def test_state_and_aux_pass_through_remat_with_gradients():
    def handler(call):
        return call.contract(call.weight * call.state, call.input), {"largest": jnp.max(call.input)}

    fn, params, x = ZOO["remat_policy"]
    graph = trace(fn, params, x)
    states = {layer.name: jnp.float32(1 + i) for i, layer in enumerate(graph.layers)}

    def loss(states):
        outputs, aux = graph.run(handler, params, x, states)
        return outputs.sum(), aux

    gradients, aux = jax.jit(jax.grad(loss, has_aux=True))(states)
    assert set(aux) == set(states)
    np.testing.assert_allclose(aux["a"]["largest"], [x.max()])
    epsilon = 1e-2
    for name, value in states.items():
        ends = [loss(states | {name: value + sign * epsilon})[0] for sign in (1, -1)]
        np.testing.assert_allclose(gradients[name], (ends[0] - ends[1]) / (2 * epsilon), rtol=0.05, atol=0.02)


def test_the_interpreted_function_can_be_transformed():
    fn, params, x = ZOO["mlp"]
    run = interpret(fn, params, x)
    np.testing.assert_allclose(jax.checkpoint(run)(params, x), fn(params, x), rtol=1e-6)
    many = draw(5, 3, *x.shape)
    np.testing.assert_allclose(jax.vmap(run, (None, 0))(params, many), jax.vmap(fn, (None, 0))(params, many), rtol=1e-5)
    np.testing.assert_allclose(
        jax.hessian(lambda x: run(params, x).sum())(x[:, 0:]), jax.hessian(lambda x: fn(params, x).sum())(x), atol=1e-6
    )
