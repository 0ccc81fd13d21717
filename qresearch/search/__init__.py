"""Searches that train. ``SEARCHES[name](key, subject, cost, budgets)`` learns the widths of a model together with its
weights, and picks an option for every layer within each budget. To add one: write its file, add its line.
"""

from __future__ import annotations

from qresearch.registry import Registry
from qresearch.search.bayesian_bits import bayesian_bits
from qresearch.search.dq import dq
from qresearch.search.edmips import edmips
from qresearch.search.fracbits import fracbits
from qresearch.search.subject import Search, SearchSubject

SEARCHES: Registry[Search] = Registry(
    "searches",
    {
        "bayesian_bits": bayesian_bits,
        "dq": dq,
        "edmips": edmips,
        "fracbits": fracbits,
    },
)

__all__ = ["SEARCHES", "Search", "SearchSubject"]
