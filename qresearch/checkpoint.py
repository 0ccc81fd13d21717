"""Checkpoints of variables and qparams, through orbax, with a checksum of every file.

Orbax has no checksum on array data (a flipped bit is read as another number), and it pads, cuts and casts arrays to the
shapes and dtypes it is asked for. So a manifest beside its files says what they were and what they hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qresearch.errors import DataError
from qresearch.results.atomic import make_folder, read_bytes, write_json

MANIFEST = "sha256.json"


def save_checkpoint(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays (nested dicts and NamedTuples) to the folder ``path``, replacing what is there.

    Orbax writes beside it and renames, and the manifest comes last: a killed process leaves the old checkpoint, none,
    or one without a manifest, which is refused; never half of one.
    """
    path = path.absolute()
    make_folder(path.parent)
    # Asked here, because orbax answers a failed start with threads that wait for it, and tracebacks of theirs.
    if not os.access(path.parent, os.W_OK) or (path.exists() and not path.is_dir()):
        raise DataError(f"cannot write the checkpoint {path}: there is a file in its place, or no permission")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)
        files = {file.relative_to(path).as_posix(): _digest(file) for file in path.rglob("*") if file.is_file()}
        write_json(path / MANIFEST, {"files": files, "leaves": _leaves(tree)})
    except OSError as error:
        raise DataError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def load_checkpoint(path: Path, template: Any) -> Any:
    """The pytree in a checkpoint, which must have the structure, shapes and dtypes of ``template``.

    DataError naming the folder if it is missing, incomplete, altered or of another model.
    """
    path = path.absolute()
    problem = _problem(path, template)
    if problem is not None:
        raise _refused(path, problem)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), template)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path, shapes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return jax.tree.map(np.asarray, tree)


def _problem(path: Path, template: Any) -> str | None:
    """What is wrong with the files of a checkpoint, or with what they hold."""
    try:
        manifest = json.loads(read_bytes(path / MANIFEST))
        files, leaves = dict(manifest["files"]), dict(manifest["leaves"])
        altered = next((name for name, digest in files.items() if _digest(path / name) != digest), None)
    except (DataError, ValueError, KeyError, TypeError) as error:
        return str(error)
    if altered is not None:
        return f"{altered} was altered"
    wanted = _leaves(template)
    other = next((name for name in [*wanted, *leaves] if wanted.get(name) != leaves.get(name)), None)
    return other and f"{other} is {leaves.get(other, 'missing')}, expected {wanted.get(other, 'nothing')}"


def _refused(path: Path, reason: str) -> DataError:
    advice = "one that training left can be deleted, to be made again"
    return DataError(f"{path}: not a complete checkpoint of this model ({reason}); {advice}")


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _leaves(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path, as text: ``['params']['kernel']`` is ``float32[3, 4]``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(np.shape(leaf))}" for path, leaf in leaves}
