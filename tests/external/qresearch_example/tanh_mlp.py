"""A model that Flax knows nothing of: three plain functions over a dict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.models import Model

WIDTH, FEATURES = 32, 13


def tanh_mlp(classes: int) -> Model:
    """Two dense layers with a tanh between; inputs [batch, 13]."""
    return Model(init_of(classes), apply, apply_train, jax.ShapeDtypeStruct((FEATURES,), np.float32))


def apply(variables, inputs):
    params = variables["params"]
    hidden = jnp.tanh(inputs @ params["hidden"] + params["bias"])
    return hidden @ params["out"]


def apply_train(variables, inputs_key):
    return apply(variables, inputs_key[0]), {}


_INITS = {}


def init_of(classes):
    """The same function for the same number: it is a key of compiled programs."""

    def init(key, inputs):
        first, second = jax.random.split(key)
        hidden = jax.random.normal(first, (inputs.shape[-1], WIDTH)) / inputs.shape[-1] ** 0.5
        out = jax.random.normal(second, (WIDTH, classes)) / WIDTH**0.5
        return {"params": {"hidden": hidden, "bias": jnp.zeros(WIDTH), "out": out}}

    return _INITS.setdefault(classes, init)
