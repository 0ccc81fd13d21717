"""From an nnx module to a model: it is split into a static graph and its variables, and merged for each call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax import nnx
from jaxtyping import Array

from qresearch.models.model import DIGITS_IMAGE, Model, State, Variables

Construct: TypeAlias = Callable[[int, int, nnx.Rngs], nnx.Module]  # (input channels, classes, rngs)


def _variables(module: nnx.Module) -> Variables:
    _, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}


@functools.cache
def _graphdef(construct: Construct, channels: int, classes: int) -> Any:
    """The static half of the module; nnx fixes the input channels at construction: callers read them off."""
    return nnx.split(nnx.eval_shape(lambda: construct(channels, classes, nnx.Rngs(0))))[0]


@functools.cache
def from_nnx(construct: Construct, classes: int, example: jax.ShapeDtypeStruct = DIGITS_IMAGE) -> Model:
    """Builds the model of the nnx module that ``construct`` makes, called as ``module(inputs, train)``; no dropout."""

    def merge(variables: Variables, inputs: Array) -> Any:
        graphdef = _graphdef(construct, inputs.shape[-1], classes)
        return nnx.merge(graphdef, variables["params"], variables["batch_stats"])

    def init(key: Array, inputs: Array) -> Variables:
        return _variables(construct(inputs.shape[-1], classes, nnx.Rngs(params=key)))

    def apply(variables: Variables, inputs: Array) -> Array:
        return merge(variables, inputs)(inputs, False)

    def apply_train(variables: Variables, inputs_key: tuple[Array, Array]) -> tuple[Array, State]:
        inputs, _ = inputs_key
        module = merge(variables, inputs)
        outputs = module(inputs, True)
        return outputs, {"batch_stats": _variables(module)["batch_stats"]}

    return Model(init, apply, apply_train, example)
