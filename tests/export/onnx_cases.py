"""Models and single layers to export, and ways to run what was exported."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qresearch.export.onnx import SESSION_OPTIONS, run_onnx
from qresearch.export.onnx.files import make_session
from qresearch.frozen import Frozen, freeze
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule

# Outputs are compared with what JAX computes; sums in another order differ by a few units of the last place.
ROUNDING = 5e-6


def draw(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made_up(shapes: Any) -> Any:
    """Variables of these shapes, quicker than ``init``: kernels that keep the size of what passes, norms near one."""

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> np.ndarray:
        name, drawn = str(path[-1]), draw(zlib.crc32(str(path).encode()), *like.shape)
        if len(like.shape) > 1:
            return drawn / np.float32(np.sqrt(np.prod(like.shape[:-1])))
        positive = any(part in name for part in ("var", "scale"))
        return np.abs(1 + 0.1 * drawn) if positive else 0.1 * drawn

    return jax.tree.map_with_path(leaf, shapes)


def sessions(model: Any, **entries: str) -> dict[bool, Any]:
    """By whether optimized: sessions of a model that is not in a file."""
    data = model.SerializeToString()
    return {optimized: make_session(data, optimized, entries or SESSION_OPTIONS) for optimized in (False, True)}


def differences(model: Any, x: Any, expected: Any) -> dict[bool, float]:
    """By whether optimized: the largest difference from what was expected, as a share of the largest of that."""
    expected = np.asarray(expected)
    found = {optimized: run_onnx(running, x)[0] for optimized, running in sessions(model).items()}
    assert all(output.shape == expected.shape for output in found.values())
    return {key: float(np.max(np.abs(output - expected)) / np.max(np.abs(expected))) for key, output in found.items()}


def dense(params: Any, x: Any) -> Any:
    return x @ params["layer"]["kernel"]


def convolution(params: Any, x: Any) -> Any:
    groups = x.shape[-1] // params["layer"]["kernel"].shape[2]
    return lax.conv_general_dilated(
        x,
        params["layer"]["kernel"],
        (2, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# fn, shape of the kernel, shape of the input; groups of 4 divide the channels that the first two contract.
LAYERS = {
    "dense": (dense, (24, 10), (5, 24)),
    "dense of three axes": (dense, (24, 10), (2, 3, 24)),
    "convolution": (convolution, (3, 3, 8, 6), (2, 5, 6, 8)),
    "depthwise": (convolution, (3, 3, 1, 8), (2, 5, 6, 8)),
}


def frozen_of(fn: Any, params: Any, x: Any, rules: Any, option: tuple[int, int]) -> Frozen:
    """A function quantized by the rules at one width for all its layers, calibrated on x, and frozen."""
    params, x = jax.tree.map(jnp.asarray, (params, x))
    model = quantize_model(fn, params, x, rules)
    bits = np.tile(option, (len(model.layers), 1))
    return freeze(model, params, model.init(params, x, jnp.asarray(bits, jnp.float32)), bits)


def frozen_layer(case: str, weight: Any, input: Any, option: tuple[int, int], seed: int = 0) -> tuple[Frozen, Any]:
    """One layer of ``LAYERS``, random, and its input: of both signs for an odd seed."""
    fn, kernel, shape = LAYERS[case]
    x = draw(seed + 1, *shape) if seed % 2 else np.abs(draw(seed + 1, *shape))
    rules = (Rule(weight=weight, input=input, menu=(option,)),)
    return frozen_of(fn, {"layer": {"kernel": draw(seed, *kernel)}}, x, rules, option), x
