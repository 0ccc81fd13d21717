"""Simulation-based calibration: truths from the prior, measurements of them, posteriors, and whether these were right.

Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian Inference Algorithms with Simulation-Based
Calibration, https://arxiv.org/abs/1804.06788, 2018. For a prior or a number of measurements of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import chisquare

from qresearch.allocation import exact
from qresearch.allocation.bayes.decisions import decide
from qresearch.allocation.bayes.model import SCALES, Prior, in_context, simulate
from qresearch.allocation.bayes.posterior import Posterior, fit_posterior, posterior_of
from qresearch.allocation.problem import Problem

RANKS = 100  # posterior draws are thinned to 99, so that ranks are 0 to 99
SHARES = (0.15, 0.3, 0.5, 0.7, 0.85)  # the budgets, between the cheapest and the dearest allocation
BANDS = {0.5: (1, 3), 0.9: (0, 4)}  # levels of bands, and their ends among ``decisions.QUANTILES``


class Design(NamedTuple):
    """How much each simulation measures."""

    layers: int = 8
    options: int = 3
    batches: int = 4
    joint: int = 12


class Calibration(NamedTuple):
    """ranks: of every scale, of some sensitivities and of a joint loss among their draws. inside: whether the loss of
    the chosen allocation, measured once more, was in its 50 % and 90 % bands. predicted, observed: P(bits), and whether
    the truth's optimum has them. optimal, was_optimal: the same of whole allocations. divergent: share of draws.
    """

    ranks: dict[str, Int[np.ndarray, "simulation"]]
    inside: dict[float, Bool[np.ndarray, "simulation budget"]]
    predicted: Float[np.ndarray, "simulation budget layer option"]
    observed: Bool[np.ndarray, "simulation budget layer option"]
    optimal: Float[np.ndarray, "simulation budget"]
    was_optimal: Bool[np.ndarray, "simulation budget"]
    divergent: float

    def p_values(self) -> dict[str, float]:
        """Of uniform ranks: χ² over ten bins, for each parameter."""
        return {name: float(chisquare(np.bincount(r // 10, minlength=10)).pvalue) for name, r in self.ranks.items()}

    def coverage(self) -> dict[float, float]:
        """The share of losses inside each band; of the levels, if the posterior is calibrated."""
        return {level: float(hits.mean()) for level, hits in self.inside.items()}

    def calibration_error(self) -> float:
        """The expected calibration error of P(bits), of those on which posterior draws disagree: 0 < P < 1.

        The others are mostly obvious, and would make any posterior look calibrated.
        """
        undecided = (self.predicted > 0) & (self.predicted < 1)
        return expected_calibration_error(self.predicted[undecided], self.observed[undecided])


def reliability(
    predicted: Float[np.ndarray, "n"], observed: Bool[np.ndarray, "n"], bins: int = 10
) -> Float[np.ndarray, "bin 3"]:
    """(mean prediction, share observed, count) of every bin of equal width; NaN shares where a bin is empty."""
    index = np.minimum((predicted * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return np.stack([*(np.bincount(index, x, bins) / count for x in (predicted, observed)), count], axis=1)


def expected_calibration_error(predicted: Float[np.ndarray, "n"], observed: Bool[np.ndarray, "n"]) -> float:
    """Σ_bin share of the bin · |mean prediction − share observed|, over the bins of ``reliability``."""
    mean, share, count = reliability(predicted, observed).T
    return float(np.nansum(count * np.abs(mean - share)) / count.sum())


def simulate_posteriors(
    simulations: int,
    prior: Prior = Prior(),  # noqa: B008 (immutable)
    design: Design = Design(),  # noqa: B008 (immutable)
    overconfidence: float = 1.0,
    draws: int = 1000,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> Calibration:
    """Calibration of ``simulations`` posteriors. Costs of options are random, in the proportions 2 : 4 : 8 : ....

    overconfidence: 1, or a negative control, which must come out as not calibrated: 2 halves what posteriors believe
    of the noise (``overconfident``). on_done is called with the simulations finished.
    """
    random, rows = np.random.default_rng(seed), []
    for i, key in enumerate(jax.random.split(jax.random.key(seed), simulations)):
        make, sample = jax.random.split(key)
        allowed = np.ones((design.layers, design.options), bool)
        measured, truth = simulate(make, allowed, design.batches, design.joint, prior, (2.0, 1.0))
        posterior = overconfident(
            fit_posterior(sample, measured, prior, draws=draws, warn=False), allowed, overconfidence
        )
        rows.append({"ranks": _ranks(posterior, truth), **_judged(random, posterior, truth)})
        if on_done is not None:
            on_done(i + 1)
    judged = ("predicted", "observed", "optimal", "was_optimal")
    return Calibration(
        {name: np.array([row["ranks"][name] for row in rows]) for name in rows[0]["ranks"]},
        {level: np.stack([row["inside"][level] for row in rows]) for level in BANDS},
        **{name: np.stack([row[name] for row in rows]) for name in judged},
        divergent=float(np.mean([row["divergent"] for row in rows])),
    )


def overconfident(posterior: Posterior, allowed: Bool[np.ndarray, "layer option"], factor: float) -> Posterior:
    """The posterior with all spreads divided by ``factor``: of every unknown, scales by their logarithms, around its
    mean, and of the losses of allocations. That is what believing less noise does where all is linear and normal.
    """

    def contracted(values: np.ndarray) -> np.ndarray:
        mean = values.mean(axis=(0, 1), keepdims=True)
        return mean + (values - mean) / factor

    if factor == 1.0:
        return posterior
    sites = {name: contracted(value) for name, value in posterior.sites.items()}
    sites |= {name: np.exp(contracted(np.log(posterior.sites[name]))) for name in SCALES}
    found = posterior_of(sites, posterior.diverging, allowed, 1.0, posterior.diagnostics)
    return found._replace(interaction=found.interaction / factor, floor=found.floor / factor)


def _ranks(posterior: Posterior, truth: Mapping[str, np.ndarray]) -> dict[str, int]:
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in posterior.sites.items()}
    drawn, true = _scalars(flat), _scalars(truth)
    step = len(flat["base"]) // (RANKS - 1)
    return {name: int((values[::step][: RANKS - 1] < true[name]).sum()) for name, values in drawn.items()}


def _scalars(sites: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every parameter by name; of the sensitivities the first layer's, and the mean loss of a whole allocation."""
    options = range(sites["option"].shape[-1])
    named = {name: np.asarray(sites[name]) for name in (*SCALES, "base")}
    named |= {f"option {o}": sites["option"][..., o] for o in options}
    named |= {f"log_sensitivity {o}": sites["log_sensitivity"][..., 0, o] for o in options}
    named |= {"layer_context": sites["layer_context"][..., 0]}
    return named | {"joint loss": sites["base"] + in_context(sites)[..., 0].sum(axis=-1)}


def _judged(random: np.random.Generator, posterior: Posterior, truth: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the posterior decides within some budgets, against what is best in truth."""
    loss = in_context(truth)
    costs = random.integers(1, 2000, (len(loss), 1)) * 2 ** np.arange(1, loss.shape[1] + 1)
    problem = Problem(loss, costs[None])
    low, high = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    budgets = np.floor(low + (high - low) * np.array(SHARES))
    decision = decide(random, posterior, problem, budgets)
    best, _ = exact.allocate(0, problem, budgets)
    total = problem.total_loss(decision.allocations)
    spread = np.hypot(truth["interaction"] * total, truth["floor"])
    future = truth["base"] + total + spread * random.normal(size=len(total))
    ends = {level: decision.loss[list(band)] for level, band in BANDS.items()}
    return {
        "inside": {level: (low <= future) & (future <= high) for level, (low, high) in ends.items()},
        "predicted": decision.probabilities,
        "observed": best[:, :, None] == np.arange(loss.shape[1]),
        "optimal": decision.optimal,
        "was_optimal": (best == decision.allocations).all(axis=1),
        "divergent": posterior.diagnostics.divergent,
    }
