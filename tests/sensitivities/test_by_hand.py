"""Every proxy against the same quantity computed the slow way: dense Hessians, gradients example by example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sensitivity_cases import MENU, SQUARED, linear, two_layers

from qresearch.calibration import select
from qresearch.sensitivities import Subject, sensitivity
from qresearch.sensitivities.hessian import trace_step
from qresearch.sensitivities.perturbation import perturbation, rebatched, widths_of

CASES = {"quadratic": linear, "two layers": two_layers}


def errors_of(model, params, qparams, x, row, option):
    """(Q(W) - W, Q(x) - x) of a layer, with the inputs that it sees in float."""
    unit = model.units[row]
    bits = jnp.tile(jnp.asarray(option, jnp.float32), (len(model.units), 1))
    own = select(qparams, bits)[unit.layer.name]
    kernel = params[unit.layer.name.split("/")[0]]["kernel"]
    seen = x if row == 0 else jnp.tanh(x @ params["a"]["kernel"])
    return (
        unit.weight.apply(own["weight"], kernel, float(option[0])) - kernel,
        unit.input.apply(own["input"], seen, float(option[1])) - seen,
    )


def examples_of(batches):
    return jnp.concatenate(list(batches.inputs)), batches.targets.reshape(-1, batches.targets.shape[-1])


def loss_at(model, params, row, weight, inputs, x, y):
    """The losses of examples with a layer's kernel and inputs moved."""
    names = [unit.layer.name.split("/")[0] for unit in model.units]
    value = x
    for i, name in enumerate(names):
        kernel = params[name]["kernel"] + (weight if i == row else 0)
        value = (value + (inputs if i == row else 0)) @ kernel
        value = jnp.tanh(value) if i + 1 < len(names) else value
    return SQUARED.loss(value, y)


@pytest.mark.parametrize("case", CASES)
def test_fisher_is_the_sum_over_examples_one_by_one(case):
    args = CASES[case]()
    model, params, qparams, batches, _, _ = args
    table = sensitivity(*args, method="fisher")
    x, y = examples_of(batches)
    for row in range(len(model.units)):
        for o, option in enumerate(MENU):
            weight, seen = errors_of(model, params, qparams, x, row, option)

            def one(w, d, x, y, row=row):
                return loss_at(model, params, row, w, d[None], x[None], y[None])[0]

            gradients = jax.vmap(jax.grad(one, (0, 1)), (None, 0, 0, 0))(
                jnp.zeros_like(weight), jnp.zeros_like(seen), x, y
            )
            each = 0.5 * (
                jnp.sum(jnp.square(gradients[0] * weight), (1, 2)) + jnp.sum(jnp.square(gradients[1] * seen), 1)
            )
            np.testing.assert_allclose(table.loss[row, o], each.mean(), rtol=1e-4)
            np.testing.assert_allclose(table.standard_error[row, o], each.std(ddof=1) / len(x) ** 0.5, rtol=1e-4)


def dense_hessians(model, params, row, x, y):
    """Of the mean loss in the kernel, and of each example's loss in its own input: [elements, elements]."""
    kernel = params[model.units[row].layer.name.split("/")[0]]["kernel"]
    seen = x if row == 0 else jnp.tanh(x @ params["a"]["kernel"])
    of_weight = jax.hessian(lambda w: jnp.mean(loss_at(model, params, row, w.reshape(kernel.shape), 0, x, y)))(
        jnp.zeros(kernel.size)
    )
    of_input = jax.vmap(jax.hessian(lambda d, x, y: loss_at(model, params, row, 0, d[None], x[None], y[None])[0]))(
        jnp.zeros_like(seen), x, y
    )
    return of_weight, of_input


