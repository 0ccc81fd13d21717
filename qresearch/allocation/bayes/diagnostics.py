"""Whether draws can be trusted: of the sampler (divergences, r-hat, effective draws) and of the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.special import ndtr
from scipy.stats import f as f_distribution

from qresearch.allocation.bayes.model import SHAPE, Data, in_context

MAX_DIVERGENT = 0.01  # share of draws: a few are left over from warm-up, more mean that a region is not visited
MAX_R_HAT = 1.05  # Gelman et al.'s older 1.1 misses chains that disagree, 1.01 needs thousands of draws to be reached
MIN_SAMPLES = 100.0  # enough for 5 % quantiles to be good to a few percent of the band
MIN_P = 0.01  # one of a hundred right models is below


class Diagnostics(NamedTuple):
    """divergent: share of draws. r_hat, samples: the worst of all unknowns. The p-values are posterior
    predictive, see ``predictive_p``. remedies: one line for each that is poor.
    """

    divergent: float
    r_hat: float
    samples: float
    single_p: float
    joint_p: float
    trend_p: float
    remedies: tuple[str, ...]


def diagnose(sites: dict[str, np.ndarray], divergent: Bool[np.ndarray, "chain draw"], data: Data) -> Diagnostics:
    """Diagnostics of sites [chain, draw, ...]."""
    share = float(divergent.mean())
    unknown = [  # base follows from offset, and is constant where it was measured exactly
        _allowed(value, data) if name == "log_sensitivity" else value for name, value in sites.items() if name != "base"
    ]
    r_hat = max(float(np.nanmax(split_gelman_rubin(value))) for value in unknown)
    samples = min(float(np.nanmin(effective_sample_size(value))) for value in unknown)
    p = predictive_p(sites, data)
    return Diagnostics(share, r_hat, samples, *p, _remedies(share, r_hat, samples, p))


def _allowed(value: np.ndarray, data: Data) -> np.ndarray:
    return value[:, :, np.asarray(data.allowed)]


def predictive_p(sites: dict[str, np.ndarray], data: Data) -> tuple[float, float, float]:
    """(single_p, joint_p, trend_p): tail probabilities of what was measured, averaged over draws.

    For single layers, the greatest ratio of a cell's noise to the model's is asked: mean (y − s)² / scale² is F(n, ν).
    For joint losses, z = (y − mean) / sd are standard normal where the model is right. Their variance cannot tell,
    because it was fitted; so the greatest |z| is asked (P that replicates have a greater one), and the slope of z over
    the logarithm of the predicted loss (two-sided): losses that saturate, or grow faster than they add up, bend it.
    Gelman, Meng and Stern, Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, 1996.
    """
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in sites.items()}
    s = np.exp(flat["log_sensitivity"])
    mask = np.asarray(data.single_mask)
    scale = np.hypot(flat["batch"][:, None, None] * s, flat["floor"][:, None, None])
    rest = np.where(mask, np.asarray(data.single) - s[:, None], 0.0)
    known, layers = np.asarray(data.joint_mask), np.arange(s.shape[1])
    total = in_context(flat)[:, layers, np.asarray(data.allocations)[known]].sum(axis=-1)
    joint_sd = np.hypot(flat["interaction"][:, None] * total, flat["floor"][:, None])
    joint = (np.asarray(data.joint)[known] - flat["base"][:, None] - total) / joint_sd
    return _noisiest((rest**2).sum(axis=1) / scale**2, mask.sum(axis=0)), _greatest(joint), _slope(joint, np.log(total))


def _noisiest(squares: Float[np.ndarray, "draw layer option"], count: Int[np.ndarray, "layer option"]) -> float:
    """P(the least tail probability of a replicated cell ≤ that of the cells); squares: Σ (y − s)² / scale²."""
    cells = count > 0
    tail = f_distribution.sf(squares[:, cells] / count[cells], count[cells], SHAPE)
    return float(-np.expm1(cells.sum() * np.log1p(-tail.min(axis=1))).mean())


def _greatest(z: Float[np.ndarray, "draw measurement"]) -> float:
    """P(max |z_rep| ≥ max |z|) = 1 − (1 − 2 Φ(−max |z|))^n; 1 where nothing was measured."""
    if not z.shape[1]:
        return 1.0
    return float(-np.expm1(z.shape[1] * np.log1p(-2 * ndtr(-np.abs(z).max(axis=1)))).mean())


def _slope(z: Float[np.ndarray, "draw measurement"], x: Float[np.ndarray, "draw measurement"]) -> float:
    """P(|slope of z_rep over x| ≥ |slope of z|); 1 for fewer than 3."""
    if z.shape[1] < 3:
        return 1.0
    centred = x - x.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=1))
    return float((2 * ndtr(-np.abs((z * centred).sum(axis=1)) / np.maximum(size, 1e-30))).mean())


def _remedies(divergent: float, r_hat: float, samples: float, p: tuple[float, float, float]) -> tuple[str, ...]:
    found = []
    if divergent > MAX_DIVERGENT:
        found.append(f"{divergent:.1%} of the draws diverged: raise target_accept (0.99, 0.995)")
    if not r_hat <= MAX_R_HAT:
        found.append(f"chains disagree (r-hat {r_hat:.2f}, at most {MAX_R_HAT}): raise warmup")
    if not samples >= MIN_SAMPLES:
        found.append(f"{samples:.0f} effective draws, fewer than {MIN_SAMPLES:.0f}: raise draws")
    if p[0] < MIN_P:
        found.append(
            f"a single-layer loss is further off than the model allows (p = {p[0]:.3f}): measure more batches, and look"
            " for one that stands out"
        )
    if p[1] < MIN_P:
        found.append(
            f"a joint loss is further off than the model allows (p = {p[1]:.3f}): leave diverged allocations out, or"
            " measure more"
        )
    if p[2] < MIN_P:
        found.append(
            f"joint losses bend against the sums of sensitivities (p = {p[2]:.3f}): measure joint allocations near the"
            " budgets alone, or choose by measured losses alone (allocator nsga2)"
        )
    return tuple(found)
