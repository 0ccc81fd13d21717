"""What a data set is, and the two deterministic orders everything else relies on: the split and the shuffle.

Nothing in this folder imports JAX: ``prepare`` uses array methods only, so it runs on NumPy arrays and inside a
compiled step alike.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Int, Shaped

from qresearch.errors import DataError

FOLDER_VARIABLE = "QRESEARCH_DATA"

# Raw inputs [batch, ...] (NumPy or JAX) -> float32 model inputs [batch, ...]; jittable, always the same object.
Prepare: TypeAlias = Callable[[Any], Any]


class Streamed(Protocol):
    """Inputs that stay on disk: an array of which ``[indices]``, an index array or a slice, reads just those."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Examples, in memory or streamed. ``inputs``: images [n, height, width, channels] of uint8 or float, or token ids
    int32 [n, length]; ``targets``: what the task expects of each, int32 [n] where that is a class.
    """

    inputs: Shaped[np.ndarray, "n ..."] | Streamed
    targets: Shaped[np.ndarray, "n ..."]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits and how to turn their inputs into model inputs.

    Choose on ``validation``, report on ``test``. ``prepare`` belongs inside the compiled step, so that the
    inputs stay small (uint8) in memory. ``example_shape``: one prepared example, without the batch.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    prepare: Prepare
    example_shape: tuple[int, ...]
    source: str


@functools.lru_cache(maxsize=16)
def with_first(data: Dataset, examples: int | None) -> Dataset:
    """The data set with the first ``examples`` of its training examples only; the same object for the same arguments,
    so that what is compiled or placed for it is kept.
    """
    if examples is None or examples >= len(data.train):
        return data
    inputs = data.train.inputs
    first = inputs[:examples] if isinstance(inputs, np.ndarray) else _FirstStreamed(inputs, examples)
    return replace(data, train=Split(first, data.train.targets[:examples]))


class _FirstStreamed:
    """The first ``count`` of streamed inputs."""

    def __init__(self, inputs: Streamed, count: int) -> None:
        self._inputs, self._count = inputs, count
        self.shape, self.dtype = (count, *inputs.shape[1:]), inputs.dtype

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, indices: Any, /) -> np.ndarray:
        return self._inputs[np.arange(self._count)[indices]]


Loader: TypeAlias = Callable[[Path | None], Dataset]


def resolve_folder(folder: Path | None) -> Path | None:
    """Returns where the data lie: the configured folder, else the variable QRESEARCH_DATA, else None."""
    if folder is not None:
        return Path(folder).expanduser()
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else None


def require_folder(name: str, folder: Path | None, where: str) -> Path:
    """Returns the existing data folder; DataError, which says ``where`` to get the data, if none is given or it is
    no folder.
    """
    resolved = resolve_folder(folder)
    if resolved is None:
        raise DataError(f"{name}: no data folder given, and the data are not part of qresearch; {where}")
    if not resolved.is_dir():
        raise DataError(f"{name}: the data folder {resolved} is not a folder; {where}")
    return resolved


def _permutation(seed: np.random.SeedSequence, n: int) -> Int[np.ndarray, "n"]:
    # Sorting raw 64-bit draws: NumPy promises the stream of a bit generator, but not Generator.permutation's
    # algorithm, and a split or a resumed run must not change with the NumPy version.
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def epoch_permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, "n"]:
    """Computes the order in which epoch ``epoch`` visits ``n`` examples: a function of its arguments alone.

    A resumed run asks for the same epoch and gets the same order; no generator state is stored.
    """
    # spawn_key, not [seed, epoch]: concatenated words collide for seeds of more than 32 bits.
    return _permutation(np.random.SeedSequence(seed, spawn_key=(epoch,)), n)


def stratified_order(targets: Int[np.ndarray, "n"], seed: int) -> Int[np.ndarray, "n"]:
    """Computes a shuffled order of which any consecutive run holds the classes in proportion, to one example.

    Within a class the order is random; example ``r`` of a class of ``m`` is placed at ``(r + 1/2) / m``.
    """
    order = _permutation(np.random.SeedSequence(seed), len(targets))
    place = np.empty(len(targets))
    for label in np.unique(targets):
        members = order[targets[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place[order], kind="stable")]
