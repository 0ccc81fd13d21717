from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from number_model import (
    NUMBER,
    SGD,
    TRAIN_ON,
    number_program,
    number_trainer,
    number_trial,
    path_of,
)

from qresearch.errors import ConfigError
from qresearch.training import OPTIMIZERS, SCHEDULES, Program, Recipe, Trial

# ---- The order of the examples, and randomness


def visited(recipe, seed, examples=10):
    """How often each example was in a batch: the gradient of w[i] is one wherever x is i."""
    program = Program(
        lambda variables, qparams, bits, x, key: (variables["params"]["w"][x[:, 0]] * x.shape[0], {}),
        lambda shared, own, x: jnp.zeros(x.shape[0]),
        lambda qparams: {},
    )
    trainer = number_trainer(recipe, program, NUMBER._replace(loss=TRAIN_ON.loss), examples)
    trial = Trial({"params": {"w": jnp.zeros(examples)}}, {}, (), 1.0, seed)
    (trained,) = trainer.train([trial], chunk=1)
    return -np.asarray(trained.last[0]["params"]["w"])


def test_an_epoch_visits_every_example_at_most_once_and_drops_the_part_batch():
    count = visited(dataclasses.replace(SGD, epochs=1, batch_size=4), seed=0)
    assert sorted(count) == [0, 0, *[1] * 8]


def test_the_order_is_the_seeds():
    recipe = dataclasses.replace(SGD, epochs=1, batch_size=4)
    left_out = {seed: tuple(np.flatnonzero(visited(recipe, seed) == 0)) for seed in range(6)}
    assert len(set(left_out.values())) > 1
    assert left_out[3] == tuple(np.flatnonzero(visited(recipe, 3) == 0))


def test_every_epoch_has_its_own_order():
    count = visited(dataclasses.replace(SGD, epochs=5, batch_size=4), seed=0)
    assert count.sum() == 40
    assert count.max() <= 5
    assert count.min() > 0


@pytest.mark.parametrize("chunk", [1, 2])
def test_every_step_and_seed_draws_its_own_key(chunk):
    program = Program(
        lambda variables, qparams, bits, x, key: (
            variables["params"]["w"] * 0 + jax.random.uniform(key, x.shape[:1]),
            {},
        ),
        number_program().forward,
        lambda qparams: {},
    )
    trainer = number_trainer(dataclasses.replace(SGD, epochs=3), program)
    drawn = [
        [row["train_loss"] for row in outcome.history]
        for outcome in trainer.train([number_trial(seed=0), number_trial(seed=1)], chunk)
    ]
    assert len({value for row in drawn for value in row}) == 6


# ---- Failures


def exploding_below(least):
    """``number_program`` with a loss that is NaN where w is less than ``least``."""

    def train(variables, qparams, bits, x, key):
        w = variables["params"]["w"]
        return jnp.full(x.shape[0], jnp.where(w < least, jnp.nan, w)), {}

    return Program(train, number_program().forward, lambda qparams: {})


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(("batch_size", "epoch"), [(4, 3), (2, 2), (1, 1)])
def test_a_loss_that_is_not_finite_ends_that_trial_only_and_names_the_step(chunk, batch_size, epoch):
    recipe = dataclasses.replace(SGD, batch_size=batch_size, epochs=3)
    trials = [number_trial(learning_rate=rate) for rate in (1.0, 1000.0, 2.0)]
    trainer = number_trainer(recipe, exploding_below(-1500))  # which the second trial is after two steps
    fine, broken, also_fine = trainer.train(trials, chunk)
    expected = rf"the loss became nan at step 3 \(epoch {epoch}\); lower the learning rate \(now 1000\)"
    assert re.fullmatch(expected, broken.failure)
    (alone,) = trainer.train(trials[:1], 1)
    assert fine.failure is None
    assert fine.history == alone.history
    assert also_fine.failure is None
    assert len(also_fine.history) == 3


def test_a_failed_trial_keeps_what_it_had():
    recipe = dataclasses.replace(SGD, epochs=5)
    (trained,) = number_trainer(recipe, exploding_below(-2.5)).train([number_trial()], chunk=1)
    assert trained.failure.startswith("the loss became nan at step 4 (epoch 4)")
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    assert float(trained.last[0]["params"]["w"]) == -3


def test_a_last_update_that_only_the_validation_sees_is_a_failure_too():
    diverging = TRAIN_ON._replace(loss=lambda outputs, targets: outputs)
    recipe = dataclasses.replace(SGD, epochs=2)
    (trained,) = number_trainer(recipe, task=diverging).train([number_trial(learning_rate=3e38)], chunk=1)
    assert trained.failure.startswith("the loss became -inf at step 2 (epoch 2)")
    assert [row["epoch"] for row in trained.history] == [1]
    assert trained.best_epoch == 1


@pytest.mark.parametrize(
    ("qparams", "whose"), [({}, "the model's"), ({"scale": np.float32(1)}, "the quantized model's")]
)
def test_a_loss_that_is_not_finite_before_any_update_is_not_put_on_the_learning_rate(qparams, whose):
    program = exploding_below(np.inf)._replace(learnable=lambda qparams: dict.fromkeys(qparams, False))
    (trained,) = number_trainer(SGD, program).train([number_trial(qparams=qparams)], chunk=1)
    expected = "the loss became nan at step 1 (epoch 1), before any update: {} own loss, not the learning rate"
    assert trained.failure == expected.format(whose)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "recipe.batch_size 5 exceeds the 4 training examples of numbers; lower it"),
        ({"warmup_epochs": 6}, "recipe.warmup_epochs 6 leaves nothing of 6 epochs; give at most 5"),
        ({"epochs": 0, "warmup_epochs": 1}, "recipe.warmup_epochs 1 leaves nothing of 0 epochs; give at most 0"),
        ({"optimizer": "adma"}, "recipe.optimizer: unknown name 'adma'; did you mean 'adam'"),
        ({"schedule": "cosin"}, "recipe.schedule: unknown name 'cosin'; did you mean 'cosine'"),
    ],
)
def test_recipes_that_cannot_run_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        number_trainer(dataclasses.replace(SGD, **changes))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_recipe_learns(optimizer, schedule):
    recipe = Recipe(epochs=4, batch_size=4, optimizer=optimizer, schedule=schedule, warmup_epochs=1)
    assert path_of(recipe)[-1] < 0
