from __future__ import annotations

import numpy as np
from allocation_cases import CASES, integer, is_within

from qresearch.allocation import random


def test_more_samples_find_no_worse():
    problem = integer(np.random.default_rng(0), layers=12, options=5)
    budget = problem.costs.max(axis=2).sum(axis=1) // 2
    few, many = (
        np.mean([problem.total_loss(random.allocate(seed, problem, budget, samples)[0]) for seed in range(10)])
        for samples in (4, 256)
    )
    assert many < few


def test_the_key_matters():
    problem = integer(np.random.default_rng(0), layers=12, options=5)
    budget = problem.costs.max(axis=2).sum(axis=1) // 2
    assert len({random.allocate(seed, problem, budget)[0].tobytes() for seed in range(8)}) > 1


def test_every_draw_is_repaired_with_the_fewest_changes():
    for kind in ("integer", "two_constraints", "float_costs"):
        problem = CASES[kind](np.random.default_rng(1))
        layers = problem.loss.shape[0]
        draws, order = random._draw(np.random.default_rng(0), problem, 50)
        cheap = problem.costs.sum(axis=0).argmin(axis=1)
        limit = (problem.total_cost(cheap) + problem.total_cost(draws).mean(axis=0)) / 2
        repaired = random._repair(problem, draws, order, cheap, limit)
        assert is_within(problem, repaired, limit).all()
        for draw, sequence, result in zip(draws, order, repaired):
            steps = [np.where(np.isin(np.arange(layers), sequence[:k]), cheap, draw) for k in range(layers + 1)]
            first = next(step for step in steps if np.all(problem.total_cost(step) <= limit))
            np.testing.assert_array_equal(result, first)


def test_counts_what_it_repaired():
    problem = integer(np.random.default_rng(0))
    least, greatest = problem.costs.min(axis=2).sum(), problem.costs.max(axis=2).sum()
    _, info = random.allocate(0, problem, [least, greatest], samples=16)
    assert info["tried"] == 16
    assert info["repaired"] == [16, 0]


def test_forbidden_options_are_not_drawn():
    problem = CASES["forbidden_options"](np.random.default_rng(0))
    draws, _ = random._draw(np.random.default_rng(0), problem, 500)
    drawn = np.stack([(draws == option).any(axis=0) for option in range(3)], axis=1)
    np.testing.assert_array_equal(drawn, problem.allowed)
