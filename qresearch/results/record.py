"""One self-describing record per trial: what was run, on what, what it cost, how well it did, and a checksum of it all.

A record is read strictly. The file must be, byte for byte, what ``encode_record`` writes, and carry the sha256 of its
content, so that any altered, truncated or hand-edited record is refused by name instead of entering a front.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qresearch.errors import DataError
from qresearch.results import schema
from qresearch.results.atomic import read_bytes, render_json

SCHEMA_VERSION = 2
# What the fields that an older version lacks were always meant to be.
_ADDED: dict[int, dict[str, Any]] = {1: {"higher_is_better": True}}
Examples = Mapping[str, npt.NDArray[np.float32]]
EXAMPLE_FIELDS = ("loss", "score")


@dataclass(frozen=True)
class Record:
    """The outcome of one trial. Raises ``DataError`` naming the field if a value is not what the schema says.

    key: sha256 of the resolved ``config``. budget: null, or a mapping from cost names to limits. bits: one
    ``[weight_bits, input_bits]`` per layer, 32 for float. costs: in the units of ``qresearch.cost``: average_bits,
    size in kB, bops in millions per example, relative_bops as a share of the float model's. higher_is_better: of the
    scores. A failed trial has a ``reason``, and may have null costs and any part of the metrics.
    """

    key: str
    label: str
    status: Literal["done", "failed"]
    config: Mapping[str, Any]
    seed: int
    task: str
    model: str
    data: str
    flow: Literal["float", "ptq", "qat"]
    quantizer: Mapping[str, str | None]
    allocation: Mapping[str, Any]
    costs: Mapping[str, float | None]
    metrics: Mapping[str, Any]
    score_name: str
    seconds: float
    environment: Mapping[str, Any]
    created: str
    reason: str | None = None
    examples_sha256: str | None = None
    higher_is_better: bool = True
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        problem = next(_problems(vars(self)), None)
        if problem is not None:
            raise DataError(f"record {self.label!r}: {problem}")


def content_hash(value: Any) -> str:
    """The sha256 of a JSON value in its one compact text form: the key of a config."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode_record(record: Record) -> bytes:
    """The file of a record: JSON with the sha256 of all other fields in it."""
    content = dataclasses.asdict(record)
    return render_json({**content, "sha256": content_hash(content)}).encode()


def decode_record(data: bytes, path: Path) -> Record:
    """The record in a file's bytes; ``path`` is for messages. ``DataError`` names the file and what is wrong."""
    content = _parse(data, path)
    version = content.get("schema_version")
    if type(version) is not int or version not in {*_ADDED, SCHEMA_VERSION}:
        raise DataError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    stored = content.pop("sha256", None)
    # The second test catches changes that JSON does not see, such as 1e-5 for 1e-05.
    if stored != content_hash(content) or render_json({**content, "sha256": stored}).encode() != data:
        raise DataError(f"{path}: sha256: the content was altered after it was written; run the trial again")
    content = _upgraded(content)
    problem = next(_problems(content), None)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    return Record(**content)


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """An intact record of an older version as one of this version; one with a field that its version lacks as it is."""
    added = _ADDED.get(content["schema_version"], {})
    return content if added.keys() & content.keys() else {**content, **added, "schema_version": SCHEMA_VERSION}


def read_record(path: Path) -> Record:
    """The record in a file; see ``decode_record``."""
    return decode_record(read_bytes(path), path)


def encode_examples(examples: Examples) -> bytes:
    """The npz file of the scores and losses of the test examples (``[example]`` each, float32).

    Their means are the record's test score and loss; of a score that is no mean, see ``qresearch.tasks.Task.shares``.
    """
    arrays = {name: np.asarray(value, np.float32) for name, value in examples.items()}
    _check_examples(arrays, "examples")
    buffer = io.BytesIO()
    np.savez(buffer, loss=arrays["loss"], score=arrays["score"])
    return buffer.getvalue()


