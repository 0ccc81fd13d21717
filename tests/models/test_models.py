from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from qresearch.data import DATASETS, epoch_permutation
from qresearch.models import MODELS
from qresearch.tasks import TASKS

CLASSES = 7
SMALL = 32  # images larger than this are as well tested at this size, where compiled programs run

# Compiling these takes long: what runs them is for the slow suite, what traces them is not. ResNet-20 stands for them.
HEAVY = ("vgg7", "resnet32", "resnet56", "preact_resnet20", "resnet18", "resnet50", "mobilenet_v2", "vit_tiny")

# Outputs per example of the models that have more than one prediction.
PLACES = {"gpt": (128,), "detector": (4, 4)}
CHANNELS = {"detector": 5 + CLASSES}

every_model = pytest.mark.parametrize("name", MODELS)
every_model_compiled = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in MODELS]
)


def output_shape(name):
    return (4, *PLACES.get(name, ()), CHANNELS.get(name, CLASSES))


def draw_inputs(name):
    """Four examples, all different."""
    example = MODELS[name](CLASSES).example
    if jnp.issubdtype(example.dtype, jnp.integer):
        return jax.random.randint(jax.random.key(0), (4, *example.shape), 0, CLASSES, example.dtype)
    shape = (min(example.shape[0], SMALL), min(example.shape[1], SMALL), example.shape[2])
    return jax.random.normal(jax.random.key(0), (4, *shape), example.dtype)


@functools.cache
def compiled_init(name):
    return jax.jit(MODELS[name](CLASSES).init)


@functools.cache
def initialized(name):
    return MODELS[name](CLASSES), compiled_init(name)(jax.random.key(1), draw_inputs(name))


@functools.cache
def shapes(name):
    """The variables as shapes: nothing is computed."""
    model = MODELS[name](CLASSES)
    return model, jax.eval_shape(model.init, jax.random.key(1), draw_inputs(name))


@functools.cache
def trained_one_step(name):
    """Outputs, new state and gradients of one training pass: compiled once per model for all tests."""
    model, variables = initialized(name)
    targets = jax.random.normal(jax.random.key(4), output_shape(name))

    def loss(params):
        outputs, state = model.apply_train({**variables, "params": params}, (draw_inputs(name), jax.random.key(2)))
        return jnp.mean((outputs - targets) ** 2), (outputs, state)

    (_, (outputs, state)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return outputs, state, gradients


def trains_otherwise(name):
    """Whether training uses batch statistics or draws random numbers."""
    model, variables = shapes(name)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(model.apply_train)(variables, (draw_inputs(name), key)).jaxpr
    used = {atom for equation in jaxpr.eqns for atom in equation.invars if not isinstance(atom, core.Literal)}
    return "batch_stats" in variables or jaxpr.invars[-1] in used


@every_model
def test_the_same_arguments_return_the_same_functions(name):
    # They are jit and memoisation keys: a fresh closure per call would recompile every time.
    first, second = MODELS[name](CLASSES), MODELS[name](classes=CLASSES)
    assert all(f is g for f, g in zip(first, second, strict=True))
    assert hash(first) == hash(second)
    assert MODELS[name](CLASSES + 1).apply is not first.apply


@every_model
def test_variables_are_plain_nested_dicts_of_float32(name):
    _, variables = shapes(name)
    assert type(variables) is dict
    assert "params" in variables

    def check(node):
        if type(node) is dict:
            assert node
            assert all(type(key) is str and "/" not in key for key in node)
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.ShapeDtypeStruct)
            assert node.dtype == jnp.float32

    check(variables)


@every_model
def test_every_matrix_is_called_kernel_or_embedding(name):
    _, variables = shapes(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        assert (path[-1].key in ("kernel", "embedding")) == (leaf.ndim > 1)


@every_model
def test_outputs_of_the_published_example(name):
    model = MODELS[name](CLASSES)
    for batch in (1, 3):
        inputs = jax.ShapeDtypeStruct((batch, *model.example.shape), model.example.dtype)
        variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        outputs = jax.eval_shape(model.apply, variables, inputs)
        places = (8, 8) if name == "detector" else PLACES.get(name, ())
        assert outputs.shape == (batch, *places, CHANNELS.get(name, CLASSES))
        assert outputs.dtype == jnp.float32


@every_model_compiled
def test_init_depends_on_the_key_alone(name):
    _, variables = initialized(name)
    inputs = draw_inputs(name)
    again = compiled_init(name)(jax.random.key(1), inputs * 0)
    other = compiled_init(name)(jax.random.key(3), inputs)
    kernels = [[x for x in jax.tree.leaves(v["params"]) if x.ndim > 1] for v in (variables, again, other)]
    for mine, same, different in zip(*kernels, strict=True):
        np.testing.assert_array_equal(mine, same)
        assert not np.array_equal(mine, different)


@every_model_compiled
def test_apply_is_deterministic_and_treats_examples_alone(name):
    model, variables = initialized(name)
    inputs, apply = draw_inputs(name), jax.jit(model.apply)
    outputs = apply(variables, inputs)
    assert outputs.shape == output_shape(name)
    assert jnp.isfinite(outputs).all()
    np.testing.assert_array_equal(outputs, apply(variables, inputs))
    assert not np.allclose(outputs[0], outputs[1], atol=1e-5 * float(jnp.abs(outputs).max()))
    alone = apply(variables, inputs[:1])
    np.testing.assert_allclose(outputs[:1], alone, atol=1e-5 * float(jnp.abs(outputs).max()))


@every_model_compiled
def test_apply_train_returns_the_other_collections_updated(name):
    _, variables = initialized(name)
    outputs, state, _ = trained_one_step(name)
    before = {collection: tree for collection, tree in variables.items() if collection != "params"}
    assert outputs.shape == output_shape(name)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        assert old.shape == new.shape
        assert not np.array_equal(old, new)


@every_model_compiled
def test_training_differs_from_evaluation_by_batch_statistics_and_dropout_alone(name):
    model, variables = initialized(name)
    evaluated = jax.jit(model.apply)(variables, draw_inputs(name))
    assert np.allclose(trained_one_step(name)[0], evaluated, atol=1e-3) != trains_otherwise(name)


def test_most_models_have_batch_statistics_or_dropout():
    assert {name for name in MODELS if not trains_otherwise(name)} == {"lenet5", "gpt"}


@every_model_compiled
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    _, variables = initialized(name)
    gradients = trained_one_step(name)[2]
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.any(gradient != 0), path


def test_dropout_draws_from_the_key():
    model, variables = initialized("mlp")
    inputs = draw_inputs("mlp")
    outputs = [model.apply_train(variables, (inputs, jax.random.key(seed)))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


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
