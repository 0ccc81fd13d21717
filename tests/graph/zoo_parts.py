"""What the models of the zoo are made of: entries, deterministic values, inputs; and a counter of compilations."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring

BATCH = 4


class Compilations:
    """Counts XLA compilations, by JAX's own events. A context manager; ``count`` is of those inside so far."""

    def __enter__(self) -> Compilations:
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        self.count += event.endswith("/backend_compile_duration")


class Entry(NamedTuple):
    """A model of the zoo. ``fn(params, x)`` returns a pytree of arrays."""

    fn: Callable[[Any, Any], Any]
    params: Any
    x: Any


def draw(seed: int, *shape: int) -> jax.Array:
    """Standard normal values, those of ``seed``. By NumPy: JAX would compile its generator for every shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def kernel(seed: int, *shape: int) -> jax.Array:
    """A kernel whose outputs have about the size of its inputs."""
    return jnp.asarray(np.asarray(draw(seed, *shape)) / np.sqrt(1.0 + np.prod(shape[:-1]), dtype=np.float32))


def filled(shapes: Any) -> Any:
    """Values for a module's parameters and state, given their shapes: quicker than the module's own initialization."""

    def fill(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(1)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = jax.tree_util.keystr(path)
        values = kernel(zlib.crc32(name.encode()), *leaf.shape)
        return 1.0 + jnp.abs(values) if "var" in name or "scale" in name else values

    return jax.tree_util.tree_map_with_path(fill, shapes)


X = draw(100, BATCH, 8)
SEQUENCE = draw(101, BATCH, 5, 8)
IMAGE = draw(102, BATCH, 6, 6, 3)
SQUARE = draw(103, 16, 16)
