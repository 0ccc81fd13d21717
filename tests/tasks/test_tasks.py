from __future__ import annotations

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from task_cases import BATCH, CASES

from qresearch.tasks import TASKS
from qresearch.tasks.task import Task


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def evidence_of(name, seed):
    return np.asarray(compiled(name, "score")(*CASES[name](seed)))


@functools.cache
def compiled(name, measure):
    return jax.jit(getattr(TASKS[name], measure))


@functools.cache
def slope_of(name):
    """The jitted (sum of the losses, its gradient in the outputs)."""
    return jax.jit(jax.value_and_grad(lambda z, targets: TASKS[name].loss(z, targets).sum()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_evidence_are_float32_per_example(name, dtype):
    outputs, targets = CASES[name](0)
    loss, evidence = (compiled(name, measure)(outputs.astype(dtype), targets) for measure in ("loss", "score"))
    assert loss.shape == (BATCH,)
    assert len(evidence) == BATCH
    for value in (loss, evidence):
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value).all()


def test_an_example_has_the_same_loss_and_evidence_in_any_batch(name):
    outputs, targets = CASES[name](0)
    order = np.random.default_rng(0).permutation(BATCH)
    order[:5] = order[0]
    for measure in (compiled(name, "loss"), compiled(name, "score")):
        together = np.asarray(measure(outputs, targets))
        np.testing.assert_allclose(measure(outputs[order], targets[order]), together[order], rtol=1e-5, atol=1e-6)


def test_a_step_down_the_gradient_lowers_the_loss(name):
    outputs, targets = CASES[name](0)
    loss, slope = slope_of(name)(outputs, targets)
    assert jnp.isfinite(slope).all()
    assert slope_of(name)(outputs - 1e-2 * slope, targets)[0] < loss


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_loss_and_gradient_are_finite_where_outputs_are_zero_or_huge(name, scale):
    outputs, targets = CASES[name](0)
    loss, slope = slope_of(name)(outputs * scale, targets)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(slope).all()
    assert jnp.isfinite(compiled(name, "score")(outputs * scale, targets)).all()


def test_training_the_outputs_improves_the_score_in_its_direction(name):
    task = TASKS[name]
    outputs, targets = CASES[name](0)
    trained = outputs
    for _ in range(100):
        trained = trained - 0.3 * slope_of(name)(trained, targets)[1]
    first, last = (task.reduce(np.asarray(compiled(name, "score")(z, targets))) for z in (outputs, trained))
    assert task.sign * last > task.sign * first


def test_the_score_of_a_set_does_not_depend_on_its_order_and_repeating_the_set_changes_nothing(name):
    task, evidence = TASKS[name], evidence_of(name, 0)
    score = task.reduce(evidence)
    assert task.reduce(np.random.default_rng(0).permutation(evidence)) == pytest.approx(score, abs=1e-6)
    assert task.reduce(np.concatenate([evidence, evidence])) == pytest.approx(score, abs=1e-6)


def jackknife(task, evidence):
    """Shares by leaving examples out, one after the other: N θ − (N − 1) θ₋ᵢ."""
    count = len(evidence)
    without = [task.reduce(np.delete(evidence, i, axis=0)) for i in range(count)]
    return count * task.reduce(evidence) - (count - 1) * np.array(without)


def test_shares_are_what_leaving_an_example_out_takes_away(name):
    task = TASKS[name]
    evidence = np.concatenate([evidence_of(name, seed) for seed in range(8)])
    shares = task.shares(evidence)
    assert shares.shape == (len(evidence),)
    expected = jackknife(task, evidence)
    # Two approximations of one influence: they differ by O(1/N), and for a mean not at all.
    assert np.sqrt(np.mean((shares - expected) ** 2)) < 0.15 * np.std(expected)


def test_resampling_shares_spreads_like_resampling_examples(name):
    """What makes a bootstrap over stored numbers per example honest: score differences of two models, paired."""
    task, rng = TASKS[name], np.random.default_rng(0)
    better, worse = (np.concatenate([evidence_of(name, seed) for seed in seeds]) for seeds in (range(8), range(8, 16)))
    draws = rng.integers(len(better), size=(300, len(better)))
    whole = [task.reduce(better[draw]) - task.reduce(worse[draw]) for draw in draws]
    linear = (task.shares(better) - task.shares(worse))[draws].mean(1)
    assert np.std(linear) == pytest.approx(np.std(whole), rel=0.15)
    assert np.mean(linear) == pytest.approx(np.mean(whole), abs=0.3 * np.std(whole))
    assert np.corrcoef(whole, linear)[0, 1] > 0.95


def test_a_task_says_which_of_two_scores_is_better(name):
    assert TASKS[name].sign in (1, -1)
    assert Task(None, None, "error", higher_is_better=False).sign == -1


def test_a_score_that_is_a_mean_is_kept_to_the_last_digit():
    evidence = np.array([3e38, 3e38, -1.0], np.float32)
    task = Task(None, None, "any")
    assert task.shares(evidence) is evidence
    assert task.reduce(evidence) == np.float64(evidence[0]) * 2 / 3 - 1 / 3


def test_nothing_outside_the_tasks_knows_one_by_name():
    """But the default of a config. Else a new task would not go through sensitivity, search, sweeps and reports."""
    names = {*TASKS, *(task.score_name for task in TASKS.values())}
    found = {
        (path.relative_to(ROOT / "qresearch").as_posix(), node.value)
        for path in (ROOT / "qresearch").rglob("*.py")
        if path.parent.name != "tasks"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {("config/schema.py", "classification")}
