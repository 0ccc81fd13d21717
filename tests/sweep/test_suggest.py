"""The loop of suggestions over a run's records: what is run, what is told, and that a stopped run goes on."""

from __future__ import annotations

import pytest
from results_fixtures import ENVIRONMENT, make_examples, make_record

from qresearch.config import config_hash, from_mapping, resolved
from qresearch.errors import BudgetError, ConfigError
from qresearch.results import create_run
from qresearch.sweep.suggest import run_suggested

SPACE = {"qat.learning_rate": {"log": [1e-4, 1e-1]}, "allocation.bits": [[2, 2], [4, 4]], "qat.epochs": {"int": [1, 4]}}


def sweep_of(space=SPACE, trials=24, name="optuna", **suggest):
    given = {"name": name, "trials": trials, "batch": 6, "space": space} | suggest
    return from_mapping({"name": "a", "flow": "qat", "allocation": {"bits": [8, 8]}, "sweep": {"suggest": given}})


class Runner:
    """Stores records whose score the config decides; ``stop``: the number of trials after which it is killed."""

    def __init__(self, output, *, sweep, higher_is_better=True, stop=None):
        self.sweep, self.run = sweep, create_run(output, "a", "", {"name": "a"}, ENVIRONMENT)
        self.higher, self.stop, self.ran, self.lines = higher_is_better, stop, [], []

    def score(self, config):
        value = config.qat.epochs / 4 - (config.allocation.bits == (2, 2)) / 2
        return value if self.higher else -value

    def execute(self, batch):
        for config in batch:
            if self.run.has(config_hash(config)):
                continue
            if len(self.ran) == self.stop:
                raise KeyboardInterrupt
            self.ran.append(config)
            facts = {
                "key": config_hash(config),
                "label": "x",
                "config": resolved(config),
                "higher_is_better": self.higher,
            }
            if config.qat.epochs == 1:
                facts |= {"status": "failed", "reason": "diverged", "metrics": {}}
            self.run.save(make_record(validation=self.score(config), **facts), make_examples())

    def suggested(self, check=lambda config: None):
        return run_suggested(self.sweep, self.run, self.execute, check, self.lines.append)


def test_every_proposal_is_run_once_and_told_its_score(tmp_path):
    runner = Runner(tmp_path, sweep=sweep_of())
    found = runner.suggested()
    assert list(found) == runner.ran
    assert 20 < len(found) <= 24  # equal proposals are one trial
    assert {config.allocation.bits for config in found} == {(2, 2), (4, 4)}
    late = found[12:]
    assert sum(runner.score(config) for config in late) / len(late) > sum(map(runner.score, found[:12])) / 12
    assert runner.lines == []


@pytest.mark.parametrize("stop", [0, 1, 6, 13, 23])
@pytest.mark.parametrize("name", ["random", "optuna"])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, stop, name):
    whole = Runner(tmp_path / "whole", sweep=sweep_of(name=name)).suggested()
    with pytest.raises(KeyboardInterrupt):
        Runner(tmp_path / "part", sweep=sweep_of(name=name), stop=stop).suggested()
    again = Runner(tmp_path / "part", sweep=sweep_of(name=name))
    assert again.suggested() == whole
    failed = [config for config in whole[:stop] if config.qat.epochs == 1]
    assert again.ran == [config for config in whole if config in failed or config not in whole[:stop]]


def test_more_trials_join_the_run(tmp_path):
    first = Runner(tmp_path, sweep=sweep_of(trials=9)).suggested()
    more = Runner(tmp_path, sweep=sweep_of(trials=24))
    whole = more.suggested()
    assert whole[: len(first)] == first
    assert not [config for config in more.ran if config in first and config.qat.epochs > 1]


def test_a_score_that_should_be_small_is_turned_around(tmp_path):
    found = [
        Runner(tmp_path / str(higher), sweep=sweep_of(), higher_is_better=higher).suggested()
        for higher in (True, False)
    ]
    assert found[0] == found[1]


def test_what_cannot_be_run_is_one_line_and_the_rest_goes_on(tmp_path):
    space = {"allocation.bits": [None, [4, 4]], "allocation.budget": [None, 3.0], "seed": {"int": [0, 999]}}
    runner = Runner(tmp_path, sweep=sweep_of(space, name="random"))

    def check(config):
        if config.seed < 300:
            raise BudgetError("the budget is too small\nand a second line")

    found = runner.suggested(check)
    assert found
    assert all((config.allocation.bits is None) != (config.allocation.budget is None) for config in found)
    assert min(config.seed for config in found) >= 300
    assert len(runner.lines) + len(found) == 24
    assert all(line.startswith("not run: {") and "\n" not in line for line in runner.lines)
    text = "\n".join(runner.lines)
    for reason in ("}: the budget is too small\n", "allocation.budget: bits are given too", "flow qat needs 'bits"):
        assert reason in text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random", {"sampler": "tpe"}, "sweep.suggest: suggester 'random' has no option 'sampler'; it has none"),
        ("optuna", {"samplr": "tpe"}, "suggester 'optuna' has no option 'samplr'; did you mean 'sampler'?"),
        ("optuna", {"startup_trials": 0.5}, "'startup_trials' of suggester 'optuna' takes a whole number >= 1"),
        ("optuna", {"sampler": "cma"}, "has no sampler 'cma'"),
    ],
)
def test_options_are_checked(tmp_path, name, options, message):
    runner = Runner(tmp_path, sweep=sweep_of(name=name, options=options))
    with pytest.raises(ConfigError) as caught:
        runner.suggested()
    assert message in str(caught.value)
    assert runner.ran == []


def test_no_suggester_no_proposals(tmp_path):
    assert Runner(tmp_path, sweep=from_mapping({"name": "a", "flow": "float"})).suggested() == ()


def test_the_seed_of_the_file_decides(tmp_path):
    found = [Runner(tmp_path / str(seed), sweep=sweep_of(name="random", seed=seed)).suggested() for seed in (0, 1)]
    assert found[0] != found[1]
