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

# The log-probability of a cost at twice the budget. Finite, because −inf has no gradient to step back from; large,
# because what is 0.1 % above the budget must be improbable too.
_PENALTY = 1e6


def discrete_hmc_gibbs(
    key: Array,
    problem: Problem,
    limit: Num[np.ndarray, "constraint"],
    temperature: float,
    warmup: int = 500,
    draws: int = 5000,
    chains: int = 2,
) -> Int[np.ndarray, "chain draw layer"]:
    """Draws of p(b) ∝ exp(−loss(b)/T) within the limit; the problem's groups must be merged.

    Layers are updated one by one. With one constraint every allocation within the limit is reached, by a way that leads
    over the cheapest one; but what trades two layers at once is slow.
    Costs above the limit are penalized steeply instead of forbidden; draws that are above it nevertheless are left out,
    by repeating the draw before (the chain's own rule for a rejected proposal).
    Liu, Peskun's Theorem and a Modified Discrete-State Gibbs Sampler, https://doi.org/10.1093/biomet/83.3.681, 1996, as
    ``numpyro.infer.DiscreteHMCGibbs(modified=True)``; its inner kernel needs a continuous variable, which is a dummy.
    """
    cheapest = affordable(problem, limit)
    if cheapest is None:
        raise BudgetError("no allocation meets the budget; see check_budgets")
    scale = np.where(limit > 0, limit, 1).astype(np.float64)
    loss = problem.loss - problem.loss.min(axis=1, keepdims=True)
    weight = jnp.asarray(np.where(problem.allowed, -loss / temperature, -_PENALTY), jnp.float32)
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
    found = np.asarray(jax.device_get(mcmc.get_samples(group_by_chain=True)["allocation"]), np.int64)
    met = np.all(problem.total_cost(found) <= limit, axis=-1)
    last = np.maximum.accumulate(np.where(met, np.arange(met.shape[1]), -1), axis=1)
    return np.where(
        (last >= 0)[:, :, None], np.take_along_axis(found, np.maximum(last, 0)[:, :, None], axis=1), cheapest
    )
