"""Small models on which every post-training method is run, and what is measured of it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import qresearch as qr
from qresearch.calibration import calibrate, select
from qresearch.ptq import Quantized
from qresearch.tasks import TASKS

EXAMPLES = 128
CHANNELS = 16


class Block(nn.Module):
    """Two convolutions around which the input passes: what a segment is made of."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        return nn.relu(x + nn.Conv(8, (3, 3), name="second")(y))


class Net(nn.Module):
    """A stem, blocks and a head."""

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        for i in range(self.blocks):
            x = Block(name=f"block{i}")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def plain(params: Any, x: jax.Array) -> jax.Array:
    """Two dense layers; the third channel of the first one's input is 30 times the others, and
    its weights are a thirtieth.
    """
    gain = jnp.ones(CHANNELS).at[2].set(30.0)
    hidden = jax.nn.gelu((x * gain) @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"]


def scanned(params: Any, x: jax.Array) -> jax.Array:
    """Two dense layers of one scan, and a head."""

    def body(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.relu(x @ kernel) + x, None

    return jax.lax.scan(body, x, params["blocks"]["kernel"])[0] @ params["head"]["kernel"]


def tied(params: Any, x: jax.Array) -> jax.Array:
    """One kernel used twice."""
    kernel = params["shared"]["kernel"]
    return jax.nn.gelu(x @ kernel) @ kernel


class NNXNet(nnx.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(CHANNELS, 24, rngs=rngs), nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.gelu(self.first(x)))


def nnx_function() -> tuple[Any, Any]:
    """(fn, state) of ``NNXNet``, as nnx.split gives them."""
    graphdef, state = nnx.split(NNXNet())
    return lambda state, x: nnx.merge(graphdef, state)(x), state


@functools.cache
def case(name: str) -> tuple[Any, Any, jax.Array]:
    """(fn, params, x) by name."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, shape[-2] ** -0.5, shape), jnp.float32)

    x = jnp.asarray(rng.normal(size=(EXAMPLES, CHANNELS)), jnp.float32)
    if name in ("linen", "deep"):
        images, net = jnp.asarray(rng.normal(size=(EXAMPLES, 6, 6, 3)), jnp.float32), Net(1 if name == "linen" else 3)
        return net.apply, net.init(jax.random.key(0), images[:1]), images
    if name == "nnx":
        return *nnx_function(), x
    if name == "plain":
        first = {"kernel": normal(CHANNELS, 24).at[2].divide(30.0), "bias": jnp.ones(24) / 4}
        return plain, {"first": first, "second": {"kernel": normal(24, 5)}}, x
    if name == "scanned":
        kernels = {"blocks": normal(2, CHANNELS, CHANNELS), "head": normal(CHANNELS, 5)}
        return scanned, {name: {"kernel": kernel} for name, kernel in kernels.items()}, x
    assert name == "tied"
    return tied, {"shared": {"kernel": normal(CHANNELS, CHANNELS)}}, x


CASES = ("linen", "nnx", "plain", "scanned", "tied")


@functools.cache
def quantized(name: str, weight_bits: int, input_bits: int, quantizer: str = "minmax") -> Quantized:
    """The case, calibrated: per-channel weights, per-tensor inputs."""
    fn, params, x = case(name)
    # The search for an MSE range takes longer to compile.
    ranged = {"range": "minmax"} if quantizer == "minmax" else {}
    weight, site = (qr.SiteRule(quantizer, granularity, **ranged) for granularity in ("per_channel", "per_tensor"))
    rule = qr.Rule("*", weight, None if input_bits == 32 else site, ((weight_bits, input_bits),))
    model = qr.quantize_model(fn, params, x, [rule])
    bits = jnp.asarray([menu[0] for menu in model.menus], jnp.float32)
    qparams = select(calibrate(model, params, x), bits)
    targets = jnp.argmax(fn(params, x), axis=-1)
    return Quantized(model, params, qparams, bits, x, targets, TASKS["classification"].loss)


def outputs(state: Quantized, bits: Any = None) -> jax.Array:
    """What the quantized model gives on its calibration inputs."""
    return state.model.apply(state.params, state.qparams, state.x, state.bits if bits is None else bits)


def error(state: Quantized, reference: Quantized | None = None) -> float:
    """The squared error of the outputs against the float model, relative to their mean square."""
    first = state if reference is None else reference
    wanted = first.model.fn(first.params, first.x)
    return float(jnp.mean(jnp.square(outputs(state) - wanted)) / jnp.mean(jnp.square(wanted)))
