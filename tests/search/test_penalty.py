"""What a program adds to its loss: the training's own part of a search."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from number_model import SGD, number_program, number_trainer, number_trial


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_penalty_is_added_to_the_loss_and_knows_how_much_is_done(chunk):
    """The gradient of the loss in q is 1 and that of the penalty weight * progress, for progress 0, 1/3 and 2/3."""
    program = number_program(learnable=lambda qparams: {"q": True})
    program = program._replace(penalty=lambda qparams, bits, progress: bits * progress * qparams["q"])
    recipe = dataclasses.replace(SGD, epochs=3)
    trials = [number_trial(qparams={"q": np.float32(2.0)})._replace(bits=np.float32(w)) for w in (0.0, 6.0)]
    free, priced = number_trainer(recipe, program).train(trials, chunk)
    assert float(free.last[1]["q"]) == 2.0 - 3
    np.testing.assert_allclose(float(priced.last[1]["q"]), 2.0 - 3 - (0 + 2 + 4), rtol=1e-6)
    # The loss w + q after no, one and two steps of (1, 1), and the penalty at the q of that step.
    losses = [[row["train_loss"] for row in outcome.history] for outcome in (free, priced)]
    np.testing.assert_allclose(losses[0], [2.0, 0.0, -2.0], atol=1e-6)
    np.testing.assert_allclose(losses[1], [2.0, 0.0 + 2 * 1.0, -2.0 - 2 + 4 * (1.0 - 3)], atol=1e-5)