@pytest.mark.parametrize("case", CASES)
def test_traces_are_the_dense_hessians_within_three_standard_errors(case):
    args = CASES[case]()
    model, params = args[:2]
    subject = Subject(*args)
    step = trace_step(subject, perturbation(subject))
    menus = [subject.qparams_at(width) for width in widths_of(subject)]
    (x, y), probes = next(rebatched(subject, 48)), 400
    found = [step(params, menus, x, y, jax.random.key(i))[0] for i in range(probes)]
    for row in range(len(model.units)):
        dense = dense_hessians(model, params, row, x, y)
        sizes = (len(dense[0]), dense[1].shape[-1])
        wanted = (jnp.trace(dense[0]) / sizes[0], jnp.mean(jnp.trace(dense[1], axis1=1, axis2=2)) / sizes[1])
        for operand, value in zip(("weight", "input"), wanted):
            samples = np.array([sample[operand][row] for sample in found])
            error = samples.std(ddof=1) / np.sqrt(probes)
            assert abs(samples.mean() - value) < 3 * error + 1e-5 * abs(value)
            assert error < 0.3 * abs(value)  # tight enough that a factor of two is seen


def test_hawq_v2_is_the_trace_times_the_squared_error():
    """Of the quadratic: Tr(H) / n in the kernel is E|x|² / features, in the input |W|² / features."""
    args = linear()
    model, params, qparams, batches, _, _ = args
    table = sensitivity(*args, method="hawq_v2", probes=400, batch=48)
    x, _ = examples_of(batches)
    for o, option in enumerate(MENU):
        weight, seen = errors_of(model, params, qparams, x, 0, option)
        kernel = params["a"]["kernel"]
        of_weight = jnp.mean(jnp.square(x)) * jnp.sum(jnp.square(weight))
        of_input = jnp.sum(jnp.square(kernel)) / len(kernel) * jnp.mean(jnp.sum(jnp.square(seen), -1))
        wanted = 0.5 * (of_weight + of_input)
        assert abs(table.loss[0, o] - wanted) < 4 * table.standard_error[0, o]
        assert table.standard_error[0, o] < 0.1 * wanted


@pytest.mark.parametrize("case", CASES)
def test_hawq_v1_is_the_largest_eigenvalue_times_the_squared_error(case):
    args = CASES[case]()
    model, params, qparams, batches, _, _ = args
    table = sensitivity(*args, method="hawq_v1", iterations=200, batch=48)
    x, y = examples_of(batches)
    for row in range(len(model.units)):
        of_weight, of_input = dense_hessians(model, params, row, x, y)
        # In inputs the Hessian of the mean loss is block-diagonal over examples: its largest value is an example's.
        values = [jnp.abs(jnp.linalg.eigvalsh(matrix)).max() for matrix in (of_weight, of_input)]
        for o, option in enumerate(MENU):
            weight, seen = errors_of(model, params, qparams, x, row, option)
            squares = jnp.sum(jnp.square(weight)), jnp.mean(jnp.sum(jnp.square(seen), -1))
            wanted = 0.5 * sum(value * square for value, square in zip(values, squares))
            np.testing.assert_allclose(table.loss[row, o], wanted, rtol=0.02)


def test_outputs_by_hand():
    args = two_layers()
    model, params, qparams, batches = args[:4]
    x, _ = examples_of(batches)
    for name in ("sqnr", "kl"):
        table = sensitivity(*args, chunk=1, method=name)
        wanted = model.fn(params, x)
        for row in range(2):
            for o, option in enumerate(MENU):
                bits = jnp.full((2, 2), 32.0).at[row].set(jnp.asarray(option, jnp.float32))
                outputs = model.apply(params, select(qparams, bits), x, bits)
                p, q = jax.nn.softmax(wanted), jax.nn.softmax(outputs)
                each = {
                    "sqnr": jnp.sum(jnp.square(outputs - wanted), -1) / jnp.sum(jnp.square(wanted), -1),
                    "kl": jnp.sum(p * jnp.log(p / q), -1),
                }[name]
                np.testing.assert_allclose(table.loss[row, o], each.mean(), rtol=1e-3, atol=1e-7)