def decode_examples(data: bytes, path: Path, sha256: str) -> Examples:
    """The arrays in an npz file's bytes, which must have the given sha256. Nothing in it is ever unpickled."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: the content is not what its record's examples_sha256 says; run the trial again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an npz file of plain arrays: {error}") from error
    _check_examples(arrays, str(path))
    return arrays


def _check_examples(arrays: Examples, name: str) -> None:
    if sorted(arrays) != list(EXAMPLE_FIELDS):
        raise DataError(f"{name}: expected the arrays {' and '.join(EXAMPLE_FIELDS)}, got {sorted(arrays)}")
    for field, array in arrays.items():
        if array.dtype != np.float32 or array.ndim != 1 or not np.isfinite(array).all():
            raise DataError(
                f"{name}: {field}: expected finite float32 of shape [example], got {array.dtype} {array.shape}"
            )
    if len(arrays["score"]) != len(arrays["loss"]):
        raise DataError(f"{name}: score has {len(arrays['score'])} examples and loss {len(arrays['loss'])}")


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a complete JSON file ({error}); run the trial again") from error
    try:
        render_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: NaN, infinity or endless nesting in the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object with the fields of a record")
    return content


def _plain(value: Any) -> Any:
    """Mappings and tuples as JSON has them, so that a record equals itself after a round trip."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    problems = list(schema.fields(_FAILED if content.get("status") == "failed" else _DONE)("", content))
    yield from problems
    if problems:
        return
    layers, bits = content["allocation"]["layers"], content["allocation"]["bits"]
    if len(layers) != len(bits) or any(len(pair) != 2 for pair in bits):
        yield f"allocation.bits: expected [weight_bits, input_bits] for each of {len(layers)} layers, got {len(bits)}"
    if len(set(layers)) != len(layers):
        yield "allocation.layers: a layer is named twice"
    if (content["flow"] == "float") != (set(content["quantizer"].values()) == {None}):
        yield "quantizer: expected null for weight and input exactly where flow is 'float'"


_SPLIT = schema.fields({"loss": schema.number, "score": schema.number}, others=schema.number_tree)
_VERSIONS = dict.fromkeys(("python", "jax", "flax", "optax", "numpy", "qresearch"), schema.optional(schema.text))
_COSTS = ("average_bits", "size", "bops", "relative_bops")
_ALLOCATION: dict[str, schema.Check] = {
    "layers": schema.list_of(schema.text),
    "bits": schema.list_of(schema.list_of(schema.not_negative)),
    "allocator": schema.optional(schema.text),
    "budget": schema.optional(schema.mapping_of(schema.number)),
    "treatment": schema.text,
}
_ENVIRONMENT: dict[str, schema.Check] = {
    "versions": schema.fields(_VERSIONS, others=schema.optional(schema.text)),
    "commit": schema.optional(schema.text),
    "dirty": schema.optional(schema.one_of(True, False)),
    "device": schema.fields({"kind": schema.text, "count": schema.integer}),
    "platform": schema.text,
}
_DONE: dict[str, schema.Check] = {
    "schema_version": schema.one_of(SCHEMA_VERSION),
    "key": schema.sha256,
    "label": schema.text,
    "status": schema.one_of("done", "failed"),
    "reason": schema.null,
    "config": schema.mapping_of(schema.json_value),
    "seed": schema.integer,
    "task": schema.text,
    "model": schema.text,
    "data": schema.text,
    "flow": schema.one_of("float", "ptq", "qat"),
    "quantizer": schema.fields(dict.fromkeys(("weight", "input"), schema.optional(schema.text))),
    "allocation": schema.fields(_ALLOCATION),
    "costs": schema.fields(dict.fromkeys(_COSTS, schema.not_negative), others=schema.not_negative),
    "metrics": schema.fields({"test": _SPLIT, "validation": _SPLIT}, others=schema.number_tree),
    "score_name": schema.text,
    "higher_is_better": schema.one_of(True, False),
    "seconds": schema.not_negative,
    "environment": schema.fields(_ENVIRONMENT, others=schema.json_value),
    "created": schema.utc_time,
    "examples_sha256": schema.optional(schema.sha256),
}
_FAILED: dict[str, schema.Check] = {
    **_DONE,
    "reason": schema.lines,
    "costs": schema.fields(
        dict.fromkeys(_COSTS, schema.optional(schema.not_negative)), others=schema.optional(schema.not_negative)
    ),
    "metrics": schema.mapping_of(schema.number_tree),
}
