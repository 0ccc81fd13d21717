"""Weight files: an npz of float arrays, named by parameter path, into a model's variables."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from qresearch.errors import DataError, did_you_mean
from qresearch.models.model import Variables

# What NumPy and zipfile raise on a file that is cut short, altered, not an npz, or holds pickled objects.
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)
ADVICE = "expected an npz of float arrays; export or copy the file again"


def load_npz(path: Path, template: Variables) -> Variables:
    """Reads the npz at ``path`` into variables of the structure, shapes and dtypes of ``template``.

    An array is named by its path inside its collection: ``bn1/scale`` is ``params`` / bn1 / scale, ``bn1/mean``
    is ``batch_stats`` / bn1 / mean. ``template``: arrays, or shapes from ``jax.eval_shape(model.init, ...)``.
    DataError names the file and the array if one is missing, extra, unreadable, not finite, or of another shape
    or dtype. Nothing in the file is unpickled.
    """
    wanted = traverse_util.flatten_dict(template)
    names = {leaf: "/".join(leaf[1:]) for leaf in wanted}
    arrays = _read(path)
    _same_names(path, names.values(), arrays)
    loaded = {leaf: _checked(path, names[leaf], arrays[names[leaf]], like) for leaf, like in wanted.items()}
    return traverse_util.unflatten_dict(loaded)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise DataError(f"weights: {path} is missing; {ADVICE}")
    with Path(path).open("rb") as file:  # opened here: np.load leaves its own file open when it raises
        try:
            archive = np.load(file, allow_pickle=False)
        except UNREADABLE as error:
            raise DataError(f"weights: {path} is truncated or not an npz ({error}); {ADVICE}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"weights: {path} holds one bare array, not an npz; {ADVICE}")
        with archive:
            return {name: _member(path, archive, name) for name in archive.files}


def _member(path: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return archive[name]
    except UNREADABLE as error:
        raise DataError(f"weights: {path}: array '{name}' cannot be read ({error}); {ADVICE}") from error


def _same_names(path: Path, wanted: Iterable[str], given: Iterable[str]) -> None:
    wanted, given = set(wanted), set(given)
    if missing := sorted(wanted - given):
        hint = did_you_mean(missing[0], given - wanted) if given - wanted else ""
        raise DataError(
            f"weights: {path} has no array '{missing[0]}' ({len(missing)} missing); is it this model's?{hint}"
        )
    if extra := sorted(given - wanted):
        raise DataError(f"weights: {path} has array '{extra[0]}' ({len(extra)} extra) that the model has no place for")


def _checked(path: Path, name: str, array: np.ndarray, like: Any) -> Any:
    if array.shape != like.shape or array.dtype != like.dtype:
        raise DataError(
            f"weights: {path}: array '{name}' is {array.dtype}{list(array.shape)}, "
            f"expected {like.dtype}{list(like.shape)}; is the file of this model and this number of classes?"
        )
    if not np.isfinite(array).all():
        raise DataError(f"weights: {path}: array '{name}' holds NaN or infinity; export the weights again")
    return jnp.asarray(array)
