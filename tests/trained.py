"""A float model trained on real data, quantized and calibrated: the shared start of many tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.calibration import MenuQParams, calibrate
from qresearch.data import DATASETS, Dataset
from qresearch.models import MODELS, Model, Variables
from qresearch.qmodel import QuantizedModel, quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.floats import float_trainer
from qresearch.tasks import TASKS, Task
from qresearch.training import Recipe, Trial

MENU = ((2, 2), (4, 4), (4, 8), (8, 8))
PINNED = ((8, 8),)
RULES = (
    Rule("linear3/*", SiteRule("lsq", range="minmax"), SiteRule("lsq", range="minmax"), PINNED),
    Rule("*", SiteRule("lsq", range="minmax"), SiteRule("lsq", range="minmax"), MENU),
)


class Digits(NamedTuple):
    """linear3 of the MLP is pinned to W8A8, the other two layers may take all of MENU."""

    data: Dataset
    task: Task
    model: Model
    variables: Variables
    quantized: QuantizedModel
    qparams: MenuQParams


def train_digits() -> Digits:
    data, task, model = DATASETS["digits"](None), TASKS["classification"], MODELS["mlp"](10)
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *data.example_shape)))
    # The recipe of small_sweep.SMALL, whose program is then compiled once for both.
    trainer = float_trainer(model, task, Recipe(epochs=5, batch_size=128), data, 100)
    (trained,) = trainer.train([Trial(start, {}, (), 3e-3, 0)])
    variables = trained.best[0]
    x = jnp.asarray(data.prepare(data.train.inputs[:64]))
    quantized = quantize_model(model.apply, variables, x, RULES)
    return Digits(data, task, model, variables, quantized, calibrate(quantized, variables, x))


def uniform(weight: float, input: float, layers: int = 3) -> np.ndarray:
    return np.tile(np.asarray([weight, input], np.float32), (layers, 1))


def random_allocations(count: int, seed: int = 0) -> Any:
    """Different allocations [count, 3, 2] of whole widths from 2 to 8."""
    rows: dict[bytes, np.ndarray] = {}
    rng = np.random.default_rng(seed)
    while len(rows) < count:
        bits = rng.integers(2, 9, size=(3, 2)).astype(np.float32)
        rows[bits.tobytes()] = bits
    return np.stack(list(rows.values()))
