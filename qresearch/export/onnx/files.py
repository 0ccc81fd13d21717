"""ONNX files: written whole, read only if nobody changed them, and checked by running them in ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qresearch.errors import DataError
from qresearch.export.onnx.packages import import_onnx, import_onnxruntime
from qresearch.results.atomic import read_bytes, write_bytes

# Without them ONNX Runtime's default optimization changes results on x86 CPUs without VNNI: products of uint8 and int8
# saturate in 16 bits, and what meets INT4 weights is rounded to int8. Each is a session option of this name and value.
SESSION_OPTIONS = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "0"}
DIGEST = "qresearch.sha256"
CHUNK = 500  # examples in one call of a session that takes any number


class OnnxCheck(NamedTuple):
    """What a session gives against what was expected. difference: the largest, as a share of the largest |expected|.

    agreement: the share of predictions (argmax over the last axis) that are the same.
    """

    optimized: bool
    difference: float
    agreement: float
    outputs: list[np.ndarray]


def write_onnx(path: Path, model: Any) -> int:
    """Writes an ``onnx.ModelProto`` atomically, with a digest of it at its end, and returns the bytes written."""
    body = model.SerializeToString(deterministic=True)
    data = body + _seal(body)
    write_bytes(Path(path), data)
    return len(data)


def read_onnx(path: Path) -> bytes:
    """The content of a file that ``write_onnx`` wrote. DataError, one line, if it was cut short or altered since."""
    data = read_bytes(Path(path))
    length = len(_seal(b""))
    if len(data) <= length or _seal(data[:-length]) != data[-length:]:
        raise DataError(f"{path}: is damaged, or was not written by qresearch (sha256); export it again")
    return data


def session(path: Path, optimized: bool) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, with ``SESSION_OPTIONS``; with all its optimizations, or none."""
    return make_session(read_onnx(path), optimized, SESSION_OPTIONS)


def run_onnx(running: Any, x: Any) -> list[np.ndarray]:
    """The outputs of a session for the arrays of x, any number of examples, in pieces."""
    inputs = {
        found.name: np.asarray(leaf) for found, leaf in zip(running.get_inputs(), jax.tree.leaves(x), strict=True)
    }
    fixed = running.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else CHUNK
    total = len(next(iter(inputs.values())))
    pieces: list[Sequence[np.ndarray]] = []
    for start in range(0, total, size):
        piece = {name: array[start : start + size] for name, array in inputs.items()}
        if isinstance(fixed, int):  # the last piece is filled with its last example
            piece = {name: array[np.minimum(np.arange(fixed), len(array) - 1)] for name, array in piece.items()}
        pieces.append(running.run(None, piece))
    return [np.concatenate(parts)[:total] for parts in zip(*pieces)]


def check_onnx(path: Path, x: Any, expected: Any, bound: float, agreement: float = 0.0) -> tuple[OnnxCheck, ...]:
    """Runs a file without and with ONNX Runtime's optimizations, and compares its outputs for x with ``expected``.

    bound: the largest difference allowed, as a share of the largest |expected|; agreement: the least share of equal
    predictions. DataError, one line, where either is missed.
    """
    return tuple(_checked(path, optimized, x, expected, bound, agreement) for optimized in (False, True))


def _checked(path: Path, optimized: bool, x: Any, expected: Any, bound: float, agreement: float) -> OnnxCheck:
    outputs = run_onnx(session(path, optimized), x)
    wanted = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(expected)]
    pairs = list(zip(outputs, wanted, strict=True))
    differences = [np.max(np.abs(output - want)) / max(np.max(np.abs(want)), 1e-30) for output, want in pairs]
    equal = [np.mean(np.argmax(output, -1) == np.argmax(want, -1)) for output, want in pairs]
    found = OnnxCheck(optimized, float(np.max(differences)), float(np.min(equal)), outputs)
    # Written so that a NaN fails.
    if not (found.difference <= bound and found.agreement >= agreement):
        raise DataError(
            f"{path}: ONNX Runtime {'with all' if optimized else 'without'} optimizations differs by"
            f" {found.difference:.2g} of the largest output and agrees on {found.agreement:.2%} of the predictions;"
            f" allowed are {bound:g} and at least {agreement:.2%}"
        )
    return found


def make_session(data: bytes, optimized: bool, entries: Mapping[str, str], save: Path | None = None) -> Any:
    """A session of a serialized model with these session options. save: where to write what it makes of the model."""
    runtime = import_onnxruntime()
    options, levels = runtime.SessionOptions(), runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if save is not None:
        options.optimized_model_filepath = str(save)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _seal(body: bytes) -> bytes:
    """A model that holds nothing but the digest of ``body``: appended to it, it adds that to its metadata, since
    protobuf joins messages that stand one after another.
    """
    onnx = import_onnx()
    seal = onnx.ModelProto()
    onnx.helper.set_model_props(seal, {DIGEST: hashlib.sha256(body).hexdigest()})
    return bytes(seal.SerializeToString(deterministic=True))
