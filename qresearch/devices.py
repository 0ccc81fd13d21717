"""How work is spread over devices, of one process or of several: the meshes, and what lies where on them.

A mesh has the axes MEMBER and EXAMPLE, one of which has the length 1: a population of at least as many members as there
are devices is split by its members; of a smaller one, each batch is split by its examples, in one global program, so
that statistics of a batch are those of the whole batch. Without a mesh a program runs on one device, as if this module
were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qresearch.errors import DataError

MEMBER, EXAMPLE = "member", "example"


def join(address: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several that run the same program on the same trials; before JAX is used.

    address: ``host:port`` of the first process. processes: how many there are; process: the number of this one, from 0.
    All None: found out, as on Slurm or a TPU. On CPUs they talk through gloo. What a run stores must be on a file
    system that all of them share; only the first process writes (``is_first``).
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, process)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def meet(what: str) -> None:
    """Returns when all processes are here. What the first one wrote before is there for the others after it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_begin(error: Exception | None) -> None:
    """Raises the error of this process, or in the others one that says that another has one: nobody waits in vain."""
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.int32(error is None))
        if error is None and not np.all(fine):
            raise DataError("another of the processes cannot begin; see what it says")
    if error is not None:
        raise error


def make_mesh(members: int, examples: int) -> Mesh | None:
    """The mesh for programs of ``members`` members on batches of ``examples``; None where one device does the work.

    Where members are fewer than devices, the largest number of devices is taken that divides the examples, as many of
    each process. If there is no such number but 1, the work is done by one device: by one of each process, which then
    all do the same.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    if members >= len(devices):
        return Mesh(np.array(devices)[:, None], (MEMBER, EXAMPLE))
    processes = jax.process_count()
    each = max((k for k in range(1, jax.local_device_count() + 1) if examples % (k * processes) == 0), default=0)
    if each * processes < 2:
        return None
    taken = [own for i in range(processes) for own in jax.local_devices(process_index=i)[:each]]
    return Mesh(np.array(taken)[None], (MEMBER, EXAMPLE))


def group_sizes(members: int, chunk: int) -> Iterator[int]:
    """The sizes of groups that run in one program: ``chunk`` members on every device while there are enough for all
    devices, then ``chunk`` in all.
    """
    devices = jax.device_count()
    while members:
        size = min(members, chunk * devices)
        size = size - size % devices if size >= devices else min(size, chunk)
        yield size
        members -= size


def place(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """The arrays of a tree on a mesh, ``axes`` split over the mesh's of these names, the others whole on every device.
    Every process gives the same arrays.
    """
    if mesh is None:
        return tree
    # An axis of one device is no split, and must not look like one: equal programs are found by their shardings.
    names = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in axes]
    while names and names[-1] is None:
        names.pop()
    sharding = NamedSharding(mesh, PartitionSpec(*names))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """The arrays of a tree in the memory of every process, wherever they lie."""

    def fetch(leaf: Any) -> Any:
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf) if here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(fetch, tree)


def spread(
    function: Callable[..., Any], mesh: Mesh | None, own: Sequence[bool], many: bool, outputs: Sequence[str | None]
) -> Callable[..., Any]:
    """``function`` compiled for a mesh, whose arguments must be where ``place`` puts them.

    own: which arguments have a leading axis of members, where there are several. many: several of them run on each
    device, under vmap. outputs: MEMBER for one that stays split by members, None for one that becomes whole everywhere.
    """
    axes = tuple(0 if has else None for has in own)
    run = jax.vmap(function, in_axes=axes) if many else function
    if mesh is None:
        return jax.jit(run)
    whole = NamedSharding(mesh, PartitionSpec())
    if mesh.shape[MEMBER] == 1:
        return jax.jit(run, out_shardings=whole)

    # Not vmap for one: a convolution whose kernels have a member axis is several times slower on CPU.
    def alone(*arguments: Any) -> Any:
        found = function(*(_first(argument) if has else argument for argument, has in zip(arguments, own)))
        return jax.tree.map(lambda leaf: leaf[None], found)

    split = jax.shard_map(
        run if many else alone,
        mesh=mesh,
        in_specs=tuple(PartitionSpec(MEMBER) if has else PartitionSpec() for has in own),
        out_specs=PartitionSpec(MEMBER),
        check_vma=False,  # what an interpreted jaxpr holds was traced without a mesh
    )
    by_member = NamedSharding(mesh, PartitionSpec(MEMBER))
    return jax.jit(split, out_shardings=tuple(whole if axis is None else by_member for axis in outputs))


def agreed(value: int, what: str) -> int:
    """The value, which all processes must have found; DataError, that says ``what`` it is, in all of them if not."""
    if jax.process_count() > 1:
        found = np.unique(multihost_utils.process_allgather(np.int32(value))).tolist()
        if len(found) > 1:
            raise DataError(
                f"processes found different {what}: {found}; give them a file system that all of them share"
            )
    return value


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)
