from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small_sweep import ONE, SMALL, one_line, settings, stored, sweep, write_small

import qresearch.sweep.choose
from qresearch.cli import main
from qresearch.config import expand, load
from qresearch.errors import BudgetError
from qresearch.evaluation import Scores
from qresearch.results import content_hash
from qresearch.sweep.outcome import Outcome, checked

# ---- Trials that fail while others go on


def test_a_float_training_that_diverges_fails_its_trials_and_no_others(tmp_path, capsys):
    values = ("sweep={grid: {float.learning_rate: [1e-3, 1e30]}, list: [{flow: float}, {allocation.bits: [4, 4]}]}",)
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *values) == 3
    captured = capsys.readouterr()
    assert "4 trials run, 0 found done, 2 failed" in captured.out
    reason = r"float training: the loss became (nan|inf) at step \d \(epoch 1\); lower the learning rate \(now 1e\+30\)"
    lines = captured.err.splitlines()
    assert re.fullmatch(rf"failed  float-seed0 float.learning_rate=1e\+30: {reason}", lines[0])
    assert re.fullmatch(rf"failed  ptq-lsq-w4a4-seed0 float.learning_rate=1e\+30: {reason}", lines[1])
    assert len(lines) == 2
    records = [json.loads(path.read_text()) for path in output.glob("*/trials/*/result.json")]
    by_rate = {(record["config"]["float"]["learning_rate"], record["flow"]): record for record in records}
    assert {record["status"] for (rate, _), record in by_rate.items() if rate == 1e-3} == {"done"}
    for flow in ("float", "ptq"):
        failed = by_rate[1e30, flow]
        assert (failed["status"], failed["metrics"], failed["examples_sha256"]) == ("failed", {}, None)
        assert re.fullmatch(reason, failed["reason"])
    # The report has the trials that ended, and says which did not.
    assert "the loss became" in captured.out
    # A failed trial is tried again, a finished one is not.
    assert sweep(config, output, *values) == 3
    assert "2 trials run, 2 found done, 2 failed" in capsys.readouterr().out


def test_a_qat_trial_that_diverges_fails_alone_and_keeps_its_history(tmp_path, capsys):
    grid = "{qat.learning_rate: [1e-3, 1e38, 2e-3], flow: [qat]}"
    values = ("qat.epochs=2", "quantize.menu=[[4, 4], [8, 8]]", f"sweep={{grid: {grid}}}")
    output = tmp_path / "out"
    assert sweep(write_small(tmp_path), output, *values) == 3
    captured = capsys.readouterr()
    assert "3 trials run, 0 found done, 1 failed" in captured.out
    line = one_line(captured.err)
    reason = r"the loss became \S+ at step \d+ \(epoch [12]\); lower .*"
    assert re.fullmatch(rf"failed  qat-lsq-w8a8-seed0 qat\.learning_rate=1e\+38: {reason}", line)
    records = [json.loads(path.read_text()) for path in output.glob("*/trials/*/result.json")]
    status = {record["config"]["qat"]["learning_rate"]: record["status"] for record in records}
    assert status == {1e-3: "done", 1e38: "failed", 2e-3: "done"}
    (folder,) = output.iterdir()
    assert len(list((folder / "checkpoints").iterdir())) == 2


def test_every_trial_failed(tmp_path, capsys):
    assert sweep(write_small(tmp_path), tmp_path / "out", "sweep=null", "float.learning_rate=1e30") == 3
    captured = capsys.readouterr()
    assert "1 trials run, 0 found done, 1 failed" in captured.out
    assert "front" not in captured.out
    one_line(captured.err)
    assert main(["report", "small", "--output", str(tmp_path / "out")]) == 2
    assert "no finished trial to report (1 failed, 0 invalid)" in one_line(capsys.readouterr().err)


def test_an_allocator_that_finds_nothing_fails_its_trial_only(tmp_path, monkeypatch, capsys):
    def refuse(key, problem, budgets):
        raise BudgetError("nothing was found")

    monkeypatch.setitem(qresearch.sweep.choose.ALLOCATORS, "greedy", refuse)
    trials = "[{allocation: {allocator: greedy, budget: 4}}, {allocation: {allocator: exact, budget: 4}}]"
    assert sweep(write_small(tmp_path), tmp_path / "out", "float.epochs=0", f"sweep={{list: {trials}}}") == 3
    assert one_line(capsys.readouterr().err) == "failed  ptq-lsq-greedy-4bits-seed0: nothing was found"
    records = stored(tmp_path / "out")
    assert records["ptq-lsq-exact-4bits-seed0"]["status"] == "done"


