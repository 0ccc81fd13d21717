from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import compilations
from trained import MENU, uniform

from qresearch.calibration import calibrate, menu_widths, select, select_many
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule


def fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 7)).astype(np.float32), "b": RNG.normal(size=(7, 3)).astype(np.float32)}
X = RNG.normal(size=(20, 5)).astype(np.float32)


def model_of(*rules):
    return quantize_model(fn, PARAMS, X, rules or (Rule(),))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


def test_widths_are_all_that_menus_name_below_float_and_above_pruned():
    rules = (Rule("a", menu=((2, 5), (32, 0))), Rule("b", menu=((4, 2),)))
    assert menu_widths(model_of(*rules)) == (2, 4, 5)
    assert menu_widths(model_of(Rule(menu=((32, 32),)))) == (8,)  # something to calibrate at, for a uniform program


@pytest.mark.parametrize(("quantizer", "range"), [("minmax", "mse"), ("lsq", "minmax")])
def test_every_width_has_what_init_gives_at_that_width(quantizer, range):
    rule = SiteRule(quantizer, range=range)
    model = model_of(Rule("*", rule, rule))
    table = calibrate(model, PARAMS, X, (3, 8))
    np.testing.assert_array_equal(table.widths, [3, 8])
    for i, width in enumerate((3, 8)):
        expected = jax.jit(model.init)(PARAMS, X, jnp.full((2, 2), float(width)))
        same(jax.tree.map(lambda leaf, i=i: leaf[i], table.qparams), expected)


def test_widths_are_sorted_and_counted_once():
    np.testing.assert_array_equal(calibrate(model_of(), PARAMS, X, (8, 2, 8, 4)).widths, [2, 4, 8])


def test_a_width_does_not_depend_on_which_others_are_calibrated():
    # A sweep that was interrupted has fewer trials left, and with that fewer widths: its results must not change.
    model = model_of(Rule("*", SiteRule("lsq", range="mse"), SiteRule("lsq", range="mse")))
    few, many = calibrate(model, PARAMS, X, (4,)), calibrate(model, PARAMS, X, (2, 3, 4, 6, 8))
    bits = jnp.full((2, 2), 4.0)
    same(select(few, bits), select(many, bits))


def test_select_takes_each_sites_own_width(trained_digits):
    table = trained_digits.qparams
    widths = np.asarray(table.widths).tolist()
    bits = np.array([[2, 8], [4, 2], [8, 4]], np.float32)
    for row, (name, sites) in zip(bits, select(table, jnp.asarray(bits)).items()):
        for width, operand in zip(row, ("weight", "input")):
            at = widths.index(width)
            expected = jax.tree.map(lambda leaf, i=at: leaf[i], table.qparams[name][operand])
            same(sites[operand], expected)


@pytest.mark.parametrize(("asked", "taken"), [(2.4, 2), (3.4, 4), (7, 8), (16, 8), (0, 2), (32, 8)])
def test_select_takes_the_nearest_width_for_others(trained_digits, asked, taken):
    table = trained_digits.qparams
    assert sorted(np.asarray(table.widths).tolist()) == sorted({w for option in MENU for w in option})
    same(select(table, jnp.asarray(uniform(asked, asked))), select(table, jnp.asarray(uniform(taken, taken))))


def test_select_many_is_select_in_a_loop(trained_digits):
    allocations = np.stack([uniform(2, 8), uniform(4, 4), uniform(8, 2)])
    many = select_many(trained_digits.qparams, allocations)
    for i, bits in enumerate(allocations):
        same(
            jax.tree.map(lambda leaf, i=i: leaf[i], many),
            jax.jit(select)(trained_digits.qparams, jnp.asarray(bits)),
        )


def test_select_is_traced():
    table = calibrate(model_of(), PARAMS, X, (2, 8))
    compiled = jax.jit(lambda table, bits: select(table, bits))  # jax shares one cache between wrappers of a function
    rows = [jnp.full((2, 2), width) for width in (2.0, 5.0, 8.0)]
    with compilations() as names:
        for bits in rows:
            compiled(table, bits)
    assert len(names) == 1


def test_operands_in_float_have_no_qparams():
    table = calibrate(model_of(Rule("*", SiteRule(), None)), PARAMS, X, (2, 4))
    assert all(sites["input"] is None for sites in select(table, jnp.full((2, 2), 4.0)).values())


def test_select_follows_the_order_of_execution_and_not_of_names():
    def fn(params, x):
        return jnp.tanh(x @ params["z"]) @ params["a"]

    params = {"z": jax.random.normal(jax.random.key(0), (4, 6)), "a": jax.random.normal(jax.random.key(1), (6, 3))}
    x = jax.random.normal(jax.random.key(2), (16, 4))
    model = quantize_model(fn, params, x)
    table = calibrate(model, params, x, (2, 8))
    chosen = select(table, jnp.asarray([[2.0, 2.0], [8.0, 8.0]]))
    same(chosen["z"], jax.tree.map(lambda leaf: leaf[0], table.qparams["z"]))
    same(chosen["a"], jax.tree.map(lambda leaf: leaf[1], table.qparams["a"]))
