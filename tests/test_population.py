from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import compilations
from trained import random_allocations, uniform

from qresearch.calibration import select
from qresearch.errors import GraphError
from qresearch.evaluation import evaluate, make_batches
from qresearch.population import evaluate_population
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule


@pytest.fixture(scope="module")
def population(trained_digits):
    """(allocations, chunk, ...) -> Scores on 150 validation examples in batches of 100, the last one half filled."""
    t = trained_digits
    batches = make_batches(t.data.validation, 100, 150)

    def scores(allocations, chunk=1, **other):
        return evaluate_population(
            t.quantized, t.variables, t.qparams, allocations, batches, t.task, t.data.prepare, chunk, **other
        )

    return scores


def test_64_allocations_are_one_compilation(trained_digits, population):
    t = trained_digits
    # Equal rules give the same model; a menu that no other test has gives a model that nobody compiled.
    rule = Rule("*", SiteRule(range="minmax"), SiteRule(range="minmax"), menu=((3, 5),))
    model = quantize_model(t.model.apply, t.variables, jnp.zeros((8, 8, 8, 1)), (rule,))
    qparams = model.init(t.variables, jnp.asarray(t.data.prepare(t.data.train.inputs[:8])), uniform(8, 8))
    batches = make_batches(t.data.validation, 50, 120)
    allocations = random_allocations(64)
    assert len(np.unique(allocations, axis=0)) == 64
    with compilations() as compiled:
        first = evaluate_population(model, t.variables, qparams, allocations, batches, t.task, t.data.prepare, chunk=1)
    assert compiled.count("jit(step)") == 1
    with compilations() as compiled:
        others = random_allocations(64, seed=1)
        second = evaluate_population(model, t.variables, qparams, others, batches, t.task, t.data.prepare, chunk=1)
    assert compiled == []
    assert first.loss.shape == second.loss.shape == (64, 120)
    assert not np.array_equal(first.loss, second.loss)


def test_64_allocations_in_chunks_are_one_compilation_too(population):
    with compilations() as compiled:
        population(random_allocations(64), chunk=16)
        population(random_allocations(61, seed=1), chunk=16)
    assert compiled.count("jit(step)") <= 1


def test_a_population_equals_its_members_one_by_one_bit_for_bit(population):
    allocations = random_allocations(7)
    together = population(allocations)
    for i, allocation in enumerate(allocations):
        alone = population(allocation[None])
        np.testing.assert_array_equal(together.loss[i], alone.loss[0])
        np.testing.assert_array_equal(together.score[i], alone.score[0])


def test_a_population_equals_the_model_called_by_hand(trained_digits, population):
    t = trained_digits
    allocations = random_allocations(4, seed=2)
    x = jnp.asarray(t.data.prepare(t.data.validation.inputs[:100]))
    targets = t.data.validation.targets[:100]
    scores = population(allocations)
    for i, bits in enumerate(allocations):
        outputs = t.quantized.apply(t.variables, select(t.qparams, jnp.asarray(bits)), x, jnp.asarray(bits))
        np.testing.assert_allclose(scores.loss[i, :100].mean(), t.task.loss(outputs, targets).mean(), rtol=2e-3)
        # Eager and compiled may differ in the last bit, which a rounding tie turns into another code.
        assert np.mean(scores.score[i, :100] == np.asarray(t.task.score(outputs, targets))) >= 0.97


def test_chunks_under_vmap_agree_up_to_rounding_ties(population):
    allocations = random_allocations(6)
    loop, vmapped = population(allocations, chunk=1), population(allocations, chunk=4)
    assert np.mean(np.abs(loop.loss - vmapped.loss) > 1e-4) < 0.05
    np.testing.assert_allclose(loop.loss.mean(1), vmapped.loss.mean(1), rtol=2e-3)
    assert np.mean(loop.score != vmapped.score) < 0.01


def test_rows_follow_their_allocations(population):
    allocations = random_allocations(5)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(population(allocations).loss[order], population(allocations[order]).loss)


def test_allocations_differ(population):
    loss = population(np.stack([uniform(2, 2), uniform(4, 4), uniform(8, 8)])).loss.mean(1)
    assert loss[0] > loss[1] > loss[2]


def test_32_bits_are_the_float_model_bit_for_bit(trained_digits, population):
    t = trained_digits
    batches = make_batches(t.data.validation, 100, 150)

    def forward(shared, own, x):
        return t.model.apply(shared, x)

    expected = evaluate(forward, t.task, t.data.prepare, t.variables, {"unused": np.zeros(1)}, batches, chunk=1)
    found = population(uniform(32, 32)[None])
    np.testing.assert_array_equal(found.loss, expected.loss)
    np.testing.assert_array_equal(found.score, expected.score)


def test_0_bits_prune(trained_digits, population):
    t = trained_digits
    bits = uniform(32, 32)
    bits[2, 0] = 0  # without the kernel of the last layer only its bias is left: all examples get the same logits
    scores = population(bits[None])
    bias = np.asarray(t.variables["params"]["linear3"]["bias"])
    expected = t.task.loss(jnp.broadcast_to(bias, (150, 10)), t.data.validation.targets[:150])
    np.testing.assert_allclose(scores.loss[0], expected, rtol=1e-5, atol=1e-6)


def test_one_set_of_qparams_serves_all_allocations(trained_digits, population):
    t = trained_digits
    bits = uniform(4, 4)
    batches = make_batches(t.data.validation, 100, 150)
    own = select(t.qparams, jnp.asarray(bits))
    scores = evaluate_population(
        t.quantized, t.variables, own, np.stack([bits, bits]), batches, t.task, t.data.prepare, 1
    )
    expected = population(bits[None])
    np.testing.assert_array_equal(scores.loss, np.repeat(expected.loss, 2, axis=0))


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 2), (1, 3, 3), (0, 3, 2), (1, 4, 2), (2, 3)])
def test_allocations_of_another_shape_are_refused(population, shape):
    with pytest.raises(GraphError, match=r"allocations must have shape \[n >= 1, 3, 2\], got \["):
        population(np.full(shape, 4.0))


def test_progress(population):
    done = []
    population(random_allocations(3), on_done=done.append)
    assert done == [1, 2, 3]


def test_gradients_reach_bits_and_scales(trained_digits):
    # What a search by gradient descent needs from the same function that a population evaluates.
    t = trained_digits
    x = jnp.asarray(t.data.prepare(t.data.validation.inputs[:32]))

    def loss(qparams, bits):
        return t.task.loss(t.quantized.apply(t.variables, qparams, x, bits), t.data.validation.targets[:32]).mean()

    scales = select(t.qparams, jnp.asarray(uniform(8, 8)))
    # Bits have a gradient through clipped values: with the scales of 8 bits, most are clipped at 4.
    gradients, to_bits = jax.jit(jax.grad(loss, argnums=(0, 1)))(scales, jnp.asarray(uniform(4, 4)))
    assert np.all(np.isfinite(to_bits))
    assert np.any(to_bits != 0)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
