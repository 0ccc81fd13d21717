"""The sensitivity model: what was measured, what is unknown about it, and the joint density of both.

    log s[l, o] = a[l] + c[o] + ω η[l, o]                    a ~ N(0, τ), c ~ N(0, prior), η ~ N(0, 1)
    single[r, l, o] ~ N(s[l, o], √v[l, o])                   one layer quantized, batch r
    v[l, o] ~ InvGamma(ν/2, ν/2 · ((σ s[l, o])² + φ²))       ν = 4
    t[l, o] = ρ exp(κ z[l]) s[l, o]                          z ~ N(0, 1)
    joint[j] ~ N(base + T_j, √((ι T_j)² + φ²))               all layers quantized, allocation b_j, T_j = Σ_l t[l, b_jl]

s: the sensitivity of layer l to option o, > 0, in units of ``Measurements.unit``. τ, ω: how much layers differ, and how
much they differ in their reaction to options. σ, φ: the noise of a batch, proportional and constant. t: what the layer
loses among other layers that are quantized too; ρ: how much more that is on average (1: losses add up), κ: how much
that differs among layers. ι: the interaction variance, what is particular to an allocation. base: the loss with nothing
quantized. a and v are integrated out analytically, so that what NUTS has to travel is not ridge-shaped.

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

from qresearch.allocation.bayes.measurements import Measurements
from qresearch.errors import ConfigError

MIN_MEASURED = 3  # single-layer losses that must be finite: fewer than the scales that the model has


class Prior(NamedTuple):
    """Log-normal scales as (median, standard deviation of the logarithm)."""

    layer: tuple[float, float] = (1.0, 0.5)  # τ
    option: float = 3.0  # standard deviation of c
    reaction: tuple[float, float] = (0.5, 0.5)  # ω
    batch: tuple[float, float] = (0.3, 0.7)  # σ
    floor: tuple[float, float] = (0.01, 1.0)  # φ
    gain: tuple[float, float] = (1.0, 0.3)  # ρ
    context: tuple[float, float] = (0.3, 0.4)  # κ
    interaction: tuple[float, float] = (0.3, 0.5)  # ι


class Data(NamedTuple):
    """Measurements as the model takes them: divided by the unit, finite everywhere, with masks."""

    single: Float[Array, "batch layer option"]
    single_mask: Bool[Array, "batch layer option"]
    allowed: Bool[Array, "layer option"]
    allocations: Int[Array, "joint layer"]
    joint: Float[Array, "joint"]
    joint_mask: Bool[Array, "joint"]
    base: Float[Array, "2"]


SHAPE = 4.0  # ν: the noise of two cells of equal sensitivity may differ by a factor of two or three

# The scales of the model: log-normal parameters by the name of their prior.
SCALES = ("layer", "reaction", "batch", "floor", "gain", "context", "interaction")


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


def sensitivity_model(data: Data, prior: Prior) -> None:
    """The numpyro model of the module's formulas. Sites: ``option`` c; ``log_sensitivity`` log s; ``layer_context`` z;
    ``offset``, base in standard deviations of its prior; ``log_scale``, the scales likewise; and, computed from these,
    ``base`` and the scales by their names in ``Prior``.
    """
    scale = _scales(prior)
    options = data.allowed.shape[1]
    c = numpyro.sample("option", dist.Normal(0.0, prior.option).expand([options]).to_event(1))
    u = numpyro.sample("log_sensitivity", dist.ImproperUniform(dist.constraints.real, (), data.allowed.shape))
    numpyro.factor("layers", layer_density(u - c, data.allowed, scale["layer"], scale["reaction"]))
    s = jnp.exp(u)
    single_sd = _hypot(scale["batch"] * s, scale["floor"])
    numpyro.factor("single", batch_density(data, s, single_sd).sum())
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    base = numpyro.deterministic("base", data.base[0] + data.base[1] * offset)
    z = numpyro.sample("layer_context", dist.Normal(0.0, 1.0).expand([len(s)]).to_event(1))
    t = scale["gain"] * jnp.exp(scale["context"] * z)[:, None] * s
    total = jnp.take_along_axis(t.T, data.allocations, axis=0).sum(axis=1)
    joint_sd = _hypot(scale["interaction"] * total, scale["floor"])
    with numpyro.handlers.mask(mask=data.joint_mask):
        numpyro.sample("joint", dist.Normal(base + total, joint_sd), obs=data.joint)


def _scales(prior: Prior) -> dict[str, Array]:
    """The scales by name. One vector is sampled, because NUTS compiles several copies of whatever every site needs."""
    median, spread = jnp.stack([jnp.asarray(getattr(prior, name)) for name in SCALES], axis=1)
    log = numpyro.sample("log_scale", dist.Normal(0.0, 1.0).expand([len(SCALES)]).to_event(1))
    values = median * jnp.exp(spread * log)
    return {name: numpyro.deterministic(name, value) for name, value in zip(SCALES, values)}


def _hypot(x: Array, y: Array) -> Array:
    """√(x² + y²) of numbers near 1, without the care for overflow that makes ``jnp.hypot`` slow to compile."""
    return jnp.sqrt(x**2 + y**2)


def batch_density(
    data: Data, s: Float[Array, "layer option"], scale: Float[Array, "layer option"]
) -> Float[Array, "layer option"]:
    """log density of each cell's batches around s, up to a constant, its variance integrated out: a multivariate t.

    scale: √((σ s)² + φ²). Cells without measurements have density 1.
    """
    n = data.single_mask.sum(axis=0)
    rest = jnp.where(data.single_mask, data.single - s, 0.0)
    squares = (rest**2).sum(axis=0) / scale**2
    return -n * jnp.log(scale) - (SHAPE + n) / 2 * jnp.log1p(squares / SHAPE)


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


def in_context(sites: Mapping[str, np.ndarray]) -> Float[np.ndarray, "... layer option"]:
    """t of sites [..., layer, option]: the sensitivities among other layers that are quantized too."""
    gain = np.asarray(sites["gain"])[..., None] * np.exp(sites["context"][..., None] * sites["layer_context"])
    return gain[..., None] * np.exp(np.asarray(sites["log_sensitivity"], np.float64))


def start_of(data: Data) -> dict[str, Array]:
    """Where chains start: at the measured sensitivities, and at the medians of the scales."""
    count = data.single_mask.sum(axis=0)
    mean = (data.single * data.single_mask).sum(axis=0) / jnp.maximum(count, 1)
    known = count > 0
    u = jnp.log(jnp.maximum(jnp.where(known, mean, 1.0), 0.01))
    c = (u * known).sum(axis=0) / jnp.maximum(known.sum(axis=0), 1)
    u = jnp.where(data.allowed, jnp.where(known, u, c), c)
    return {
        "log_sensitivity": u,
        "option": c,
        "offset": jnp.zeros(()),
        "layer_context": jnp.zeros(len(u)),
        "log_scale": jnp.zeros(len(SCALES)),
    }


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
    keys = iter(jax.random.split(key, 20))
    layers, options = allowed.shape
    truth = {}
    truth["log_scale"] = jax.random.normal(next(keys), (len(SCALES),))
    for name, log in zip(SCALES, truth["log_scale"]):
        median, spread = getattr(prior, name)
        truth[name] = median * jnp.exp(spread * log)
    truth["option"] = prior.option * jax.random.normal(next(keys), (options,))
    a = truth["layer"] * jax.random.normal(next(keys), (layers, 1))
    eta = jax.random.normal(next(keys), (layers, options))
    truth["log_sensitivity"] = a + truth["option"] + truth["reaction"] * eta
    truth["offset"] = jax.random.normal(next(keys))
    truth["base"] = base[0] + base[1] * truth["offset"]
    truth["layer_context"] = jax.random.normal(next(keys), (layers,))
    s = jnp.exp(truth["log_sensitivity"])
    noise = jax.random.normal(next(keys), (batches, layers, options))
    ratio = (SHAPE / 2) / jax.random.gamma(next(keys), SHAPE / 2, s.shape)
    single = s + noise * jnp.sqrt(ratio) * jnp.hypot(truth["batch"] * s, truth["floor"])
    score = jnp.where(allowed, jax.random.uniform(next(keys), (joint, layers, options)), -1.0)
    allocations = score.argmax(axis=-1)
    t = truth["gain"] * jnp.exp(truth["context"] * truth["layer_context"])[:, None] * s
    total = jnp.take_along_axis(t.T, allocations, axis=0).sum(axis=1)
    spread = jnp.hypot(truth["interaction"] * total, truth["floor"])
    losses = truth["base"] + total + spread * jax.random.normal(next(keys), (joint,))
    measured = np.where(allowed, np.asarray(single, np.float64), np.inf)
    found = Measurements(measured, np.asarray(allocations), np.asarray(losses, np.float64), base)
    return found, {name: np.asarray(value) for name, value in truth.items()}
