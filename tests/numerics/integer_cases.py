"""Random codes for the tests of integer contractions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import settings

from qresearch.numerics.codes import Codes

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=20)
BITS = tuple(range(2, 9))


def draw_codes(generator, shape, bits, signed, affine, varying=()) -> Codes:
    """Random codes of the whole range, scales along the axes ``varying``, and zero-points, whole or half, in it."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    shared = tuple(size if axis in varying else 1 for axis, size in enumerate(shape))
    values = generator.integers(low, high, shape, endpoint=True)
    zero_point = generator.integers(2 * low, 2 * high, shared, endpoint=True) / 2 * affine
    scale = generator.uniform(0.001, 0.1, shared)
    values = jnp.asarray(values, jnp.int8 if signed else jnp.uint8)
    return Codes(values, jnp.asarray(scale, jnp.float32), jnp.asarray(zero_point, jnp.float32))


def exact(codes: Codes) -> np.ndarray:
    """code - zero_point in float64, which holds every sum of products of halves here exactly."""
    return np.asarray(codes.values, np.float64) - np.asarray(codes.zero_point, np.float64)
