"""One kernel used several times: one unit, or a unit for each use; slices of a fused kernel are never one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import SEQUENCE, ZOO, X, kernel

from qresearch.errors import GraphError
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

PER_CHANNEL = SiteRule(granularity="per_channel", range="minmax")
QUICK = SiteRule(range="minmax", signed=True)


def rules(shared, weight=PER_CHANNEL, input=QUICK):
    return (Rule(weight=weight, input=input, shared=shared),)


def build(name, shared):
    fn, params, x = ZOO[name]
    return quantize_model(fn, params, x, rules(shared)), params, x


def eights(model):
    return jnp.full((len(model.layers), 2), 8.0)


def test_one_unit_stands_for_all_uses():
    model, params, x = build("shared", "one")
    assert [layer.name for layer in model.layers] == ["w", "out"]
    assert [use.name for use in model.units[0].uses] == ["w", "w#2", "w#3"]
    assert (model.layers[0].macs, model.layers[0].size, model.layers[0].calls) == (3 * 64, 64, 3)
    assert set(model.init(params, x, eights(model))) == {"w", "out"}


def test_each_use_may_be_a_unit():
    model, params, x = build("shared", "each")
    assert [layer.name for layer in model.layers] == ["w", "w#2", "w#3", "out"]
    assert [(layer.macs, layer.calls) for layer in model.layers] == [(64, 1), (64, 1), (64, 1), (24, 1)]
    qparams = model.init(params, x, eights(model))
    widths = eights(model)
    outputs = [model.apply(params, qparams, x, widths.at[i, 0].set(1.0)) for i in range(3)]
    assert not np.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not np.allclose(outputs[1], outputs[2], atol=1e-4)


def test_one_scale_covers_the_inputs_of_all_uses():
    model, params, x = build("shared", "one")
    each, _, _ = build("shared", "each")
    one = model.init(params, x, eights(model))["w"]["input"]
    several = each.init(params, x, eights(each))
    highs = [several[name]["input"].high for name in ("w", "w#2", "w#3")]
    np.testing.assert_array_equal(one.high, jnp.max(jnp.stack(highs), 0))
    assert not np.array_equal(highs[0], highs[1])


def test_the_only_difference_between_one_and_each_is_freedom():
    # With the same qparams and the same bits both compute the same.
    model, params, x = build("shared", "one")
    each, _, _ = build("shared", "each")
    one = model.init(params, x, eights(model))
    copied = {layer.name: one[layer.name.partition("#")[0]] for layer in each.layers}
    np.testing.assert_array_equal(
        jax.jit(model.apply)(params, one, x, eights(model)), jax.jit(each.apply)(params, copied, x, eights(each))
    )


def test_the_kernel_of_one_unit_gets_the_gradients_of_all_uses():
    model, params, x = build("shared", "one")
    qparams = model.init(params, x, eights(model))
    quantizer, input_quantizer = model.units[0].weight, model.units[0].input

    def by_hand(params):
        w = quantizer.apply(qparams["w"]["weight"], params["w"], 4.0)
        h = x
        for _ in range(3):
            h = jnp.tanh(input_quantizer.apply(qparams["w"]["input"], h, 4.0) @ w + params["b"])
        unit = model.units[1]
        last = unit.weight.apply(qparams["out"]["weight"], params["out"], 4.0)
        return (unit.input.apply(qparams["out"]["input"], h, 4.0) @ last).sum()

    fours = jnp.full((2, 2), 4.0)
    actual = jax.jit(jax.grad(lambda p: model.apply(p, qparams, x, fours).sum()))(params)
    expected = jax.jit(jax.grad(by_hand))(params)
    for name in params:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)


def test_slices_of_a_fused_kernel_are_units_of_their_own():
    model, _, _ = build("fused_qkv", "one")
    assert [layer.name for layer in model.layers] == ["qkv", "qkv#2", "qkv#3", "out"]


def test_iterations_of_a_scan_are_shared_among_uses_and_not_among_iterations():
    model, params, x = build("scan_remat", "one")
    assert [layer.name for layer in model.layers] == ["w@0", "w@1", "w@2"]
    assert [[use.name for use in unit.uses] for unit in model.units] == [[f"w@{i}", f"w#2@{i}"] for i in range(3)]
    each, _, _ = build("scan_remat", "each")
    assert len(each.layers) == 6
    bits = eights(model)
    outputs = [jax.jit(model.apply)(params, model.init(params, x, bits), x, bits.at[i, 0].set(2.0)) for i in range(3)]
    assert not np.allclose(outputs[0], outputs[1], atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (8, 6)], ids=["square", "oblong"])
def test_one_scale_cannot_serve_two_layouts(shape):
    # A square kernel and its transpose have one shape, but their channels are each other's contracted axis.
    params = {"w": kernel(0, *shape)}

    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    with pytest.raises(GraphError, match="shared='each'"):
        quantize_model(fn, params, X, rules("one"))
    model = quantize_model(fn, params, X, rules("each"))
    qparams = model.init(params, X, eights(model))
    assert qparams["w"]["weight"].high.shape == (1, shape[1])
    assert qparams["w#2"]["weight"].high.shape == (1, shape[0])


@pytest.mark.parametrize("change", [lambda w: 2 * w, lambda w: -w, lambda w: w.reshape(8, 8)[::-1], jnp.sin])
def test_one_scale_cannot_serve_a_kernel_and_what_is_computed_from_it(change):
    with pytest.raises(GraphError, match="w"):
        quantize_model(lambda p, x: x @ p["w"] + x @ change(p["w"]), {"w": kernel(0, 8, 8)}, X, rules("one"))


def test_uses_after_the_same_operations_are_one():
    def fn(p, x):
        half = x.astype(jnp.bfloat16) @ (2 * p["w"].T).astype(jnp.bfloat16)  # casts aside
        return half.astype(jnp.float32) + jnp.tanh(x @ (2 * p["w"].T))

    assert len(quantize_model(fn, {"w": kernel(0, 8, 8)}, X, rules("one")).layers) == 1


@pytest.mark.parametrize("quantizer", ["minmax", "lsq"])
@pytest.mark.parametrize("longest_first", [True, False])
def test_uses_may_have_inputs_of_several_ranks(longest_first, quantizer):
    params = {"w": kernel(0, 8, 8)}

    def fn(p, x):
        inputs = [jnp.tanh(x), 3 * x[:, 0]]
        return sum(jnp.sum(h @ p["w"]) for h in (inputs if longest_first else inputs[::-1]))

    site = SiteRule(quantizer, range="minmax", signed=True)
    model = quantize_model(fn, params, SEQUENCE, rules("one", site, site))
    qparams = jax.jit(model.init)(params, SEQUENCE, jnp.full((1, 2), 8.0))
    apply = jax.jit(jax.value_and_grad(lambda q, bits: model.apply(params, q, SEQUENCE, bits)))
    exact, coarse = (apply(qparams, jnp.full((1, 2), bits)) for bits in (32.0, 8.0))
    np.testing.assert_allclose(exact[0], fn(params, SEQUENCE), rtol=1e-5)
    np.testing.assert_allclose(coarse[0], exact[0], atol=1.0)
    jax.tree.map(lambda gradient, leaf: np.testing.assert_equal(gradient.shape, leaf.shape), coarse[1], qparams)
    # The joint range covers the larger input, whichever comes first.
    found = qparams["w"]["input"]
    bound = 127 * found.scale if quantizer == "lsq" else jnp.maximum(found.high, -found.low)
    np.testing.assert_allclose(bound.max(), 3 * jnp.abs(SEQUENCE[:, 0]).max(), rtol=1e-5)


def test_channels_of_inputs_of_several_shapes_cannot_share_a_scale():
    def fn(p, x):
        return (x @ p["w"]).sum() + (x[:, 0] @ p["w"]).sum()

    site = SiteRule(granularity="per_channel", range="minmax", signed=True)
    model = quantize_model(fn, {"w": kernel(0, 8, 8)}, SEQUENCE, rules("one", PER_CHANNEL, site))
    with pytest.raises(GraphError, match="shared='each'"):
        model.init({"w": kernel(0, 8, 8)}, SEQUENCE, jnp.full((1, 2), 8.0))


def test_a_kernel_that_a_scan_reuses_has_one_scale_for_all_its_calls():
    model, params, x = build("scan_rnn", "one")
    qparams = model.init(params, x, eights(model))
    hidden = [jnp.zeros((x.shape[0], 6))]
    for t in range(x.shape[1]):
        hidden.append(jnp.tanh(x[:, t] @ params["in"] + hidden[-1] @ params["recurrent"]))
    seen = jnp.stack(hidden[:-1])
    np.testing.assert_allclose(qparams["recurrent"]["input"].high.max(), seen.max(), rtol=1e-5)
    np.testing.assert_allclose(qparams["recurrent"]["input"].low.min(), seen.min(), rtol=1e-5)
