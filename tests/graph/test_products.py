"""Products of data and embedding look-ups: layers where a rule asks, float everywhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.product_cases import (
    ENTRIES,
    HEADS,
    IDS,
    IN_FLOAT,
    KERNELS,
    KEY,
    LOOKUPS,
    NAMES,
    PRODUCTS,
    TENSOR,
    USES,
    LinenBlock,
    asked,
    every_entry,
    names_of,
)
from graph.zoo import Compilations, draw, kernel
from quantized_models import build, full

from qresearch.errors import GraphError
from qresearch.graph import trace
from qresearch.graph.handlers import identity, record
from qresearch.models import MODELS
from qresearch.qmodel import quantize_model, sketch_model
from qresearch.rules import Rule, SiteRule

# --- what a rule can ask for -----------------------------------------------------------------------------------------


@every_entry
def test_names(name):
    assert names_of(trace(*ENTRIES[name]).optional) == NAMES[name]


@every_entry
def test_names_do_not_depend_on_the_batch(name):
    fn, params, x = ENTRIES[name]
    other = jnp.concatenate([x, x, x])
    assert names_of(trace(fn, params, other).optional) == NAMES[name]
    assert [layer.macs for layer in trace(fn, params, other).optional] == [
        layer.macs for layer in trace(fn, params, x).optional
    ]


def test_names_are_those_of_the_training_mode():
    module = LinenBlock(dropout=0.5, train=True)

    def train(variables, x):
        return module.apply(variables, x[0], rngs={"dropout": x[1]})

    _, params, x = ENTRIES["linen"]
    assert names_of(trace(train, params, (x, KEY)).optional) == NAMES["linen"]


@pytest.mark.parametrize(("name", "blocks"), [("gpt", 2), ("vit_tiny", 12)])
def test_names_in_the_models_here(name, blocks):
    model = MODELS[name](10)
    x = jax.ShapeDtypeStruct((2, *model.example.shape), model.example.dtype)
    params = jax.eval_shape(model.init, KEY, x)
    found = names_of(trace(model.apply, params, x).optional)
    assert [n for n in found if "product" in n] == [
        f"product:block{i}/attention{u}" for i in range(blocks) for u in USES
    ]
    assert names_of(trace(model.apply_train, params, (x, KEY)).optional) == found


@every_entry
def test_nothing_is_a_layer_unless_asked(name):
    fn, params, x = ENTRIES[name]
    graph, model = trace(fn, params, x), sketch_model(fn, params, x, [KERNELS])
    assert names_of(model.layers) == names_of(graph.layers)
    assert not set(NAMES[name]) & set(names_of(graph.layers))
    assert set(graph.run(record, params, x)[1]) == set(names_of(graph.layers))
    products = [entry for entry in NAMES[name] if entry.startswith("product:")]
    assert [found.optional for found in model.unassigned] == products
    assert all("both operands depend on the input" in found.reason for found in model.unassigned)


@every_entry
def test_what_is_asked_for_is_a_layer_in_the_order_of_execution(name):
    fn, params, x = ENTRIES[name]
    graph = trace(fn, params, x)
    whole = graph.asking(frozenset(NAMES[name]))
    assert whole is graph.asking(frozenset(NAMES[name]))
    assert whole.unassigned == ()
    assert [entry for entry in names_of(whole.layers) if entry in NAMES[name]] == NAMES[name]
    assert [entry for entry in names_of(whole.layers) if entry not in NAMES[name]] == names_of(graph.layers)
    assert list(whole.run(record, params, x)[1]) == names_of(whole.layers)
    np.testing.assert_array_equal(jax.jit(lambda p, x: whole.run(identity, p, x)[0])(params, x), jax.jit(fn)(params, x))


def test_static_facts():
    q_k, p_v = trace(*ENTRIES["plain"]).optional
    assert (q_k.macs, p_v.macs) == (6 * 6 * 8, 6 * 6 * 8)
    assert (q_k.size, q_k.whole, q_k.contraction.kind, q_k.contraction.weight_operand) == (0, False, "dot_general", 1)
    scanned = trace(*ENTRIES["linen_scan"]).optional[0]
    assert (scanned.calls, scanned.macs) == (3, 3 * 6 * 6 * 8)
    table = trace(*ENTRIES["gpt"]).optional[0]
    assert (table.macs, table.size, table.contraction.kind, table.whole) == (0, 11 * 8, "gather", True)
    assert table.parameter == "params/tokens/embedding"


def test_look_ups_of_one_table_share_it_and_do_not_count_as_uses_of_a_kernel():
    def fn(params, ids):
        x = params["table"][ids] + params["table"][ids + 1]
        return x @ params["table"].T + params["table"][jnp.arange(11)].sum()

    params = {"table": kernel(0, 11, 8)}
    model = sketch_model(fn, params, IDS, [LOOKUPS, KERNELS])
    assert [names_of(unit.uses) for unit in model.units] == [["embedding:table", "embedding:table#2"], ["table"]]


# --- rules ----------------------------------------------------------------------------------------------------------


def test_an_operand_of_a_product_has_one_scale():
    fn, params, x = ENTRIES["plain"]
    for rule in (
        Rule("product:*", weight=SiteRule(granularity="per_channel")),
        Rule("product:*", weight=TENSOR, input=SiteRule(granularity="per_group", group_size=4)),
    ):
        with pytest.raises(GraphError, match="must have granularity per_tensor"):
            quantize_model(fn, params, x, [rule, KERNELS])


def test_a_product_takes_its_range_from_every_token_anew_where_its_method_does():
    fn, params, x = ENTRIES["plain"]
    dynamic = SiteRule("dynamic", "per_token")
    case = build(ENTRIES["plain"], Rule("product:*", weight=dynamic, input=dynamic), IN_FLOAT)
    exact, more = fn(params, x), jnp.concatenate([x, 3 * x])
    assert jnp.abs(case.apply(params, case.qparams, x, full(case.model, 8)) - exact).max() < 0.05
    both = case.apply(params, case.qparams, more, full(case.model, 8))
    np.testing.assert_allclose(both[:4], case.apply(params, case.qparams, x, full(case.model, 8)), atol=1e-5)


def is_signed(case, row, operand):
    """Whether a quantizer has codes below zero, calibrated on data that asks for them."""
    quantizer = getattr(case.model.units[row], operand)
    qparams = case.qparams[case.model.units[row].layer.name][operand]
    return float(quantizer.encode(qparams, jnp.full((1, 1, 1), -1e6), 8.0).values.item()) < 0


def test_both_operands_are_signed_as_the_data_are():
    case = asked("plain")
    assert [is_signed(case, 0, operand) for operand in ("weight", "input")] == [True, True]
    # The left operand of the second product is what softmax gives, never negative.
    assert [is_signed(case, 1, operand) for operand in ("weight", "input")] == [True, False]
    given = Rule(
        "product:*", weight=SiteRule(signed=False, range="minmax"), input=SiteRule(signed=True, range="minmax")
    )
    case = build(ENTRIES["plain"], given, IN_FLOAT)
    assert [is_signed(case, 1, operand) for operand in ("weight", "input")] == [False, True]


def test_a_rule_that_says_nothing_of_the_right_operand_treats_it_as_the_left():
    assert Rule("product:*").weight == SiteRule()
    assert Rule("product:*", input=SiteRule("lsq")).weight == SiteRule("lsq")
    assert Rule("product:*", weight=None).weight is None
    assert Rule("embedding:*").weight == Rule("*").weight == SiteRule(granularity="per_channel")


def test_indices_stay_as_they_are():
    fn, params, x = ENTRIES["gpt"]
    model = sketch_model(fn, params, x, [LOOKUPS, IN_FLOAT])
    assert (model.units[0].input, model.menus[0]) == (None, ((2, 32), (3, 32), (4, 32), (6, 32), (8, 32)))
    # A rule that quantizes nothing else leaves the look-up in float.
    rules = [Rule("embedding:*", weight=None), KERNELS]
    assert names_of(sketch_model(fn, params, x, rules).layers) == names_of(trace(fn, params, x).layers)


def test_part_of_the_products():
    fn, params, x = ENTRIES["gpt"]
    model = sketch_model(fn, params, x, [Rule("product:block1/*"), KERNELS])
    assert [name for name in names_of(model.layers) if ":" in name] == NAMES["gpt"][3:]
    assert [found.optional for found in model.unassigned] == NAMES["gpt"][1:3]
    rules = [Rule("product:block1/*", weight=None, input=None), Rule("product:*"), KERNELS]
    assert [name for name in names_of(sketch_model(fn, params, x, rules).layers) if ":" in name] == NAMES["gpt"][1:3]


def test_what_sits_in_a_cond_is_refused_only_where_a_rule_asks():
    def fn(params, x):
        inner = jax.lax.cond(x.sum() > 0, lambda x: x @ x.T, lambda x: x @ x, x)
        return (inner @ params["w"]) @ x

    params, x = {"w": kernel(0, 6, 6)}, draw(1, 6, 6)
    assert names_of(sketch_model(fn, params, x, [KERNELS]).layers) == ["w"]
    with pytest.raises(GraphError, match=r"product:dot_general .* is inside a cond"):
        sketch_model(fn, params, x, [PRODUCTS, KERNELS])


# --- quantized ------------------------------------------------------------------------------------------------------


@every_entry
def test_eight_bits_cost_little_and_two_more(name):
    model, params, x, qparams, apply = asked(name)
    exact = jax.jit(model.fn)(params, x)
    errors = [float(jnp.mean((apply(params, qparams, x, full(model, bits)) - exact) ** 2)) for bits in (32, 8)]
    low = jax.jit(model.init)(params, x, full(model, 2))
    errors.append(float(jnp.mean((apply(params, low, x, full(model, 2)) - exact) ** 2)))
    scale = float(jnp.var(exact))
    assert errors[0] < 1e-9 * scale
    assert 0 < errors[1] < 1e-3 * scale
    assert errors[2] > 30 * errors[1]


def test_every_width_runs_in_one_program_and_eagerly_alike():
    model, params, x, qparams, apply = asked("gpt")
    apply(params, qparams, x, full(model, 8))
    with Compilations() as compilations:
        for bits in (2, 4, 32):
            apply(params, qparams, x, full(model, bits)).block_until_ready()
    assert compilations.count == 0
    eager = model.apply(params, qparams, x, full(model, 4))
    np.testing.assert_allclose(eager, apply(params, qparams, x, full(model, 4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "gpt", "linen_scan"])
def test_another_batch_gives_each_example_what_it_had(name):
    model, params, x, qparams, apply = asked(name)
    bits = full(model, 4)
    alone = jnp.concatenate([apply(params, qparams, row[None], bits) for row in x])
    np.testing.assert_allclose(apply(params, qparams, x, bits), alone, rtol=1e-4, atol=1e-4)


def test_ranges_come_from_all_iterations_of_a_scan():
    model, params, x, qparams, _ = asked("linen_scan")
    recorded = model.graph(params, x).run(record, params, x)[1]["product:blocks/mha"]
    assert recorded["weight"].shape[0] == 3
    largest = max(float(jnp.abs(call).max()) for call in recorded["weight"])
    found = qparams["product:blocks/mha"]["weight"]
    np.testing.assert_allclose(max(-found.low.item(), found.high.item()), largest, rtol=1e-4)


def test_a_look_up_reads_the_quantized_table():
    _, params, x = ENTRIES["gpt"]
    case = build(ENTRIES["gpt"], LOOKUPS, IN_FLOAT)
    unit, table = case.model.units[0], params["params"]["tokens"]["embedding"]
    qparams = case.qparams[unit.layer.name]["weight"]
    assert qparams.high.shape == (11, 1)  # every entry has its own, as the kernel of tied logits
    rounded = unit.weight.apply(qparams, table, 8.0)

    def look_up(call):
        return call.contract(rounded if call.site.base == unit.layer.name else call.weight, call.input), None

    looked_up = jax.jit(lambda x: case.model.graph(params, x).run(look_up, params, x)[0])(x)
    np.testing.assert_allclose(case.apply(params, case.qparams, x, full(case.model, 8)), looked_up, atol=1e-5)


def test_gradients_reach_both_operands_and_the_table():
    model, params, x, qparams, _ = asked("gpt")

    def loss(params):
        return jnp.sum(model.apply(params, qparams, x, full(model, 4)) ** 2)

    found = jax.jit(jax.grad(loss))(params)["params"]
    for leaf in (found["tokens"]["embedding"], *(found["block0"]["mha"][n]["kernel"] for n in HEADS)):
        assert jnp.isfinite(leaf).all()
        assert jnp.abs(leaf).max() > 0


def test_the_training_mode_has_the_same_products():
    module = LinenBlock(dropout=0.5, train=True)

    def train(variables, x):
        return module.apply(variables, x[0], rngs={"dropout": x[1]})

    model, params, x, qparams, _ = asked("linen")
    twin = model.twin(train, params, (x, KEY))
    assert names_of(twin.layers) == NAMES["linen"]
    exact = train(params, (x, KEY))
    errors = [jnp.abs(twin.apply(params, qparams, (x, KEY), full(model, bits)) - exact).max() for bits in (2, 32)]
    assert errors[0] > 1e-2 > 1e-4 > errors[1]
