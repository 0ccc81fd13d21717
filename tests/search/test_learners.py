"""What a search computes in one step, against formulas and against the model itself, on models of the zoo."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO
from quantized_models import CNN
from search_cases import at_menu, costs_of, plain_subject, random_bits

from qresearch.errors import ConfigError
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.search import SEARCHES
from qresearch.search.dq import learner as dq_learner
from qresearch.search.edmips import learner as edmips_learner
from qresearch.search.fracbits import learner as fracbits_learner
from qresearch.search.run import expected_cost, prices_of
from qresearch.search.shares import confined, interpolated, palettes

GRID = tuple(itertools.product((2, 4, 8), (3, 4, 32)))
STEP = SiteRule("lsq", range="minmax")
KERNEL = SiteRule("lsq", "per_channel", range="minmax")
RULES = {
    "cnn": (CNN, (Rule("hidden", KERNEL, STEP, ((8, 8),)), Rule("*", KERNEL, STEP, GRID))),
    "pruned": (CNN, (Rule("hidden", KERNEL, STEP, ((0, 8), (4, 4), (32, 32))), Rule("*", KERNEL, None, GRID))),
    "scan": (
        ZOO["scan_stack"],
        (Rule("*@1", KERNEL, STEP, ((8, 8),)), Rule("*", KERNEL, STEP, ((2, 3), (4, 4), (8, 3)))),
    ),
}
CASES = pytest.mark.parametrize("case", RULES)


@functools.cache
def subject_of(case):
    entry, rules = RULES[case]
    return plain_subject(quantize_model(entry.fn, entry.params, entry.x, rules), entry.params, entry.x)


def fracbits_at(subject, bits):
    """The fractional search with its widths at these, whole ones."""
    learner = fracbits_learner(subject)
    learned = learner.start(subject)
    start = learner.realise(learned, 1.0).bits
    return learner, {**learned, "moved": bits - start}


def edmips_at(subject, bits):
    """The probabilistic search, sure of these widths."""
    learner = edmips_learner(subject)
    learned = learner.start(subject)
    logits = tuple(
        tuple(jnp.where(jnp.asarray(widths) == width, 0.0, -1e30) for (widths, _), width in zip(palette.operands, row))
        for palette, row in zip(palettes(subject.model), bits)
    )
    return learner, {**learned, "logits": logits}


AT = {"fracbits": fracbits_at, "edmips": edmips_at}


@CASES
@pytest.mark.parametrize("name", AT)
def test_whole_widths_give_the_models_own_output_bit_for_bit(name, case):
    subject = subject_of(case)
    for bits in random_bits(subject.model, 3):
        learner, learned = AT[name](subject, bits)
        real = learner.realise(learned, 1.0)
        found = learner.model.apply(subject.variables, real.qparams, subject.x, real.bits)
        wanted = at_menu(subject.model, subject.variables, subject.x, bits)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@CASES
@pytest.mark.parametrize("cost", ["bops", "average_bits"])
@pytest.mark.parametrize("name", AT)
def test_the_expected_cost_of_whole_widths_is_the_cost(name, case, cost):
    subject = subject_of(case)
    prices = [jnp.asarray(table, jnp.float32) for table in prices_of(subject, cost)]
    for bits in random_bits(subject.model, 4):
        learner, learned = AT[name](subject, bits)
        found = expected_cost(prices, learner.realise(learned, 1.0).shares)
        np.testing.assert_allclose(found, costs_of(subject.model, cost, bits), rtol=1e-6)


def test_the_expectation_is_over_all_pairs_of_widths():
    subject = subject_of("cnn")
    learner, prices = edmips_learner(subject), prices_of(subject, "bops")
    learned = learner.start(subject)
    random = np.random.default_rng(0)
    logits = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), learned["logits"])
    expected = 0.0
    for pair, table, palette in zip(logits, prices, palettes(subject.model)):
        alpha, beta = (np.exp(2.0 * np.asarray(one)) / np.exp(2.0 * np.asarray(one)).sum() for one in pair)
        for i, j in itertools.product(range(len(palette.weight)), range(len(palette.input))):
            expected += alpha[i] * beta[j] * table[i, j]
    found = expected_cost(prices, learner.realise({**learned, "logits": logits}, 2.0).shares)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_fractional_width_mixes_and_its_gradient_is_the_difference_quotient():
    subject = subject_of("cnn")
    (row,) = [i for i, layer in enumerate(subject.model.layers) if layer.name == "out"]
    low, high, here = (jnp.full((3, 2), 4.0).at[1].set(8.0).at[row, 0].set(width) for width in (4.0, 8.0, 5.0))
    outputs = [at_menu(subject.model, subject.variables, subject.x, bits) for bits in (low, high)]
    learner, learned = fracbits_at(subject, here)

    def output(moved):
        real = learner.realise({**learned, "moved": moved}, 1.0)
        return learner.model.apply(subject.variables, real.qparams, subject.x, real.bits)

    direction = jnp.zeros((3, 2)).at[row, 0].set(1.0)
    found, slope = jax.value_and_grad(lambda step: output(learned["moved"] + step * direction).sum())(0.0)
    # The last layer is linear in its weight, so its output mixes as its weight does.
    np.testing.assert_allclose(found, (0.75 * outputs[0] + 0.25 * outputs[1]).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, ((outputs[1] - outputs[0]) / 4.0).sum(), rtol=1e-4, atol=1e-5)


def test_the_cost_of_fractional_widths_is_bilinear_between_the_corner_pairs():
    subject = subject_of("cnn")
    bits = jnp.asarray([[3.0, 3.25], [8.0, 8.0], [7.0, 18.0]])
    learner, learned = fracbits_at(subject, bits)
    prices = prices_of(subject, "bops")
    first = 0.5 * (0.75 * prices[0][0, 0] + 0.25 * prices[0][0, 1]) + 0.5 * (
        0.75 * prices[0][1, 0] + 0.25 * prices[0][1, 1]
    )
    last = subject.model.layers[2].macs * 7.0 * 18.0  # a cost that is linear in each width is what it is everywhere
    found = expected_cost(prices, learner.realise(learned, 1.0).shares)
    np.testing.assert_allclose(found, first + prices[1][0, 0] + last, rtol=1e-5)


@pytest.mark.parametrize("quantizer", ["dq_u1", "dq_u2", "dq_u3"])
def test_dq_starts_at_the_widest_widths_and_moves_by_bits(quantizer):
    subject = subject_of("cnn")
    learner = dq_learner(subject, quantizer)
    learned = learner.start(subject)
    prices = prices_of(subject, "bops")

    def cost(moved, gain=1.0):
        return expected_cost(prices, learner.realise({**learned, "moved": moved}, gain).shares)

    widest = np.asarray([[8, 4], [8, 8], [8, 4]])
    np.testing.assert_allclose(cost(learned["moved"]), costs_of(subject.model, "bops", widest), rtol=1e-6)
    field = "scale" if quantizer == "dq_u3" else "bits"
    sign = 1.0 if field == "scale" else -1.0  # a step that is larger by 2^4 is a width that is less by 4
    start = learned["moved"].items()
    moved = {site: one._replace(**{field: jnp.full_like(getattr(one, field), sign)}) for site, one in start}
    less = np.asarray([[4, 3], [8, 8], [4, 3]])  # the input has no narrower width than 3
    np.testing.assert_allclose(cost(moved, 4.2), costs_of(subject.model, "bops", less), rtol=1e-6)
    assert {site[0] for site in moved} == {"conv", "out"}


def test_a_pinned_layer_has_nothing_that_dq_moves():
    subject = subject_of("cnn")
    learner = dq_learner(subject)
    learned = learner.start(subject)
    mask = learner.learnable(learned)
    assert not any(jax.tree.leaves(mask["own"]["hidden"]))
    assert all(jax.tree.leaves(mask["moved"]))


def test_a_width_leaves_an_end_inwards_only():
    def slope(width, upstream):
        return jax.grad(lambda w: upstream * confined(w, jnp.float32(2.0), jnp.float32(8.0)))(jnp.float32(width)).item()

    assert [slope(width, 1.0) for width in (1.0, 2.0, 5.0, 8.0, 9.0)] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert [slope(width, -1.0) for width in (1.0, 2.0, 5.0, 8.0, 9.0)] == [-1.0, -1.0, -1.0, 0.0, 0.0]


def test_shares_are_of_the_two_widths_around():
    widths = (0.0, 2.0, 3.0, 8.0)
    wanted = {
        0.0: [1, 0, 0, 0],
        0.5: [0.75, 0.25, 0, 0],
        3.0: [0, 0, 1, 0],
        4.0: [0, 0, 0.8, 0.2],
        8.0: [0, 0, 0, 1],
    }
    for width, shares in wanted.items():
        np.testing.assert_allclose(interpolated(jnp.float32(width), widths).dense(4), shares, atol=1e-7)
    np.testing.assert_array_equal(interpolated(jnp.float32(5.0), (8.0,)).dense(1), [1.0])


@pytest.mark.parametrize("name", AT)
def test_a_quantizer_that_learns_its_width_is_refused_where_widths_are_mixed(name):
    rule = Rule("*", SiteRule("dq_u3"), SiteRule("dq_u3"), ((2, 2), (4, 4)))
    model = quantize_model(CNN.fn, CNN.params, CNN.x, (rule,))
    with pytest.raises(ConfigError, match="layer conv: the weight's quantizer learns its own width"):
        SEARCHES[name](0, plain_subject(model, CNN.params, CNN.x), "bops", [10**9])
