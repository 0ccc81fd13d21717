"""The sensitivity model: what was measured, what is unknown about it, and the joint density of both.

    log s[l, o] = a[l] + c[o] + ω η[l, o]                        a ~ N(0, τ), c ~ N(0, prior), η ~ N(0, 1)
    single[r, l, o] ~ N(s[l, o], √((σ s[l, o])² + φ²))           one layer quantized, batch r
    joint[j] ~ N(base + ρ Σ_l s[l, b_jl], ι ρ Σ_l s[l, b_jl])    all layers quantized, allocation b_j

s: the sensitivity of layer l to option o, > 0, in units of ``Measurements.unit``. τ, ω: how much layers differ, and how
much they differ in their reaction to options. σ, φ: the noise of a batch, proportional and constant. ρ: what layers do
to each other on average (1: losses add up); ι: the interaction variance, what is particular to an allocation. base: the
loss with nothing quantized. a is integrated out analytically, so that what NUTS has to travel is not ridge-shaped.

Hierarchy and interaction as in Gelman and Hill, Data Analysis Using Regression and Multilevel Models, 2006; that losses
of layers add up is HAWQ-V2's assumption (Dong et al., https://arxiv.org/abs/1911.03852, 2020), and is checked here.
Where we differ: sensitivities are positive. A layer whose loss falls when it is quantized counts as insensitive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from qresearch.errors import ConfigError

MIN_MEASURED = 3  # single-layer losses that must be finite: fewer than the scales that the model has


class Measurements(NamedTuple):
    """single: the loss increases of single layers per batch; NaN where not measured, +inf where not allowed.

    joint: losses of whole allocations; NaN rows are padding. base: (mean, sd), what is known about the loss of the
    float model before joint measurements. unit: every number is divided by it.
    """

    single: Float[np.ndarray, "batch layer option"]
    allocations: Int[np.ndarray, "joint layer"]
    joint: Float[np.ndarray, "joint"]
    base: tuple[float, float] = (0.0, 0.0)
    unit: float = 1.0


class Prior(NamedTuple):
    """Log-normal scales as (median, standard deviation of the logarithm); noise_factor: 1, but in negative controls."""

    layer: tuple[float, float] = (1.0, 0.5)  # τ
    option: float = 3.0  # standard deviation of c
    reaction: tuple[float, float] = (0.4, 0.5)  # ω
    batch: tuple[float, float] = (0.2, 0.7)  # σ
    floor: tuple[float, float] = (0.02, 1.0)  # φ
    interaction: tuple[float, float] = (0.1, 0.7)  # ι
    gain: tuple[float, float] = (1.0, 0.3)  # ρ
    noise_factor: float = 1.0


class Data(NamedTuple):
    """Measurements as the model takes them: divided by the unit, finite everywhere, with masks."""

    single: Float[Array, "batch layer option"]
    single_mask: Bool[Array, "batch layer option"]
    allowed: Bool[Array, "layer option"]
    allocations: Int[Array, "joint layer"]
    joint: Float[Array, "joint"]
    joint_mask: Bool[Array, "joint"]
    base: Float[Array, "2"]


# The scales of the model: log-normal parameters by the name of their prior.
SCALES = ("layer", "reaction", "batch", "floor", "interaction", "gain")


def prepare(given: Measurements) -> Data:
    """Checks measurements and brings them into the model's form. ConfigError where they cannot tell anything."""
    single, joint = np.asarray(given.single, np.float64), np.asarray(given.joint, np.float64)
    if single.ndim != 3 or np.asarray(given.allocations).shape != (len(joint), single.shape[1]):
        raise ConfigError(
            "measurements are single[batch, layer, option], allocations[joint, layer] and joint[joint], got shapes"
            f" {single.shape}, {np.shape(given.allocations)} and {joint.shape}"
        )
    if (count := int(np.isfinite(single).sum())) < MIN_MEASURED:
        raise ConfigError(f"too few measurements: {count} finite single-layer losses, at least {MIN_MEASURED} needed")
    if np.isinf(joint).any() or np.isneginf(single).any():
        raise ConfigError("a measured loss is infinite; leave diverged allocations out, or clip their loss")
    allowed, known = ~np.isposinf(single).any(axis=0), np.isfinite(single)
    for layer in np.flatnonzero(~(np.any(known, axis=0) & allowed).any(axis=1)):
        raise ConfigError(f"layer {layer} has no finite single-layer loss; measure one of its options")
    return Data(
        _clean(single, given.unit),
        jnp.asarray(known & allowed),
        jnp.asarray(allowed),
        jnp.asarray(given.allocations, jnp.int32),
        _clean(joint, given.unit),
        jnp.asarray(np.isfinite(joint)),
        jnp.asarray(np.asarray(given.base) / given.unit, jnp.float32),
    )


def _clean(values: np.ndarray, unit: float) -> Array:
    return jnp.asarray(np.where(np.isfinite(values), values, 0.0) / unit, jnp.float32)


def unit_of(single: Float[np.ndarray, "batch layer option"]) -> float:
    """The median positive loss increase: the size at which the priors' scales are stated."""
    mean = np.nanmean(np.where(np.isfinite(single), single, np.nan), axis=0)
    positive = mean[mean > 0]
    if not positive.size:
        raise ConfigError("no single-layer loss is above the float model's: there is no sensitivity to model")
    return float(np.median(positive))


