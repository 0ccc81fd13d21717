"""A convolutional network trained on digits, for what sensitivities say about real layers of unequal kinds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from qresearch.calibration import calibrate
from qresearch.data import DATASETS
from qresearch.evaluation import make_batches
from qresearch.models import MODELS
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.floats import float_trainer
from qresearch.tasks import TASKS
from qresearch.training import Recipe, Trial

CNN_MENU = ((2, 2), (3, 3), (4, 4), (6, 6))


@functools.cache
def cnn_arguments() -> tuple[Any, ...]:
    """The arguments of ``sensitivity``, on 256 validation examples, for the digits CNN with one menu for all layers."""
    data, task, model = DATASETS["digits"](None), TASKS["classification"], MODELS["digits_cnn"](10)
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *data.example_shape)))
    trainer = float_trainer(model, task, Recipe(epochs=4, batch_size=64), data, 100)
    (trained,) = trainer.train([Trial(start, {}, (), 3e-3, 0)])
    variables = trained.best[0]
    x = jnp.asarray(data.prepare(data.train.inputs[:128]))
    site = SiteRule(range="minmax")
    quantized = quantize_model(model.apply, variables, x, [Rule("*", site, site, CNN_MENU)])
    batches = make_batches(data.validation, 64, 256)
    return quantized, variables, calibrate(quantized, variables, x), batches, task, data.prepare
