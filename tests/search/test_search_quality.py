"""Whether searching pays: every search against uniform widths of the same cost, after the same short QAT.

The step back to the menus alone beats uniform widths, since it fills the budget with cheap layers' bits; so a search is
also held to what it gives without training, by the loss, which says more than the accuracy of 400 examples.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_cases import costs_of

from qresearch.calibration import calibrate, select
from qresearch.data import DATASETS
from qresearch.evaluation import evaluate, make_batches
from qresearch.models import MODELS
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.search import SEARCHES, SearchSubject
from qresearch.sweep.bench import qat_program
from qresearch.sweep.floats import float_trainer
from qresearch.tasks import TASKS
from qresearch.training import Recipe, Trainer, Trial, make_trainer

pytestmark = pytest.mark.slow  # minutes: twelve searches of a CNN and a QAT of every outcome

SEEDS = (0, 1, 2)
QATS = 5  # of every outcome: the loss after one has a standard deviation of 0.01, and another one on another machine
WIDTHS = (2, 3, 4, 5, 6, 8)
MENU = tuple(itertools.product(WIDTHS, WIDTHS))
RULES = (Rule("*", SiteRule("lsq", "per_channel", range="mse"), SiteRule("lsq", range="mse"), MENU),)
UNIFORM = ((2, 3), (3, 2))  # both cost 6 bit-operations a multiply-accumulate


class Start(NamedTuple):
    """A float model of one seed and what a short QAT of it needs."""

    subject: SearchSubject
    qparams: Any
    trainer: Trainer


@pytest.fixture(scope="module")
def starts():
    data, task, model = DATASETS["digits"](None), TASKS["classification"], MODELS["digits_cnn"](10)
    validation, trainers, found = make_batches(data.validation, 100), {}, []
    x = jnp.asarray(data.prepare(data.train.inputs[:256]))
    floats = float_trainer(model, task, Recipe(epochs=8), data, 100)
    begin = [jax.jit(model.init)(jax.random.key(seed), x[:1]) for seed in SEEDS]
    for outcome in floats.train([Trial(start, {}, (), 3e-3, seed) for start, seed in zip(begin, SEEDS)]):
        variables = outcome.best[0]
        quantized = quantize_model(model.apply, variables, x, RULES)
        if not found:
            twin = quantized.twin(model.apply_train, variables, (x[:64], jax.random.key(0)))
            qat = make_trainer(qat_program(quantized, twin), task, Recipe(epochs=1), data, validation)
        recipe = Recipe(epochs=6)
        subject = SearchSubject(
            quantized, model.apply_train, variables, x, data, validation, task, recipe, 1e-3, trainers=trainers
        )
        found.append(Start(subject, calibrate(quantized, variables, x), qat))
    return found


def after_qat(start, seed, bits):
    """(accuracy, loss) on the test examples after one epoch of QAT at bits, means over ``QATS``."""
    data, task, bits = start.subject.data, start.subject.task, jnp.asarray(bits)
    qparams, batches, found = select(start.qparams, bits), make_batches(data.test, 100), []
    trials = [Trial(start.subject.variables, qparams, bits, 1e-3, seed + len(SEEDS) * i) for i in range(QATS)]
    for trained in start.trainer.train(trials):
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (*trained.last, bits))
        scores = evaluate(start.trainer.program.forward, task, data.prepare, (), own, batches)
        found.append((scores.score.mean(), scores.loss.mean()))
    return np.mean(found, axis=0)


@pytest.fixture(scope="module")
def uniform(starts):
    """[uniform allocation, (accuracy, loss)], means over seeds."""
    layers = len(starts[0].subject.model.layers)
    rows = [
        [after_qat(start, seed, np.tile(np.float32(pair), (layers, 1))) for pair in UNIFORM]
        for start, seed in zip(starts, SEEDS)
    ]
    return np.mean(rows, axis=0)


@pytest.fixture(scope="module")
def untrained(starts):
    """(accuracy, loss) of the nearest allocation to the widest widths that meets the budget, means over seeds."""
    found = []
    for start, seed in zip(starts, SEEDS):
        still = dataclasses.replace(start.subject, recipe=Recipe(epochs=0), trainers={})
        bits, _ = SEARCHES["fracbits"](seed, still, "bops", [budget_of_six(start.subject.model)])
        found.append(after_qat(start, seed, bits[0]))
    return np.mean(found, axis=0)


def budget_of_six(model):
    return 6 * sum(layer.macs for layer in model.layers)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_beats_uniform_widths_of_its_budget(starts, uniform, untrained, name):
    found = []
    for start, seed in zip(starts, SEEDS):
        model = start.subject.model
        budget = budget_of_six(model)
        bits, info = SEARCHES[name](seed, start.subject, "bops", [budget])
        assert 0.99 * budget <= costs_of(model, "bops", bits)[0] <= budget
        assert info["expected_cost"][0] < 1.05  # the penalty has brought it there, not the last step
        assert np.abs(np.subtract(info["learned_bits"][0], info["initial_bits"])).max() >= 1
        found.append(after_qat(start, seed, bits[0]))
    accuracy, loss = np.mean(found, axis=0)
    assert accuracy > uniform[:, 0].max()
    assert loss < min(*uniform[:, 1], untrained[1])
