from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.data import DATASETS, epoch_permutation
from qresearch.models import MODELS
from qresearch.tasks import TASKS

CLASSES = 7
INPUTS = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
TARGETS = jnp.array([0, 3, 6, 1], jnp.int32)

every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def compiled_init(name):
    return jax.jit(MODELS[name](CLASSES).init)


@functools.cache
def initialized(name):
    return MODELS[name](CLASSES), compiled_init(name)(jax.random.key(1), INPUTS)


@functools.cache
def trained_one_step(name):
    """Outputs, new state and gradients of one training pass: compiled once per model for all tests."""
    model, variables = initialized(name)

    def loss(params):
        outputs, state = model.apply_train({**variables, "params": params}, (INPUTS, jax.random.key(2)))
        return TASKS["classification"].loss(outputs, TARGETS).mean(), (outputs, state)

    (_, (outputs, state)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return outputs, state, gradients


@every_model
def test_the_same_arguments_return_the_same_functions(name):
    # They are jit and memoisation keys: a fresh closure per call would recompile every time.
    first, second = MODELS[name](CLASSES), MODELS[name](classes=CLASSES)
    assert all(f is g for f, g in zip(first, second, strict=True))
    assert hash(first) == hash(second)
    assert MODELS[name](CLASSES + 1).apply is not first.apply


@every_model
def test_variables_are_plain_nested_dicts_of_float32(name):
    _, variables = initialized(name)
    assert type(variables) is dict
    assert "params" in variables

    def check(node):
        if type(node) is dict:
            assert node
            assert all(type(key) is str and "/" not in key for key in node)
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    check(variables)


@every_model
def test_every_matrix_is_called_kernel(name):
    _, variables = initialized(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        assert (path[-1].key == "kernel") == (leaf.ndim > 1)


@every_model
def test_init_depends_on_the_key_alone(name):
    _, variables = initialized(name)
    again = compiled_init(name)(jax.random.key(1), INPUTS * 0)
    other = compiled_init(name)(jax.random.key(3), INPUTS)
    kernels = [[x for x in jax.tree.leaves(v["params"]) if x.ndim > 1] for v in (variables, again, other)]
    for mine, same, different in zip(*kernels, strict=True):
        np.testing.assert_array_equal(mine, same)
        assert not np.array_equal(mine, different)


@every_model
def test_apply_is_deterministic_and_treats_examples_alone(name):
    model, variables = initialized(name)
    apply = jax.jit(model.apply)
    outputs = apply(variables, INPUTS)
    assert outputs.shape == (4, CLASSES)
    assert jnp.isfinite(outputs).all()
    np.testing.assert_array_equal(outputs, apply(variables, INPUTS))
    alone = apply(variables, INPUTS[:1])
    np.testing.assert_allclose(outputs[:1], alone, atol=1e-5 * float(jnp.abs(outputs).max()))


@every_model
def test_apply_train_returns_the_other_collections_updated(name):
    _, variables = initialized(name)
    outputs, state, _ = trained_one_step(name)
    before = {collection: tree for collection, tree in variables.items() if collection != "params"}
    assert outputs.shape == (4, CLASSES)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        assert old.shape == new.shape
        assert not np.array_equal(old, new)


@every_model
def test_training_differs_from_evaluation(name):
    # By batch statistics or by dropout: every model here has one of the two.
    model, variables = initialized(name)
    assert not np.allclose(trained_one_step(name)[0], jax.jit(model.apply)(variables, INPUTS), atol=1e-3)


@every_model
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    _, variables = initialized(name)
    gradients = trained_one_step(name)[2]
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.any(gradient != 0), path


def test_dropout_draws_from_the_key():
    model, variables = initialized("mlp")
    outputs = [model.apply_train(variables, (INPUTS, jax.random.key(seed)))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("mlp", (8, 8, 1), 17_226),
        ("digits_cnn", (8, 8, 1), 25_370),
        ("nnx_cnn", (8, 8, 1), 14_458),
        ("resnet20", (32, 32, 3), 269_722),
        ("resnet32", (32, 32, 3), 464_154),
    ],
)
def test_parameter_counts(name, shape, count):
    variables = jax.eval_shape(MODELS[name](10).init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_digits_cnn_learns_digits():
    # Twenty epochs reach 98.5 %; five, in under a second of steps, are enough to show that every part fits together.
    import optax

    digits, model, task = DATASETS["digits"](None), MODELS["digits_cnn"](10), TASKS["classification"]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 5 * 17))

    @jax.jit
    def step(variables, optimizer_state, inputs, targets):
        def loss(params):
            batch = (digits.prepare(inputs), jax.random.key(0))
            outputs, state = model.apply_train({**variables, "params": params}, batch)
            return task.loss(outputs, targets).mean(), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return {"params": optax.apply_updates(variables["params"], updates), **state}, optimizer_state

    variables = jax.jit(model.init)(jax.random.key(0), digits.prepare(digits.train.inputs[:1]))
    optimizer_state = optimizer.init(variables["params"])
    for epoch in range(5):
        for chosen in epoch_permutation(0, epoch, len(digits.train))[: 17 * 64].reshape(17, 64):
            batch = digits.train.inputs[chosen], digits.train.targets[chosen]
            variables, optimizer_state = step(variables, optimizer_state, *batch)
    outputs = jax.jit(model.apply)(variables, digits.prepare(digits.test.inputs))
    assert task.score(outputs, digits.test.targets).mean() > 0.96