def test_a_loss_that_is_not_finite_in_evaluation_is_a_failed_trial(tmp_path):
    (config,) = expand(load(write_small(tmp_path), ONE))
    fine, broken = np.ones(4, np.float32), np.array([1, np.inf, np.nan, 1], np.float32)
    outcome = Outcome(config, np.zeros((3, 2)), 1.0, Scores(fine, fine), Scores(fine, fine))
    assert checked(outcome) is outcome
    for split in ("test", "validation"):
        failed = checked(outcome._replace(**{split: Scores(broken, fine)}))
        assert failed.failure.startswith(f"the {split} loss is not finite on 2 of 4 examples")
        assert (failed.test, failed.validation, failed.extra) == (None, None, {})


def test_weights_that_give_no_finite_loss_are_refused_or_fail(tmp_path, capsys):
    """Finite weights, but an overflow on the way: the trial fails and says so; a search for bits cannot begin."""
    from qresearch.sweep.assemble import setup_of, shapes_of

    (config,) = expand(load(write_small(tmp_path), ONE))
    params = shapes_of(setup_of(config))[0]["params"]
    arrays = {
        f"{layer}/{name}": np.full(leaf.shape, 3e38 if name == "kernel" else 0, np.float32)
        for layer, leaves in params.items()
        for name, leaf in leaves.items()
    }
    np.savez(tmp_path / "huge.npz", **arrays)
    weights = f"model={{name: mlp, weights: {tmp_path / 'huge.npz'}}}"
    assert sweep(tmp_path / "small.yaml", tmp_path / "out", "sweep={list: [{flow: float}]}", weights) == 3
    assert "the test loss is not finite on 400 of 400 examples" in one_line(capsys.readouterr().err)
    budget = "sweep={list: [{allocation: {allocator: exact, budget: 4}}]}"
    assert sweep(tmp_path / "small.yaml", tmp_path / "out", budget, weights) == 2
    assert one_line(capsys.readouterr().err).startswith("error: the float model's loss is not finite")


# ---- What a user gets wrong: one clear line, the right status, and nothing started


def with_rule(pattern):
    return f"quantize.rules=[{{pattern: '{pattern}'}}]"


INFEASIBLE = "sweep.list=[{allocation: {allocator: exact, budget: 1.5}}]"
REFUSED = {
    "misspelt key": (["flaot.epochs=3"], r"--set  flaot: unknown key; did you mean 'float'.*\?"),
    "misspelt inner key": (["qat.learning_rat=3"], r"--set  qat\.learning_rat: unknown key; did you mean .*"),
    "wrong type": (["float.epochs=many"], r'--set  float\.epochs: expected a whole number >= 0, got "many"'),
    "negative": (["float.learning_rate=-1"], r"--set  float\.learning_rate: expected a number > 0, got -1"),
    "not a setting": (["float"], r'--set  expected key=value, got "float"'),
    "unknown model": (["model.name=mpl"], r"--set  model\.name: unknown name \"mpl\"; did you mean 'mlp'\?"),
    "unknown data": (["data.name=digit"], r"--set  data\.name: unknown name .*; did you mean 'digits'.*\?"),
    "unknown quantizer": (
        ["quantize.weight.quantizer=lqs"],
        r"--set  quantize\.weight\.quantizer: unknown name \"lqs\"; did you mean 'lsq'.*",
    ),
    "unknown allocator": (
        ["allocation.allocator=exat", "allocation.bits=null", "allocation.budget=4"],
        r"--set  allocation\.allocator: unknown name \"exat\"; did you mean 'exact'\?",
    ),
    "infeasible budget": ([INFEASIBLE], r"allocation\.budget: 1\.5 bits .* give at least 2"),
    "pattern without a layer": (
        [with_rule("linaer1/*")],
        r"rule pattern 'linaer1/\*' matches no layer; did you mean .*",
    ),
    "shadowed pattern": (
        ["quantize.rules=[{pattern: '*'}, {pattern: 'linear1/*'}]"],
        r"rule pattern 'linear1/\*' never applies: .*",
    ),
    "missing weights": (["model.weights=gone.npz"], r"model\.weights: no file gone\.npz \(tried .*\); give its path.*"),
    "missing data": (["data={name: cifar10, folder: gone}"], r"cifar10: the data folder gone is not a folder; .*"),
    "batch too large": (["float.batch_size=2000"], r"float\.batch_size 2000 exceeds the 1097 training examples .*"),
    "endless warm-up": (["float.warmup_epochs=5"], r"float\.warmup_epochs 5 leaves nothing of 5 epochs; .*"),
    "group size": (
        [
            "flow=ptq",
            "sweep=null",
            "quantize.weight={quantizer: minmax, granularity: per_group, group_size: 7}",
        ],
        r"layer linear1/kernel: group_size 7 does not divide .*",
    ),
    "order of ptq": (
        ["flow=ptq", "sweep=null", "ptq=[adaround, equalize]"],
        r"ptq: equalize starts from the float model's weights: put it before adaround",
    ),
    "zero point for lsq": (
        ["quantize.weight.symmetric=false"],
        r"--set  quantize\.weight: lsq has no zero-point: use symmetric: true.*",
    ),
    "option that lsq has not": (
        ["quantize.input.options={trimm: 1}"],
        r"--set  quantize\.input\.options: quantizer 'lsq' has no option 'trimm'; it has none",
    ),
    "range of a rule": (
        ["quantize.rules=[{pattern: 'linear1/*', weight: {quantizer: mx, range: mse}}]"],
        r"--set  quantize\.rules\.0\.weight: mx .*: got range 'mse', expected own \(or leave range out\)",
    ),
}


