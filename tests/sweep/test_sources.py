"""Which source files made a record, and the line where a sweep finds trials done that others made."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_sweep import SMALL, one_line, stored, sweep, write_small

import qresearch
from qresearch.config import expand, from_mapping
from qresearch.quantizers import QUANTIZERS
from qresearch.results import open_run
from qresearch.sweep.assemble import known_names
from qresearch.sweep.catalogue import REGISTRIES
from qresearch.sweep.sources import changed_line, source_of, sources_of

METHOD = '''\
"""Balanced clipping."""
from qresearch.quantizers.lsq import lsq


def balanced(spec, /):
    """Balanced clipping: LSQ by another name. Unpublished, Somebody 2026."""
    return lsq(spec)
'''
CONFIG = SMALL.replace("weight: {quantizer: lsq", "weight: {quantizer: balanced").split("sweep:")[0]
CONFIG += """\
sweep:
  list:
    - {flow: float}
    - {flow: ptq, allocation: {bits: [4, 4]}}
    - {flow: ptq, allocation: {bits: [8, 8]}, quantize.weight.quantizer: lsq}
    - {flow: ptq, allocation: {allocator: exact, budget: 4}}
"""


def config_of(**values):
    (config,) = expand(from_mapping({"name": "x", "flow": "ptq", "model": {"name": "mlp"}, **values}), known_names())
    return config


@pytest.fixture
def method(tmp_path, monkeypatch):
    """Writes the file of a quantizer of one's own, and loads it as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        (tmp_path / "balanced.py").write_text(text)
        sys.modules.pop("balanced", None)
        importlib.invalidate_caches()
        monkeypatch.setitem(QUANTIZERS, "balanced", importlib.import_module("balanced").balanced)

    write(METHOD)
    yield write
    sys.modules.pop("balanced", None)


# ---- What a record says


def test_the_entries_that_decide_a_trial():
    base = {"data/digits", "models/mlp", "tasks/classification"}
    assert set(sources_of(config_of(flow="float"))) == base
    uniform = {"allocation": {"bits": [4, 4]}, "ptq": ["gptq"]}
    assert set(sources_of(config_of(**uniform))) == base | {"quantizers/minmax", "ptq/gptq"}
    rules = [{"pattern": "linear1/*", "weight": {"quantizer": "lsq", "range": "percentile"}, "input": "float"}]
    found = sources_of(config_of(allocation={"budget": 4, "allocator": "exact"}, quantize={"rules": rules}))
    wanted = {"quantizers/minmax", "quantizers/lsq", "ranges/percentile", "allocators/exact"}
    assert set(found) == base | wanted | {"sensitivities/loss_increase"}
    found = sources_of(config_of(allocation={"budget": 4, "allocator": "dq"}))
    assert set(found) == base | {"quantizers/minmax", "searches/dq"}
    found = sources_of(config_of(allocation={"bits": [4, 4]}, quantize={"keep": {"most_sensitive": 1}}))
    assert set(found) == base | {"quantizers/minmax", "sensitivities/loss_increase"}


@pytest.mark.parametrize("kind", ["quantizers", "ranges", "ptq", "sensitivities", "allocators", "searches"])
def test_an_entry_has_the_digest_of_the_file_that_defines_it(kind):
    root = Path(qresearch.__file__).parents[1]
    for name in REGISTRIES[kind]:
        source = source_of(kind, name)
        content = (root / source.name).read_bytes()
        assert source.digest == hashlib.sha256(content).hexdigest()[:12]
        assert source.name.startswith("qresearch/")


@pytest.mark.parametrize("kind", ["models", "data", "tasks"])
def test_every_model_data_set_and_task_has_a_source_of_its_own(kind):
    names = [source_of(kind, name).name for name in REGISTRIES[kind]]
    assert all(name.startswith(f"qresearch/{kind}/") for name in names)
    assert not {"qresearch/tasks/task.py", "qresearch/models/model.py"} & set(names)


def test_what_has_no_file_has_no_source(monkeypatch):
    scope = {}
    exec("def typed(spec): ...", scope)
    monkeypatch.setitem(QUANTIZERS, "typed", scope["typed"])
    assert source_of("quantizers", "typed") is None
    assert source_of("quantizers", "gone") is None
    assert source_of("nothing", "lsq") is None


