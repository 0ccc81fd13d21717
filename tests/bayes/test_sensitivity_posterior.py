"""The sensitivity posterior: what it recovers, what it decides, and what it warns about."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from bayes_cases import every, middle_budget, problem_of

from qresearch.allocation import Problem
from qresearch.allocation.bayes.decisions import QUANTILES, decide
from qresearch.allocation.bayes.diagnostics import MIN_P, diagnose
from qresearch.allocation.bayes.measurements import Joint, Measurements, unit_of
from qresearch.allocation.bayes.model import Prior, in_context, prepare, simulate
from qresearch.allocation.bayes.posterior import fit_posterior
from qresearch.allocation.bayes.simulation import overconfident
from qresearch.allocation.bayes.suggest import expected_improvement, suggest
from qresearch.allocation.budgets import check_budgets, within
from qresearch.errors import ConfigError

LAYERS, BATCHES, JOINT = 6, 3, 12
PRIOR = Prior(
    layer=(1.0, 0.1), batch=(0.1, 0.1), floor=(0.01, 0.1), context=(0.1, 0.1), interaction=(0.05, 0.1), option=1.0
)
SHORT = {"warmup": 300, "draws": 200}


@pytest.fixture(scope="module")
def measured():
    return simulate(jax.random.key(1), np.ones((LAYERS, 3), bool), BATCHES, JOINT, PRIOR, (2.0, 0.5))


@pytest.fixture(scope="module")
def posterior(measured):
    return fit_posterior(jax.random.key(0), measured[0], PRIOR, **SHORT, warn=False)


@pytest.fixture(scope="module")
def problem(measured):
    return Problem(in_context(measured[1]), problem_of(0).costs)


def test_what_was_simulated_is_found(measured, posterior):
    """Within four posterior standard deviations, every sensitivity and every scale; the noise shrinks what is known."""
    _, truth = measured
    for name, value in truth.items():
        drawn = posterior.sites[name].reshape(-1, *value.shape)
        z = (drawn.mean(axis=0) - value) / drawn.std(axis=0)
        assert np.abs(z).max() < 4, name
    drawn = posterior.sites["log_sensitivity"]
    clear = np.exp(truth["log_sensitivity"]) > 0.1
    assert np.all(drawn.std(axis=(0, 1))[clear] < 0.15)
    assert posterior.diagnostics.divergent < 0.02
    assert posterior.diagnostics.r_hat < 1.2


def test_the_same_key_gives_the_same_draws_and_units_do_not_matter(measured, posterior):
    given, _ = measured
    scaled = Measurements(given.single * 1024, given.allocations, given.joint * 1024, (2048.0, 512.0), 1024.0)
    other = fit_posterior(jax.random.key(0), scaled, PRIOR, **SHORT, warn=False)
    for name, drawn in posterior.sites.items():
        np.testing.assert_array_equal(other.sites[name], drawn, err_msg=name)
    np.testing.assert_allclose(other.sensitivity, posterior.sensitivity * 1024, rtol=1e-5)


def test_options_that_are_not_allowed_stay_so_and_gaps_are_filled(measured):
    given, _ = measured
    single = given.single.copy()
    single[:, 0, 0], single[:, 1, 2] = np.inf, np.nan  # not allowed; not measured
    found = fit_posterior(jax.random.key(0), given._replace(single=single), PRIOR, **SHORT, warn=False)
    assert np.isposinf(found.sensitivity[:, 0, 0]).all()
    log = np.log(found.sensitivity[:, 1, 2])
    assert np.isfinite(log).all()
    assert log.std() > 1.5 * found.sites["log_sensitivity"][..., 1, 1].std()  # known from other layers alone


def test_the_decision_is_the_posteriors_by_enumeration(posterior, problem):
    budgets = np.array([middle_budget(problem, share) for share in (0.2, 0.5, 0.8)])
    found = decide(0, posterior, problem, budgets)
    allocations = every(problem)
    loss = posterior.sensitivity[:, np.arange(LAYERS), allocations].sum(axis=-1)
    for b, budget in enumerate(budgets):
        met = np.flatnonzero(np.all(problem.total_cost(allocations) <= budget, axis=1))
        chosen = met[loss[:, met].mean(axis=0).argmin()]
        np.testing.assert_array_equal(found.allocations[b], allocations[chosen])
        best = met[loss[:, met].argmin(axis=1)]
        assert found.optimal[b] == pytest.approx((best == chosen).mean(), abs=1e-9)
        assert found.regret[b] == pytest.approx((loss[:, chosen] - loss[:, met].min(axis=1)).mean(), rel=1e-4, abs=1e-6)
        shares = (allocations[best][:, :, None] == np.arange(3)).mean(axis=0)
        np.testing.assert_allclose(found.probabilities[b], shares)
        front = np.quantile(posterior.base + loss[:, met].min(axis=1), QUANTILES)
        np.testing.assert_allclose(found.front[:, b], front, rtol=1e-5)
    assert np.all(np.diff(found.loss, axis=0) > 0)
    assert np.all(found.loss[-1] - found.loss[0] >= 0.9 * (found.front[-1] - found.front[0]))


def test_tied_layers_share_their_option_in_every_draw(posterior, problem):
    tied = Problem(problem.loss, problem.costs, groups=((0, 3),))
    found = decide(0, posterior, tied, middle_budget(problem))
    assert found.allocations[0, 0] == found.allocations[0, 3]
    np.testing.assert_array_equal(found.probabilities[0, 0], found.probabilities[0, 3])


@pytest.mark.parametrize("method", ["expected_improvement", "thompson"])
def test_suggestions_are_new_within_a_budget_and_worth_it(measured, posterior, problem, method):
    given, _ = measured
    limits = check_budgets(problem, np.array([middle_budget(problem, share) for share in (0.3, 0.6)]))
    random = np.random.default_rng(0)
    known = Joint(given.allocations, given.joint)
    found = suggest(random, 5, posterior, problem, limits, known, method)
    assert 0 < len(found) <= 5
    assert within(problem, found, limits).any(axis=0).all()
    everything = np.concatenate([found, given.allocations])
    assert len(np.unique(everything, axis=0)) == len(found) + len(np.unique(given.allocations, axis=0))
    others = np.random.default_rng(1).integers(0, 3, (50, LAYERS))
    gain = [expected_improvement(posterior, problem, limits, a, known).mean() for a in (found, others)]
    assert gain[0] > 2 * gain[1]


def test_expected_improvement_by_simulation(measured, posterior, problem):
    given, _ = measured
    limits = check_budgets(problem, middle_budget(problem, 0.6))
    candidates = every(problem)[:: 3**LAYERS // 9]
    closed = expected_improvement(posterior, problem, limits, candidates, Joint(given.allocations, given.joint))
    best = given.joint[within(problem, given.allocations, limits)[0]].min()
    mean, sd = posterior.predict(candidates)
    draws = mean + sd * np.random.default_rng(0).normal(size=(400, *mean.shape))
    simulated = np.maximum(best - draws, 0).mean(axis=(0, 1)) * within(problem, candidates, limits)[0]
    np.testing.assert_allclose(closed, simulated, rtol=0.05, atol=1e-3)


def test_poor_draws_name_their_remedy(measured, posterior):
    data = prepare(measured[0])
    random = np.random.default_rng(0)
    shape = posterior.sites["gain"].shape
    calm = np.zeros(shape, bool)
    stuck = {**posterior.sites, "gain": np.broadcast_to([[1.0], [1.1]], shape) + 1e-3 * random.normal(size=shape)}
    assert any("raise warmup" in line for line in diagnose(stuck, calm, data).remedies)
    slow = {**posterior.sites, "gain": 1 + 1e-3 * random.normal(size=shape).cumsum(axis=1)}
    assert any("raise draws" in line for line in diagnose(slow, calm, data).remedies)
    found = diagnose(posterior.sites, random.random(shape) < 0.1, data)
    assert any("raise target_accept" in line for line in found.remedies)


def test_losses_that_the_model_cannot_explain_warn(measured, posterior):
    given, truth = measured
    assert min(posterior.diagnostics[3:6]) > MIN_P
    single = given.single.copy()
    single[0, 2, 0] *= 50
    found = fit_posterior(jax.random.key(0), given._replace(single=single), PRIOR, **SHORT, warn=False)
    assert any("measure more batches" in line for line in found.diagnostics.remedies)
    increase = given.joint - truth["base"]
    bent = truth["base"] + np.median(increase) * (increase / np.median(increase)) ** 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_posterior(jax.random.key(0), given._replace(joint=bent), PRIOR, **SHORT)
    assert any("joint loss" in str(warning.message) for warning in caught)


def test_an_overconfident_posterior_has_the_same_means_and_a_part_of_the_spread(posterior):
    half = overconfident(posterior, np.ones((LAYERS, 3), bool), 2.0)
    for name in ("log_sensitivity", "base", "layer_context"):
        np.testing.assert_allclose(half.sites[name].mean(axis=(0, 1)), posterior.sites[name].mean(axis=(0, 1)))
        np.testing.assert_allclose(half.sites[name].std(axis=(0, 1)), posterior.sites[name].std(axis=(0, 1)) / 2)
    total = np.ones((len(half.base), 1))
    assert half.spread(total).mean() < 0.6 * posterior.spread(total).mean()
    assert overconfident(posterior, np.ones((LAYERS, 3), bool), 1.0) is posterior


def test_measurements_that_say_nothing_are_refused(measured):
    given, _ = measured
    nothing = np.full_like(given.single, np.nan)
    with pytest.raises(ConfigError, match="too few measurements: 0 finite"):
        prepare(given._replace(single=nothing))
    nothing[:, 0] = given.single[:, 0]
    with pytest.raises(ConfigError, match="layer 1 has no finite single-layer loss"):
        prepare(given._replace(single=nothing))
    with pytest.raises(ConfigError, match=r"got shapes \(3, 6, 3\), \(12, 6\) and \(11,\)"):
        prepare(given._replace(joint=given.joint[1:]))
    with pytest.raises(ConfigError, match="a measured loss is infinite"):
        prepare(given._replace(joint=given.joint * np.inf))
    with pytest.raises(ConfigError, match="no sensitivity to model"):
        unit_of(-np.abs(given.single))
    with pytest.raises(ConfigError, match="expected_improvement or thompson, got 'best'"):
        suggest(0, 1, *[None] * 4, "best")  # type: ignore[arg-type]
