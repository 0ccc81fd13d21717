"""The identity handler is the float model, bit for bit, in the same mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO, Compilations

from qresearch.graph import trace
from qresearch.graph.handlers import identity, record

every_model = pytest.mark.parametrize("name", ZOO)

# Interpreted, these lower to another text than the model itself, because the functions under an inner jit are inlined.
INLINED = ("nested_jit",)


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (mine.dtype, mine.shape, mine.weak_type) == (theirs.dtype, theirs.shape, theirs.weak_type)
        np.testing.assert_array_equal(mine, theirs)


def interpreter(name, handler=identity):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    return lambda params, x: graph.run(handler, params, x)[0]


def outputs_and_gradients(fn):
    """A function to the outputs of fn and the gradient of a function of all of them, in all float params and inputs."""

    def compute(params, x):
        leaves, structure = jax.tree.flatten((params, x))
        floats = [leaf for leaf in leaves if is_float(leaf)]

        def loss(floats):
            values = iter(floats)
            merged = [next(values) if is_float(leaf) else leaf for leaf in leaves]
            outputs = fn(*jax.tree.unflatten(structure, merged))
            differentiable = [leaf for leaf in jax.tree.leaves(outputs) if is_float(leaf)]
            return sum(jnp.sum(jnp.cos(leaf.astype(jnp.float32))) for leaf in differentiable), outputs

        return jax.value_and_grad(loss, has_aux=True)(floats)

    return jax.jit(compute)


@every_model
def test_it_lowers_to_the_same_program_as_the_model_gradients_included(name):
    fn, params, x = ZOO[name]
    texts = [outputs_and_gradients(f).lower(params, x).as_text() for f in (fn, interpreter(name))]
    assert (texts[0] == texts[1]) == (name not in INLINED)


@pytest.mark.parametrize("name", [*INLINED, "linen_train", "nnx_train", "scan_nested"])
def test_outputs_and_gradients_are_equal_under_jit(name):
    # The same program gives the same bits, so a few by value are enough; those that are not the same program must be.
    fn, params, x = ZOO[name]
    expected = outputs_and_gradients(fn)(params, x)
    assert_same_bits(outputs_and_gradients(interpreter(name))(params, x), expected)
    gradients = expected[1]
    assert all(jnp.isfinite(leaf).all() for leaf in gradients)
    assert any(jnp.any(leaf != 0) for leaf in gradients)


@every_model
def test_outputs_are_equal_in_eager_mode(name):
    fn, params, x = ZOO[name]
    assert_same_bits(interpreter(name)(params, x), fn(params, x))


def test_an_eager_scan_is_compiled_once_for_all_calls():
    _, params, x = ZOO["scan_nested"]
    run = interpreter("scan_nested")
    for at_most in (99, 0):
        with Compilations() as compilations:
            run(params, x)
        assert compilations.count <= at_most


def test_training_state_changes_and_dropout_draws_from_the_key_in_x():
    _, variables, (image, key) = ZOO["linen_train"]
    run = jax.jit(interpreter("linen_train"))
    outputs, state = run(variables, (image, key))
    assert not np.array_equal(
        state["batch_stats"]["BatchNorm_0"]["mean"], variables["batch_stats"]["BatchNorm_0"]["mean"]
    )
    assert not np.array_equal(outputs, run(variables, (image, jax.random.key(1)))[0])


def test_a_recording_handler_changes_nothing():
    fn, params, x = ZOO["linen_scan"]
    assert_same_bits(jax.jit(interpreter("linen_scan", record))(params, x), jax.jit(fn)(params, x))


def test_the_handler_may_close_over_traced_values():
    _, params, x = ZOO["nested_jit"]
    fn = ZOO["nested_jit"].fn
    graph = trace(fn, params, x)

    @jax.jit
    def run(params, x, factor):
        return graph.run(lambda call: (call.contract(call.weight * factor, call.input), None), params, x)[0]

    doubled = jax.tree.map(lambda w: 2 * w, params)
    for factor, reference in ((1.0, params), (2.0, doubled)):
        np.testing.assert_allclose(run(params, x, factor), fn(reference, x), rtol=1e-5)
