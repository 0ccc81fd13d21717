from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO

from qresearch.calibration import calibrate, select
from qresearch.errors import GraphError
from qresearch.graph import find_layers
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.ranges import RANGES
from qresearch.qmodel import quantize_model
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import GRANULARITIES, Rule, SiteRule, assign_rules, stays_float

FLOAT = {"weight": None, "input": None}


def layers_of(name):
    return find_layers(*ZOO[name])


def contraction(name, index=0):
    return layers_of(name)[index].contraction


# --- which rule a layer gets -----------------------------------------------------------------------------------------


def test_the_first_match_wins():
    layers = layers_of("linen_transformer")
    first, second = Rule("*query*", menu=((8, 8),)), Rule("*")
    assigned = assign_rules([first, second], layers)
    assert [assigned[layer.name] is first for layer in layers] == [True] + [False] * 5
    assert assign_rules([second], layers) == {layer.name: second for layer in layers}


def test_layers_that_no_rule_matches_or_that_stay_in_float_are_absent():
    layers = layers_of("mlp")
    assert set(assign_rules([Rule("hidden/*")], layers)) == {"hidden/w"}
    rules = [Rule("hidden/*", **FLOAT), Rule()]
    assert set(assign_rules(rules, layers)) == {"out/w"}
    assert [stays_float(layer.name, rules) for layer in layers] == [True, False]
    assert stays_float("anything", [Rule("hidden/*")])


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("hiden/w", "hidden/w"),
        ("Hidden/*", "hidden"),
        ("hidden/kernel", "hidden/w"),
        ("zzz", "known: hidden, hidden/w"),
    ],
)
def test_a_rule_that_matches_no_layer_is_refused_with_close_names(pattern, suggestion):
    with pytest.raises(GraphError, match="matches no layer") as raised:
        assign_rules([Rule(pattern), Rule()], layers_of("mlp"))
    assert pattern in str(raised.value)
    assert suggestion in str(raised.value)


def test_a_rule_behind_one_that_takes_all_its_layers_is_refused():
    layers = layers_of("mlp")
    with pytest.raises(GraphError, match="'hidden/w' never applies"):
        assign_rules([Rule("*"), Rule("hidden/w")], layers)
    with pytest.raises(GraphError, match="never applies"):
        assign_rules([Rule("hidden/*"), Rule("out/*"), Rule("*/w")], layers)
    assign_rules([Rule("hidden/w"), Rule("out/*"), Rule("*")], layers)  # a last "*" is a default, needed or not


OPTIONAL = ("embedding:tokens/embedding", "product:block/attention", "product:block/attention#2")


def with_optional(layers):
    return [*layers, *(dataclasses.replace(layers[0], name=name) for name in OPTIONAL)]


@pytest.mark.parametrize("pattern", ["*", "*attention*", "p*", "product*", "[pe]*:*", "?roduct:*"])
def test_products_and_look_ups_are_matched_by_their_own_prefix_only(pattern):
    layers = with_optional(layers_of("mlp"))
    rules = [Rule(), Rule("product:*"), Rule("embedding:*")]
    assert set(assign_rules(rules, layers)) == {layer.name for layer in layers}
    assert set(assign_rules([Rule()], layers)) == {"hidden/w", "out/w"}
    assert all(stays_float(name, [Rule(pattern)]) for name in OPTIONAL)
    if pattern != "*":
        with pytest.raises(GraphError, match="matches no layer") as raised:
            assign_rules([Rule(pattern), Rule()], layers)
        assert "attention" not in str(raised.value).split("matches no layer")[1]


def test_a_rule_for_products_that_takes_none_is_refused_with_their_names():
    layers = with_optional(layers_of("mlp"))
    with pytest.raises(GraphError, match=r"'product:blok/' matches no layer.*product:block/attention"):
        assign_rules([Rule("product:blok/"), Rule()], layers)
    with pytest.raises(GraphError, match="'product:\\*' matches no layer"):
        assign_rules([Rule("product:*"), Rule()], layers_of("mlp"))
    with pytest.raises(GraphError, match="'product:block/attention#2' never applies"):
        assign_rules([Rule("product:*"), Rule("product:block/attention#2")], layers)


