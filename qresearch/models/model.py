"""What a model is: three pure functions over a plain nested dict of variables.

The only flax in qresearch is in this folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array

# {"params": {...}, further collections such as "batch_stats": {...}}; nested dicts with string keys.
Variables: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]  # the collections of Variables other than "params"
Init: TypeAlias = Callable[[Array, Array], Variables]
Apply: TypeAlias = Callable[[Variables, Array], Array]
ApplyTrain: TypeAlias = Callable[[Variables, tuple[Array, Array]], tuple[Array, State]]


def image(size: int, channels: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one square image, without the batch: float32 [size, size, channels]."""
    return jax.ShapeDtypeStruct((size, size, channels), np.float32)


DIGITS_IMAGE = image(8, 1)


class Model(NamedTuple):
    """A float model.

    ``init(key, inputs) -> variables``; ``apply(variables, inputs) -> outputs`` evaluates deterministically;
    ``apply_train(variables, (inputs, key)) -> (outputs, state)`` uses batch statistics and dropout, and returns
    the collections other than "params" after the step. Inputs: float32 [batch, ...], or int32 [batch, time] ids;
    outputs: [batch, classes], or [batch, ..., channels] with one place per token or cell.
    ``example``: one input without its batch axis, as the model was published for; others may fit as well.
    Compile ``init`` once with ``jax.jit`` where speed matters: nothing here jits itself.

    The functions are jit and memoisation keys, so a factory returns the same objects for the same arguments.
    """

    init: Init
    apply: Apply
    apply_train: ApplyTrain
    example: jax.ShapeDtypeStruct = DIGITS_IMAGE


Factory: TypeAlias = Callable[[int], Model]  # number of classes -> Model


@functools.cache  # linen modules are hashed by their fields, so equal modules share one set of functions
def from_linen(module: nn.Module, example: jax.ShapeDtypeStruct = DIGITS_IMAGE) -> Model:
    """Builds the model of a linen module called as ``module(inputs, train)``; dropout draws from ``key``."""

    def init(key: Array, inputs: Array) -> Variables:
        return module.init(key, inputs, False)

    def apply(variables: Variables, inputs: Array) -> Array:
        return module.apply(variables, inputs, False)

    def apply_train(variables: Variables, inputs_key: tuple[Array, Array]) -> tuple[Array, State]:
        inputs, key = inputs_key
        mutable = [name for name in variables if name != "params"]
        return module.apply(variables, inputs, True, rngs={"dropout": key}, mutable=mutable)

    return Model(init, apply, apply_train, example)
