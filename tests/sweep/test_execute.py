from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import SMALL, compilations, stored, sweep, write_small

import qresearch.sweep.bench
from qresearch.checkpoint import load_checkpoint
from qresearch.config import expand, load, trial_label
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.qmodel import sketch_model
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.bench import Bench
from qresearch.sweep.execute import checkpoint_path, run_bench, uniform_bits
from qresearch.sweep.floats import float_key, obtain_floats
from qresearch.sweep.progress import Silent
from qresearch.tasks import TASKS


@pytest.fixture
def trainers(monkeypatch):
    """The QAT trainers that a sweep makes."""
    made = []
    make = qresearch.sweep.bench.make_trainer

    def spy(*args):
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(qresearch.sweep.bench, "make_trainer", spy)
    return made


def test_twelve_trials_that_differ_in_bits_seed_and_rate_are_one_training_program(tmp_path, trainers):
    grid = "{seed: [0, 1], allocation.bits: [[2, 2], [4, 4], [8, 3]], qat.learning_rate: [1e-3, 1e-2]}"
    values = ("flow=qat", "float.epochs=0", "qat.epochs=1", f"sweep={{grid: {grid}}}")
    with compilations() as compiled:
        assert sweep(write_small(tmp_path), tmp_path / "out", *values) == 0
    assert len(list((tmp_path / "out").glob("*/trials/*/result.json"))) == 12
    assert len(trainers) == 1
    # The float models are not trained, so these are the step of training and the one of evaluation.
    assert compiled.count("jit(step)") == 2


def test_float_and_ptq_trials_are_one_program_whatever_their_bits(tmp_path):
    # A menu that no other test has: a model that nobody compiled.
    text = SMALL.replace("[[2, 2], [4, 4], [8, 8]]", "[[3, 7], [5, 5]]")
    trials = ", ".join(f"{{allocation.bits: [{w}, {a}]}}" for w in range(1, 9) for a in (3, 8))
    values = ("float.epochs=0", f"sweep={{list: [{{flow: float}}, {trials}], grid: {{seed: [0, 1]}}}}")
    with compilations() as compiled:
        assert sweep(write_small(tmp_path, text), tmp_path / "out", *values) == 0
    assert len(stored(tmp_path / "out")) == 34
    assert compiled.count("jit(step)") == 1


def test_recipes_that_differ_are_programs_of_their_own(tmp_path, trainers):
    values = ("flow=qat", "float.epochs=0", "sweep={grid: {qat.optimizer: [adam, sgd], qat.epochs: [0]}}")
    assert sweep(write_small(tmp_path), tmp_path / "out", *values) == 0
    assert [trainer.recipe.optimizer for trainer in trainers] == ["adam", "sgd"]


# ---- Uniform bits


def sketch(*rules):
    model = MODELS["mlp"](10)
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    return sketch_model(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x, (*rules, Rule()))


def test_uniform_bits_are_one_option_for_all():
    np.testing.assert_array_equal(uniform_bits(sketch(), (3, 5)), [[3, 5]] * 3)


def test_pinned_layers_keep_their_option():
    bits = uniform_bits(sketch(Rule("linear1/*", menu=((8, 8),))), (2, 4))
    np.testing.assert_array_equal(bits, [[8, 8], [2, 4], [2, 4]])


def test_operands_that_no_rule_quantizes_are_charged_as_float():
    rules = (Rule("linear1/*", input=None), Rule("linear2/*", weight=None), Rule("linear3/*", SiteRule(), SiteRule()))
    np.testing.assert_array_equal(uniform_bits(sketch(*rules), (2, 4)), [[2, 32], [32, 4], [2, 4]])
    pinned = sketch(Rule("linear1/*", input=None, menu=((8, 8),)))
    np.testing.assert_array_equal(uniform_bits(pinned, (2, 4))[0], [8, 32])


# ---- Results, against the library called by hand


