"""Float models that were stored, and are spoilt."""

from __future__ import annotations

import pytest
from small_sweep import stored, sweep, write_small


@pytest.fixture
def trained(tmp_path, capsys):
    """(config, output folder, checkpoint folder of the float model, settings) of a run with one float model."""
    values = ("sweep={list: [{flow: float}]}",)
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *values) == 0
    (facts,) = output.glob("*/float/*.json")
    capsys.readouterr()
    return config, output, facts.with_suffix(""), values


def forget_results(output):
    for path in output.glob("*/trials/*/result.json"):
        path.unlink()


def test_a_stored_float_model_is_used_again(trained, capsys):
    config, output, _, values = trained
    before = stored(output)["float-seed0"]
    forget_results(output)
    assert sweep(config, output, *values) == 0
    assert "float training" not in capsys.readouterr().out
    assert stored(output)["float-seed0"]["metrics"] == before["metrics"]


@pytest.mark.parametrize("spoil", ["truncated", "deleted", "altered", "facts torn", "facts of another form"])
def test_a_spoilt_float_model_is_trained_again_with_a_line_that_says_so(trained, capsys, spoil):
    config, output, checkpoint, values = trained
    before = stored(output)["float-seed0"]
    forget_results(output)
    facts = checkpoint.with_suffix(".json")
    victim = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = victim.read_bytes()
    if spoil == "truncated":
        victim.write_bytes(data[: len(data) // 2])
    elif spoil == "deleted":
        victim.unlink()
    elif spoil == "altered":
        victim.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    else:
        facts.write_text('{"history": [' if spoil == "facts torn" else '["a list"]')
    assert sweep(config, output, *values) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "trained again" in line]
    assert line.startswith("float model of seed 0 is trained again: ")
    if "facts" not in spoil:
        assert str(checkpoint) in line
        assert "not a complete checkpoint" in line
    assert "float training (epochs): 5" in out
    assert stored(output)["float-seed0"]["metrics"] == before["metrics"]


def test_a_checkpoint_without_its_facts_is_one_that_was_never_finished(trained, capsys):
    config, output, checkpoint, values = trained
    forget_results(output)
    checkpoint.with_suffix(".json").unlink()
    assert sweep(config, output, *values) == 0
    assert "float training (epochs): 5" in capsys.readouterr().out