def test_patterns_may_name_an_iteration_or_a_use():
    iterations = layers_of("scan_stack")
    rules = [Rule("blocks/w@1", menu=((8, 8),)), Rule()]
    assert [rule.menu == ((8, 8),) for rule in assign_rules(rules, iterations).values()] == [0, 1, 0, 0, 0]
    uses = assign_rules([Rule("w#2", shared="each"), Rule()], layers_of("shared"))
    assert [rule.shared for rule in uses.values()] == ["one", "each", "one", "one"]


def test_names_that_cannot_be_reached_may_be_matched_but_get_no_rule():
    rules = [Rule("inside", **FLOAT), Rule()]
    assert set(assign_rules(rules, layers_of("mlp"), ["inside"])) == {"hidden/w", "out/w"}
    with pytest.raises(GraphError, match="inside"):
        assign_rules(rules, layers_of("mlp"))


# --- menus -----------------------------------------------------------------------------------------------------------


def test_a_float_operand_has_width_32_and_its_options_merge():
    menu = ((4, 2), (4, 4), (8, 8))
    assert Rule(menu=menu).options() == menu
    assert Rule(menu=menu, input=None).options() == ((4, 32), (8, 32))
    assert Rule(menu=menu, weight=None).options() == ((32, 2), (32, 4), (32, 8))
    assert Rule(menu=menu, **FLOAT).options() == ((32, 32),)


def test_rules_are_hashable_whatever_the_menu_was_written_as():
    assert Rule(menu=[[4, 4], (8, 8)]) == Rule(menu=((4, 4), (8, 8)))
    assert len({Rule(menu=[(4, 4)]), Rule(menu=((4, 4),))}) == 1


def test_an_empty_menu_is_refused():
    with pytest.raises(GraphError, match="empty"):
        Rule(menu=())


@pytest.mark.parametrize("field", ["quantizer", "granularity", "range", "mask", "rounding"])
def test_unknown_choices_of_a_site_are_refused_at_once(field):
    with pytest.raises(GraphError, match=f"unknown {field} 'nonsense'; (known|did you mean)"):
        SiteRule(**{field: "nonsense"})
    with pytest.raises(GraphError, match=f"unknown {field}"):
        dataclasses.replace(SiteRule(), **{field: "nonsense"})


def test_unknown_sharing_and_quantizers_are_refused():
    with pytest.raises(GraphError, match="unknown shared 'both'"):
        Rule(shared="both")
    with pytest.raises(GraphError, match="unknown quantizer 'lsqq'; did you mean 'lsq'"):
        SiteRule("lsqq")


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_a_valid_choice(name):
    SiteRule(range=name)


# --- granularity -----------------------------------------------------------------------------------------------------

# The granularities of a kernel and of its input: (model, layer): per_channel weight, per_channel input, group axes.
AXES = {
    ("mlp", 0): (per_channel(1), per_channel(1), 0, 1),
    ("square", 1): (per_channel(0), per_channel(0), 1, 0),
    ("einsums", 0): (per_channel(1, 2), per_channel(2), 0, 2),
    ("linen_transformer", 3): (per_channel(2), per_channel(2, 3), 1, 3),
    ("convolutions", 0): (per_channel(3), per_channel(3), 2, 3),
    ("convolutions", 2): (per_channel(3), per_channel(3), 2, 3),
    ("one_dimensional", 1): (per_channel(0), per_channel(1), 1, 1),
    ("experts", 0): (per_channel(0, 2), per_channel(1), 1, 1),
}


@pytest.mark.parametrize(("name", "index"), AXES)
def test_granularity_follows_the_contraction(name, index):
    layer = contraction(name, index)
    weight, input, weight_axis, input_axis = AXES[name, index]
    for operand, channels, axis in (("weight", weight, weight_axis), ("input", input, input_axis)):
        assert SiteRule()._granularity(layer, operand) == PER_TENSOR
        assert SiteRule(granularity="per_channel")._granularity(layer, operand) == channels
        assert SiteRule(granularity="per_group", group_size=2)._granularity(layer, operand) == per_group(axis, 2)


