"""Allocators. ``ALLOCATORS[name](key, problem, budgets)`` picks an option for every layer within each budget."""

from __future__ import annotations

from qresearch.allocation import exact, greedy, random, uniform
from qresearch.allocation.budgets import check_budgets
from qresearch.allocation.problem import Allocator, Problem, merge_groups

ALLOCATORS: dict[str, Allocator] = {
    "exact": exact.allocate,
    "greedy": greedy.allocate,
    "random": random.allocate,
    "uniform": uniform.allocate,
}

__all__ = ["ALLOCATORS", "Allocator", "Problem", "check_budgets", "merge_groups"]
