"""The Gibbs posterior over allocations by Markov chains: slower than ``forward_backward``, and independent of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Int, Num
from numpyro.infer import MCMC, NUTS, DiscreteHMCGibbs

from qresearch.allocation.budgets import affordable
from qresearch.allocation.problem import Problem
from qresearch.errors import BudgetError

# The log-probability of a cost at twice the budget: a few percent above it are visited now and then, as a way between
# allocations that trade two layers.
_PENALTY = 100.0
_FORBIDDEN = -1e4


def discrete_hmc_gibbs(
    key: Array,
    problem: Problem,
    limit: Num[np.ndarray, "constraint"],
    temperature: float,
    warmup: int = 500,
    draws: int = 5000,
    chains: int = 2,
) -> Int[np.ndarray, "draw layer"]:
    """Draws of p(b) ∝ exp(−loss(b)/T) within the limit; the problem's groups must be merged.

    Layers are updated one by one, each from its conditional distribution. Costs above the limit are penalized instead
    of forbidden, so that the chain can trade two layers; draws above it are then dropped, and what is left has the
    probabilities of the posterior. All chains together.
    ``numpyro.infer.DiscreteHMCGibbs``; its inner kernel needs a continuous variable, which is a dummy.
    """
    if affordable(problem, limit) is None:
        raise BudgetError("no allocation meets the budget; see check_budgets")
    scale = np.where(limit > 0, limit, 1).astype(np.float64)
    loss = problem.loss - problem.loss.min(axis=1, keepdims=True)
    weight = jnp.asarray(np.where(problem.allowed, -loss / temperature, _FORBIDDEN), jnp.float32)
    relative = jnp.asarray(problem.costs / scale[:, None, None], jnp.float32)
    layers = jnp.arange(len(loss))

    def model() -> None:
        numpyro.sample("dummy", dist.Normal(0.0, 1.0))
        uniform = dist.Categorical(logits=jnp.zeros(loss.shape))
        allocation = numpyro.sample("allocation", uniform)
        over = jnp.maximum(relative[:, layers, allocation].sum(axis=1) - jnp.asarray(limit / scale, jnp.float32), 0.0)
        numpyro.factor("gibbs", weight[layers, allocation].sum() - _PENALTY * over.sum())

    kernel = DiscreteHMCGibbs(NUTS(model))
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(key)
    found = np.asarray(jax.device_get(mcmc.get_samples()["allocation"]), np.int64)
    return found[np.all(problem.total_cost(found) <= limit, axis=-1)]
