"""Draws of the sensitivity posterior by NUTS, and what says whether to trust them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpyro.infer import MCMC, NUTS, init_to_value

from qresearch.allocation.bayes.diagnostics import Diagnostics, diagnose
from qresearch.allocation.bayes.model import Data, Measurements, Prior, prepare, sensitivity_model, start_of

DEFAULT_PRIOR = Prior()


class Posterior(NamedTuple):
    """Draws of sensitivities and of how they add up, in the measurements' own unit.

    sensitivity: +inf where an option is not allowed. gain, interaction: ρ and ι, no unit. base: the float model's
    loss. sites: every site of the model by name, [chain, draw, ...], in units of ``Measurements.unit``.
    """

    sensitivity: Float[np.ndarray, "draw layer option"]
    gain: Float[np.ndarray, "draw"]
    interaction: Float[np.ndarray, "draw"]
    base: Float[np.ndarray, "draw"]
    sites: dict[str, np.ndarray]
    diagnostics: Diagnostics

    def predict(
        self, allocations: Int[np.ndarray, "n layer"]
    ) -> tuple[Float[np.ndarray, "draw n"], Float[np.ndarray, "draw n"]]:
        """(mean, sd) per draw of the measured losses of allocations: base + ρ Σ s, and ι ρ Σ s."""
        layers = np.arange(self.sensitivity.shape[1])
        total = self.gain[:, None] * self.sensitivity[:, layers, allocations].sum(axis=-1)
        return self.base[:, None] + total, self.interaction[:, None] * total


def fit(
    key: Array,
    measurements: Measurements,
    prior: Prior = DEFAULT_PRIOR,
    warmup: int = 500,
    draws: int = 500,
    chains: int = 2,
    target_accept: float = 0.9,
    warn: bool = True,
) -> Posterior:
    """Samples the posterior of ``model.sensitivity_model``: ``chains`` × ``draws`` draws, after ``warmup`` each.

    One compilation per shape of the data: pad ``joint`` with NaN where measurements keep coming. warn: whether
    diagnostics that are poor become a warning, which says what to do.
    Hoffman and Gelman, The No-U-Turn Sampler, https://arxiv.org/abs/1111.4246, 2014; in numpyro.
    Raises ``ConfigError`` for measurements that are too few or infinite.
    """
    data = prepare(measurements)
    samples, extra = _program(warmup, draws, chains, target_accept)(key, data, prior)
    sites = {name: np.asarray(value, np.float64) for name, value in samples.items()}
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in sites.items()}
    sensitivity = np.where(data.allowed, np.exp(flat["log_sensitivity"]), np.inf) * measurements.unit
    diagnostics = diagnose(sites, np.asarray(extra), data, prior)
    if warn:
        for message in diagnostics.remedies:
            warnings.warn(message, stacklevel=2)
    base = flat["base"] * measurements.unit
    return Posterior(sensitivity, flat["gain"], flat["interaction"], base, sites, diagnostics)


@functools.lru_cache(maxsize=16)
def _program(
    warmup: int, draws: int, chains: int, target_accept: float
) -> Callable[[Array, Data, Prior], tuple[dict[str, Array], Any]]:
    """(key, data, prior) -> (sites [chain, draw, ...], divergences [chain, draw]), compiled once per shape."""

    @jax.jit
    def run(key: Array, data: Data, prior: Prior) -> tuple[dict[str, Array], Any]:
        kernel = NUTS(
            sensitivity_model,
            target_accept_prob=target_accept,
            init_strategy=init_to_value(values=start_of(data)),
            max_tree_depth=8,
        )
        mcmc = MCMC(
            kernel,
            num_warmup=warmup,
            num_samples=draws,
            num_chains=chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, data, jax.tree.map(jnp.asarray, prior), extra_fields=("diverging",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)["diverging"]

    return run
