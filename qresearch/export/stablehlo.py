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
import numpy as np
from jax import export
from jaxtyping import Array

from qresearch.errors import DataError
from qresearch.export.batch import UNTRACEABLE, any_batch, with_batch
from qresearch.results.atomic import make_folder, read_bytes, write_bytes
from qresearch.results.sealed import read_sealed, write_sealed

PLATFORMS = ("cpu", "cuda", "tpu")
FIXED = 128  # examples at a time, of a function that cannot be traced for any number of them


class Program(NamedTuple):
    """A function of arrays, called as ``program(*leaves) -> [leaf, ...]``. facts: what is stored beside it."""

    exported: export.Exported
    facts: Mapping[str, Any]
    compiled: Callable[..., Any]

    def __call__(self, *leaves: Any) -> list[Array]:
        return self.compiled(*leaves)


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
    facts: dict[str, Any] = {"inputs": inputs, "outputs": [aval.str_short() for aval in exported.out_avals]}
    facts |= {"jax": jax.__version__, "platforms": list(exported.platforms)}
    return Program(exported, facts, jax.jit(exported.call))


def export_model(forward: Callable[[Any], Any], x: Any, batch: int | None = None) -> Program:
    """``forward(x)``, one array of one array, for so many examples at a time; None: for any number.

    A function that cannot be traced for any number is exported for ``FIXED`` examples; ``facts`` say so.
    """
    said: dict[str, Any] = {"batch": "any" if batch is None else batch}
    if batch is not None:
        program = export_program(forward, [with_batch(x, batch)])
    else:
        try:
            program = export_program(forward, [any_batch(x)])
        except UNTRACEABLE as error:
            reason = f"the function cannot be traced for any number of examples ({str(error).partition(chr(10))[0]})"
            program, said = export_program(forward, [with_batch(x, FIXED)]), {"batch": FIXED, "why": reason}
    return program._replace(facts={**program.facts, **said})


def run_model(program: Program, x: Any) -> np.ndarray:
    """The output of an exported model for any number of examples, in pieces of its own number."""
    size = program.facts["batch"]
    if size == "any":
        return np.asarray(program(x)[0])
    places = [np.minimum(np.arange(start, start + size), len(x) - 1) for start in range(0, len(x), size)]
    return np.concatenate([np.asarray(program(np.asarray(x)[place])[0]) for place in places])[: len(x)]


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
        exported = export.deserialize(bytearray(data))
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: JAX {jax.__version__} cannot read what JAX {facts.get('jax')} wrote: {reason}"
        ) from error
    return Program(exported, facts, jax.jit(exported.call))


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
