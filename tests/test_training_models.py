from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from number_model import SGD, number_trainer, number_trial
from small_sweep import compilations

from qresearch.calibration import calibrate, select
from qresearch.data.dataset import Dataset, Split
from qresearch.evaluation import make_batches
from qresearch.models.model import from_linen
from qresearch.population import unchanged
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.bench import qat_program
from qresearch.tasks import TASKS
from qresearch.training import Program, Recipe, Trial, make_trainer

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
