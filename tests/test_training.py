from __future__ import annotations

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_sweep import compilations

from qresearch.calibration import calibrate, select
from qresearch.data.dataset import Dataset, Split
from qresearch.errors import ConfigError
from qresearch.evaluation import make_batches
from qresearch.models.model import from_linen
from qresearch.population import unchanged
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.bench import qat_program
from qresearch.tasks import TASKS, Task
from qresearch.training import OPTIMIZERS, SCHEDULES, Program, Recipe, Trial, make_trainer

# ---- One number as a model: what an update did can be read off, and computed by hand.


def number_data(examples=4):
    split = Split(np.arange(examples, dtype=np.int32)[:, None], np.arange(examples, dtype=np.int32))
    return Dataset("numbers", split, split, split, 2, unchanged, (1,), "made up")


def number_program(gradient=1.0, learnable=lambda qparams: {}):
    """The training loss is ``gradient * w``; the evaluation returns w for every example."""

    def train(variables, qparams, bits, x, key):
        slope = jax.tree.leaves(gradient)
        loss = sum(jnp.sum(jnp.asarray(g) * w) for g, w in zip(slope, jax.tree.leaves(variables["params"])))
        loss = loss + sum(jnp.sum(q) for q in jax.tree.leaves(qparams))
        return jnp.full(x.shape[0], loss), {}

    def forward(shared, own, x):
        return jnp.broadcast_to(own[0]["params"]["w"], x.shape[:1])

    return Program(train, forward, learnable)


# The validation score is w itself, the validation loss 0: the history shows every value that w had.
NUMBER = Task(
    loss=lambda outputs, targets: jnp.zeros_like(outputs),
    score=lambda outputs, targets: outputs,
    score_name="w",
)
TRAIN_ON = Task(loss=lambda outputs, targets: outputs, score=NUMBER.score, score_name="w")


def number_trial(w=0.0, learning_rate=1.0, seed=0, qparams=None, **more):
    return Trial({"params": {"w": jnp.float32(w), **more}}, qparams or {}, (), learning_rate, seed)


def number_trainer(recipe, program=None, task=TRAIN_ON, examples=4):
    data = number_data(examples)
    return make_trainer(program or number_program(), task, recipe, data, make_batches(data.validation, 2))


def path_of(recipe, w=0.0, learning_rate=1.0, program=None):
    """w after every epoch; one epoch is one step, because the batch holds all examples."""
    trainer = number_trainer(dataclasses.replace(recipe, batch_size=4), program)
    (trained,) = trainer.train([number_trial(w, learning_rate)], chunk=1)
    assert trained.failure is None
    return np.array([row["validation_score"] for row in trained.history])


SGD = Recipe(epochs=6, batch_size=4, optimizer="sgd", momentum=0.0, schedule="constant")


def steps_of(recipe):
    return -np.diff(path_of(recipe), prepend=0.0)


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


# ---- Real models: batch statistics, quantization


class Net(nn.Module):
    """Two dense layers with batch normalization between them, and no dropout."""

    @nn.compact
    def __call__(self, x, train):
        # No bias: normalization takes it out again, so that its gradient is rounding noise, which adam would enlarge.
        x = nn.Dense(8, use_bias=False, name="first")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(3, name="second")(x)


@functools.cache
def blobs():
    """Three clouds of points in four dimensions."""
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=96).astype(np.int32)
    inputs = (rng.normal(size=(96, 4)) + 3 * np.eye(4)[targets]).astype(np.float32)
    parts = [Split(inputs[i : i + 32], targets[i : i + 32]) for i in (0, 32, 64)]
    return Dataset("blobs", *parts, 3, unchanged, (4,), "made up")


@functools.cache
def net():
    model = from_linen(Net())
    variables = [jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 4))) for seed in range(3)]
    return model, variables


RECIPE = Recipe(epochs=3, batch_size=8)


@functools.cache
def float_net_trainer():
    model, _ = net()
    program = Program(
        lambda variables, qparams, bits, x, key: model.apply_train(variables, (x, key)),
        lambda shared, own, x: model.apply(own[0], x),
        lambda qparams: {},
    )
    data = blobs()
    return make_trainer(program, TASKS["classification"], RECIPE, data, make_batches(data.validation, 16))


@functools.cache
def qat_net():
    """Learned scales for the weights, fixed ranges for the inputs."""
    model, (variables, *_) = net()
    x = jnp.asarray(blobs().train.inputs)
    rule = Rule("*", SiteRule("lsq", range="minmax"), SiteRule("minmax", range="minmax"))
    quantized = quantize_model(model.apply, variables, x, (rule,))
    twin = quantized.twin(model.apply_train, variables, (x[:8], jax.random.key(0)))
    data = blobs()
    validation = make_batches(data.validation, 16)
    trainer = make_trainer(qat_program(quantized, twin), TASKS["classification"], RECIPE, data, validation)
    return quantized, trainer, calibrate(quantized, variables, x, (3, 4, 8))


