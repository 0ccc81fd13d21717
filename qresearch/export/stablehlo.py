"""StableHLO: a compiled function as a file that JAX runs on any device, without the Python that it was made from.

The file is what ``jax.export`` writes, so that JAX alone can load it: ``jax.export.deserialize(data).call(*leaves)``.
JAX promises to read it for half a year: it is for deployment, not an archive. A flipped bit in it can load and compute
something else, so a sealed JSON file beside it holds its sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import export
from jaxtyping import Array

from qresearch.errors import DataError
from qresearch.results.atomic import make_folder, read_bytes, write_bytes
from qresearch.results.sealed import read_sealed, write_sealed

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = "batch"


class Program(NamedTuple):
    """A function of arrays, called as ``program(*leaves) -> [leaf, ...]``. facts: what was stored beside it."""

    exported: export.Exported
    facts: Mapping[str, Any]

    def __call__(self, *leaves: Any) -> list[Array]:
        return jax.jit(self.exported.call)(*leaves)


def any_batch(x: Any) -> Any:
    """The shapes of a pytree of arrays, with any number of examples in place of the first axis."""
    (batch,) = export.symbolic_shape(BATCH)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), x)


def export_program(
    function: Callable[..., Any], arguments: Sequence[Any], platforms: Sequence[str] = PLATFORMS
) -> Program:
    """``function(*arguments)`` for all platforms at once, as a function of the leaves of its arguments to those of its
    output. arguments: pytrees of arrays or of their shapes, see ``any_batch``.

    Of leaves, because trees hold classes of ours that whoever loads the file may not have. A function that is already
    jitted is exported as it is.
    """
    leaves, structure = jax.tree.flatten(tuple(arguments))

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    shapes = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in leaves]
    exported = export.export(jax.jit(flat), platforms=platforms)(*shapes)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tuple(arguments))[0]]
    # Named by what JAX says of them: a batch of any size is in there as its symbol.
    inputs = [f"{path}: {aval.str_short()}" for path, aval in zip(paths, exported.in_avals)]
    facts = {"inputs": inputs, "outputs": [aval.str_short() for aval in exported.out_avals]}
    return Program(exported, {"jax": jax.__version__, "platforms": list(exported.platforms), **facts})


def save_program(path: Path, program: Program, facts: Mapping[str, Any]) -> None:
    """Writes the program to ``path``, and beside it (``.json`` after its name) the facts and the sha256 of it all."""
    data = bytes(program.exported.serialize())
    make_folder(path.parent)
    write_bytes(path, data)
    digest = hashlib.sha256(data).hexdigest()
    write_sealed(_beside(path), {**facts, **program.facts, "bytes": len(data), "program_sha256": digest})


def load_program(path: Path) -> Program:
    """What ``save_program`` wrote. DataError that names the file if it, or the one beside it, is not what was written,
    or if this version of JAX cannot read it.
    """
    facts, data = read_sealed(_beside(path)), read_bytes(path)
    if facts.get("program_sha256") != hashlib.sha256(data).hexdigest():
        raise DataError(f"{path}: is not the program that {_beside(path).name} is about; export it again")
    try:
        return Program(export.deserialize(bytearray(data)), facts)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: JAX {jax.__version__} cannot read what JAX {facts.get('jax')} wrote: {reason}"
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
