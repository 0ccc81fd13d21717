"""Successive halving: who goes on, that nothing is lost by it, and that a resumed sweep decides the same."""

from __future__ import annotations

import shutil

import pytest
from small_sweep import SMALL, outcome_of, settings, stored, sweep

from qresearch.cli import main
from qresearch.config import HalvingConfig, config_hash, expand, from_mapping, load
from qresearch.results import create_run, find_run
from qresearch.results.ledger import read_ledger
from qresearch.sweep.halving import halve, rungs_of, save_score

RATES = [0.3, 1e-3, 3e-3, 1e-4]
TEXT = (
    SMALL[: SMALL.index("sweep:")].replace("qat: {epochs: 8", "qat: {epochs: 4")
    + """\
sweep:
  list:
    - {flow: float}
"""
    + "".join(f"    - {{flow: qat, allocation.bits: [4, 4], qat.learning_rate: {rate}}}\n" for rate in RATES)
    + "  halving: {epochs: 1, factor: 2}\n"
)
BASE = {"name": "a", "flow": "qat", "allocation": {"bits": [4, 4]}, "qat": {"epochs": 9}}


def trials_of(**grid):
    return expand(from_mapping({**BASE, "sweep": {"grid": {key.replace("__", "."): v for key, v in grid.items()}}}))


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path, "a", "", {}, {})


def halved(run, trials, scores, **values):
    """(who is worth the end, {epoch: who was trained}, {who was stopped: why}) with scores[config] at every epoch."""
    trained, stopped = {}, {}

    def train(configs, epoch):
        trained[epoch] = list(configs)
        for config in configs:
            if scores[config] is not None:
                save_score(run.path, config, epoch, scores[config])

    chosen = HalvingConfig(**{"epochs": 1, "factor": 3, **values})
    return halve(chosen, run, trials, train, stopped.__setitem__), trained, stopped


@pytest.mark.parametrize(
    ("epochs", "first", "factor", "expected"),
    [(9, 1, 3, (1, 3)), (10, 1, 3, (1, 3, 9)), (8, 2, 2, (2, 4)), (1, 1, 2, ()), (3, 5, 2, ())],
)
def test_rungs_are_before_the_end(epochs, first, factor, expected):
    assert rungs_of(HalvingConfig(epochs=first, factor=factor), epochs) == expected


def test_the_best_of_each_rung_go_on(run):
    trials = trials_of(qat__learning_rate=[10.0**-n for n in range(1, 8)])
    scores = {config: float(n) for n, config in enumerate(trials)}
    alive, trained, stopped = halved(run, trials, scores)
    assert trained == {1: list(trials), 3: list(trials[4:])}
    assert alive == {trials[6]}
    assert set(stopped) == set(trials[:6])
    assert stopped[trials[0]] == "0.0000 after epoch 1; the 3 that go on have 4.0000 or more"


def test_trials_of_other_bits_do_not_compete_and_seeds_do_unless_asked(run):
    trials = trials_of(allocation__bits=[[2, 2], [4, 4]], seed=[0, 1, 2])
    scores = {config: float(n) for n, config in enumerate(trials)}
    alive, *_ = halved(run, trials, scores)
    assert alive == {trials[2], trials[5]}
    alive, _, stopped = halved(run, trials, scores, within=("allocation", "seed"))
    assert alive == set(trials)
    assert not stopped
    alive, *_ = halved(run, trials, scores, within=())
    assert alive == {trials[5]}


def test_a_trial_that_failed_is_out_and_not_called_stopped(run):
    trials = trials_of(qat__learning_rate=[1e-3, 1e-2, 1e-1])
    scores = {trials[0]: 0.5, trials[1]: 0.4, trials[2]: None}
    alive, _, stopped = halved(run, trials, scores)
    assert alive == {trials[0]}
    assert set(stopped) == {trials[1]}


def test_what_is_known_is_not_trained_again_and_a_damaged_score_is(run):
    trials = trials_of(qat__learning_rate=[1e-3, 1e-2, 1e-1])
    scores = {config: float(n) for n, config in enumerate(trials)}
    first, *_ = halved(run, trials, scores)
    again, trained, _ = halved(run, trials, scores)
    assert again == first
    assert trained == {1: [], 3: []}
    path = run.path / "rungs" / f"{config_hash(trials[1])[:16]}-1.json"
    path.write_text(path.read_text().replace("1.0", "9.0"))
    again, trained, _ = halved(run, trials, scores)
    assert again == first
    assert trained[1] == [trials[1]]


