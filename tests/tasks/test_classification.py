from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.tasks import TASKS


@pytest.fixture
def batch():
    outputs = jax.random.normal(jax.random.key(0), (32, 10)) * 5
    return outputs, jax.random.randint(jax.random.key(1), (32,), 0, 10, jnp.int32)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_score_are_float32_per_example(name, dtype, batch):
    outputs, targets = batch
    for measure in (TASKS[name].loss, TASKS[name].score):
        value = jax.jit(measure)(outputs.astype(dtype), targets)
        assert value.shape == (32,)
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_step_down_the_gradient_lowers_the_loss(name, batch):
    outputs, targets = batch
    loss = lambda z: TASKS[name].loss(z, targets).sum()  # noqa: E731
    slope = jax.grad(loss)(outputs)
    assert loss(outputs - 1e-2 * slope) < loss(outputs)


def test_cross_entropy_is_minus_the_log_probability(batch):
    outputs, targets = (np.asarray(x) for x in batch)
    z = outputs.astype(np.float64)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(32), targets])
    np.testing.assert_allclose(TASKS["classification"].loss(*batch), expected, atol=2e-6)


def test_cross_entropy_of_huge_outputs_is_finite():
    outputs = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    loss = TASKS["classification"].loss(outputs, jnp.array([0, 1], jnp.int32))
    assert loss.tolist() == [0.0, 2e4]


def test_score_counts_exactly_the_largest_output():
    outputs = jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    task = TASKS["classification"]
    assert task.score_name == "top1"
    assert task.score(outputs, jnp.array([2, 1, 0], jnp.int32)).tolist() == [1.0, 0.0, 1.0]