@pytest.mark.parametrize("command", ["sweep", "check"])
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_exit_2_and_no_folder(tmp_path, capsys, command, case):
    values, message = REFUSED[case]
    values = [*(["sweep=null"] if case != "infeasible budget" else []), *values]
    config, output = write_small(tmp_path), tmp_path / "out"
    assert main([command, str(config), *settings(f"output={output}", *values)]) == 2
    captured = capsys.readouterr()
    problem, *count = captured.err.splitlines()
    assert re.fullmatch(f"error: {message}", problem), problem
    assert count in ([], ["1 problem, nothing started"])
    assert captured.out == ""
    assert not output.exists()


def test_a_site_that_cannot_be_is_said_at_its_line_and_at_that_of_the_trial(tmp_path, capsys):
    lines = SMALL.splitlines()
    site = next(number for number, line in enumerate(lines, 1) if line.startswith("  input:"))
    text = SMALL.replace("input: {quantizer: lsq,", "input: {quantizer: lsq, symmetric: false,")
    assert main(["check", str(write_small(tmp_path, text))]) == 2
    assert f"small.yaml:{site}  quantize.input: lsq has no zero-point" in capsys.readouterr().err
    text = SMALL + "    - {flow: ptq, quantize.input.symmetric: false, allocation: {bits: [3, 3]}}\n"
    assert main(["check", str(write_small(tmp_path, text))]) == 2
    assert f"small.yaml:{len(lines) + 1}  quantize.input: lsq has no zero-point" in capsys.readouterr().err


def test_all_problems_are_listed_at_once_with_their_lines(tmp_path, capsys):
    text = SMALL.replace("epochs: 5", "epochs: three").replace("calibration:", "calibratoin:")
    config = write_small(tmp_path, text)
    assert sweep(config, tmp_path / "out") == 2
    *problems, count = capsys.readouterr().err.splitlines()
    assert count == "2 problems, nothing started"
    assert [re.match(r"error: .*small\.yaml:(\d+)  ", line).group(1) for line in problems] == ["4", "9"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1  the file is empty; expected keys such as 'name: my_run'"),
        ("- a\n- b\n", "1  the file holds .*; expected keys such as 'name: my_run'"),
        ("name: x\nflow: [ptq\n", "3  not valid YAML: .*"),
        ("name: x\nflow: !!python/object:os.system ptq\n", "2  .*tags .* are not used here; .*"),
    ],
)
def test_files_that_are_no_config(tmp_path, capsys, text, message):
    config = write_small(tmp_path, text)
    assert sweep(config, tmp_path / "out") == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"error: {re.escape(str(config))}:{message}", first)
    assert last.endswith("nothing started")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sweep", "run", "check", "search"])
def test_a_config_that_is_not_there(tmp_path, capsys, command):
    more = ["--budgets", "4"] if command == "search" else []
    assert main([command, str(tmp_path / "gone.yaml"), *more]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error == [f"error: {tmp_path}/gone.yaml  no such file", "1 problem, nothing started"]


def test_a_folder_in_place_of_a_config(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "this is a folder; expected a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_an_output_folder_that_cannot_be(tmp_path, capsys, below):
    (tmp_path / "file").write_text("in the way")
    assert sweep(write_small(tmp_path), f"{tmp_path}/file{below}", *ONE) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"error: cannot make the folder {tmp_path}/file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_of_another_sweep_is_left_alone(tmp_path, capsys):
    # Four digits of a hash name the folder: should two sweeps share them, their trials must not mix.
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *ONE) == 0
    (folder,) = output.iterdir()
    capsys.readouterr()
    content = json.loads((folder / "resolved.json").read_text())
    content["sweep"]["trials"] = []
    content["sha256"] = content_hash(content["sweep"])
    (folder / "resolved.json").write_text(json.dumps(content))
    assert sweep(config, output, *ONE) == 2
    assert "belongs to a different sweep; choose another name or output folder" in one_line(capsys.readouterr().err)


def test_an_edited_run_folder_is_refused(tmp_path, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *ONE) == 0
    (folder,) = output.iterdir()
    path = folder / "resolved.json"
    path.write_text(path.read_text().replace('"digits"', '"mnist"'))
    capsys.readouterr()
    assert sweep(config, output, *ONE) == 2
    assert "the config was altered after the run was made" in one_line(capsys.readouterr().err)