def test_other_flows_always_go_on(run):
    (config,) = expand(from_mapping({**BASE, "flow": "ptq"}))
    assert halved(run, [config], {})[0] == {config}


@pytest.fixture(scope="module")
def halved_sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halved")
    (folder / "small.yaml").write_text(TEXT)
    assert sweep(folder / "small.yaml", folder / "out") == 0
    return folder


def test_a_sweep_trains_the_promising_to_the_end(halved_sweep, tmp_path):
    rows = read_ledger(find_run(halved_sweep / "out", "small").path)
    assert sorted(row.state for row in rows) == ["done", "done", "stopped", "stopped", "stopped"]
    found = stored(halved_sweep / "out")
    assert len(found) == 2
    # The winner is what it would have been alone, bit for bit.
    (winner,) = (record for record in found.values() if record["flow"] == "qat")
    rate = winner["config"]["qat"]["learning_rate"]
    alone = ("sweep=null", "flow=qat", "allocation={bits: [4, 4]}", f"qat.learning_rate={rate}")
    assert sweep(halved_sweep / "small.yaml", tmp_path / "alone", *alone) == 0
    (expected,) = stored(tmp_path / "alone").values()
    assert outcome_of(winner) == outcome_of(expected)
    assert not list((halved_sweep / "out").glob("*/training/*"))  # nor checkpoints on the way


def test_the_front_and_the_status_tell_the_rates_apart(halved_sweep, capsys):
    (winner,) = (record for record in stored(halved_sweep / "out").values() if record["flow"] == "qat")
    rate = winner["config"]["qat"]["learning_rate"]
    capsys.readouterr()
    for command in ("show", "status"):
        assert main([command, "small", "--output", str(halved_sweep / "out")]) == 0
    shown, told = capsys.readouterr().out.split("small-", 1)
    assert f"uniform W4A4 qat.learning_rate={rate}" in shown
    for other in set(RATES) - {rate}:
        assert f"qat-lsq-w4a4-seed0 qat.learning_rate={other} (attempt" in told


def test_a_resumed_sweep_decides_the_same(halved_sweep, tmp_path, capsys):
    output = shutil.copytree(halved_sweep / "out", tmp_path / "out")
    (record,) = output.glob("*/trials/*qat*/result.json")
    expected = outcome_of(stored(output)["qat-lsq-w4a4-seed0"])
    record.unlink()
    assert main(["resume", "small", "--output", str(output)]) == 0
    assert "1 trials run, 1 found done, 0 failed, 3 stopped early" in capsys.readouterr().out
    assert outcome_of(stored(output)["qat-lsq-w4a4-seed0"]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{factor: 1}", "sweep.halving.factor: expected a whole number >= 2, got 1"),
        ("{epoch: 1}", "sweep.halving.epoch: unknown key; did you mean 'epochs'"),
        ("{within: [alocation]}", "sweep.halving.within: runs have no key 'alocation'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, given, message):
    (tmp_path / "small.yaml").write_text(TEXT)
    arguments = settings(f"sweep.halving={given}", f"output={tmp_path / 'out'}")
    assert main(["sweep", str(tmp_path / "small.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_rule_does_not_make_another_run(tmp_path):
    from qresearch.config import sweep_identity

    (tmp_path / "small.yaml").write_text(TEXT)
    without = load(tmp_path / "small.yaml", ["sweep.halving=null"])
    assert sweep_identity(load(tmp_path / "small.yaml")) == sweep_identity(without)


def test_failed_trials_take_no_place_and_are_not_worth_the_end(run):
    trials = trials_of(qat__learning_rate=[1e-3, 1e-2, 1e-1, 1e-4])
    scores = {trials[0]: None, trials[1]: None, trials[2]: None, trials[3]: 0.1}
    alive, _, stopped = halved(run, trials, scores)
    assert alive == {trials[3]}
    assert not stopped
    alive, *_ = halved(run, trials[:1], scores)
    assert not alive


def test_a_rung_below_the_checkpoint_has_the_score_of_its_epoch(halved_sweep, tmp_path):
    """The rule changes: the best trials stand at a later epoch than the new first rung."""
    output = shutil.copytree(halved_sweep / "out", tmp_path / "out")
    (record,) = output.glob("*/trials/*qat*/result.json")
    record.unlink()
    for path in output.glob("*/rungs/*"):
        path.unlink()
    assert sweep(halved_sweep / "small.yaml", output, "sweep.halving.epochs=2") == 0
    rows = read_ledger(find_run(output, "small").path)
    assert sorted(row.state for row in rows) == ["done", "done", "done", "stopped", "stopped"]
