"""Draws of the sensitivity posterior by NUTS, and what says whether to trust them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer import MCMC, NUTS, init_to_value

from qresearch.allocation.bayes.diagnostics import Diagnostics, diagnose
from qresearch.allocation.bayes.measurements import Measurements
from qresearch.allocation.bayes.model import Data, Prior, in_context, prepare, sensitivity_model, start_of

DEFAULT_PRIOR = Prior()
DENSE_CELLS = 300  # sensitivities whose correlations are learned in warm-up; of more, a thousand draws learn too little


class Posterior(NamedTuple):
    """Draws of sensitivities and of how they add up, in the measurements' own unit.

    sensitivity: t of ``model``, what a layer loses where others are quantized too; +inf where an option is not allowed.
    interaction: ι, no unit. floor: φ. base: the float model's loss. sites: every site of the model by name,
    [chain, draw, ...], in units of ``Measurements.unit``.
    """

    sensitivity: Float[np.ndarray, "draw layer option"]
    interaction: Float[np.ndarray, "draw"]
    floor: Float[np.ndarray, "draw"]
    base: Float[np.ndarray, "draw"]
    sites: dict[str, np.ndarray]
    diverging: Bool[np.ndarray, "chain draw"]
    diagnostics: Diagnostics

    def predict(
        self, allocations: Int[np.ndarray, "n layer"]
    ) -> tuple[Float[np.ndarray, "draw n"], Float[np.ndarray, "draw n"]]:
        """(mean, sd) per draw of the measured losses of allocations: base + T, and √((ι T)² + φ²)."""
        layers = np.arange(self.sensitivity.shape[1])
        total = self.sensitivity[:, layers, allocations].sum(axis=-1)
        return self.base[:, None] + total, self.spread(total)

    def spread(self, total: Float[np.ndarray, "draw n"]) -> Float[np.ndarray, "draw n"]:
        """The standard deviation of measured losses whose sensitivities sum to ``total``."""
        return np.hypot(self.interaction[:, None] * total, self.floor[:, None])


def fit_posterior(
    key: Array,
    measurements: Measurements,
    prior: Prior = DEFAULT_PRIOR,
    warmup: int = 500,
    draws: int = 500,
    chains: int = 2,
    target_accept: float = 0.98,
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
    diagnostics = diagnose(sites, np.asarray(extra), data)
    if warn:
        for message in diagnostics.remedies:
            warnings.warn(message, stacklevel=2)
    return posterior_of(sites, np.asarray(extra), np.asarray(data.allowed), measurements.unit, diagnostics)


def posterior_of(
    sites: dict[str, np.ndarray],
    diverging: Bool[np.ndarray, "chain draw"],
    allowed: Bool[np.ndarray, "layer option"],
    unit: float,
    diagnostics: Diagnostics,
) -> Posterior:
    """The posterior of draws of the model's sites [chain, draw, ...]."""
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in sites.items()}
    sensitivity = np.where(allowed, in_context(flat), np.inf) * unit
    floor, base = flat["floor"] * unit, flat["base"] * unit
    return Posterior(sensitivity, flat["interaction"], floor, base, sites, diverging, diagnostics)


@functools.lru_cache(maxsize=16)
def _program(
    warmup: int, draws: int, chains: int, target_accept: float
) -> Callable[[Array, Data, Prior], tuple[dict[str, Array], Any]]:
    """(key, data, prior) -> (sites [chain, draw, ...], divergences [chain, draw]), compiled once per shape."""

    # Thousands of steps: worth compiling well even where the caller's XLA_FLAGS ask for quick compilation.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def run(key: Array, data: Data, prior: Prior) -> tuple[dict[str, Array], Any]:
        kernel = NUTS(
            sensitivity_model,
            target_accept_prob=target_accept,
            init_strategy=init_to_value(values=start_of(data)),
            max_tree_depth=8,
            dense_mass=data.allowed.size <= DENSE_CELLS,
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