def float_trials(count=3):
    _, variables = net()
    return [Trial(variables[i], {}, (), 1e-2, i) for i in range(count)]


def qat_trials(widths=(3, 4, 8)):
    _, variables = net()
    table = qat_net()[2]
    bits = [jnp.full((2, 2), float(width)) for width in widths]
    return [Trial(variables[0], select(table, b), b, 1e-2, i) for i, b in enumerate(bits)]


def identical(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_float_training_learns_and_updates_batch_statistics():
    (trained,) = float_net_trainer().train(float_trials(1), 1)
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    start, end = float_trials(1)[0].variables, trained.last[0]
    assert jax.tree.structure(start) == jax.tree.structure(end)
    for before, after in zip(jax.tree.leaves(start["batch_stats"]), jax.tree.leaves(end["batch_stats"]), strict=True):
        assert not np.array_equal(before, after)


def test_batch_statistics_by_hand():
    """One step: the running mean moves a tenth of the way to the batch's mean of the first layer's outputs."""
    trainer = float_net_trainer()
    trial = float_trials(1)[0]
    state, setting = trainer._initial(trial), (trial.bits, jnp.float32(0.0), jax.random.key(0))
    train = trainer.data.train
    order = np.arange(8)
    new, _ = trainer.step(state, setting, jnp.asarray(train.inputs), jnp.asarray(train.targets), order)
    params = trial.variables["params"]["first"]
    mean = (train.inputs[:8] @ np.asarray(params["kernel"])).mean(0)
    np.testing.assert_allclose(new.variables["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)


def test_the_same_seed_repeats_bit_for_bit_wherever_it_stands():
    trainer, trials = float_net_trainer(), float_trials(2)
    first, second = trainer.train(trials, 1)
    again, _ = trainer.train(trials[::-1], 1)
    assert identical(second.last, again.last)
    assert second.history == again.history
    assert not identical(first.last, second.last)


def test_seeds_differ_from_one_start():
    start = float_trials(1)[0]
    one, other = float_net_trainer().train([start, start._replace(seed=7)], 1)
    assert not identical(one.last, other.last)


def test_vmapped_and_sequential_float_training_agree():
    trainer, trials = float_net_trainer(), float_trials()
    for alone, together in zip(trainer.train(trials, 1), trainer.train(trials, 3), strict=True):
        for a, b in zip(jax.tree.leaves(alone.last), jax.tree.leaves(together.last), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            [row["train_loss"] for row in alone.history], [row["train_loss"] for row in together.history], rtol=1e-4
        )


def test_vmapped_and_sequential_qat_agree():
    # Looser: a difference in the last bit meets a rounding tie and changes a code, and training goes on from there.
    trainer, trials = qat_net()[1], qat_trials()
    for alone, together in zip(trainer.train(trials, 1), trainer.train(trials, 3), strict=True):
        np.testing.assert_allclose(
            [row["train_loss"] for row in alone.history], [row["train_loss"] for row in together.history], rtol=0.03
        )


def test_a_part_chunk_is_trained_too():
    trainer, trials = number_trainer(SGD), [number_trial(learning_rate=rate) for rate in (1.0, 2.0, 3.0)]
    ends = [trained.history[-1]["validation_score"] for trained in trainer.train(trials, 2)]
    np.testing.assert_allclose(ends, [-6, -12, -18], rtol=1e-6)


def test_qat_trains_weights_and_learned_scales_and_nothing_else():
    trial = qat_trials()[0]
    (trained,) = qat_net()[1].train([trial], 1)
    assert not identical(trained.last[0]["params"], trial.variables["params"])
    for name, sites in trained.last[1].items():
        assert not np.array_equal(sites["weight"].scale, trial.qparams[name]["weight"].scale)
        assert identical(sites["input"], trial.qparams[name]["input"])
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]


def test_qat_bits_and_rates_share_one_program():
    trainer = qat_net()[1]
    trials = [trial._replace(learning_rate=rate) for trial in qat_trials() for rate in (1e-3, 1e-2)]
    with compilations() as compiled:
        outcomes = list(trainer.train(trials, 1))
    assert compiled.count("jit(step)") <= 2  # none, where another test trained before: a training, an evaluation
    assert len({outcome.history[-1]["train_loss"] for outcome in outcomes}) == 6


def test_qat_at_32_bits_is_float_training():
    """Up to the last bit: the two are different programs to XLA, which fuses them differently."""
    _, variables = net()
    bits = jnp.full((2, 2), 32.0)
    (quantized,) = qat_net()[1].train([Trial(variables[0], select(qat_net()[2], bits), bits, 1e-2, 0)], 1)
    (in_float,) = float_net_trainer().train(float_trials(1), 1)
    for a, b in zip(jax.tree.leaves(quantized.last[0]), jax.tree.leaves(in_float.last[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
