"""Gradients in float64, and the comparison with recorded vectors, for the tests of single methods.

Quantizers compute in float64 where x is float64, so that closed forms can be compared to 1e-12. Every gradient is taken
twice: through the shared primitive's own rule, and by autodiff of the straight-through composition in its place.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="ties need a correctly rounded division, which XLA promises on CPU only"
)
ROUND = {"half_even": jnp.round, "floor": jnp.floor, "ceil": jnp.ceil, "toward_zero": jnp.trunc}


def composition(x, scale, zero_point, qmin, qmax, *, mask="rounded", rounding="half_even", key=None):
    """fake_quant by composition: the rounding has the gradient of the identity, the clip that of its branches."""
    steps = x / scale
    code = steps + stop_gradient(ROUND[rounding](steps) - steps) + zero_point
    position = {"rounded": code, "unrounded": steps + zero_point, "none": code}[mask]
    clipped = jnp.where(position < qmin, qmin, jnp.where(position > qmax, qmax, code))
    clipped = clipped + stop_gradient(jnp.clip(code, qmin, qmax) - clipped)
    if mask == "none":
        clipped = code + stop_gradient(clipped - code)
    return (clipped - zero_point) * scale


@contextmanager
def float64(composed: str | None = None) -> Iterator[None]:
    """64-bit arrays; with the composition in place of the primitive in the file of the method ``composed``."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        if composed is not None:
            module = importlib.import_module(f"qresearch.quantizers.{composed}")
            patch.setattr(module, "fake_quant", composition)
        yield


def gradients64(name: str, apply: Any, qparams: Any, x: np.ndarray, bits: float, upstream: np.ndarray) -> Any:
    """(x̂, gradients of qparams, gradient of x) of the ``apply`` of the file ``name``, in float64.

    By the primitive's own rule, once it is seen to be what autodiff of the composition gives.
    """

    def run() -> Any:
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), qparams)
        x_hat, pullback = jax.vjp(lambda q, x: apply(q, x, bits), wide, jnp.asarray(x, jnp.float64))
        of_qparams, of_x = pullback(jnp.asarray(upstream, jnp.float64))
        found = (x_hat, of_qparams, of_x)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
        return jax.tree.map(np.asarray, found)

    with float64(composed=name):
        autodiff = run()
    with float64():
        ours = run()
    jax.tree.map(assert_exact, ours, autodiff)
    return ours


def samples(seed: int, size: int, deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """Normal x and upstream gradients, exact in float32 too."""
    generator = np.random.default_rng(seed)
    x, upstream = (generator.normal(0, width, size).astype(np.float32) for width in (deviation, 1.0))
    return x.astype(np.float64), upstream.astype(np.float64)


def assert_exact(found: Any, wanted: Any) -> None:
    """Equal to 1e-12 of the larger of 1 and the wanted value, element by element."""
    np.testing.assert_allclose(found, np.broadcast_to(wanted, np.shape(found)), rtol=1e-12, atol=1e-12)


def compare(case: str, name: str, found: Any, wanted: Any, limit: float, keep: Any = True) -> int:
    """Requires |found - wanted| <= limit max(1, |wanted|) where ``keep``; returns how many elements were compared."""
    found, wanted = np.asarray(found, np.float64).reshape(-1), np.asarray(wanted, np.float64).reshape(-1)
    assert found.shape == wanted.shape
    keep = np.broadcast_to(keep, found.shape)
    error = (np.abs(found - wanted) / np.maximum(1, np.abs(wanted)))[keep]
    assert np.isfinite(error).all(), f"{case}: {name} is not finite"
    assert (error <= limit).all(), f"{case}: {name} differs by {error.max()}"
    return int(keep.sum())
