"""Every proxy against the same quantity computed the slow way: dense Hessians, gradients example by example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sensitivity_cases import MENU, SQUARED, linear, two_layers

from qresearch.calibration import select
from qresearch.sensitivities import Subject, sensitivity
from qresearch.sensitivities.gauss_newton import half_product
from qresearch.sensitivities.hawq_v2 import CURVATURES
from qresearch.sensitivities.perturbation import perturbation, rebatched

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

            gradients = jax.jit(jax.vmap(jax.grad(one, (0, 1)), (None, 0, 0, 0)))(
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


def dense_gauss_newton(model, params, row, x, y):
    """The same of Jᵀ J: the loss is half a square, whose Hessian in the outputs is the identity."""
    kernel = params[model.units[row].layer.name.split("/")[0]]["kernel"]
    seen = x if row == 0 else jnp.tanh(x @ params["a"]["kernel"])

    def outputs(w, d, x):
        value = (x if row == 0 else jnp.tanh(x @ params["a"]["kernel"])) + d
        value = value @ (kernel + w.reshape(kernel.shape))
        return jnp.tanh(value) @ params["b"]["kernel"] if row + 1 < len(model.units) else value

    in_weight, in_input = jax.vmap(jax.jacobian(outputs, (0, 1)), (None, 0, 0))(
        jnp.zeros(kernel.size), jnp.zeros_like(seen), x
    )
    of_weight, of_input = (jnp.einsum("noi,noj->nij", jacobian, jacobian) for jacobian in (in_weight, in_input))
    return of_weight.mean(0), of_input


DENSE = {"hessian": dense_hessians, "gauss_newton": dense_gauss_newton}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("case", CASES)
def test_traces_are_the_dense_ones_within_three_standard_errors(case, curvature):
    args = CASES[case]()
    model, params = args[:2]
    subject = Subject(*args)
    traces = CURVATURES[curvature](subject, perturbation(subject))
    (x, y), probes = next(rebatched(subject, 48)), 400
    found = np.stack([traces(params, x, y, jax.random.key(i)) for i in range(probes)])
    for row in range(len(model.units)):
        dense = jax.jit(lambda x, y, row=row: DENSE[curvature](model, params, row, x, y))(x, y)
        sizes = (len(dense[0]), dense[1].shape[-1])
        wanted = (jnp.trace(dense[0]) / sizes[0], jnp.mean(jnp.trace(dense[1], axis1=1, axis2=2)) / sizes[1])
        for samples, value in zip(found[:, :, row].T, wanted):
            error = samples.std(ddof=1) / np.sqrt(probes)
            assert abs(samples.mean() - value) < 3 * error + 1e-5 * abs(value)
            assert error < 0.2 * abs(value)  # tight enough that a factor of two is seen


@pytest.mark.parametrize("outputs", [10, 100])
def test_half_a_hessian_product_is_that_of_the_dense_square_root(outputs):
    """Exact in few outputs; in many its square is still uᵀHu, which is what the trace is the mean of."""
    logits = 2 * jax.random.normal(jax.random.key(0), (5, outputs))
    u = jax.random.rademacher(jax.random.key(1), logits.shape, jnp.float32)

    def loss(logits):
        return -jax.nn.log_softmax(logits)[:, 0]

    found = jax.jit(lambda logits, u: half_product(loss, logits, u))(logits, u)
    dense = jax.jit(jax.vmap(jax.hessian(lambda row: loss(row[None])[0])))(logits)
    np.testing.assert_allclose(
        jnp.sum(jnp.square(found), 1), jnp.einsum("ni,nij,nj->n", u, dense, u), rtol=1e-4, atol=1e-6
    )
    values, vectors = jnp.linalg.eigh(dense)
    wanted = jnp.einsum("nij,nj,nkj,nk->ni", vectors, jnp.sqrt(jnp.maximum(values, 0)), vectors, u)
    # Of what it is for vectors in general: signs that lie in the null space of H have no product to be a share of.
    share = jnp.linalg.norm(found - wanted, axis=1) / jnp.sqrt(jnp.trace(dense, axis1=1, axis2=2))
    assert share.max() < (2e-3 if outputs <= 16 else 0.1)


def test_half_a_hessian_product_leaves_out_negative_curvature_and_flat_losses():
    logits, u = jnp.ones((2, 4)), jnp.ones((2, 4))
    np.testing.assert_array_equal(half_product(lambda z: jnp.sum(z, 1), logits, u), 0)
    bent = half_product(lambda z: z[:, 0] ** 2 - z[:, 1] ** 2, logits, u)
    np.testing.assert_allclose(bent, np.array([[2**0.5, 0, 0, 0]] * 2), atol=1e-5)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_hawq_v2_is_the_trace_times_the_squared_error(curvature):
    """Of the quadratic: Tr(H) / n in the kernel is E|x|² / features, in the input |W|² / features."""
    args = linear()
    model, params, qparams, batches, _, _ = args
    table = sensitivity(*args, method="hawq_v2", probes=400, batch=48, curvature=curvature)
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
    table = sensitivity(*args, method="hawq_v1", iterations=100, batch=48)
    x, y = examples_of(batches)
    for row in range(len(model.units)):
        of_weight, of_input = jax.jit(lambda x, y, row=row: dense_hessians(model, params, row, x, y))(x, y)
        # Of inputs: the largest of every example's own Hessian, and the mean of these over examples.
        values = [jnp.abs(jnp.linalg.eigvalsh(matrix)).max(-1).mean() for matrix in (of_weight, of_input)]
        for o, option in enumerate(MENU):
            weight, seen = errors_of(model, params, qparams, x, row, option)
            squares = jnp.sum(jnp.square(weight)), jnp.mean(jnp.sum(jnp.square(seen), -1))
            wanted = 0.5 * sum(value * square for value, square in zip(values, squares))
            np.testing.assert_allclose(table.loss[row, o], wanted, rtol=0.02)


def test_hawq_v1_on_several_batches_is_their_mean_and_knows_its_error():
    args = two_layers()
    found = sensitivity(*args, method="hawq_v1", batch=16, repeats=3)
    assert np.isfinite(found.standard_error).all()
    assert np.all(found.standard_error < found.loss)
    assert np.isnan(sensitivity(*args, method="hawq_v1", batch=16).standard_error).all()


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