# The axes of an input that make a token: those that are not summed over. In a convolution the window is.
TOKENS = {
    ("mlp", 0): (0,),
    ("square", 1): (1,),
    ("einsums", 0): (0, 1),
    ("linen_transformer", 3): (0, 1),
    ("convolutions", 0): (0,),
    ("one_dimensional", 1): (0,),
    ("experts", 0): (0,),
}


@pytest.mark.parametrize(("name", "index"), TOKENS)
def test_a_token_is_what_one_output_sums_over(name, index):
    layer = contraction(name, index)
    site = SiteRule("dynamic", "per_token", range="minmax")
    assert site._granularity(layer, "input") == per_channel(*TOKENS[name, index])
    x = jax.random.normal(jax.random.key(0), layer.input_shape)
    scale = site.build(layer, "input", True).encode((), x, 8.0).scale
    assert scale.shape == tuple(n if axis in TOKENS[name, index] else 1 for axis, n in enumerate(x.shape))


def test_tokens_are_quantized_alike_in_batches_of_any_size():
    fn, params, x = ZOO["mlp"]
    rule = Rule(weight=None, input=SiteRule("dynamic", "per_token", signed=True, range="minmax"))
    model = quantize_model(fn, params, x, [rule])
    table = calibrate(model, params, x, [4, 8])
    qparams = select(table, jnp.full((2, 2), 4.0))
    whole = model.apply(params, qparams, x, jnp.full((2, 2), 4.0))
    louder = model.apply(params, qparams, jnp.concatenate([x[:1], 100 * x]), jnp.full((2, 2), 4.0))
    np.testing.assert_allclose(louder[0], whole[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole, fn(params, x), rtol=1e-3)


def test_a_range_of_auto_is_mse_where_a_method_keeps_a_range():
    layer, x = contraction("mlp"), jax.random.normal(jax.random.key(0), contraction("mlp").weight_shape)

    def qparams(*arguments, **options):
        return SiteRule(*arguments, **options).build(layer, "weight", True).init(x, 3.0)

    np.testing.assert_array_equal(qparams("minmax").high, qparams("minmax", range="mse").high)
    assert (qparams("minmax").high < qparams("minmax", range=None).high).all()
    np.testing.assert_array_equal(qparams("lut").levels, qparams("lut", range=None).levels)
    for name in QUANTIZERS:  # every method can be named without knowing which ranges it takes
        SiteRule(name).build(layer, "weight", True)
    with pytest.raises(GraphError, match="lut"):
        SiteRule("lut", range="mse").build(layer, "weight", True)


def test_the_options_of_a_method_with_its_own_width_are_what_it_stores():
    menu = ((0, 8), (2, 8), (4, 8), (32, 8))
    assert Rule(weight=SiteRule("binary"), menu=menu).options() == ((0, 8), (1, 8), (32, 8))
    assert Rule(weight=SiteRule("lsq"), menu=menu).options() == menu
    fp4 = SiteRule("mx", options=(("element", "fp4_e2m1"),))
    assert Rule(weight=fp4, input=None, menu=menu).options() == ((0, 32), (4, 32), (32, 32))


def test_tokens_need_an_input_and_a_method_without_kept_scales():
    with pytest.raises(GraphError, match="granularity of inputs"):
        SiteRule("dynamic", "per_token").build(contraction("mlp"), "weight", True)
    with pytest.raises(GraphError, match="'minmax' keeps the scales of the calibration batch"):
        SiteRule("minmax", "per_token").build(contraction("mlp"), "input", True)


@pytest.mark.parametrize("granularity", sorted({*GRANULARITIES} - {"per_token"}))
@pytest.mark.parametrize("quantizer", ["minmax", "lsq"])
def test_every_granularity_fits_the_kernel(quantizer, granularity):
    site = SiteRule(quantizer, granularity, 4 if granularity == "per_group" else None, range="minmax")
    built = site.build(contraction("mlp"), "weight", True)
    kernel = ZOO["mlp"].params["hidden"]["w"]
    rounded = built.apply(built.init(kernel, 8.0), kernel, 8.0)
    assert rounded.shape == kernel.shape
    assert 0 < jnp.abs(rounded - kernel).max() < 0.02


def test_groups_need_a_size():
    with pytest.raises(GraphError, match="group_size must be at least 1"):
        SiteRule(granularity="per_group").build(contraction("mlp"), "weight", True)
