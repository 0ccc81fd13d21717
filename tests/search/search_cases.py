"""Subjects of searches: the MLP of ``trained.Digits``, and models of the zoo that are not trained."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from qresearch.calibration import calibrate, select
from qresearch.cost import COSTS
from qresearch.evaluation import make_batches
from qresearch.search import SearchSubject
from qresearch.training import Recipe

TRAINERS: dict = {}
RECIPE = Recipe(epochs=2, batch_size=128)


def digits_subject(digits, **changes):
    """A short search on the MLP, whose last layer is pinned."""
    values = {
        "model": digits.quantized,
        "train_fn": digits.model.apply_train,
        "variables": digits.variables,
        "x": jnp.asarray(digits.data.prepare(digits.data.train.inputs[:128])),
        "data": digits.data,
        "validation": make_batches(digits.data.validation, 100),
        "task": digits.task,
        "recipe": RECIPE,
        "learning_rate": 1e-3,
        "trainers": TRAINERS,
    }
    return SearchSubject(**values | changes)


def plain_subject(model, params, x):
    """A subject that is never trained: enough for what a search computes in one step."""
    return SearchSubject(model, model.fn, params, x, None, None, None, RECIPE, 1e-3)


def costs_of(model, cost, bits):
    """The cost [...] of bits [..., layer, 2], in the unit of the cost's table."""
    return np.rint(COSTS[cost].of(model.counts, bits) * COSTS[cost].total(model.counts))


def at_menu(model, params, x, bits):
    """The model's own output at bits, with the qparams that were calibrated at these widths."""
    return model.apply(params, select(calibrate(model, params, x), bits), x, bits)


def random_bits(model, count, seed=0):
    """Different allocations [n, layer, 2] from the menus of a model."""
    random = np.random.default_rng(seed)
    drawn = [[menu[random.integers(len(menu))] for menu in model.menus] for _ in range(count)]
    return np.unique(np.asarray(drawn, np.float32), axis=0)
