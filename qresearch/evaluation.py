"""Evaluation: the loss and the score of every example, in batches of one shape, for one model or a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from qresearch.data.dataset import Prepare, Split
from qresearch.devices import EXAMPLE, MEMBER, make_mesh, place, spread, to_host
from qresearch.streaming import StreamedBatches, place_batches, wait
from qresearch.tasks import Task

ACCELERATED = 32  # members evaluated at once by an accelerator


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
    return 1 if jax.default_backend() == "cpu" else ACCELERATED


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
    under vmap; with 1, one compiled step is used again for each. Where there are several devices, each has ``chunk``
    members of its own; where members are fewer than devices, each batch is split over the devices instead, over the
    largest number of them that divides its size. In memory at a time are ``IN_FLIGHT`` batches of those, and the
    results of all. on_done is called with the number of members finished.
    """
    count = len(jax.tree.leaves(members)[0])
    mesh = make_mesh(count, batches.targets.shape[1])
    devices = 1 if mesh is None else mesh.shape[MEMBER]
    chunk = min(chunk or default_chunk(), -(-count // devices))
    together = chunk * devices
    step = compiled_step(forward, task, prepare, chunk > 1, mesh)
    inputs, targets = batches.inputs, batches.targets
    if mesh is not None:  # each batch goes to the mesh from the host's memory
        shared = place(shared, mesh)
        inputs, targets = inputs if isinstance(inputs, StreamedBatches) else to_host(inputs), to_host(targets)
    losses, scores = list[np.ndarray](), list[np.ndarray]()
    for own in _chunks(members, count, together):
        row: list[tuple[Array, Array]] = []
        own = place(own, mesh, *([MEMBER] if together > 1 else []))
        for x, y in zip(inputs, targets):
            row.append(step(shared, own, place(x, mesh, EXAMPLE), place(y, mesh, EXAMPLE)))
            wait(row)
        for results, i in ((losses, 0), (scores, 1)):
            results.append(np.concatenate([np.asarray(part[i]) for part in row], axis=int(together > 1)))
        if on_done is not None:
            on_done(min(len(losses) * together, count))
    join = np.concatenate if together > 1 else np.stack
    return Scores(*(join(results)[:count, : batches.examples] for results in (losses, scores)))


@functools.lru_cache(maxsize=64)
def compiled_step(
    forward: Forward, task: Task, prepare: Prepare, many: bool, mesh: Mesh | None = None
) -> Callable[..., tuple[Array, Array]]:
    """The compiled (shared, own, inputs, targets) -> (loss, score) per example; many: see ``spread``."""

    def step(shared: Any, own: Any, inputs: Array, targets: Array) -> tuple[Array, Array]:
        outputs = forward(shared, own, prepare(inputs))
        return task.loss(outputs, targets), task.score(outputs, targets)

    return spread(step, mesh, (False, True, False, False), many, (None, None))


def _chunks(members: Any, count: int, chunk: int) -> Iterator[Any]:
    """Slices of the member axis, all of one length (the last one filled up); without the axis for chunks of one."""
    host = jax.tree.map(np.asarray, members)
    for start in range(0, count, chunk):
        index = start if chunk == 1 else np.minimum(np.arange(start, start + chunk), count - 1)
        yield jax.tree.map(lambda leaf, index=index: leaf[index], host)
