"""What a post-training method works on, and what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array

from qresearch.calibration import calibrate, select
from qresearch.errors import GraphError
from qresearch.graph.trace import Function
from qresearch.qmodel import Bits, Params, QParams, QuantizedModel, quantize_model
from qresearch.rules import Rule
from qresearch.tasks.task import Loss
from qresearch.units import CORRECTIONS


class Quantized(NamedTuple):
    """A calibrated model at one allocation, and what it was calibrated on.

    bits: [layers, 2]. x: prepared calibration inputs [examples, ...]; targets: theirs [examples, ...], for ``loss``.
    apply_train: the training mode of the model's function, (params, (x, key)) -> (outputs, state), where there is one.
    The entries of ``CORRECTIONS`` that a method adds to qparams hold for these bits only.
    """

    model: QuantizedModel
    params: Params
    qparams: QParams
    bits: Bits
    x: Array
    targets: Array
    loss: Loss
    apply_train: Callable[..., Any] | None = None


def recalibrated(quantized: Quantized, fn: Function, params: Params, rules: Sequence[Rule]) -> Quantized:
    """The state for another function, params or rules with the same layers: ranges are those of its own tensors.

    GraphError where the layers differ, or where an earlier method has changed weights that would be lost.
    """
    changed = sorted(name for name, own in quantized.qparams.items() if set(own).intersection(CORRECTIONS))
    if changed:
        raise GraphError(f"an earlier method has changed the weights of {changed[0]} already; put this one before it")
    model = quantize_model(fn, params, quantized.x, rules)
    before, after = ([layer.name for layer in found.layers] for found in (quantized.model, model))
    if before != after:
        raise GraphError(f"the layers would change from {before} to {after}")
    widths = sorted({int(width) for width in np.unique(quantized.bits) if 0 < width < 32})
    qparams = select(calibrate(model, params, quantized.x, widths), quantized.bits)
    return quantized._replace(model=model, params=params, qparams=qparams)


def with_kernel(own: Mapping[str, Any], kernel: Array, **changed: Any) -> dict[str, Any]:
    """A layer's qparams with another kernel. A shift goes: it was the mean error of the kernel before."""
    return {**{name: part for name, part in own.items() if name != "shift"}, "kernel": kernel, **changed}


class Method(Protocol):
    """``method(quantized, key) -> quantized``: one step of a list, which the next one carries on from."""

    def __call__(self, quantized: Quantized, key: Array) -> Quantized: ...


def before_rounding(transform: Callable[..., tuple[Function, Params]]) -> Callable[..., Method]:
    """The factory of the method that replaces the float function by ``transform(fn, params, x, **options)``."""

    @functools.wraps(transform)
    def factory(**options: Any) -> Method:
        def method(quantized: Quantized, key: Array) -> Quantized:
            fn, params = transform(quantized.model.fn, quantized.params, quantized.x, **options)
            return recalibrated(quantized, fn, params, quantized.model.rules)

        return method

    factory.before_rounding = True  # type: ignore[attr-defined]  # which ``make_methods`` looks for
    return factory
