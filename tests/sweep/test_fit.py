"""What does not belong together is one line before anything is computed."""

from __future__ import annotations

import itertools

import pytest
from small_sweep import settings, write_small

from qresearch.cli import main
from qresearch.config import expand, load
from qresearch.errors import ConfigError
from qresearch.sweep.assemble import known_names, setup_of
from qresearch.sweep.fit import check_fit
from qresearch.tasks import TASKS

# A model and a data set for every task; every other task must be refused for them.
PAIRS = {
    "classification": ("mlp", "digits"),
    "detection": ("detector", "digit_scenes"),
    "language_modelling": ("gpt", "text"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit")
    (path / "words.txt").write_text("To be, or not to be. " * 200)
    return path


def checked(folder, task, model, data):
    write_small(folder)
    values = (f"task={task}", f"model.name={model}", f"data={{name: {data}, folder: {folder}}}", "sweep=null")
    (config,) = expand(load(folder / "small.yaml", values), known_names())
    check_fit(config, setup_of(config))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pair", TASKS)
def test_a_task_takes_its_own_outputs_and_targets_and_no_others(folder, task, pair):
    if task == pair:
        checked(folder, task, *PAIRS[pair])
        return
    with pytest.raises(ConfigError, match=f"^task: '{task}' cannot hold the outputs .* go together$") as caught:
        checked(folder, task, *PAIRS[pair])
    for name in PAIRS[pair]:
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(PAIRS, 2)))
def test_a_model_with_the_data_of_another_task_is_refused(folder, one, other):
    model, data = PAIRS[one][0], PAIRS[other][1]
    with pytest.raises(ConfigError, match="go together"):
        checked(folder, other, model, data)


@pytest.mark.parametrize("command", ["check", "sweep"])
def test_the_command_line_says_it_in_one_line(tmp_path, capsys, command):
    values = settings(f"output={tmp_path / 'out'}", "task=detection", "sweep=null")
    assert main([command, str(write_small(tmp_path)), *values]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert "outputs float32 [batch, 10] of model 'mlp' against the targets int32 [batch] of data 'digits'" in first
    assert last == "1 problem, nothing started"
    assert not (tmp_path / "out").exists()
