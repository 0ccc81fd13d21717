"""Every quantization method at every specification it accepts, run once and remembered for the conformance tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers import QUANTIZERS, QuantSpec, make_quantizer
from qresearch.quantizers.base import UnsupportedSpecError

SHAPE = (4, 6, 32)
GRANULARITIES = {"per_tensor": PER_TENSOR, "per_channel": per_channel(1), "per_group": per_group(-1, 16)}
# Beside a method's own range, one that depends on the width and one that does not. The others are functions of the
# tensor that their own tests cover at every granularity, and not all of them promise an error that falls with bits.
# Unsigned tensors are inputs, which have no groups.
CALIBRATIONS = {
    (True, "per_tensor"): (None,),
    (True, "per_channel"): (None, "minmax", "mse"),
    (True, "per_group"): (None,),
    (False, "per_tensor"): (None, "mse"),
    (False, "per_channel"): (None,),
}
# What the fast suite runs of (signed, granularity, symmetric, range); the slow one runs all.
FAST = {
    (True, "per_channel", True, None),
    (True, "per_channel", False, None),
    (True, "per_group", True, None),
    (False, "per_tensor", True, None),
    (False, "per_tensor", False, None),
}
QUICK = {"xla_backend_optimization_level": 0}
# What users run: XLA's defaults, whatever the fast suite's flags say (see tests/conftest.py).
FULL: dict[str, Any] = {"xla_backend_optimization_level": 3}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    FULL["xla_cpu_use_fusion_emitters"] = True
INTEGER_WIDTHS = tuple(range(1, 9))
WIDTHS = (0, *INTEGER_WIDTHS, 16, 31, 32)


def accepted(name: str, spec: QuantSpec) -> bool:
    """Whether the factory takes the specification. Any refusal but UnsupportedSpecError stops the collection."""
    try:
        QUANTIZERS[name](spec)
    except UnsupportedSpecError:
        return False
    return True


def label(name: str, spec: QuantSpec) -> str:
    granularity = next(key for key, value in GRANULARITIES.items() if value == spec.granularity)
    signs = f"{'signed' if spec.signed else 'unsigned'}-{'symmetric' if spec.symmetric else 'affine'}"
    return f"{name}-{signs}-{granularity}-{spec.range or 'own'}"


def is_slow(name: str, spec: QuantSpec) -> bool:
    """Whether only the slow suite runs this specification of a method."""
    granularity = next(key for key, value in GRANULARITIES.items() if value == spec.granularity)
    if spec.signed and granularity == "per_tensor" and not accepted(name, replace(spec, granularity=per_channel(1))):
        return False  # the method has no other
    return (spec.signed, granularity, spec.symmetric, spec.range) not in FAST


ALL = [
    (name, QuantSpec(signed, symmetric, GRANULARITIES[granularity], range=range_name))
    for name, symmetric, ((signed, granularity), ranges) in itertools.product(
        QUANTIZERS, (True, False), CALIBRATIONS.items()
    )
    for range_name in ranges
]


def cases(without: tuple[str, ...] = (), follows_bits: bool = False, **fixed: Any) -> pytest.MarkDecorator:
    """Parametrizes over every accepted (name, spec) whose fields have the values given, and without these traits.

    follows_bits: without the methods that have a width of their own.
    """
    chosen = [
        pytest.param(name, spec, id=label(name, spec), marks=[pytest.mark.slow] if is_slow(name, spec) else [])
        for name, spec in ALL
        if all(getattr(spec, field) == value for field, value in fixed.items())
        and accepted(name, spec)
        and not make_quantizer(name, spec).traits.intersection(without)
        and not (follows_bits and make_quantizer(name, spec).width)
    ]
    return pytest.mark.parametrize(("name", "spec"), chosen)


def grid_widths(name: str, spec: QuantSpec) -> tuple[int, ...]:
    """The widths of 1 to 8 bits that the method has a grid for: a learned signed one starts at 2, that is -1, 0, 1."""
    learned = "learns_bits" in make_quantizer(name, spec).traits
    return INTEGER_WIDTHS[1:] if learned and spec.signed else INTEGER_WIDTHS


@cache
def tensor(signed: bool) -> jax.Array:
    """Normals with channels of different widths; not negative where the grid is unsigned."""
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, SHAPE) * np.array([0.5, 1, 2, 0.8, 1.5, 0.3]).reshape(1, 6, 1)
    return jnp.asarray(x if signed else np.abs(x), jnp.float32)


def degenerate() -> dict[str, jax.Array]:
    x, ones = tensor(True), jnp.ones(SHAPE)
    return {
        "zeros": 0 * ones,
        "constant": 3 * ones,
        "negative constant": -3 * ones,
        "all negative": -jnp.abs(x) - 0.1,
        "huge": 1e30 * x,
        "tiny": 1e-30 * x,
    }


class Program:
    """A function compiled once per shape; programs of equal text, whatever method they come from, are compiled once.

    Most of a method's specifications differ in calibration only, and many methods share theirs: compiling is what this
    suite would spend its time on. LLVM optimizes them as it does for users, so that what is compared bit by bit is what
    they get; ``quick`` leaves that out, for other results.
    """

    known: ClassVar[dict[Any, Any]] = {}

    def __init__(self, function: Callable[..., Any], quick: bool = False) -> None:
        self.function, self.quick, self.compiled = function, quick, {}

    def __call__(self, *arguments: Any) -> Any:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        if shapes not in self.compiled:
            lowered = jax.jit(lambda *arguments: self.function(*arguments)).lower(*arguments)
            key = (lowered.as_text(), shapes, lowered.in_tree, lowered.out_tree, self.quick)
            if key not in self.known:
                self.known[key] = lowered.compile(QUICK if self.quick else FULL)
            self.compiled[shapes] = self.known[key]
        return self.compiled[shapes](*arguments)


class Observation(NamedTuple):
    """All that a method does with one tensor at one width."""

    qparams: Any
    x_hat: Any
    again: Any  # apply(apply(x))
    codes: Any  # in the granularity's view
    decoded: Any


class Observer:
    """A method's compiled functions at one specification: calibration, what is done with qparams, gradients."""

    def __init__(self, name: str, spec: QuantSpec, quick: bool = False) -> None:
        self.quantizer = make_quantizer(name, spec)
        self.init = Program(self.quantizer.init, quick=True)
        self.use = Program(self.use_qparams, quick)
        self.slopes = Program(jax.grad(self.total, (0, 1, 2)), quick=True)

    def use_qparams(self, qparams: Any, x: jax.Array, bits: jax.Array) -> Observation:
        x_hat = self.quantizer.apply(qparams, x, bits)
        codes = self.quantizer.encode(qparams, x, bits)
        again = self.quantizer.apply(qparams, x_hat, bits)
        return Observation(qparams, x_hat, again, codes, decode(codes).reshape(x.shape))

    def total(self, qparams: Any, x: jax.Array, bits: jax.Array) -> jax.Array:
        """A weighted sum of the training forward: with a key where the method draws noise."""
        weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        key = jax.random.key(0) if "needs_key" in self.quantizer.traits else None
        return (self.quantizer.apply(qparams, x, bits, key=key) * weights).sum()

    def at(self, x: jax.Array, bits: float) -> Observation:
        width = jnp.asarray(bits, jnp.float32)
        return self.use(self.init(x, width), x, width)

    def gradients(self, x: jax.Array, bits: float, stretch: float = 1.0) -> tuple[Any, jax.Array, jax.Array]:
        """The gradients of a weighted sum of apply(init(x), stretch * x) in (qparams, x, bits)."""
        width = jnp.asarray(bits, jnp.float32)
        return self.slopes(self.init(x, width), x * stretch, width)


observer = cache(Observer)


@cache
def observed(name: str, spec: QuantSpec, bits: int) -> Observation:
    return jax.tree.map(np.asarray, observer(name, spec).at(tensor(spec.signed), bits))


def assert_finite(tree: Any, message: str) -> None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        assert np.isfinite(leaf).all(), f"{message}: {jax.tree_util.keystr(path)} is not finite"
