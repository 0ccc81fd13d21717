"""What a trial is called, and what its record says, where some layers keep more bits."""

from __future__ import annotations

import csv
import json

import pytest
from small_sweep import settings, stored, write_small

from qresearch.cli import main

KEEP = "quantize.keep={first: true, most_sensitive: 1, option: [8, 8]}"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    trials = [{"flow": "float"}, *({"flow": "ptq", "allocation.bits": [b, b]} for b in (2, 4))]
    values = [KEEP, f"sweep={json.dumps({'list': trials})}", f"output={folder / 'out'}"]
    assert main(["sweep", str(write_small(folder)), *settings(*values)]) == 0
    return folder / "out"


def test_a_trial_is_called_by_the_bits_that_were_asked_for(kept):
    """Two of the three layers keep 8 bits: what most layers have is not what was asked."""
    (run,) = kept.iterdir()
    with (run / "front.csv").open() as stream:
        rows = {row["allocation"] for row in csv.DictReader(stream)}
    assert rows == {"float", "W2A2", "W4A4"}


def test_the_record_names_the_layers_that_were_kept(kept):
    records = stored(kept)
    assert "most sensitive" not in records["float-seed0"]["allocation"]["treatment"]
    for label in ("ptq-lsq-w2a2-seed0", "ptq-lsq-w4a4-seed0"):
        allocation = records[label]["allocation"]
        (sensitive,) = (n for n, b in zip(allocation["layers"][1:], allocation["bits"][1:]) if b == [8, 8])
        assert allocation["treatment"] == f"pinned: linear1/kernel W8A8; most sensitive, W8A8: {sensitive}"


def test_the_benchmark_names_rows_by_the_bits_that_were_asked_for(tmp_path, capsys):
    values = [KEEP, "sweep=null", f"output={tmp_path / 'out'}"]
    status = main(["benchmark", str(write_small(tmp_path)), "--max-drop", "100", *settings(*values)])
    assert status == 0
    variants = [line.split()[3] for line in capsys.readouterr().out.splitlines() if line.startswith("classification")]
    assert variants == ["FP32", "INT8", "INT4", "mixed"]
