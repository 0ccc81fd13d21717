"""Stored weights to multiply with, and what a product may differ by."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from qresearch.numerics.codes import Codes, decode
from qresearch.numerics.packing import QTensor, from_qtensor, to_qtensor


def stored(depth, features, bits=4, signed=True, affine=False, scaled="channel", seed=0) -> QTensor:
    """Random codes as a quantizer would store them: scaled per "tensor", per "channel", or in groups of so many."""
    random = np.random.default_rng(seed)
    low = -(2 ** (bits - 1)) if signed else 0
    shape = (depth, features) if isinstance(scaled, str) else (depth // scaled, scaled, features)
    codes = random.integers(low, low + 2**bits, shape)
    per = {"tensor": (1, 1), "channel": (1, features)}.get(scaled) or (shape[0], 1, features)
    zero_point = random.integers(low, low + 2**bits, per) if affine else np.zeros(per)
    scale = random.uniform(0.01, 0.02, per)
    as_float = (jnp.asarray(value, jnp.float32) for value in (scale, zero_point))
    return to_qtensor(Codes(jnp.asarray(codes, jnp.int32), *as_float), bits, signed)


def drawn(rows, depth, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, depth)), dtype)


def assert_is_the_product(found, x, tensor: QTensor):
    """x times the decoded weights in float64, within what ``weight_only_dot`` promises."""
    codes = from_qtensor(tensor)
    matrix = np.asarray(decode(codes), np.float64).reshape(x.shape[1], -1)
    magnitudes = np.abs(np.asarray(codes.values, np.float64)) + np.abs(np.asarray(codes.zero_point, np.float64))
    magnitudes = (magnitudes * np.asarray(codes.scale, np.float64)).reshape(matrix.shape)
    x = np.asarray(x, np.float64)
    wanted = x @ matrix
    summed = 2.0**-23 * (x.shape[1] + 2) * np.abs(x) @ magnitudes
    assert found.shape == wanted.shape
    rounded = float(jnp.finfo(found.dtype).eps) * np.abs(wanted) + float(jnp.finfo(found.dtype).smallest_subnormal)
    assert np.all(np.abs(np.asarray(found, np.float64) - wanted) <= summed + rounded)