@pytest.fixture(scope="module")
def finished(finished_sweep):
    """(the run's folder, its configs by label, its records by label)."""
    (folder,) = finished_sweep.iterdir()
    records = stored(finished_sweep)
    return folder, {trial_label(config): config for config in expand(load(folder / "sweep.yaml"))}, records


def test_the_float_trial_is_the_float_model(finished):
    folder, configs, records = finished
    data, task, model = DATASETS["digits"](None), TASKS["classification"], MODELS["mlp"](10)
    template = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    variables = load_checkpoint(folder / "float" / float_key(configs["float-seed0"]), template)
    for split in ("test", "validation"):
        examples = getattr(data, split)
        outputs = jax.jit(model.apply)(variables, jnp.asarray(data.prepare(examples.inputs)))
        metrics = records["float-seed0"]["metrics"][split]
        np.testing.assert_allclose(metrics["loss"], np.mean(task.loss(outputs, examples.targets)), rtol=1e-5)
        assert metrics["score"] == pytest.approx(float(np.mean(task.score(outputs, examples.targets))), abs=0.003)


def test_a_qat_trial_is_reported_by_its_best_epoch_which_its_checkpoint_holds(finished, tmp_path):
    folder, configs, records = finished
    config, record = configs["qat-lsq-w2a2-seed0"], records["qat-lsq-w2a2-seed0"]
    bench = Bench(config, tmp_path, Silent())
    floats = obtain_floats([config], folder / "float", Silent())
    variables = floats[float_key(config)].variables
    model = bench.model("a", variables)
    bits = jnp.full((3, 2), 2.0)
    qparams = model.init(variables, bench.calibration_inputs, bits)
    best = load_checkpoint(checkpoint_path(folder, config), {"variables": variables, "qparams": qparams})
    data, task = bench.setup.data, bench.setup.task
    x = jnp.asarray(data.prepare(data.test.inputs))
    outputs = jax.jit(model.apply)(best["variables"], best["qparams"], x, bits)
    np.testing.assert_allclose(
        record["metrics"]["test"]["loss"], np.mean(task.loss(outputs, data.test.targets)), rtol=1e-2
    )
    epochs = {int(epoch): row for epoch, row in record["metrics"]["epochs"].items()}
    assert sorted(epochs) == list(range(1, 9))
    chosen = max(epochs, key=lambda e: (epochs[e]["validation_score"], -epochs[e]["validation_loss"], -e))
    assert record["metrics"]["best_epoch"] == chosen
    assert record["metrics"]["validation"]["score"] == pytest.approx(epochs[chosen]["validation_score"], abs=1e-6)
    assert set(record["metrics"]["last"]["test"]) == {"loss", "score"}


def test_qat_at_two_bits_beats_rounding(finished, tmp_path):
    _, _, records = finished
    ptq = sweep(write_small(tmp_path), tmp_path / "out", "sweep={list: [{allocation.bits: [2, 2]}]}")
    assert ptq == 0
    rounded = stored(tmp_path / "out")["ptq-lsq-w2a2-seed0"]["metrics"]["test"]["loss"]
    assert records["qat-lsq-w2a2-seed0"]["metrics"]["test"]["loss"] < rounded


def test_outcomes_come_one_by_one(tmp_path):
    """What was found is stored before the next trial runs, so that an interrupt loses one trial at most."""
    trials = "sweep.list=[{flow: float}, {flow: qat}, {flow: qat, seed: 1}]"
    (config, *more) = expand(load(write_small(tmp_path), ["float.epochs=0", "qat.epochs=0", trials]))
    ran = []

    class Phases(Silent):
        def line(self, text):
            ran.append(text)

    bench = Bench(config, tmp_path, Phases())
    outcomes = run_bench(bench, [config, *more], obtain_floats([config, *more], tmp_path / "float", Silent()))
    first = next(outcomes)
    assert first.config == config
    assert "_trainers" not in vars(bench)  # QAT has not begun
    rest = [outcome.config for outcome in outcomes]
    assert sorted(map(str, [config, *rest])) == sorted(map(str, [config, *more]))
