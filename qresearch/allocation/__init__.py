"""Allocators. ``ALLOCATORS[name](key, problem, budgets)`` picks an option for every layer within each budget."""

from __future__ import annotations

from qresearch.allocation import annealing, bayesian, exact, gibbs, greedy, lagrangian, milp, nsga2, random, uniform
from qresearch.allocation.budgets import check_budgets
from qresearch.allocation.problem import Allocator, Measure, Problem, merge_groups
from qresearch.allocation.refine import refine
from qresearch.registry import Registry

ALLOCATORS: Registry[Allocator] = Registry(
    "allocators",
    {
        "annealing": annealing.allocate,
        "bayesian": bayesian.allocate,
        "exact": exact.allocate,
        "gibbs": gibbs.allocate,
        "greedy": greedy.allocate,
        "lagrangian": lagrangian.allocate,
        "milp": milp.allocate,
        "nsga2": nsga2.allocate,
        "random": random.allocate,
        "uniform": uniform.allocate,
    },
)

__all__ = ["ALLOCATORS", "Allocator", "Measure", "Problem", "check_budgets", "merge_groups", "refine"]
