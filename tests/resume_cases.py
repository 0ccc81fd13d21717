"""Trainings to stop and to continue, with batch statistics and augmentation: float with sgd, QAT with LSQ and adam."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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

STEPS, EPOCHS = 6, 3  # steps of one epoch
TOTAL = STEPS * EPOCHS


class Net(nn.Module):
    """Two dense layers with batch normalization between them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False, name="first")(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(3, name="second")(x)


@functools.cache
def images():
    """Three kinds of images of 4 x 4, with noise."""
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=96).astype(np.int32)
    kinds = rng.normal(size=(3, 4, 4, 1))
    inputs = (rng.normal(size=(96, 4, 4, 1)) + kinds[targets]).astype(np.float32)
    parts = [Split(inputs[i : i + 48], targets[i : i + 48]) for i in (0, 48, 48)]
    return Dataset("images", *parts, 3, unchanged, (4, 4, 1), "made up")


@functools.cache
def net():
    model = from_linen(Net())
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def recipe_of(optimizer, epochs=EPOCHS):
    return Recipe(epochs=epochs, batch_size=8, optimizer=optimizer, warmup_epochs=1, augment="crop_flip")


@functools.cache
def float_case():
    """(trainer, trials)."""
    model, variables = net()
    program = Program(
        lambda variables, qparams, bits, x, key: model.apply_train(variables, (x, key)),
        lambda shared, own, x: model.apply(own[0], x),
        lambda qparams: {},
    )
    data = images()
    batches = make_batches(data.validation, 16)
    trainer = make_trainer(program, TASKS["classification"], recipe_of("sgd"), data, batches)
    return trainer, [Trial(variables, {}, (), rate, i) for i, rate in enumerate((0.1, 0.05, 0.2))]


@functools.cache
def qat_case(epochs=EPOCHS):
    """(trainer, trials): learned scales of weights and inputs."""
    model, variables = net()
    data = images()
    x = jnp.asarray(data.train.inputs)
    rule = Rule("*", SiteRule("lsq", range="minmax"), SiteRule("lsq", range="minmax"))
    quantized = quantize_model(model.apply, variables, x, (rule,))
    twin = quantized.twin(model.apply_train, variables, (x[:8], jax.random.key(0)))
    batches = make_batches(data.validation, 16)
    program = qat_program(quantized, twin)
    trainer = make_trainer(program, TASKS["classification"], recipe_of("adam", epochs), data, batches)
    table, trials = calibrate(quantized, variables, x, (3, 4, 8)), []
    for i, width in enumerate((3, 4, 8)):
        bits = jnp.full((2, 2), float(width))
        trials.append(Trial(variables, select(table, bits), bits, 1e-2, i))
    return trainer, trials


CASES = {"float": float_case, "qat": qat_case}


def equal(one, other):
    """Whether two outcomes are the same in every bit of every array, and in all else."""
    assert jax.tree.structure(one[:2]) == jax.tree.structure(other[:2])
    for a, b in zip(jax.tree.leaves(one[:2]), jax.tree.leaves(other[:2]), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert one[2:] == other[2:]
    return True
