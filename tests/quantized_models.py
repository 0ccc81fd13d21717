"""Quantized models of the zoo for tests: built, calibrated and compiled once for all tests that use them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from graph.zoo import ZOO, Entry, convolve, draw, kernel

from qresearch.qmodel import QuantizedModel, quantize_model
from qresearch.rules import Rule, SiteRule

CHANNELS = SiteRule(granularity="per_channel", range="minmax")
TENSOR = SiteRule(range="minmax")
QUICK = Rule(weight=CHANNELS, input=TENSOR)  # calibrates without a search, which compiles slowly
STEPS = Rule(weight=SiteRule("lsq", "per_channel", range="minmax"), input=SiteRule("lsq", range="minmax"))
STOCHASTIC = Rule(
    weight=SiteRule("minmax", "per_channel", range="minmax", rounding="stochastic"),
    input=SiteRule(range="minmax", rounding="stochastic"),
)


def small_cnn(p, x):
    h = jax.nn.relu(convolve(x, p["conv"]))
    h = jax.nn.relu(h.reshape(x.shape[0], -1) @ p["hidden"])
    return h @ p["out"]


CNN = Entry(
    small_cnn,
    {"conv": kernel(0, 3, 3, 1, 4), "hidden": kernel(1, 64, 8), "out": kernel(2, 8, 3)},
    jnp.abs(draw(3, 4, 4, 4, 1)),
)
ENTRIES = ZOO | {"cnn": CNN}


def full(model, *bits):
    """bits for all layers alike: one width for both operands, or (weight_bits, input_bits)."""
    return jnp.broadcast_to(jnp.array(bits, jnp.float32), (len(model.layers), 2))


class Case(NamedTuple):
    """A quantized model with its calibrated qparams; ``apply`` is compiled, once for all tests of the case."""

    model: QuantizedModel
    params: Any
    x: Any
    qparams: Any
    apply: Any


@functools.cache
def case(name: str, *rules: Rule, at: float = 8.0) -> Case:
    """The case of a model of the zoo, calibrated ``at`` a width."""
    return build(ENTRIES[name], *rules, at=at)


def build(entry: Entry, *rules: Rule, at: float = 8.0) -> Case:
    fn, params, x = entry
    model = quantize_model(fn, params, x, rules or (QUICK,))
    qparams = jax.jit(model.init)(params, x, full(model, at))
    return Case(model, params, x, qparams, jax.jit(model.apply))


def clipping(qparams):
    """Steps so small that the largest values are clipped: then bits have a gradient, and masks matter."""
    return jax.tree.map(lambda scale: 0.55 * scale, qparams)


def codes_of(model, params, qparams, x, bits):
    """The integer codes of every layer's input in the quantized model (aux of the interpreter)."""
    unit = {use.name.partition("@")[0]: unit for unit in model.units for use in unit.uses}

    def spy(call):
        quantizer = unit[call.site.base].input
        codes = quantizer.encode(call.state["qparams"]["input"], call.input, call.state["bits"][1])
        return model.handler(call)[0], codes.values

    states = {
        use.name: {"qparams": qparams[unit.layer.name], "bits": bits[i]}
        for i, unit in enumerate(model.units)
        for use in unit.uses
    }
    return model.graph(params, x).run(spy, params, x, states)[1]
