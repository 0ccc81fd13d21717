"""The closed loop: measure whole allocations, learn sensitivities from them, measure what may be better, and so on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation import exact
from qresearch.allocation.bayes import METHODS
from qresearch.allocation.bayes.forward_backward import backward_sample, forward_filter
from qresearch.allocation.bayes.measurements import Joint
from qresearch.allocation.budgets import Limits, check_budgets, within
from qresearch.allocation.problem import Key, Problem, draw_options, generator, merge_groups
from qresearch.errors import ConfigError

if TYPE_CHECKING:
    from qresearch.allocation.bayes.measurements import Measurements


class _Plan(NamedTuple):
    """The options of ``allocate``."""

    measurements: int
    rounds: int
    method: str
    warmup: int
    draws: int


def allocate(
    key: Key,
    problem: Problem,
    budgets: ArrayLike,
    measurements: int = 48,
    rounds: int = 4,
    method: str = "expected_improvement",
    warmup: int = 500,
    draws: int = 1000,
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The allocation of least measured loss among those that a sensitivity posterior suggested to measure.

    The first third of ``measurements`` are the exact allocations of the table and draws around them; then, ``rounds``
    times, the posterior of ``bayes.model`` is fitted to the table and all joint losses (two chains of ``warmup`` +
    ``draws``), and ``suggest`` names what to measure next. The table needs no particular unit: it is brought to that of
    the measured losses. A problem that cannot measure has nothing to learn from, and gets the table's exact answer.
    ``info``: ``evaluations``; ``measured``, the least measured loss per budget; of the last posterior, per budget,
    ``probabilities`` [layer][option], ``optimal`` (P that the allocation of least expected loss is optimal), its
    expected ``regret``, and 5, 25, 50, 75 and 95 % quantiles of its ``loss`` and of the ``front``; ``diagnostics``, and
    ``remedies``, what they ask for; ``draws``, for ArviZ (``bayes.groups``).
    Raises ``ConfigError`` for losses that are NaN or never finite, and for too few measurements.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    if method not in METHODS:
        raise ConfigError(f"suggestions are made by {' or '.join(METHODS)}, got '{method}'")
    asked = 1 if problem.measure is None else len(limits)
    if measurements < (least := 4 * asked + 8):
        raise ConfigError(f"too few measurements: {measurements} for {asked} budget(s); give at least {least}")
    if problem.measure is None:
        modes, _ = exact.allocate(key, problem, budgets)
        return modes, {"evaluations": 0, "seconds": time.perf_counter() - start}
    plan = _Plan(measurements, rounds, method, warmup, draws)
    merged, index = merge_groups(problem)
    known, report = _loop(generator(key), _Asked(problem, merged, index), limits, plan)
    met = within(merged, known.allocations, limits)
    losses = np.where(met, known.losses, np.inf)
    found = known.allocations[losses.argmin(axis=1)][:, index]
    report["probabilities"] = np.asarray(report["probabilities"])[:, index].tolist()
    info = {"stochastic": True, "evaluations": len(known.losses), "measured": losses.min(axis=1).tolist(), **report}
    info["seconds"] = time.perf_counter() - start
    return found, info


class _Asked(NamedTuple):
    """A problem with its groups merged, and the measure of the original."""

    problem: Problem
    merged: Problem
    members: Int[np.ndarray, "layer"]

    def measure(self, allocations: Int[np.ndarray, "joint layer"]) -> Joint:
        assert self.problem.measure is not None
        losses = np.asarray(self.problem.measure(allocations[:, self.members]), np.float64)
        if bad := int(np.isnan(losses).sum()):
            raise ConfigError(f"{bad} of {len(losses)} measured losses are NaN; check the calibration")
        return Joint(allocations, losses)


def _loop(random: np.random.Generator, asked: _Asked, limits: Limits, plan: _Plan) -> tuple[Joint, dict[str, Any]]:
    """All that was measured in the end, and what the last posterior says."""
    import jax  # here and below alone: the command line lists allocators without paying for JAX and numpyro

    from qresearch.allocation.bayes.decisions import decide
    from qresearch.allocation.bayes.groups import groups_of
    from qresearch.allocation.bayes.posterior import fit_posterior
    from qresearch.allocation.bayes.suggest import suggest

    merged = asked.merged
    first = known = asked.measure(_first(random, merged, limits, plan.measurements // 3))
    per_round = -(-(plan.measurements - len(first.losses)) // plan.rounds)
    for turn in range(plan.rounds + 1):
        seed = jax.random.key(int(random.integers(2**31)))
        given = _measurements(merged, first, known, plan.measurements)
        posterior = fit_posterior(seed, given, warmup=plan.warmup, draws=plan.draws, warn=False)
        count = min(per_round, plan.measurements - len(known.losses))
        if turn == plan.rounds or count == 0:
            break
        new = suggest(random, count, posterior, merged, limits, known, plan.method)
        if not len(new):
            break
        known = known.joined(asked.measure(new))
    decision = decide(random, posterior, merged, limits)
    return known, {
        "probabilities": decision.probabilities.tolist(),
        "optimal": decision.optimal.tolist(),
        "regret": decision.regret.tolist(),
        "loss": decision.loss.T.tolist(),
        "front": decision.front.T.tolist(),
        "diagnostics": {name: value for name, value in posterior.diagnostics._asdict().items() if name != "remedies"},
        "remedies": list(posterior.diagnostics.remedies),
        "draws": groups_of(random, posterior, given),
    }


def _first(random: np.random.Generator, merged: Problem, limits: Limits, count: int) -> Int[np.ndarray, "joint layer"]:
    """The table's optima, and draws within the budgets at a temperature that spreads them widely."""
    spread = merged.total_loss(draw_options(random, merged.allowed, 64)).std()
    temperature = float(spread) / np.sqrt(len(merged.loss)) if spread > 0 else 1.0
    modes = np.stack([exact.optimum(merged, limit) for limit in limits])
    found, each = [modes], -(-count // len(limits))
    for limit in limits:
        chain = forward_filter(merged, limit, temperature)
        found.append(backward_sample(random, chain, merged, limit, each))
    allocations = np.concatenate(found)
    _, first = np.unique(allocations, axis=0, return_index=True)
    return allocations[np.sort(first)][: max(count, len(modes))]


def _measurements(merged: Problem, first: Joint, known: Joint, size: int) -> Measurements:
    """What the model gets: the table as one batch, in the unit of the losses, and joint losses padded to ``size``.

    The unit and the prior of the float model's loss, where the problem does not know it, come from the first
    measurements: the prior stays what it was.
    """
    from qresearch.allocation.bayes.measurements import Measurements, unit_of

    finite = np.isfinite(first.losses)
    if finite.sum() < 3:
        raise ConfigError(
            f"{finite.sum()} of the first {len(finite)} measured losses are finite; check the calibration"
        )
    predicted, losses = merged.total_loss(first.allocations[finite]), first.losses[finite]
    scale = _deviation(losses) / _deviation(predicted) if _deviation(predicted) > 0 else 1.0
    single = merged.loss[None] * (scale if scale > 0 else 1.0)
    mean = scale * predicted.mean()
    base = float(losses.mean() - mean), float(2 * (losses.std() + abs(mean)))
    if np.isfinite(merged.float_loss):  # measured on the same examples, so that it is no unknown
        base = merged.float_loss, 0.0
    rest = size - len(known.losses)
    padding = Joint(np.zeros((rest, known.allocations.shape[1]), np.int64), np.full(rest, np.nan))
    allocations, joint = known.joined(padding)
    return Measurements(single, allocations, np.where(np.isfinite(joint), joint, np.nan), base, unit_of(single))


def _deviation(values: Float[np.ndarray, "joint"]) -> float:
    """The mean absolute deviation from the median: a scale that diverged allocations do not rule."""
    return float(np.abs(values - np.median(values)).mean())
