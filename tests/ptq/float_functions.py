"""Float models with values that hide no mistake, for the tests of what changes a model before it is quantized."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from graph.zoo import draw


def value(path, leaf):
    """Kernels as large as they should be, statistics and affine parameters far from 0 and 1."""
    name = jax.tree_util.keystr(path)
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape).astype(np.float32)
    if "kernel" in name:
        return values / math.sqrt(math.prod(leaf.shape[:-1]))
    return np.exp(0.5 * values) if "var" in name or "scale" in name else 0.3 * values


def filled(variables):
    """Values for the shapes of a model's variables."""
    return jax.tree_util.tree_map_with_path(value, variables)


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(lambda: batch(model)))


def batch(model, examples=2):
    if jnp.issubdtype(model.example.dtype, jnp.integer):
        return jnp.arange(examples * np.prod(model.example.shape)).reshape(examples, *model.example.shape) % 7
    return draw(0, examples, *model.example.shape)


def assert_close(actual, expected, tolerance=1e-5):
    for mine, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * float(jnp.abs(theirs).max()))


def normalize(params, y):
    mean, var, scale, shift = (params[key] for key in ("mean", "var", "scale", "shift"))
    return (y - mean) * jax.lax.rsqrt(var + 1e-5) * scale + shift


def statistics(channels, seed=50):
    mean, scale, shift = (draw(seed + i, channels) for i in range(3))
    return {"mean": mean, "var": jnp.exp(draw(seed + 3, channels)), "scale": scale, "shift": shift}
