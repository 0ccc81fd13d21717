from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from number_model import (
    SGD,
    TRAIN_ON,
    number_program,
    number_trainer,
    number_trial,
    path_of,
    steps_of,
)
from small_sweep import compilations

from qresearch.tasks import Task
from qresearch.training import OPTIMIZERS, SCHEDULES, Program, Recipe


def test_constant_schedule():
    np.testing.assert_allclose(steps_of(SGD), np.ones(6), rtol=1e-6)


def test_cosine_schedule_falls_from_the_rate_to_zero():
    expected = [0.5 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    np.testing.assert_allclose(steps_of(dataclasses.replace(SGD, schedule="cosine")), expected, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_then_the_schedule(schedule):
    recipe = dataclasses.replace(SGD, schedule=schedule, warmup_epochs=2)
    after = [0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)] if schedule == "cosine" else [1.0] * 4
    np.testing.assert_allclose(steps_of(recipe), [0.0, 0.5, *after], atol=1e-6)


def test_the_schedule_counts_steps_not_epochs():
    data_steps = dataclasses.replace(SGD, epochs=2, batch_size=1, schedule="cosine")
    (trained,) = number_trainer(data_steps).train([number_trial()], chunk=1)
    expected = -np.cumsum([0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)])[[3, 7]]
    np.testing.assert_allclose([row["validation_score"] for row in trained.history], expected, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_momentum(momentum):
    expected = [sum(momentum**k for k in range(t + 1)) for t in range(6)]
    np.testing.assert_allclose(steps_of(dataclasses.replace(SGD, momentum=momentum)), expected, rtol=1e-5)


@pytest.mark.parametrize(("recipe", "reference"), [
    (Recipe(optimizer="adam"), optax.adam(0.1)),
    (Recipe(optimizer="adamw", weight_decay=0.03), optax.adamw(0.1, weight_decay=0.03)),
    (Recipe(optimizer="sgd", momentum=0.7), optax.sgd(0.1, momentum=0.7)),
    (
        Recipe(optimizer="adam", weight_decay=0.03),
        optax.chain(optax.add_decayed_weights(0.03), optax.adam(0.1)),
    ),
    (
        Recipe(optimizer="sgd", momentum=0.7, weight_decay=0.03),
        optax.chain(optax.add_decayed_weights(0.03), optax.sgd(0.1, momentum=0.7)),
    ),
    (
        Recipe(optimizer="adam", clip_norm=0.5),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    ),
])  # fmt: skip
def test_optimizers_are_optax_with_the_rate_as_an_argument(recipe, reference):
    recipe = dataclasses.replace(recipe, epochs=5, schedule="constant")
    w, state, expected = jnp.float32(2.0), reference.init(jnp.float32(2.0)), []
    for _ in range(5):
        updates, state = reference.update(jnp.float32(1.0), state, w)
        w = optax.apply_updates(w, updates)
        expected.append(float(w))
    np.testing.assert_allclose(path_of(recipe, w=2.0, learning_rate=0.1), expected, rtol=1e-6)


def test_the_clip_is_of_the_global_norm_over_params_and_qparams():
    # Gradients (3, 4) of two params and 12 of a learned scale: the norm is 13.
    program = Program(
        lambda variables, qparams, bits, x, key: (
            jnp.full(x.shape[0], 3 * variables["params"]["w"] + 4 * variables["params"]["v"] + 12 * qparams["scale"]),
            {},
        ),
        number_program().forward,
        lambda qparams: {"scale": True},
    )
    trainer = number_trainer(dataclasses.replace(SGD, epochs=1, clip_norm=1.0), program)
    trial = number_trial(v=jnp.float32(0.0), qparams={"scale": jnp.float32(0.0)})
    (trained,) = trainer.train([trial], chunk=1)
    variables, qparams = trained.last
    moved = [-float(variables["params"]["w"]), -float(variables["params"]["v"]), -float(qparams["scale"])]
    np.testing.assert_allclose(moved, np.array([3, 4, 12]) / 13, rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_acts_on_params_only(optimizer):
    still = Program(
        lambda variables, qparams, bits, x, key: (jnp.zeros(x.shape[0]), {}),
        number_program().forward,
        lambda qparams: {"scale": True},
    )
    recipe = dataclasses.replace(SGD, optimizer=optimizer, epochs=1, weight_decay=0.25)
    trial = number_trial(w=2.0, learning_rate=0.5, qparams={"scale": jnp.float32(3.0)})
    (trained,) = number_trainer(recipe, still).train([trial], chunk=1)
    w = float(trained.last[0]["params"]["w"])
    # Decoupled for adamw; for adam the L2 gradient is normalized to one like any other.
    expected = {"sgd": 2 - 0.5 * 0.25 * 2, "adamw": 2 - 0.5 * 0.25 * 2, "adam": 2 - 0.5}[optimizer]
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    assert float(trained.last[1]["scale"]) == 3.0


def test_learnable_leaves_change_and_the_others_keep_their_bits():
    qparams = {"scale": jnp.float32(3.0), "low": jnp.array([0.1, -0.2], jnp.float32), "none": None}
    program = number_program(learnable=lambda qparams: {"scale": True, "low": False, "none": None})
    (trained,) = number_trainer(SGD, program).train([number_trial(qparams=qparams)], chunk=1)
    assert float(trained.last[1]["scale"]) == 3.0 - 6
    np.testing.assert_array_equal(trained.last[1]["low"], qparams["low"])
    assert trained.last[1]["none"] is None


def test_learning_rates_and_seeds_share_one_program():
    trainer = number_trainer(SGD)
    with compilations() as compiled:
        outcomes = list(trainer.train([number_trial(learning_rate=rate, seed=i) for i, rate in enumerate((0.1, 1, 7))]))
    ends = [outcome.history[-1]["validation_score"] for outcome in outcomes]
    np.testing.assert_allclose(ends, [-0.6, -6, -42], rtol=1e-5)
    assert compiled.count("jit(step)") == 2  # one training, one evaluation


def peak(top):
    """A score that is best where w is ``-top``: w goes down by one an epoch."""
    return Task(TRAIN_ON.loss, lambda outputs, targets: -jnp.abs(outputs + top), "closeness")


@pytest.mark.parametrize("top", [1, 3, 6])
def test_best_is_the_epoch_of_the_best_validation_score_and_last_is_the_last(top):
    (trained,) = number_trainer(SGD, task=peak(top)).train([number_trial()], chunk=1)
    assert trained.best_epoch == top
    assert float(trained.best[0]["params"]["w"]) == -top
    assert float(trained.last[0]["params"]["w"]) == -6
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4, 5, 6]


def test_of_equal_scores_the_lower_validation_loss_is_better_then_the_earlier_epoch():
    falling = Task(lambda outputs, targets: outputs, lambda outputs, targets: jnp.zeros_like(outputs), "0")
    (trained,) = number_trainer(SGD, task=falling).train([number_trial()], chunk=1)
    assert trained.best_epoch == 6
    same = Task(
        lambda outputs, targets: jnp.zeros_like(outputs) + 0 * outputs, falling.score, "0"
    )  # nothing to tell epochs apart
    (trained,) = number_trainer(SGD, task=same).train([number_trial()], chunk=1)
    assert trained.best_epoch == 1


def test_no_epochs_return_the_start():
    trial = number_trial(w=5.0)
    (trained,) = number_trainer(dataclasses.replace(SGD, epochs=0)).train([trial])
    assert trained.best is trained.last or trained.best == trained.last
    assert trained.best[0] is trial.variables
    assert (trained.history, trained.best_epoch, trained.failure) == ([], 0, None)


@pytest.mark.parametrize("chunk", [1, 3])
def test_on_epoch_gets_every_row_with_its_trial(chunk):
    seen = []
    trainer = number_trainer(dataclasses.replace(SGD, epochs=2))
    outcomes = list(trainer.train([number_trial(seed=i) for i in range(3)], chunk, lambda *call: seen.append(call)))
    rows = {(i, row["epoch"]): row for i, outcome in enumerate(outcomes) for row in outcome.history}
    assert len(seen) == 6
    assert {(i, row["epoch"]): row for i, row in seen} == rows


def test_outcomes_come_as_soon_as_they_are_known():
    started = []
    trainer = number_trainer(dataclasses.replace(SGD, epochs=1))
    outcomes = trainer.train([number_trial(seed=i) for i in range(3)], 1, lambda i, row: started.append(i))
    next(outcomes)
    assert started == [0]
