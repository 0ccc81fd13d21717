"""Whether a data set, a model and a task belong together: found from shapes, before anything is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qresearch.config import RunConfig
from qresearch.errors import ConfigError
from qresearch.sweep.assemble import Setup, shapes_of

BATCH = 2  # more than one: a loss that forgets the examples would have the shape of one


def check_fit(config: RunConfig, setup: Setup) -> None:
    """ConfigError where the model cannot take the data set's examples, or the task the model's outputs and targets.

    Asked of the functions themselves, so that a new model, data set or task is checked without being listed anywhere.
    """
    variables, x = shapes_of_batch(setup, config)
    outputs = jax.eval_shape(setup.model.apply, variables, x)
    targets = _batch(setup.data.train.targets.shape, setup.data.train.targets.dtype)
    try:
        loss = jax.eval_shape(setup.task.loss, outputs, targets).shape
    except (TypeError, ValueError, IndexError):  # what operations on unfit shapes and types raise
        loss = None
    if loss != (BATCH,):
        raise ConfigError(
            f"task: '{config.task}' cannot hold the outputs {_text(outputs)} of model '{config.model.name}' against the"
            f" targets {_text(targets)} of data '{config.data.name}'; name a task, a model and data that go together"
        )


def shapes_of_batch(setup: Setup, config: RunConfig) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """``shapes_of`` with a batch of ``BATCH`` examples; ConfigError for token ids where pixels belong, and the like."""
    x = jax.eval_shape(setup.data.prepare, _batch(setup.data.train.inputs.shape, setup.data.train.inputs.dtype))
    example = setup.model.example
    if jnp.issubdtype(x.dtype, jnp.integer) != jnp.issubdtype(example.dtype, jnp.integer):
        raise ConfigError(
            f"model: '{config.model.name}' takes {example.dtype} such as {list(example.shape)}, and data"
            f" '{config.data.name}' give {x.dtype} {list(x.shape[1:])}; name a model and data that go together"
        )
    return shapes_of(setup)[0], x


def _batch(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((BATCH, *shape[1:]), dtype)


def _text(array: jax.ShapeDtypeStruct) -> str:
    return f"{array.dtype} [{', '.join(['batch', *map(str, array.shape[1:])])}]"
