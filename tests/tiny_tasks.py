"""A data set and a model for every task, small enough for a sweep in a test: a new task adds its line to ``TINY``."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from task_cases import random_scenes

from qresearch.data.dataset import Dataset, Split
from qresearch.models import Model

TRAIN, CHOOSE, REPORT = 160, 200, 200  # enough of the last two that a better model scores better
EXAMPLES = TRAIN + CHOOSE + REPORT


class Tiny(NamedTuple):
    """``data(folder)`` and ``model(classes)``, as their registries hold them."""

    data: object
    model: object


def as_they_are(inputs):
    return inputs


def scaled(inputs):
    return inputs.astype(np.float32) / np.float32(255)


def dataset(inputs, targets, classes, prepare=as_they_are):
    parts = np.split(np.arange(EXAMPLES), [TRAIN, TRAIN + CHOOSE])
    train, validation, test = (Split(inputs[part], targets[part]) for part in parts)
    return Dataset("tiny", train, validation, test, classes, prepare, inputs.shape[1:], "made here")


def model_of(init, apply, shape, dtype=np.float32):
    """A model without state or randomness, for examples of this shape and dtype."""
    example = jax.ShapeDtypeStruct(shape, dtype)
    return Model(init, apply, lambda variables, x: (apply(variables, x[0]), {}), example)


def dense(seed, *shape, fan):
    # From NumPy, whatever the model's key: jax.random would compile a program for every shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan), jnp.float32)


# ---- Classification: four clouds


def clouds(folder):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, EXAMPLES).astype(np.int32)
    inputs = rng.normal(size=(4, 8))[targets] + rng.normal(size=(EXAMPLES, 8))
    return dataset(inputs.astype(np.float32), targets, 4)


def perceptron(classes):
    def init(key, x):
        return {"params": {"a": dense(0, x.shape[-1], 32, fan=8), "b": dense(1, 32, classes, fan=32)}}

    def apply(variables, x):
        return jax.nn.relu(x @ variables["params"]["a"]) @ variables["params"]["b"]

    return model_of(init, apply, (8,))


# ---- Language modelling: a symbol depends on the one before it


def chain(folder, vocabulary=8, time=16):
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(vocabulary, 0.2), vocabulary).cumsum(1)
    text = np.zeros((EXAMPLES, time + 1), np.int32)
    for t in range(time):
        text[:, t + 1] = np.minimum((rng.random((EXAMPLES, 1)) > rows[text[:, t]]).sum(1), vocabulary - 1)
    return dataset(text[:, :-1], text[:, 1:], vocabulary)


def bigrams(classes):
    def init(key, x):
        assert x.dtype == jnp.int32
        shapes = {"table": (classes, 16), "a": (16, 32), "b": (32, classes)}
        return {"params": {name: dense(i, *s, fan=s[0]) for i, (name, s) in enumerate(shapes.items())}}

    def apply(variables, x):
        params = variables["params"]
        return jax.nn.relu(params["table"][x] @ params["a"]) @ params["b"]

    return model_of(init, apply, (16,), np.int32)


# ---- Detection: bright boxes with dark ones of the other class


def boxes(folder, pixels=32):
    rng = np.random.default_rng(0)
    targets = random_scenes(rng, EXAMPLES, classes=2, boxes=2)
    inputs = rng.integers(100, 140, (EXAMPLES, pixels, pixels, 1)).astype(np.uint8)
    for image, scene in zip(inputs, targets):
        for label, *corners in scene[scene[:, 0] >= 0]:
            y0, x0, y1, x1 = np.round(np.array(corners) * pixels).astype(int)
            image[y0:y1, x0:x1] = 255 * int(label)
    return dataset(inputs, targets, 2, scaled)


def grid(classes, cells=4, stride=8, side=20):
    # Patches are looked up: a convolution this wide takes long on a CPU where it trains inside a loop.
    places = stride * np.arange(cells)[:, None] + np.arange(side)
    rows, columns = places[:, None, :, None], places[None, :, None, :]
    margin = (side - stride) // 2

    def init(key, x):
        params = {"a": dense(0, side * side, 32, fan=100), "b": 0.1 * dense(1, 32, 5 + classes, fan=32)}
        return {"params": params | {"bias": jnp.zeros(5 + classes)}}

    def apply(variables, x):
        params = variables["params"]
        padded = jnp.pad(x[..., 0] - 0.5, ((0, 0), (margin, margin), (margin, margin)))
        around = padded[:, rows, columns].reshape(len(x), cells, cells, side * side)
        return jax.nn.relu(around @ params["a"]) @ params["b"] + params["bias"]

    return model_of(init, apply, (32, 32, 1))


TINY = {
    "classification": Tiny(clouds, perceptron),
    "detection": Tiny(boxes, grid),
    "language_modelling": Tiny(chain, bigrams),
}
