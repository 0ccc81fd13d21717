"""Frozen models on disk: a safetensors file, or an orbax checkpoint."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from qresearch.checkpoint import FACTS, load_checkpoint, save_checkpoint
from qresearch.errors import DataError
from qresearch.export.stored import Stored, from_stored, to_stored
from qresearch.frozen import Frozen
from qresearch.graph.trace import Function
from qresearch.qmodel import Params
from qresearch.results.atomic import read_bytes, write_bytes

SUFFIX = ".safetensors"
_KEY = "qresearch"  # of the header in a safetensors file's metadata


def save_frozen(path: Path, frozen: Frozen, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a frozen model: to one file if ``path`` ends in .safetensors (extra ``export``), else to an orbax folder.

    facts: what is to be kept beside it, of JSON's types. The file is replaced whole or not at all. DataError where it
    cannot be written.
    """
    stored = to_stored(frozen, facts)
    if path.suffix == SUFFIX:
        write_bytes(path, _encode(stored))
        return
    tensors = {name: [str(array.dtype), list(array.shape)] for name, array in stored.tensors.items()}
    save_checkpoint(path, stored.tensors, stored.header | {"tensors": tensors})


def load_frozen(path: Path, fn: Function, params: Params, x: Any) -> Frozen:
    """The frozen model in a file or folder, which must be of ``fn(params, x)``: of params and x only shapes are used.

    No float kernels are needed. DataError naming the file if it is missing, truncated, altered or of another model.
    """
    return from_stored(read_stored(path), fn, params, x, str(path))


def read_stored(path: Path) -> Stored:
    """What a file or folder of ``save_frozen`` holds; see ``load_frozen`` for what is refused."""
    return _read_file(path) if path.suffix == SUFFIX else _read_folder(path)


def _read_folder(path: Path) -> Stored:
    try:
        header = json.loads(read_bytes(path / FACTS))
        kinds = {name: jax.ShapeDtypeStruct(shape, np.dtype(kind)) for name, (kind, shape) in header["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a frozen model ({FACTS} is damaged)") from error
    tensors = load_checkpoint(path, kinds)  # compares the checksums of all files, of the one above too
    return Stored(tensors, {name: value for name, value in header.items() if name != "tensors"})


def _encode(stored: Stored) -> bytes:
    """The bytes of a safetensors file. A flipped bit in its arrays would be silent: the header has a digest of all."""
    header = json.dumps(stored.header | {"sha256": _digest(stored)}, separators=(",", ":"), sort_keys=True)
    return bytes(_safetensors().numpy.save(stored.tensors, metadata={_KEY: header}))


def _read_file(path: Path) -> Stored:
    library, data = _safetensors(), read_bytes(path)
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        digest, stored = header.pop("sha256"), Stored(library.numpy.load(data), header)
        # The second test catches what neither JSON nor the arrays would show, such as a changed blank.
        intact = digest == _digest(stored) and _encode(stored) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"{path}: not a whole safetensors file of qresearch") from error
    except library.SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error
    if not intact:
        raise DataError(f"{path}: was altered after it was written (sha256)")
    return stored


def _digest(stored: Stored) -> str:
    digest = hashlib.sha256(json.dumps(stored.header, sort_keys=True, separators=(",", ":")).encode())
    for name, array in sorted(stored.tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise DataError("safetensors files need the extra export: pip install 'qresearch[export]'") from error
    return safetensors
