"""Calibration of quantized models: signs, ranges, what is learnable."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO, Entry, X, convolve, kernel
from jax import lax
from quantized_models import (
    CHANNELS,
    QUICK,
    STEPS,
    TENSOR,
    build,
    case,
    codes_of,
    full,
)

from qresearch.errors import GraphError
from qresearch.qmodel import quantize_model
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.minmax import minmax
from qresearch.rules import Rule, SiteRule

# --- signs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "signed"), [(jax.nn.relu, False), (jax.nn.gelu, True), (jax.nn.sigmoid, False)])
def test_inputs_are_signed_where_the_batch_has_negative_values(activation, signed):
    def fn(p, x):
        return activation(x @ p["a"]) @ p["b"]

    model, params, x, qparams, _ = build(Entry(fn, {"a": kernel(0, 8, 32), "b": kernel(1, 32, 3)}, X))
    codes = codes_of(model, params, qparams, x, full(model, 8.0))
    assert codes["a"].min() < 0
    assert codes["a"].max() <= 127
    assert (codes["b"].min() < 0) == signed
    assert (codes["b"].max() > 127) == (not signed)  # the whole range serves the positive half
    weight = model.units[1].weight.encode(qparams["b"]["weight"], params["b"], 8.0)
    assert weight.values.min() < 0


def test_a_rule_decides_the_sign_where_it_says_so():
    fn, params, x = ZOO["mlp"]
    signs = [
        quantize_model(fn, params, x, [Rule(weight=CHANNELS, input=SiteRule(range="minmax", signed=signed))])
        for signed in (True, False)
    ]
    for model, lowest in zip(signs, (-128, 0)):
        qparams = model.init(params, x, full(model, 8.0))
        code = model.units[0].input.encode(qparams["hidden/w"]["input"], jnp.full((1, 8), -1e6), 8.0)
        assert code.values.min() == lowest


def test_one_negative_iteration_makes_a_scanned_layer_signed():
    def fn(p, x):  # only the first iteration sees negative values
        return lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["w"])[0]

    model, params, x, qparams, _ = build(Entry(fn, {"w": kernel(0, 3, 8, 8)}, X))
    codes = codes_of(model, params, qparams, x, full(model, 8.0))
    assert codes["w@0"].min() < 0
    for i in range(3):
        assert codes[f"w@{i}"].max() <= 127
    assert 0 <= codes["w@1"].min() < codes["w@1"].max()


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "scan_reverse"])
def test_init_under_vmap_over_bits_is_a_loop(name):
    fn, params, x = ZOO[name]
    model = quantize_model(fn, params, x, [Rule(weight=SiteRule("lsq"), input=SiteRule("lsq"))])
    widths = jnp.array([2.0, 4.0, 8.0])
    init = jax.jit(lambda width: model.init(params, x, full(model, 0.0) + width))
    many = jax.jit(jax.vmap(lambda width: model.init(params, x, full(model, 0.0) + width)))(widths)
    for i, width in enumerate(widths):
        one, mine = init(width), jax.tree.map(lambda leaf, i=i: leaf[i], many)
        assert jax.tree.structure(one) == jax.tree.structure(mine)
        # The search for the range may meet a tie, one step of 2 % apart.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.02), mine, one)


def test_every_site_is_calibrated_at_its_own_width():
    model, params, x, _, _ = case("mlp", STEPS)
    bits = jnp.array([[2.0, 3.0], [4.0, 8.0]])
    init = jax.jit(model.init)
    qparams = init(params, x, bits)
    for row, name in enumerate(["hidden/w", "out/w"]):
        for column, operand in enumerate(["weight", "input"]):
            alike = init(params, x, full(model, bits[row, column]))[name][operand]
            np.testing.assert_array_equal(qparams[name][operand].scale, alike.scale)
            others = init(params, x, full(model, 5.0))[name][operand]
            assert not np.array_equal(others.scale, alike.scale)


def test_calibration_sees_the_float_model():
    _, params, x, qparams, _ = case("cnn")
    hidden = jax.nn.relu(convolve(x, params["conv"])).reshape(4, -1)
    np.testing.assert_allclose(qparams["hidden"]["input"].high, hidden.max(keepdims=True), rtol=1e-6)
    expected = jnp.maximum(params["hidden"].max(0, keepdims=True), 0)
    np.testing.assert_array_equal(qparams["hidden"]["weight"].high, expected)


def test_iterations_are_calibrated_one_by_one():
    _, params, _, qparams, _ = case("scan_stack")
    for i in range(3):
        high = jnp.maximum(params["blocks"]["w"][i].max(0, keepdims=True), 0)
        np.testing.assert_array_equal(qparams[f"blocks/w@{i}"]["weight"].high, high)


def test_only_the_fields_a_method_learns_are_learnable():
    rules = (Rule("hidden/*", weight=SiteRule("lsq", range="minmax"), input=None), QUICK)
    model, _, _, qparams, _ = case("mlp", *rules)
    mask = model.learnable(qparams)
    assert jax.tree.structure(mask) == jax.tree.structure(qparams)
    assert mask["hidden/w"] == {"weight": type(qparams["hidden/w"]["weight"])(True), "input": None}
    assert jax.tree.leaves(mask["out/w"]) == [False] * 4


def test_an_operand_may_stay_in_float():
    fn, params, x = ZOO["mlp"]
    model, _, _, qparams, apply = case("mlp", Rule(weight=CHANNELS, input=None))
    assert all(site["input"] is None for site in qparams.values())
    assert all(option[1] == 32 for menu in model.menus for option in menu)
    outputs = apply(params, qparams, x, full(model, 4.0))
    rounded = jax.tree.map(lambda w: w, params)
    for unit, name in zip(model.units, ("hidden", "out")):
        rounded[name]["w"] = unit.weight.apply(qparams[f"{name}/w"]["weight"], params[name]["w"], 4.0)
    np.testing.assert_allclose(outputs, fn(rounded, x), rtol=1e-5, atol=1e-6)


def test_pinned_layers_have_one_option():
    fn, params, x = ZOO["mlp"]
    model = quantize_model(fn, params, x, [Rule("out/*", weight=CHANNELS, input=TENSOR, menu=((8, 8),)), QUICK])
    assert model.menus == (QUICK.options(), ((8, 8),))


# --- the contract of a method ----------------------------------------------------------------------------------------


def test_a_method_that_breaks_its_contract_is_refused_by_name_and_site(monkeypatch):
    def broken(spec):
        return minmax(spec)._replace(apply=lambda qparams, x, bits, *, key=None: x if bits > 1 else -x)

    monkeypatch.setitem(QUANTIZERS, "broken", broken)
    for site, rule in (("w", Rule(weight=SiteRule("broken"))), ("input", Rule(input=SiteRule("broken")))):
        with pytest.raises(
            GraphError, match=rf"^quantizer 'broken' at hidden/{site}: apply: .*bits is traced"
        ) as caught:
            case("mlp", rule)
        assert isinstance(caught.value.__cause__, jax.errors.TracerBoolConversionError)


def test_a_method_that_was_mended_is_built_anew(monkeypatch):
    def broken(spec):
        return minmax(spec)._replace(init=lambda x, bits: (x, bits))

    fn, params, x = ZOO["mlp"]
    monkeypatch.setitem(QUANTIZERS, "mended", broken)
    rules = [Rule(weight=SiteRule("mended"), input=None)]
    model = quantize_model(fn, params, x, rules)
    with pytest.raises(GraphError, match="quantizer 'mended' at hidden/w: init must return a NamedTuple, got tuple"):
        model.init(params, x, full(model, 8.0))
    monkeypatch.setitem(QUANTIZERS, "mended", minmax)
    model = quantize_model(fn, params, x, rules)
    assert set(model.init(params, x, full(model, 8.0))) == {"hidden/w", "out/w"}


def test_a_contract_is_checked_once_for_equal_layers(monkeypatch):
    asked = []

    def counted(spec):
        def apply(qparams, x, bits, *, key=None):
            asked.append(x.shape)
            return x

        return minmax(spec)._replace(apply=apply)

    def fn(p, x):
        return x @ p["a"] @ p["b"] @ p["c"]

    monkeypatch.setitem(QUANTIZERS, "counted", counted)
    params = {name: kernel(0, 8, 8) for name in "abc"}
    model = quantize_model(fn, params, X, [Rule(weight=SiteRule("counted"), input=None)])
    for width in (8.0, 4.0):
        model.init(params, X, full(model, width))
    assert asked == [(8, 8)]
