"""What configs promise of networks that people know, on all test images: minutes each."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from small_sweep import settings

from qresearch.cli import main
from qresearch.config import expand, load

pytestmark = pytest.mark.slow


def scores(output):
    """Test scores in per cent by (flow, bits, methods)."""
    records = [json.loads(path.read_text()) for path in output.glob("*/trials/*/result.json")]
    return {
        (
            record["flow"],
            tuple(record["config"]["allocation"]["bits"]),
            tuple(method["name"] for method in record["config"]["ptq"]),
        ): 100 * record["metrics"]["test"]["score"]
        for record in records
    }


def run(path, output, *values):
    assert main(["sweep", str(path), *settings(f"output={output}", "engine.name=inline", *values)]) == 0
    return scores(output)


def test_one_epoch_of_lsq_gives_back_what_three_bits_cost(data_folder, tmp_path):
    path = ROOT / "configs" / "cifar_resnet20_qat.yaml"
    data_folder(expand(load(path))[0])
    found = run(path, tmp_path / "out")
    assert found["ptq", (3, 3), ()] < 60
    assert found["qat", (3, 3), ()] >= 89


@pytest.mark.parametrize(("bits", "floor", "reached"), [((4, 8), 91.0, 91.2), ((4, 4), 89.9, 90.4), ((3, 8), 66, 90.0)])
def test_adaround_reaches_what_rounding_does_not(data_folder, tmp_path, bits, floor, reached):
    path = ROOT / "configs" / "cifar_resnet20_ladder.yaml"
    data_folder(expand(load(path))[0])
    adaround = [{"name": "adaround", "options": {"iterations": 1000}}]
    trials = [{"allocation": {"bits": bits}, "ptq": methods} for methods in ([], adaround)]
    found = run(path, tmp_path / "out", f"sweep.list={json.dumps(trials)}")
    assert found["ptq", bits, ()] < floor < reached <= found["ptq", bits, ("adaround",)]
