"""Bayesian Bits as a search: its objective, its step, pruned channels, and what it hands over."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from search_cases import costs_of, digits_subject
from small_sweep import compilations

from qresearch.data.dataset import with_first
from qresearch.errors import ConfigError
from qresearch.models.model import from_linen
from qresearch.qmodel import quantize_model
from qresearch.quantizers.bayesian_bits import BayesianBits
from qresearch.quantizers.hard_concrete import GateLogits, bops_regularizer, gate_is_open
from qresearch.rules import Rule, SiteRule
from qresearch.search import SEARCHES
from qresearch.search.bayesian_bits import learner as gates_learner
from qresearch.search.bayesian_bits import surprise
from qresearch.search.run import _aims, _problem, _program, expected_cost, prices_of
from qresearch.search.svi import HardConcrete
from qresearch.training import Recipe, Trial, make_trainer

OWN = SiteRule("bayesian_bits", range="minmax")
CHANNELS = SiteRule("bayesian_bits", range="minmax", options=(("prune_axis", -1),))
DOUBLING = tuple((weight, input) for weight in (2, 4, 8, 16, 32) for input in (2, 4, 8, 16, 32))


@pytest.fixture(scope="module")
def pruning(trained_digits):
    """The MLP with channel gates; its last layer has a choice too."""
    rules = (Rule("*", CHANNELS, OWN, DOUBLING),)
    x = jnp.asarray(trained_digits.data.prepare(trained_digits.data.train.inputs[:128]))
    model = quantize_model(trained_digits.model.apply, trained_digits.variables, x, rules)
    return digits_subject(trained_digits, model=model, recipe=Recipe(epochs=6, batch_size=128))


def moved(learned, sites, key=0):
    """Random steps of all gates."""
    leaves, tree = jax.tree.flatten(learned["moved"])
    keys = jax.random.split(jax.random.key(key), len(leaves))
    steps = [-6.0 + 2.0 * jax.random.normal(one, leaf.shape) for one, leaf in zip(keys, leaves)]
    return {**learned, "moved": jax.tree.unflatten(tree, steps)}


def test_the_prior_is_the_authors_regularizer(pruning):
    """Up to constants: of a tensor whose channels have no gates they take 1 for the term of 2 bits."""
    learner = gates_learner(pruning)
    learned, macs = moved(learner.start(pruning), pruning), [layer.macs for layer in pruning.model.layers]

    def regularizer(steps):
        total = 0.0
        for i, layer in enumerate(pruning.model.layers):
            for operand in ("weight", "input"):
                step = steps[layer.name, operand]
                channels = None if step.channels is None else 6.0 + step.channels.ravel()
                widths = jnp.asarray([6.0, 6.0, 6.0, -6.0]) + step.widths
                total = total + bops_regularizer(GateLogits(channels, *widths), float(macs[i]), float(max(macs)))
        return total

    ours = jax.jit(jax.grad(lambda steps: learner.prior({**learned, "moved": steps}, 1.0)))(learned["moved"])
    theirs = jax.jit(jax.grad(regularizer))(learned["moved"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9), ours, theirs)
    assert learned["moved"][pruning.model.layers[-1].name, "weight"].channels is None


def test_the_expected_cost_of_certain_gates_is_the_cost_of_what_is_kept(pruning):
    learner = gates_learner(pruning)
    start = learner.start(pruning)
    name, macs = pruning.model.layers[0].name, np.asarray([layer.macs for layer in pruning.model.layers])
    shut = jax.tree.map(lambda leaf: leaf - 100.0, start["moved"])
    half = jnp.where(jnp.arange(start["moved"][name, "weight"].channels.size) % 2, 100.0, -100.0)
    channels = half.reshape(start["moved"][name, "weight"].channels.shape)
    for site, phi in shut.items():
        shut[site] = phi._replace(channels=phi.channels if phi.channels is None else phi.channels + 200.0)
    shut[name, "weight"] = shut[name, "weight"]._replace(channels=channels)
    learned = {**start, "moved": shut}
    found = expected_cost(prices_of(pruning, "bops"), learner.realise(learned, 1.0).shares)
    np.testing.assert_allclose(found, 4 * (macs.sum() - 0.5 * macs[0]), rtol=1e-5)
    np.testing.assert_array_equal(learner.kept(learned, 1.0), [0.5, 1.0, 1.0])


def test_what_is_handed_over_is_the_model_with_thresholded_gates(pruning):
    learner = gates_learner(pruning)
    learned = moved(learner.start(pruning), pruning)
    real = learner.realise(learned, 1.0)
    found = learner.model.apply(pruning.variables, real.qparams, pruning.x, real.bits)
    qparams = learner.handover(learned, 1.0)
    widths = {}
    for (name, operand), step in learned["moved"].items():
        start = jnp.asarray([6.0, 6.0, 6.0, -6.0])
        reached = int(jnp.cumprod(gate_is_open(start + step.widths)).sum())
        widths[name, operand] = (2, 4, 8, 16, 31)[reached]  # 31: float with its range, 32 would be float without
    bits = jnp.asarray([[widths[layer.name, o] for o in ("weight", "input")] for layer in pruning.model.layers], float)
    wanted = pruning.model.apply(pruning.variables, qparams, pruning.x, bits)
    # Sixteen bits are rounded directly here and by residuals there: float32 has 24 for both.
    np.testing.assert_allclose(found, wanted, atol=2e-3 * float(jnp.abs(wanted).max()))
    closed = [np.mean(np.asarray(qparams[layer.name]["weight"].z2) == 0) for layer in pruning.model.layers]
    np.testing.assert_allclose(learner.kept(learned, 1.0), 1 - np.asarray(closed))
    assert 0 < closed[0] < 1


def test_pruning_counts_against_the_budget_and_the_last_layer_keeps_its_channels(pruning):
    macs = sum(layer.macs for layer in pruning.model.layers)
    bits, info = SEARCHES["bayesian_bits"](0, pruning, "bops", [64 * macs, 8 * macs], mu=0.3, strength=0.0, travel=60.0)
    for row, kept, budget, (variables, qparams) in zip(bits, info["kept"], (64, 8), info["starts"]):
        assert 0 < min(kept) < 1
        assert kept[-1] == 1
        counted = row * np.stack([kept, np.ones(3)], axis=1)
        assert costs_of(pruning.model, "bops", counted) <= budget * macs
        for layer, share in zip(pruning.model.layers, kept):
            z2 = np.asarray(qparams[layer.name]["weight"].z2)
            assert set(np.unique(z2)) <= {0.0, 1.0}
            np.testing.assert_allclose(z2.mean(), share, atol=1e-6)
            assert isinstance(qparams[layer.name]["input"], BayesianBits)
        assert set(variables) == set(pruning.variables)
    assert info["learned_bits"][0] == info["learned_bits"][1]  # of mu alone; the budget is an upper limit


def test_mu_is_traced_and_closes_gates(pruning):
    macs = sum(layer.macs for layer in pruning.model.layers)
    learned = []
    for mu in (0.01, 1.0):
        with compilations() as compiled:
            _, info = SEARCHES["bayesian_bits"](0, pruning, "bops", [10**9], mu=mu, strength=0.0, travel=60.0)
        learned.append(info["cost"][0] * min(10**9, macs * 1024))
    assert "jit(step)" not in compiled
    assert learned[1] < learned[0]


def test_other_quantizers_hand_nothing_over_and_prune_nothing(trained_digits):
    subject = digits_subject(trained_digits)
    learner = gates_learner(subject)
    learned = learner.start(subject)
    assert learner.handover(learned, 1.0) is None
    assert learner.kept(learned, 1.0).tolist() == [1.0, 1.0, 1.0]
    site = SiteRule("lsq", "per_group", 16, range="minmax")
    grouped = quantize_model(subject.model.fn, subject.variables, subject.x, (Rule("*", site, OWN, ((2, 2), (4, 4))),))
    with pytest.raises(ConfigError, match="not per group; set per_tensor"):
        gates_learner(dataclasses.replace(subject, model=grouped))


def test_a_draw_of_gates_is_differentiable_and_scores_nothing():
    phi = jnp.asarray([-0.5, 0.0, 0.5])
    assert HardConcrete(phi).log_prob(jnp.asarray([0.0, 0.3, 1.0])) == 0
    draws = HardConcrete(phi).sample(jax.random.key(0), (1000,))
    assert draws.shape == (1000, 3)
    assert ((draws == 0).mean() > 0.1) & ((draws == 1).mean() > 0.1)
    slopes = jax.grad(lambda phi: HardConcrete(phi).sample(jax.random.key(0), (1000,)).mean(0).sum())(phi)
    assert (slopes > 0).all()


def test_the_threshold_decides_a_width_and_probabilities_what_is_next_to_it():
    widths = np.asarray([2.0, 4.0, 8.0])
    for chances, chosen in (((0.7, 0.6), 1), ((0.6, 0.9), 0), ((0.7, 0.7), 2)):
        p, q = chances
        distance = surprise(np.asarray([1 - p, p * (1 - q), p * q]), widths)
        assert distance.argmin() == chosen
        assert distance[chosen] == 0
    # Half of the channels are pruned: the probabilities are 0.1, 0.4 and 0.5.
    np.testing.assert_allclose(surprise(np.asarray([0.05, 0.2, 0.25]), widths), [-np.log(0.1), 0.0, -np.log(0.5)], 1e-6)
    assert surprise(np.asarray([0.0, 1.0, 0.0]), widths)[0] > 50


def test_svi_steps_as_the_plain_trainer_where_gates_are_certain(trained_digits):
    """Same loss, same weights, bounds, gates and statistics of batches: only the noise of gates is SVI's own."""
    subject = normalized_subject(trained_digits)
    learner = gates_learner(subject)
    x = (subject.x[:64], jax.random.key(0))
    program = _program(learner, learner.model.twin(subject.train_fn, subject.variables, x))
    trainer = make_trainer(program, subject.task, subject.recipe, subject.data, subject.validation)
    twin = learner.model.twin(subject.train_fn, subject.variables, x)
    start = learner.start(subject)
    shift = jax.tree.map(lambda leaf: leaf + 60.0, start["moved"])
    problem, _ = _problem(subject, "bops")
    (aim,) = _aims(subject, "bops", problem, np.asarray([1000]), 1.0, 1.0, 0.1)
    trial = Trial(subject.variables, {**start, "moved": shift}, aim._replace(gain=jnp.float32(1.0)), 1e-3, 3)
    (plain,), (svi,) = (list(one.train([trial], 1)) for one in (trainer, learner.trainer(trainer, twin)))
    assert svi.failure is None
    np.testing.assert_allclose(svi.history[0]["train_loss"], plain.history[0]["train_loss"], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(svi.last), jax.tree.leaves(plain.last)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=3e-4)
    assert "batch_stats" in svi.last[0]


class Normalized(nn.Module):
    """A BatchNorm between two layers."""

    @nn.compact
    def __call__(self, inputs, train):
        x = nn.Dense(8, name="first")(inputs.reshape(inputs.shape[0], -1))
        return nn.Dense(10, name="second")(nn.relu(nn.BatchNorm(not train, momentum=0.9)(x)))


def normalized_subject(digits):
    """A model with statistics of batches, not trained; four steps of one epoch."""
    model, data = from_linen(Normalized(), digits.model.example), with_first(digits.data, 256)
    x = jnp.asarray(data.prepare(data.train.inputs[:64]))
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    quantized = quantize_model(model.apply, variables, x, (Rule("*", OWN, OWN, ((2, 2), (4, 4), (8, 8))),))
    changes = {"model": quantized, "train_fn": model.apply_train, "variables": variables, "x": x, "data": data}
    return digits_subject(digits, **changes, recipe=Recipe(epochs=1, batch_size=64), trainers={})
