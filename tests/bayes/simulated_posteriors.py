"""Simulation-based calibration: truths from the prior, measurements of them, posteriors, and what these said.

Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian Inference Algorithms with Simulation-Based
Calibration, https://arxiv.org/abs/1804.06788, 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import chisquare

from qresearch.allocation import Problem, exact
from qresearch.allocation.bayes.decisions import decide
from qresearch.allocation.bayes.model import SCALES, Prior, simulate
from qresearch.allocation.bayes.posterior import fit

LAYERS, OPTIONS, BATCHES, JOINT = 8, 3, 4, 12
RANKS = 100  # posterior draws are thinned to 99, so that ranks are 0 to 99
BANDS = {0.5: (1, 3), 0.9: (0, 4)}  # of decisions.QUANTILES


class Calibration(NamedTuple):
    """ranks: by parameter, [simulation]. inside: by band, [simulation, budget]. predicted, observed: P(bits) and
    whether the truth's optimum has them. optimal, was_optimal: the same of whole allocations. remedies: how many fits
    asked for one.
    """

    ranks: dict[str, np.ndarray]
    inside: dict[float, np.ndarray]
    predicted: np.ndarray
    observed: np.ndarray
    optimal: np.ndarray
    was_optimal: np.ndarray
    divergent: float
    remedies: int

    def p_values(self) -> dict[str, float]:
        """Of uniform ranks, ten bins, χ²."""
        return {name: float(chisquare(np.bincount(r // 10, minlength=10)).pvalue) for name, r in self.ranks.items()}

    def coverage(self) -> dict[float, float]:
        return {level: float(hits.mean()) for level, hits in self.inside.items()}

    def calibration_error(self) -> float:
        return expected_calibration_error(self.predicted.ravel(), self.observed.ravel())


def expected_calibration_error(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Σ_bin share of the bin · |mean predicted − mean observed|, ten bins of equal width."""
    bins = np.minimum((predicted * 10).astype(int), 9)
    count = np.maximum(np.bincount(bins, minlength=10), 1)
    gap = np.abs(np.bincount(bins, predicted, 10) - np.bincount(bins, observed, 10)) / count
    return float((np.bincount(bins, minlength=10) / len(bins)) @ gap)


def simulate_posteriors(simulations: int, noise_factor: float = 1.0, draws: int = 1000, seed: int = 0) -> Calibration:
    """``noise_factor``: what the fitted model takes the noise and the interaction for, relative to the truth."""
    prior, random = Prior(), np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in ("inside", "predicted", "observed", "optimal", "was", "bad", "poor")}
    ranks: dict[str, list] = {}
    allowed = np.ones((LAYERS, OPTIONS), bool)
    for key in jax.random.split(jax.random.key(seed), simulations):
        make, sample = jax.random.split(key)
        measured, truth = simulate(make, allowed, BATCHES, JOINT, prior, (2.0, 1.0))
        posterior = fit(sample, measured, prior._replace(noise_factor=noise_factor), draws=draws, warn=False)
        for name, value in scalars(truth).items():
            drawn = scalars({site: v.reshape(-1, *v.shape[2:]) for site, v in posterior.sites.items()})[name]
            thinned = drawn[:: len(drawn) // (RANKS - 1)][: RANKS - 1]
            ranks.setdefault(name, []).append(int((thinned < value).sum()))
        costs = random.integers(1, 2000, (LAYERS, 1)) * np.array([2, 4, 8])
        loss = truth["gain"] * np.exp(np.asarray(truth["log_sensitivity"], np.float64))
        problem = Problem(loss, costs[None])
        low, high = costs.min(axis=1).sum(), costs.max(axis=1).sum()
        budgets = np.floor(low + (high - low) * np.array([0.15, 0.3, 0.5, 0.7, 0.85]))
        decision = decide(random, posterior, problem, budgets)
        best, _ = exact.allocate(0, problem, budgets)
        total = problem.total_loss(decision.allocations)
        future = truth["base"] + total * (1 + truth["interaction"] * random.normal(size=len(total)))
        found["inside"].append({level: is_inside(future, decision.loss[list(band)]) for level, band in BANDS.items()})
        found["predicted"].append(decision.probabilities)
        found["observed"].append(best[:, :, None] == np.arange(OPTIONS))
        found["optimal"].append(decision.optimal)
        found["was"].append((best == decision.allocations).all(axis=1))
        found["bad"].append(posterior.diagnostics.divergent)
        found["poor"].append(bool(posterior.diagnostics.remedies))
    return Calibration(
        {name: np.array(values) for name, values in ranks.items()},
        {level: np.stack([hits[level] for hits in found["inside"]]) for level in BANDS},
        np.stack(found["predicted"]),
        np.stack(found["observed"]),
        np.stack(found["optimal"]),
        np.stack(found["was"]),
        float(np.mean(found["bad"])),
        int(np.sum(found["poor"])),
    )


def is_inside(values: np.ndarray, band: np.ndarray) -> np.ndarray:
    return (band[0] <= values) & (values <= band[1])


def scalars(sites: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every parameter by name; of the sensitivities the first layer's, and the loss of a whole allocation."""
    named = {name: np.asarray(sites[name]) for name in (*SCALES, "base")}
    named |= {f"option {o}": np.asarray(sites["option"])[..., o] for o in range(OPTIONS)}
    named |= {f"log_sensitivity {o}": np.asarray(sites["log_sensitivity"])[..., 0, o] for o in range(OPTIONS)}
    total = np.exp(np.asarray(sites["log_sensitivity"], np.float64))[..., 0].sum(axis=-1)
    return named | {"joint loss": sites["base"] + sites["gain"] * total}
