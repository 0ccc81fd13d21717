from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_fixtures import make_examples, make_record

from qresearch.errors import DataError
from qresearch.results.atomic import render_json
from qresearch.results.record import (
    Record,
    content_hash,
    decode_examples,
    decode_record,
    encode_examples,
    encode_record,
    read_record,
)

PATH = Path("trials/abc/result.json")
printable = st.characters(exclude_categories=["C", "Z"])
finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.recursive(
    finite | st.integers(), lambda inner: st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def with_checksum(content):
    """The file that a program would write which knows the checksum but not the schema."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    return render_json({**content, "sha256": content_hash(content)}).encode()


@settings(deadline=None, max_examples=100)
@given(
    config=st.dictionaries(st.text(), json_values, max_size=4),
    extra=numbers,
    label=st.text(printable, min_size=1),
    seconds=st.floats(0, 1e300),
    bits=st.lists(st.tuples(st.floats(0, 32), st.floats(0, 32)), max_size=5),
)
def test_round_trip(config, extra, label, seconds, bits):
    allocation = {"layers": [f"l{i}" for i in range(len(bits))], "bits": bits, "allocator": "exact"}
    allocation |= {"budget": {"average_bits": 4.0}, "treatment": "first and last at 8 bits"}
    split = {"loss": 1.0, "score": 0.5}
    metrics = {"test": split, "validation": split, "extra": extra}
    record = make_record(config=config, label=label, seconds=seconds, allocation=allocation, metrics=metrics)
    data = encode_record(record)
    assert decode_record(data, PATH) == record
    assert encode_record(decode_record(data, PATH)) == data


def test_failed_trial_needs_a_reason_and_nothing_measured():
    costs = dict.fromkeys(("average_bits", "size", "bops", "relative_bops"))
    record = make_record(status="failed", reason="loss became NaN", costs=costs, metrics={})
    assert decode_record(encode_record(record), PATH) == record
    with pytest.raises(DataError, match="reason"):
        make_record(status="failed")
    with pytest.raises(DataError, match="reason"):
        make_record(reason="why")


def test_every_truncation_is_detected():
    data = encode_record(make_record())
    for end in range(len(data)):
        with pytest.raises(DataError, match=r"result\.json"):
            decode_record(data[:end], PATH)


def test_every_bit_flip_is_detected():
    data = encode_record(make_record(seconds=1e-05, label="é"))
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(DataError, match=r"result\.json"):
                decode_record(bytes(flipped), PATH)


def test_hand_edits_that_mean_the_same_are_still_edits():
    data = encode_record(make_record(seconds=1e-05))
    assert b"1e-05" in data
    for edited in (data.replace(b"1e-05", b"1E-05"), data.replace(b"\n", b"\r\n"), data + b" "):
        with pytest.raises(DataError, match="altered"):
            decode_record(edited, PATH)


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(Record) if field.name != "schema_version"]
)
def test_missing_and_wrong_fields_are_named(field):
    content = json.loads(encode_record(make_record()))
    missing = {name: value for name, value in content.items() if name != field}
    with pytest.raises(DataError, match=f"result.json: {field}: missing"):
        decode_record(with_checksum(missing), PATH)
    with pytest.raises(DataError, match=rf"result.json: {field}[.:]"):
        decode_record(with_checksum({**content, field: {"not": ["expected"]} if field != "config" else 3}), PATH)


@pytest.mark.parametrize("version", [0, 3, "2", 2.0, True, None])
def test_other_schema_versions_are_refused(version):
    content = json.loads(encode_record(make_record()))
    content["schema_version"] = version
    with pytest.raises(DataError, match=r"schema_version: expected 2, got"):
        decode_record(with_checksum(content), PATH)


def test_records_of_the_first_version_are_read_and_their_scores_are_better_when_higher():
    content = json.loads(encode_record(make_record())) | {"schema_version": 1}
    with pytest.raises(DataError, match="schema_version: expected 2, got 1"):  # it has a field of the second
        decode_record(with_checksum(content), PATH)
    del content["higher_is_better"]
    assert decode_record(with_checksum(content), PATH) == make_record()
    with pytest.raises(DataError, match="altered"):
        decode_record(with_checksum(content).replace(b"0.9", b"0.8"), PATH)


def test_unknown_field_gets_a_suggestion():
    content = json.loads(encode_record(make_record()))
    with pytest.raises(DataError, match=r"secods: unknown field; did you mean 'seconds'"):
        decode_record(with_checksum({**content, "secods": 1}), PATH)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, "0.9", None, np.float32(0.9)])
@pytest.mark.parametrize(
    "field", ["metrics.test.score", "metrics.validation.loss", "metrics.last.x", "costs.size", "seconds"]
)
def test_numbers_must_be_finite_plain_numbers(field, bad):
    content = dataclasses.asdict(make_record())
    *parents, last = field.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    inner[last] = bad
    with pytest.raises(DataError, match=f"{field}: expected a"):
        Record(**content)


def test_nan_in_a_file_is_refused():
    text = encode_record(make_record()).decode()
    for word in ("NaN", "Infinity", "1e999"):
        with pytest.raises(DataError, match=r"result\.json"):
            decode_record(text.replace('"seconds": 1.5', f'"seconds": {word}').encode(), PATH)
    with pytest.raises(DataError, match=r"result\.json"):
        decode_record(b"[" * 100_000, PATH)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"flow": "float"}, "quantizer"),
        ({"quantizer": {"weight": None, "input": None}}, "quantizer"),
        ({"quantizer": {"weight": "lsq"}}, "quantizer.input: missing"),
        ({"created": "2026-01-31T12:00:00"}, "created"),
        ({"created": "2026-01-31T12:00:00+02:00"}, "created"),
        ({"key": "abc"}, "key"),
        ({"seed": 1.0}, "seed"),
        ({"config": {"a": float("nan")}}, "config.a"),
        ({"config": {"a": [1, {2: 3}]}}, r"config.a\[1\]"),
        ({"examples_sha256": "x"}, "examples_sha256"),
    ],
)
def test_contradictions_are_refused(changes, named):
    with pytest.raises(DataError, match=named):
        dataclasses.replace(make_record(), **changes)


@pytest.mark.parametrize(
    "changes",
    [{"bits": [[4, 4]]}, {"bits": [[4, 4], [4], [4, 4]]}, {"layers": ["a", "a", "b"]}, {"bits": [[4, -1]] * 3}],
)
def test_allocations_have_one_option_per_layer(changes):
    with pytest.raises(DataError, match=r"allocation\."):
        make_record(allocation={**make_record().allocation, **changes})


def test_equal_configs_have_equal_keys():
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": (1, 2), "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*absent\.json"):
        read_record(tmp_path / "absent.json")


def test_examples_round_trip():
    examples = make_examples()
    data = encode_examples(examples)
    again = decode_examples(data, PATH, hashlib.sha256(data).hexdigest())
    assert sorted(again) == ["loss", "score"]
    for name in again:
        assert again[name].dtype == np.float32
        np.testing.assert_array_equal(again[name], examples[name])


def test_every_truncation_and_bit_flip_of_examples_is_detected():
    data = encode_examples(make_examples(examples=20))
    sha256 = hashlib.sha256(data).hexdigest()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << random.Random(position).randrange(8)
        for damaged in (bytes(flipped), data[:position]):
            with pytest.raises(DataError, match=r"result\.json"):
                decode_examples(damaged, PATH, sha256)


@pytest.mark.parametrize(
    "arrays",
    [
        {"score": np.zeros(3, np.float32)},
        {"score": np.zeros(3), "loss": np.zeros(3, np.float32)},
        {"score": np.zeros(3, np.float32), "loss": np.zeros(4, np.float32)},
        {"score": np.zeros((3, 1), np.float32), "loss": np.zeros(3, np.float32)},
        {"score": np.full(3, np.nan, np.float32), "loss": np.zeros(3, np.float32)},
        {"score": np.array([{}], object), "loss": np.zeros(1, np.float32)},
    ],
)
def test_other_arrays_are_refused_and_nothing_is_unpickled(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    with pytest.raises(DataError, match=r"result\.json"):
        decode_examples(data, PATH, hashlib.sha256(data).hexdigest())
