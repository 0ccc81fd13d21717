"""Checkpoints of variables and qparams, through orbax."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qresearch.errors import DataError


def save_checkpoint(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays (nested dicts and NamedTuples) to the folder ``path``, replacing what is there.

    Orbax writes beside it and renames: a killed process leaves the old checkpoint or none, never half of one.
    """
    path = path.absolute()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)
    except OSError as error:
        raise DataError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error


def load_checkpoint(path: Path, template: Any) -> Any:
    """The pytree in a checkpoint, which must have the structure, shapes and dtypes of ``template``.

    DataError naming the folder if it is missing, incomplete or of another model.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), template)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path.absolute(), shapes)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: not a complete checkpoint of this model ({reason}); delete it to train again"
        ) from error
    return jax.tree.map(np.asarray, tree)


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
