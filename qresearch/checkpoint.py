"""Checkpoints of variables and qparams, through orbax, with a checksum of every file.

Orbax has no checksum on array data (a flipped bit is read as another number), and it pads, cuts and casts arrays to the
shapes and dtypes it is asked for. So a manifest beside its files says what they were and what they hold.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qresearch.devices import is_first
from qresearch.errors import DataError
from qresearch.results.atomic import make_folder, read_bytes, write_json, write_text

MANIFEST = "sha256.json"
FACTS = "facts.json"

# Orbax logs the tracebacks of what it also raises, one for every thread; here an error is one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def save_checkpoint(path: Path, tree: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a pytree of arrays (nested dicts and NamedTuples) to the folder ``path``, replacing what is there.

    facts: what is to be kept beside the arrays, of JSON's types. Orbax writes beside the folder and renames, and the
    manifest comes last: a killed process leaves the old checkpoint, none, or one without a manifest, which is refused;
    never half of one. DataError where it cannot be written. Of several processes only the first writes.
    """
    if not is_first():
        return
    path = path.absolute()
    make_folder(path.parent)
    # Asked here, because orbax answers a failed start with threads that wait for it, and tracebacks of theirs.
    if not os.access(path.parent, os.W_OK) or (path.exists() and not path.is_dir()):
        raise DataError(f"cannot write the checkpoint {path}: there is a file in its place, or no permission")
    try:
        # Asked too: of the arrays that do not fit, orbax waits for the first, and the others end in tracebacks.
        if shutil.disk_usage(path.parent).free < sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _checkpointer() as checkpointer:
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)
        if facts is not None:
            write_text(path / FACTS, json.dumps(facts))
        files = {file.relative_to(path).as_posix(): _digest(file) for file in path.rglob("*") if file.is_file()}
        write_json(path / MANIFEST, {"files": files, "leaves": _leaves(tree)})
    except (OSError, ValueError, RuntimeError) as error:  # its storage library raises the last two for a full disk
        raise DataError(f"cannot write the checkpoint {path}: {_reason(error)}") from error


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
        with _checkpointer() as checkpointer:
            tree = checkpointer.restore(path, shapes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, _reason(error)) from error
    return jax.tree.map(np.asarray, tree)


def load_facts(path: Path) -> dict[str, Any]:
    """The facts in a checkpoint that ``load_checkpoint`` has found whole. DataError if it has none."""
    return dict(json.loads(read_bytes(path / FACTS)))


def _checkpointer() -> ocp.StandardCheckpointer:
    """One that waits for no other process."""
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _reason(error: Exception) -> str:
    """One line: the system's words where there are any, also those for the number in a message of the storage
    library.
    """
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


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
