"""Evaluation: the loss and the score of every example, in batches of one shape, for one model or a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.data.dataset import Prepare, Split
from qresearch.streaming import StreamedBatches, place_batches, wait
from qresearch.tasks import Task


class Forward(Protocol):
    """``forward(shared, own, x) -> outputs``: shared is common to a population, own is one member's. Hashable."""

    def __hash__(self) -> int: ...

    def __call__(self, shared: Any, own: Any, x: Array, /) -> Any: ...


class Scores(NamedTuple):
    """Per-example results, float32: [example], or [member, example] for a population.

    score: what ``task.score`` gives for each example, which may have further axes; ``task.reduce`` makes it a number.
    """

    loss: Float[np.ndarray, "... example"]
    score: Float[np.ndarray, "..."]


class Batches(NamedTuple):
    """Examples cut into batches of one shape, so that one program serves them all. The last one is filled up.

    inputs: the batches [size, ...], one array [batch, size, ...] on the device, or read one by one where the data are
    streamed. targets [batch, size, ...] live on the device; examples: how many are real.
    """

    inputs: Array | StreamedBatches
    targets: Array
    examples: int


def make_batches(split: Split, size: int, examples: int | None = None) -> Batches:
    """The first ``examples`` of a split (all of them by default) in batches of ``size``."""
    count = len(split) if examples is None else min(examples, len(split))
    batches = -(-count // size)
    # The filling repeats real examples: zeros may lie outside the data's domain.
    order = (np.arange(batches * size) % count).reshape(batches, size)
    return Batches(
        place_batches(split.inputs, order),
        jnp.asarray(split.targets[order]),
        count,
    )


def default_chunk() -> int:
    """Members evaluated at once: 1 on CPU, where vmap over convolution kernels is several times slower than a loop."""
    return 1 if jax.default_backend() == "cpu" else 32


def evaluate(
    forward: Forward,
    task: Task,
    prepare: Prepare,
    shared: Any,
    members: Any,
    batches: Batches,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Scores:
    """Loss and score of every member of a population on every example: [member, example], see ``Scores``.

    members: a pytree whose leaves have a leading member axis; ``shared`` has none. ``chunk`` members run in one program
    under vmap; with 1, one compiled step is used again for each. on_done is called with the number of members finished.
    """
    count = len(jax.tree.leaves(members)[0])
    chunk = min(chunk or default_chunk(), count)
    step = compiled_step(forward, task, prepare, chunk > 1)
    rows: list[list[tuple[Array, Array]]] = []
    for own in _chunks(members, count, chunk):
        row: list[tuple[Array, Array]] = []
        for x, y in zip(batches.inputs, batches.targets):
            row.append(step(shared, own, x, y))
            wait(row)
        rows.append(row)
        if on_done is not None:
            jax.block_until_ready(rows[-1])
            on_done(min(len(rows) * chunk, count))
    gather = functools.partial(_gather, count=count, examples=batches.examples, many=chunk > 1)
    return Scores(*(gather([[part[i] for part in row] for row in rows]) for i in (0, 1)))


@functools.lru_cache(maxsize=64)
def compiled_step(forward: Forward, task: Task, prepare: Prepare, many: bool) -> Callable[..., tuple[Array, Array]]:
    """The jitted (shared, own, inputs, targets) -> (loss, score) per example; with ``many`` over a leading axis of
    own.
    """

    def step(shared: Any, own: Any, inputs: Array, targets: Array) -> tuple[Array, Array]:
        outputs = forward(shared, own, prepare(inputs))
        return task.loss(outputs, targets), task.score(outputs, targets)

    return jax.jit(jax.vmap(step, in_axes=(None, 0, None, None)) if many else step)


def _chunks(members: Any, count: int, chunk: int) -> Iterator[Any]:
    """Slices of the member axis, all of one length (the last one filled up); without the axis for chunks of one."""
    host = jax.tree.map(np.asarray, members)
    for start in range(0, count, chunk):
        index = start if chunk == 1 else np.minimum(np.arange(start, start + chunk), count - 1)
        yield jax.tree.map(lambda leaf, index=index: leaf[index], host)


def _gather(rows: list[list[Array]], count: int, examples: int, many: bool) -> np.ndarray:
    """[member, example, ...] from per-chunk lists of per-batch arrays ([size, ...], with ``many`` [chunk, size, ...]),
    without the filling.
    """
    members = [np.concatenate([np.asarray(part) for part in row], axis=int(many)) for row in rows]
    return (np.concatenate(members) if many else np.stack(members))[:count, :examples]
