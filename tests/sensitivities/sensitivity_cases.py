"""Small functions whose sensitivities can be computed by brute force; quantized and calibrated once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.calibration import calibrate
from qresearch.data.dataset import Split
from qresearch.evaluation import make_batches
from qresearch.population import unchanged
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.tasks.task import Task

SITE = SiteRule(range="minmax")
EXAMPLES, FEATURES, HIDDEN, OUTPUTS = 48, 5, 6, 3

SQUARED = Task(
    loss=lambda outputs, targets: 0.5 * jnp.sum(jnp.square(outputs - targets), axis=-1),
    score=lambda outputs, targets: outputs[:, 0],
    score_name="none",
)


def subject_of(fn: Any, params: Any, x: np.ndarray, y: np.ndarray, menu: Any, batch: int = 16) -> tuple[Any, ...]:
    """The arguments of ``sensitivity`` for a function of (params, x)."""
    model = quantize_model(fn, params, jnp.asarray(x), [Rule("*", SITE, SITE, menu)])
    qparams = calibrate(model, params, jnp.asarray(x))
    return model, params, qparams, make_batches(Split(x, y), batch), SQUARED, unchanged


def _draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


MENU = ((2, 2), (3, 4), (8, 8))


@functools.cache
def linear() -> tuple[Any, ...]:
    """One dense layer: its loss is a quadratic form in the kernel and in the input."""
    params = {"a": {"kernel": jnp.asarray(_draw(0, FEATURES, OUTPUTS))}}
    x = _draw(1, EXAMPLES, FEATURES)
    return subject_of(lambda p, x: x @ p["a"]["kernel"], params, x, _draw(2, EXAMPLES, OUTPUTS), MENU)


@functools.cache
def two_layers() -> tuple[Any, ...]:
    """Two dense layers with a smooth activation."""
    params = {
        "a": {"kernel": jnp.asarray(_draw(0, FEATURES, HIDDEN))},
        "b": {"kernel": jnp.asarray(_draw(3, HIDDEN, OUTPUTS))},
    }
    x = _draw(1, EXAMPLES, FEATURES)
    return subject_of(
        lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"], params, x, _draw(2, EXAMPLES, OUTPUTS), MENU
    )


@functools.cache
def scanned() -> tuple[Any, ...]:
    """Two iterations of one dense layer."""
    params = {"blocks": {"kernel": jnp.asarray(_draw(0, 2, FEATURES, FEATURES) / 2)}}

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel) + x, None), x, params["blocks"]["kernel"])[0]

    x = _draw(1, EXAMPLES, FEATURES)
    return subject_of(fn, params, x, np.asarray(fn(params, x)) + 0.1 * _draw(2, EXAMPLES, FEATURES), MENU)


@functools.cache
def tied() -> tuple[Any, ...]:
    """One kernel used twice."""
    params = {"shared": {"kernel": jnp.asarray(_draw(0, FEATURES, FEATURES) / 2)}}

    def fn(params: Any, x: jax.Array) -> jax.Array:
        kernel = params["shared"]["kernel"]
        return jnp.tanh(x @ kernel) @ kernel

    x = _draw(1, EXAMPLES, FEATURES)
    return subject_of(fn, params, x, np.asarray(fn(params, x)) + 0.1 * _draw(2, EXAMPLES, FEATURES), MENU)
