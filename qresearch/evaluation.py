"""Evaluation: the loss and the score of every example, in batches of one shape, for one model or a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from qresearch.data.dataset import Prepare, Split
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
    members of its own. In memory at a time are ``IN_FLIGHT`` batches of those, and the results of all. on_done is
    called with the number of members finished.
    """
    count = len(jax.tree.leaves(members)[0])
    mesh = _mesh(count)
    devices = 1 if mesh is None else mesh.size
    chunk = min(chunk or default_chunk(), -(-count // devices))
    step = compiled_step(forward, task, prepare, chunk > 1, mesh)
    if mesh is not None:
        shared = jax.device_put(shared, NamedSharding(mesh, PartitionSpec()))
    together, losses, scores = chunk * devices, list[np.ndarray](), list[np.ndarray]()
    for own in _chunks(members, count, together):
        row: list[tuple[Array, Array]] = []
        for x, y in zip(batches.inputs, batches.targets):
            row.append(step(shared, own, x, y))
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
    """The jitted (shared, own, inputs, targets) -> (loss, score) per example; with ``many`` or a mesh over a leading
    axis of own, which a mesh splits over its devices.
    """

    def step(shared: Any, own: Any, inputs: Array, targets: Array) -> tuple[Array, Array]:
        outputs = forward(shared, own, prepare(inputs))
        return task.loss(outputs, targets), task.score(outputs, targets)

    run = jax.vmap(step, in_axes=(None, 0, None, None)) if many else step
    if mesh is None:
        return jax.jit(run)

    def alone(shared: Any, own: Any, inputs: Array, targets: Array) -> tuple[Array, Array]:
        found = step(shared, jax.tree.map(lambda leaf: leaf[0], own), inputs, targets)
        return jax.tree.map(lambda leaf: leaf[None], found)

    members = PartitionSpec(mesh.axis_names[0])
    everywhere = PartitionSpec()
    split = jax.shard_map(
        run if many else alone,
        mesh=mesh,
        in_specs=(everywhere, members, everywhere, everywhere),
        out_specs=members,
        check_vma=False,  # what an interpreted jaxpr holds was traced without a mesh
    )
    return jax.jit(split)


def _mesh(count: int) -> Mesh | None:
    """A mesh over this process's devices, no more than there are members; None for one."""
    devices = jax.local_devices()[:count]
    return Mesh(np.array(devices), ("member",)) if len(devices) > 1 else None


def _chunks(members: Any, count: int, chunk: int) -> Iterator[Any]:
    """Slices of the member axis, all of one length (the last one filled up); without the axis for chunks of one."""
    host = jax.tree.map(np.asarray, members)
    for start in range(0, count, chunk):
        index = start if chunk == 1 else np.minimum(np.arange(start, start + chunk), count - 1)
        yield jax.tree.map(lambda leaf, index=index: leaf[index], host)
