"""ONNX files: what is damaged is named, what differs fails, and the session options keep results right."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from onnx_cases import ROUNDING, dense, draw, frozen_layer, frozen_of, sessions

from qresearch.errors import DataError
from qresearch.export.onnx import SESSION_OPTIONS, check_onnx, export_onnx, run_onnx, session, write_onnx
from qresearch.rules import Rule, SiteRule

KERNEL = SiteRule(granularity="per_channel", range="minmax")
INPUT = SiteRule(range="minmax")


@pytest.fixture
def exported(tmp_path):
    """(path, model, x, expected) of a dense layer at W4A8."""
    frozen, x = frozen_layer("dense", KERNEL, INPUT, (4, 8))
    path, model = tmp_path / "model.onnx", export_onnx(frozen, x).model
    assert write_onnx(path, model) == path.stat().st_size
    return path, model, x, np.asarray(frozen.apply(x, "dequantized"))


def test_a_written_file_is_checked_at_both_levels(exported):
    path, _, x, expected = exported
    checks = check_onnx(path, x, expected, ROUNDING, agreement=1.0)
    assert [found.optimized for found in checks] == [False, True]
    assert all(found.difference <= ROUNDING for found in checks)


def test_what_the_file_says_of_itself(exported):
    metadata = session(exported[0], optimized=False).get_modelmeta().custom_metadata_map
    (layer,) = json.loads(metadata["qresearch.layers"])
    assert layer["name"] == "layer/kernel"
    assert layer["bits"] == [4, 8]
    assert layer["weight"] == {"container": "INT4", "note": ""}
    assert metadata["qresearch.batch"] == "any"
    assert json.loads(metadata["qresearch.session_options"]) == SESSION_OPTIONS


@pytest.mark.parametrize("damage", ["cut", "a bit", "empty", "appended", "not ours"])
def test_a_damaged_file_is_named_in_one_line(exported, damage):
    path, model, x, expected = exported
    data = bytearray(path.read_bytes())
    flipped = bytes(data[:200]) + bytes([data[200] ^ 1]) + bytes(data[201:])
    own = model.SerializeToString()
    path.write_bytes(
        {"cut": data[:-1], "a bit": flipped, "empty": b"", "appended": data + b"\0", "not ours": own}[damage]
    )
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: is damaged, or was not written") as caught:
        check_onnx(path, x, expected, 1.0)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.onnx"):
        session(tmp_path / "none.onnx", optimized=True)


@pytest.mark.parametrize("what", ["codes", "scale", "zero_point"])
def test_a_mutated_model_fails_its_check(exported, what):
    path, model, x, expected = exported
    (found,) = [one for one in model.graph.initializer if one.name == f"layer/kernel/{what}"]
    data = bytearray(found.raw_data or b"\0")
    data[3 if what == "scale" else 0] ^= 1 if what == "scale" else 4
    found.raw_data = bytes(data)
    write_onnx(path, model)
    with pytest.raises(DataError, match=r"without optimizations differs by .*; allowed are 1e-05 and at least 50\.00%"):
        check_onnx(path, x, expected, 1e-5, agreement=0.5)


def test_other_predictions_and_nan_fail_a_check(exported):
    path, _, x, expected = exported
    with pytest.raises(DataError, match=r"agrees on 0\.00%"):
        check_onnx(path, x, -expected[:, ::-1], 10.0, agreement=0.9)
    with pytest.raises(DataError, match="differs by nan"):
        check_onnx(path, x, expected * np.nan, 1.0)


def test_without_its_option_int4_weights_get_int8_inputs():
    """The trap that ``SESSION_OPTIONS`` avoids: only the optimized result is wrong, and nothing says so."""
    rules = (Rule(weight=KERNEL, input=None),)
    x = draw(1, 4, 64)
    frozen = frozen_of(dense, {"layer": {"kernel": draw(0, 64, 32)}}, x, rules, (4, 32))
    model, expected = export_onnx(frozen, x).model, np.asarray(frozen.apply(x, "dequantized"))
    largest = np.abs(expected).max()

    def off(**entries):
        found = {key: run_onnx(running, x)[0] for key, running in sessions(model, **entries).items()}
        return [np.abs(found[optimized] - expected).max() / largest for optimized in (False, True)]

    assert max(off(**SESSION_OPTIONS)) <= ROUNDING
    plain = off(**{"session.x64quantprecision": "1"})
    assert plain[0] <= ROUNDING
    assert plain[1] > 1e-3


def test_with_its_option_products_of_bytes_do_not_saturate():
    """255 times 127, twice, is more than 16 bits hold: on CPUs without VNNI the option, or 7 bits, keep it right."""
    rules = (Rule(weight=KERNEL, input=INPUT),)
    x = np.full((4, 64), 1.0, np.float32)
    for option in ((8, 8), (7, 8)):
        frozen = frozen_of(dense, {"layer": {"kernel": np.ones((64, 32), np.float32)}}, x, rules, option)
        model = export_onnx(frozen, x).model
        for running in sessions(model).values():
            np.testing.assert_allclose(run_onnx(running, x)[0], 64, rtol=1e-5)


def test_a_fixed_batch_is_stated_and_filled():
    frozen, x = frozen_layer("convolution", KERNEL, INPUT, (8, 8))
    exported = export_onnx(frozen, x, batch=3)
    assert exported.batch == "3, fixed: as asked"
    many = np.concatenate([x, x, x, x])[:7]
    expected = np.asarray(frozen.apply(many, "dequantized"))
    for running in sessions(exported.model).values():
        assert running.get_inputs()[0].shape[0] == 3
        assert np.abs(run_onnx(running, many)[0] - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(package, exported, monkeypatch, tmp_path):
    _, model, *_ = exported
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"{package} cannot be imported .*pip install 'qresearch\[export\]'"):
        sessions(model) if package == "onnxruntime" else write_onnx(tmp_path / "m.onnx", model)