def sensitivity_model(data: Data, prior: Prior) -> None:
    """The numpyro model; its sites are named as in the module's formulas."""
    scale = {name: _scale(name, getattr(prior, name)) for name in SCALES}
    options = data.allowed.shape[1]
    c = numpyro.sample("option", dist.Normal(0.0, prior.option).expand([options]).to_event(1))
    u = numpyro.sample("log_sensitivity", dist.ImproperUniform(dist.constraints.real, (), data.allowed.shape))
    numpyro.factor("layers", layer_density(u - c, data.allowed, scale["layer"], scale["reaction"]))
    s = jnp.exp(u)
    single_sd = jnp.hypot(scale["batch"] * s, scale["floor"]) * prior.noise_factor
    with numpyro.handlers.mask(mask=data.single_mask):
        numpyro.sample("single", dist.Normal(s, single_sd), obs=data.single)
    base = numpyro.sample("base", dist.Normal(data.base[0], jnp.maximum(data.base[1], 1e-6)))
    total = scale["gain"] * jnp.take_along_axis(s.T, data.allocations, axis=0).sum(axis=1)
    with numpyro.handlers.mask(mask=data.joint_mask):
        joint_sd = scale["interaction"] * total * prior.noise_factor
        numpyro.sample("joint", dist.Normal(base + total, joint_sd), obs=data.joint)


def _scale(name: str, prior: tuple[float, float]) -> Array:
    return numpyro.sample(name, dist.LogNormal(jnp.log(prior[0]), prior[1]))


def layer_density(
    deviation: Float[Array, "layer option"], allowed: Bool[Array, "layer option"], tau: Array, omega: Array
) -> Array:
    """log ∏_l N(deviation[l]; 0, ω² I + τ² 11ᵀ) over the allowed options; N(0, 1) for the others, which mean nothing.

    Up to a constant: the layer's own effect a[l] ~ N(0, τ) is integrated out (Sherman and Morrison's formula).
    """
    inside = jnp.where(allowed, deviation, 0.0)
    n = allowed.sum(axis=1)
    spread = omega**2 + n * tau**2
    quadratic = ((inside**2).sum(axis=1) - tau**2 / spread * inside.sum(axis=1) ** 2) / omega**2
    determinant = 2 * (n - 1) * jnp.log(omega) + jnp.log(spread)
    outside = jnp.where(allowed, 0.0, deviation) ** 2
    return -0.5 * (quadratic.sum() + determinant.sum() + outside.sum())


def start_of(data: Data) -> dict[str, Array]:
    """Where chains start: at the measured sensitivities, and at the medians of the scales."""
    count = data.single_mask.sum(axis=0)
    mean = (data.single * data.single_mask).sum(axis=0) / jnp.maximum(count, 1)
    known = count > 0
    u = jnp.log(jnp.maximum(jnp.where(known, mean, 1.0), 0.01))
    c = (u * known).sum(axis=0) / jnp.maximum(known.sum(axis=0), 1)
    u = jnp.where(data.allowed, jnp.where(known, u, c), c)
    return {"log_sensitivity": u, "option": c, "base": data.base[0]}


def simulate(
    key: Array,
    allowed: Bool[np.ndarray, "layer option"],
    batches: int,
    joint: int,
    prior: Prior,
    base: tuple[float, float],
) -> tuple[Measurements, Mapping[str, np.ndarray]]:
    """A truth drawn from the prior, and measurements of it: the ground of simulation-based calibration.

    Allocations draw every layer's option uniformly. The truth has the model's sites by name; unit: 1.
    """
    keys = iter(jax.random.split(key, 16))
    layers, options = allowed.shape
    truth = {}
    for name in SCALES:
        median, spread = getattr(prior, name)
        truth[name] = median * jnp.exp(spread * jax.random.normal(next(keys)))
    truth["option"] = prior.option * jax.random.normal(next(keys), (options,))
    a = truth["layer"] * jax.random.normal(next(keys), (layers, 1))
    eta = jax.random.normal(next(keys), (layers, options))
    truth["log_sensitivity"] = a + truth["option"] + truth["reaction"] * eta
    truth["base"] = base[0] + base[1] * jax.random.normal(next(keys))
    s = jnp.exp(truth["log_sensitivity"])
    noise = jax.random.normal(next(keys), (batches, layers, options))
    single = s + noise * jnp.hypot(truth["batch"] * s, truth["floor"])
    score = jnp.where(allowed, jax.random.uniform(next(keys), (joint, layers, options)), -1.0)
    allocations = score.argmax(axis=-1)
    total = truth["gain"] * jnp.take_along_axis(s.T, allocations, axis=0).sum(axis=1)
    losses = truth["base"] + total * (1 + truth["interaction"] * jax.random.normal(next(keys), (joint,)))
    measured = np.where(allowed, np.asarray(single, np.float64), np.inf)
    found = Measurements(measured, np.asarray(allocations), np.asarray(losses, np.float64), base)
    return found, {name: np.asarray(value) for name, value in truth.items()}
