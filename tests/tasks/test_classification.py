from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from task_cases import CASES

from qresearch.tasks import TASKS


def test_cross_entropy_is_minus_the_log_probability():
    outputs, targets = (np.asarray(x) for x in CASES["classification"](0))
    z = outputs.astype(np.float64)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(32), targets])
    np.testing.assert_allclose(TASKS["classification"].loss(outputs, targets), expected, atol=2e-6)


def test_cross_entropy_of_huge_outputs_is_finite():
    outputs = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    loss = TASKS["classification"].loss(outputs, jnp.array([0, 1], jnp.int32))
    assert loss.tolist() == [0.0, 2e4]


def test_score_counts_exactly_the_largest_output():
    outputs = jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    task = TASKS["classification"]
    assert task.score_name == "top1"
    assert task.score(outputs, jnp.array([2, 1, 0], jnp.int32)).tolist() == [1.0, 0.0, 1.0]
