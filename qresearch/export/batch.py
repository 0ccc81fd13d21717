"""The shapes of inputs for any number of examples, and what tracing raises where a function needs to know it."""

from __future__ import annotations

from typing import Any

import jax

from qresearch.errors import GraphError

UNTRACEABLE = (
    TypeError,
    ValueError,
    ArithmeticError,
    GraphError,
    jax.errors.JAXTypeError,
    jax.errors.InconclusiveDimensionOperation,
)


def any_batch(x: Any) -> Any:
    """The shapes of a pytree of arrays, with any number of examples in place of the first axis."""
    (batch,) = jax.export.symbolic_shape("batch")
    return with_batch(x, batch)


def with_batch(x: Any, batch: Any) -> Any:
    """The shapes of a pytree of arrays, with ``batch`` (a number or a symbol) in place of the first axis."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), x)
