from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from task_cases import CASES

from qresearch.tasks import TASKS

TASK = TASKS["language_modelling"]


def test_loss_is_minus_the_log_probability_and_the_score_the_same_in_bits():
    outputs, targets = (np.asarray(x) for x in CASES["language_modelling"](0))
    z = outputs.astype(np.float64)
    probabilities = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    right = np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(TASK.loss(outputs, targets), -np.log(right).mean(1), rtol=1e-5)
    np.testing.assert_allclose(TASK.score(outputs, targets), -np.log2(right).mean(1), rtol=1e-5)


@pytest.mark.parametrize("vocabulary", [2, 8, 64])
def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary(vocabulary):
    targets = jnp.zeros((3, 5), jnp.int32)
    np.testing.assert_allclose(TASK.score(jnp.zeros((3, 5, vocabulary)), targets), np.log2(vocabulary), rtol=1e-6)
    assert (TASK.score_name, TASK.higher_is_better) == ("bits_per_character", False)
