"""The closed loop: measure whole allocations, learn sensitivities from them, measure what may be better, and so on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation import exact
from qresearch.allocation.bayes.forward_backward import backward_sample, forward_filter
from qresearch.allocation.budgets import Limits, check_budgets, within
from qresearch.allocation.problem import Key, Problem, draw_options, generator, merge_groups
from qresearch.errors import ConfigError

if TYPE_CHECKING:
    from qresearch.allocation.bayes.model import Measurements
    from qresearch.allocation.bayes.posterior import Posterior


class _Measured(NamedTuple):
    """Every allocation measured so far, of the merged problem; a loss is +inf where the model diverged."""

    allocations: Int[np.ndarray, "joint layer"]
    losses: Float[np.ndarray, "joint"]


def allocate(
    key: Key,
    problem: Problem,
    budgets: ArrayLike,
    measurements: int = 48,
    rounds: int = 4,
    method: str = "expected_improvement",
    warmup: int = 500,
    draws: int = 500,
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The allocation of least measured loss among those that a sensitivity posterior suggested to measure.

    The first third of ``measurements`` are the exact allocations of the table and draws around them; then, ``rounds``
    times, the posterior of ``bayes.model`` is fitted to the table and all joint losses (two chains of ``warmup`` +
    ``draws``), and ``suggest`` names what to measure next. The table needs no particular unit: it is brought to that of
    the measured losses. A problem that cannot measure has nothing to learn from, and gets the table's exact answer.
    ``info``: ``evaluations``; of the last posterior ``probabilities`` [budget][layer][option], ``optimal`` (P that the
    allocation of least expected loss is optimal), ``regret`` and ``loss_band`` (5 % to 95 %) of it, per budget, and
    ``remedies``, what its diagnostics ask for.
    Raises ``ConfigError`` for losses that are NaN or never finite, and for too few measurements.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    modes, _ = exact.allocate(key, problem, budgets)
    if problem.measure is None:
        return modes, {"evaluations": 0, "seconds": time.perf_counter() - start}
    if measurements < 4 * len(limits) + 8:
        raise ConfigError(
            f"too few measurements: {measurements} for {len(limits)} budgets; give at least {4 * len(limits) + 8}"
        )
    merged, index = merge_groups(problem)
    _, leaders = np.unique(index, return_index=True)
    random = generator(key)
    asked = _first(random, merged, limits, modes[:, leaders], measurements // 3)
    known = _Measured(asked, _ask(problem, asked[:, index]))
    known, report = _loop(random, problem, merged, limits, known, measurements, rounds, method, warmup, draws)
    met = within(merged, known.allocations, limits)
    found = known.allocations[np.where(met, known.losses, np.inf).argmin(axis=1)][:, index]
    report["probabilities"] = np.asarray(report["probabilities"])[:, index].tolist()
    info = {"stochastic": True, "evaluations": len(known.losses), **report, "seconds": time.perf_counter() - start}
    return found, info


def _loop(
    random: np.random.Generator,
    problem: Problem,
    merged: Problem,
    limits: Limits,
    known: _Measured,
    measurements: int,
    rounds: int,
    method: str,
    warmup: int,
    draws: int,
) -> tuple[_Measured, dict[str, Any]]:
    """All that was measured in the end, and what the last posterior says."""
    import jax  # here and below alone: the command line lists allocators without paying for JAX and numpyro

    from qresearch.allocation.bayes.decisions import decide
    from qresearch.allocation.bayes.posterior import fit
    from qresearch.allocation.bayes.suggest import suggest

    _, index = merge_groups(problem)
    first, per_round = known, -(-(measurements - len(known.losses)) // rounds)
    for turn in range(rounds + 1):
        seed = jax.random.key(int(random.integers(2**31)))
        given = _measurements(merged, first, known, measurements)
        posterior: Posterior = fit(seed, given, warmup=warmup, draws=draws, warn=False)
        decision = decide(random, posterior, merged, limits)
        count = min(per_round, measurements - len(known.losses))
        if turn == rounds or count == 0:
            break
        asked = suggest(random, count, posterior, merged, limits, *known, decision, method)
        if not len(asked):
            break
        losses = _ask(problem, asked[:, index])
        known = _Measured(np.concatenate([known.allocations, asked]), np.concatenate([known.losses, losses]))
    return known, {
        "probabilities": decision.probabilities.tolist(),
        "optimal": decision.optimal.tolist(),
        "regret": decision.regret.tolist(),
        "loss_band": decision.loss[[0, -1]].T.tolist(),
        "remedies": list(posterior.diagnostics.remedies),
    }


def _first(
    random: np.random.Generator, merged: Problem, limits: Limits, modes: np.ndarray, count: int
) -> Int[np.ndarray, "joint layer"]:
    """The table's optima, and draws within the budgets at a temperature that spreads them widely."""
    spread = merged.total_loss(draw_options(random, merged.allowed, 64)).std()
    temperature = float(spread) / np.sqrt(len(merged.loss)) if spread > 0 else 1.0
    found, each = [modes], -(-count // len(limits))
    for limit in limits:
        chain = forward_filter(merged, limit, temperature)
        found.append(backward_sample(random, chain, merged, limit, each))
    allocations = np.concatenate(found)
    _, first = np.unique(allocations, axis=0, return_index=True)
    return allocations[np.sort(first)][: max(count, len(modes))]


def _ask(problem: Problem, allocations: Int[np.ndarray, "joint layer"]) -> Float[np.ndarray, "joint"]:
    assert problem.measure is not None
    losses = np.asarray(problem.measure(allocations), np.float64)
    if np.isnan(losses).any():
        raise ConfigError(f"{np.isnan(losses).sum()} of {len(losses)} measured losses are NaN; check the calibration")
    return losses


def _measurements(merged: Problem, first: _Measured, known: _Measured, size: int) -> Measurements:
    """What the model gets: the table as one batch, in the unit of the losses, and joint losses padded to ``size``.

    The unit and the prior of the float model's loss come from the first measurements: the prior stays what it was.
    """
    from qresearch.allocation.bayes.model import Measurements, unit_of

    finite = np.isfinite(first.losses)
    if finite.sum() < 3:
        raise ConfigError(
            f"{finite.sum()} of the first {len(finite)} measured losses are finite; check the calibration"
        )
    predicted, losses = merged.total_loss(first.allocations[finite]), first.losses[finite]
    deviation = np.abs(predicted - np.median(predicted)).mean()
    scale = np.abs(losses - np.median(losses)).mean() / deviation if deviation > 0 else 1.0
    single = merged.loss[None] * (scale if scale > 0 else 1.0)
    mean = scale * predicted.mean()
    base = float(losses.mean() - mean), float(2 * (losses.std() + abs(mean)))
    rest = size - len(known.losses)
    joint = np.where(np.isfinite(known.losses), known.losses, np.nan)
    return Measurements(
        single,
        np.concatenate([known.allocations, np.zeros((rest, known.allocations.shape[1]), np.int64)]),
        np.concatenate([joint, np.full(rest, np.nan)]),
        base,
        unit_of(single),
    )