# ---- What a sweep says


def test_trials_that_another_file_made_are_said_and_the_command_runs_them_again(tmp_path, method, capsys):
    config, output = write_small(tmp_path, CONFIG), tmp_path / "out put"
    assert sweep(config, output, "float.epochs=1") == 0
    records = stored(output)
    assert records["ptq-balanced+lsq-w4a4-seed0"]["environment"]["sources"]["quantizers/balanced"]
    assert sweep(config, output, "float.epochs=1") == 0
    assert "warning" not in capsys.readouterr().out
    method(METHOD + "# edited\n")
    assert sweep(config, output, "float.epochs=1") == 0
    told = capsys.readouterr().out
    line = one_line("\n".join(line for line in told.splitlines() if line.startswith("warning")))
    assert line.startswith("warning: 2 of the 4 found done were made with another balanced.py than the present one;")
    assert "0 trials run, 4 found done" in told
    command = line.partition("delete them: ")[2]
    assert "/trials'/*balanced* " in command
    subprocess.run(["bash", "-c", command], check=True)
    (folder,) = output.iterdir()
    assert not (folder / "sensitivity").exists()
    assert (folder / "float").exists()
    assert sweep(config, output, "float.epochs=1") == 0
    told = capsys.readouterr().out
    assert "2 trials run, 2 found done" in told
    assert "warning" not in told


def edited(run, *labels, entry="quantizers/lsq"):
    """The records of a run, those of these labels as if another file had made them."""
    records = []
    for record in run.records().records:
        sources = dict(record.environment["sources"])
        if record.label in labels:
            sources[entry] = "0" * 12
        records.append(record.__class__(**{**vars(record), "environment": {**record.environment, "sources": sources}}))
    return records


@pytest.fixture
def run(finished_sweep, tmp_path):
    (folder,) = shutil.copytree(finished_sweep, tmp_path / "out").iterdir()
    return open_run(folder)


def test_a_pattern_that_would_take_other_trials_is_not_given(run):
    labels = [record.label for record in run.records().records]
    few, many = (
        ["ptq-lsq-w4a4-seed0", "qat-lsq-w4a4-seed0"],
        [label for label in labels if "lsq-w" in label or "exact" in label],
    )
    names = {folder.name.partition("-")[2]: folder.name for folder in (run.path / "trials").iterdir()}
    line = changed_line(run, edited(run, *few), ())
    assert "2 of the 7 found done were made with another qresearch/quantizers/lsq.py than" in line
    assert all(f"{run.path}/trials/{names[label]} " in line for label in few)
    assert "*" not in line
    assert len(many) == 5
    line = changed_line(run, edited(run, *many), ())
    assert line.count("/trials/") == 3
    assert line.endswith("/searches and 2 more trials")


def test_a_pattern_that_would_take_trials_still_to_be_run_is_not_given(run):
    lsq = [record.label for record in run.records().records if "lsq" in record.label]
    assert "/trials/*lsq* " in changed_line(run, edited(run, *lsq), ())
    plus, coming = (
        config_of(allocation={"bits": [3, 3]}, quantize={site: {"quantizer": name} for site in ("weight", "input")})
        for name in ("lsq_plus", "lsq")
    )
    assert "/trials/*-lsq-* " in changed_line(run, edited(run, *lsq), [plus])
    assert "*" not in changed_line(run, edited(run, *lsq), [coming])


def test_a_changed_model_takes_its_float_models_along(run):
    line = changed_line(run, edited(run, "float-seed0", entry="models/mlp"), ())
    assert line.startswith("1 of the 7 found done were made with another qresearch/models/mlp.py than the present one")
    assert line.endswith(f" {run.path}/float {run.path}/sensitivity {run.path}/searches")


def test_records_of_before_are_not_told_of(run):
    records = [
        record.__class__(
            **{**vars(record), "environment": {k: v for k, v in record.environment.items() if k != "sources"}}
        )
        for record in run.records().records
    ]
    assert changed_line(run, records, ()) is None
    assert changed_line(run, edited(run), ()) is None
