"""How examples reach the device: all at once where they are in memory, batch by batch where they are streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from qresearch.data.dataset import Split, Streamed
from qresearch.devices import EXAMPLE, MEMBER, place

# Batches given to the device before the first of them is done: enough to keep it busy while the next is decoded, and
# a bound on the memory of streamed batches. JAX itself would queue dozens.
IN_FLIGHT = 4
# Of decoded batches that are kept, so that a pass over few examples for each of many members decodes them once.
KEPT_BYTES = 2**28


class StreamedBatches(Sequence[np.ndarray]):
    """Batches of streamed inputs, read when they are asked for; the first, as many as fit in 256 MiB, are kept."""

    def __init__(self, inputs: Streamed, order: Int[np.ndarray, "batch size"]) -> None:
        self._inputs, self._order = inputs, order
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> StreamedBatches: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | StreamedBatches:
        if isinstance(index, slice):
            return StreamedBatches(self._inputs, self._order[index])
        if index in self._kept:
            return self._kept[index]
        batch = self._inputs[self._order[index]]
        if 0 <= index < KEPT_BYTES // batch.nbytes:
            self._kept[index] = batch
        return batch


def place_batches(inputs: np.ndarray | Streamed, order: Int[np.ndarray, "batch size"]) -> Array | StreamedBatches:
    """The batches of ``order``: one array [batch, size, ...] on the device, or streamed."""
    return jnp.asarray(inputs[order]) if isinstance(inputs, np.ndarray) else StreamedBatches(inputs, order)


class Feed(Protocol):
    """``feed(order)`` -> (inputs, targets, indices into them) of every step, in the shapes of one compiled program.

    order: which examples each step takes, [step, size], or [trial, step, size] where several trials step together.
    """

    def __call__(self, order: Int[np.ndarray, "... step size"], /) -> Iterator[tuple[Any, Any, Any]]: ...


def make_feed(split: Split, mesh: Mesh | None = None) -> Feed:
    """Feeds all of the data, placed once, where they are in memory; else the examples of each step.

    On a mesh every device has what is fed, and its share of the indices: of trials, or of examples.
    """
    source = split.inputs

    def own(indices: Int[np.ndarray, "... size"]) -> Any:
        return place(indices, mesh, *([MEMBER] if indices.ndim > 1 else []), EXAMPLE)

    if isinstance(source, np.ndarray):
        data = place((jnp.asarray(source), jnp.asarray(split.targets)), mesh)
        return lambda order: ((*data, own(indices)) for indices in np.moveaxis(order, -2, 0))

    def stream(order: Int[np.ndarray, "... step size"]) -> Iterator[tuple[Any, Any, Any]]:
        for indices in np.moveaxis(order, -2, 0):
            local = np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
            yield (*place((source[indices.ravel()], split.targets[indices.ravel()]), mesh), own(local))

    return stream


def wait(results: Sequence[Any]) -> None:
    """Waits until no more than ``IN_FLIGHT`` of the latest results are still to come."""
    if len(results) > IN_FLIGHT:
        jax.block_until_ready(results[-1 - IN_FLIGHT])
