"""Freezing over the registry of quantizers, and over random layers: what is stored is what was simulated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.cost import COSTS
from qresearch.export.stored import sizes, to_stored
from qresearch.frozen import freeze
from qresearch.numerics.packing import QTensor
from qresearch.qmodel import quantize_model
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import Rule, SiteRule

PARAMS = {"layer": jax.random.normal(jax.random.key(0), (12, 8)) / 3.0, "bias": jnp.linspace(-1.0, 1.0, 8)}
X = jax.random.normal(jax.random.key(2), (24, 12))


def network(params, x):
    return jax.nn.relu(x @ params["layer"] + params["bias"])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_method_freezes_to_what_it_simulates(name):
    model = quantize_model(network, PARAMS, X, [Rule(weight=SiteRule(name), input=SiteRule(name))])
    bits = jnp.full((1, 2), 4.0)
    qparams = jax.jit(model.init)(PARAMS, X, bits)
    frozen = freeze(model, PARAMS, qparams, np.asarray(bits))
    simulated = jax.jit(model.apply)(PARAMS, qparams, X, bits)
    np.testing.assert_allclose(frozen.apply(X), simulated, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(frozen.apply(X), frozen.apply(X, "codes"))
    (layer,), kernel = frozen.layers, frozen.arrays["layers"]["layer"]["weight"]
    assert frozen.arrays["params"].keys() == {"bias"}
    assert isinstance(kernel, QTensor)
    assert (layer.path == "simulated") == bool(layer.reason)
    if kernel.codebook is not None:
        assert "codebook" in layer.reason
    if model.units[0].weight.width is not None:
        assert kernel.bits == model.units[0].weight.width


def test_most_methods_run_in_integers():
    def path(name):
        model = quantize_model(network, PARAMS, X, [Rule(weight=SiteRule(name), input=SiteRule(name))])
        bits = np.full((1, 2), 4.0, np.float32)
        return freeze(model, PARAMS, jax.jit(model.init)(PARAMS, X, bits), bits).layers[0].path

    assert [name for name in ("minmax", "lsq", "pact", "dorefa", "statsq", "dynamic") if path(name) != "integer"] == []


GRANULARITIES = ("per_tensor", "per_channel", "per_group")


@st.composite
def layers(draw):
    """(kernel, input, function): a dense layer, or a convolution, plain, grouped or depthwise, of a random shape."""
    key, batch = draw(st.integers(0, 2**16)), draw(st.integers(1, 3))
    into, out = draw(st.sampled_from((4, 6, 8, 12))), draw(st.integers(1, 6))
    if draw(st.booleans()):
        shape, x_shape, groups = (into, out), (batch, into), None
    else:
        groups = draw(st.sampled_from((1, 2, into)))
        window = draw(st.integers(1, 3))
        shape, x_shape = (window, window, into // groups, out * groups), (batch, 5, draw(st.integers(3, 5)), into)
    kernel = jax.random.normal(jax.random.key(key), shape)
    x = jax.random.normal(jax.random.key(key + 1), x_shape)

    def fn(params, x):
        if groups is None:
            return x @ params["kernel"]
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    return fn, {"kernel": kernel}, x


@settings(deadline=None, derandomize=True, database=None, max_examples=3)
@given(
    layers(),
    st.tuples(st.integers(2, 8), st.integers(2, 8)),
    st.sampled_from(GRANULARITIES),
    st.tuples(*[st.booleans()] * 4),
)
def test_random_layers_store_what_they_cost_and_agree_bit_for_bit(layer, widths, granularity, choices):
    fn, params, x = layer
    affine_weight, affine_input, positive, per_token = choices
    x = jnp.abs(x) if positive else x
    size = 2 if granularity == "per_group" else None
    if size and params["kernel"].shape[-2] % 2:
        size, granularity = None, "per_tensor"
    weight = SiteRule("minmax", granularity, size, symmetric=not affine_weight, range="minmax")
    input = SiteRule(
        *(("dynamic", "per_token") if per_token else ("minmax",)), symmetric=not affine_input, range="minmax"
    )
    model = quantize_model(fn, params, x, [Rule(weight=weight, input=input)])
    bits = np.asarray([widths], np.float32)
    qparams = model.init(params, x, jnp.asarray(bits))
    frozen = freeze(model, params, qparams, bits)
    (planned,) = frozen.layers
    in_groups = granularity == "per_group" and params["kernel"].ndim == 4
    assert planned.path == ("simulated" if in_groups else "integer"), planned.reason
    assert planned.input_signed == (not positive or planned.path == "simulated")
    integer = np.asarray(frozen.apply(x))
    np.testing.assert_array_equal(integer, frozen.apply(x, "codes"))
    scale = np.abs(integer).max() + 1e-6
    np.testing.assert_allclose(integer / scale, np.asarray(frozen.apply(x, "dequantized")) / scale, atol=2e-6)
    counted = COSTS["size"].of(model.counts, bits) * 1000
    stored = frozen.arrays["layers"]["kernel"]["weight"]
    assert (
        abs(sizes(to_stored(frozen)).layers - counted) <= 9 + stored.bits * 2
    )  # bytes are whole; minmax keeps two ends
