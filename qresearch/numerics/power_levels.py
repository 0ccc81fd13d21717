"""Level sets made of powers of two, as tables over the widths, so that a traced width picks its row."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

MAX_WIDTH = 8  # the widest magnitude that has a table, in bits


def additive_levels(bits: int) -> list[float]:
    """The 2^bits magnitudes of APoT in [0, 1], ascending: all sums of one element per term, over the largest sum.

    A term is {0, 2^-a, 2^-b, 2^-c}, two bits; the exponents 1, 2, 3, ... are dealt to the bits // 2 terms in turn. An
    odd bit is a term {0, 2^-a}, dealt to before the third round.
    Li, Dong and Wang, Additive Powers-of-Two Quantization, 2020, https://arxiv.org/abs/1909.13144, and its code.
    """
    two_bits: list[list[float]] = [[0.0] for _ in range(bits // 2)]
    one_bit: list[list[float]] = [[0.0] for _ in range(bits % 2)]
    dealt = two_bits * 2 + one_bit + two_bits
    for exponent, term in enumerate(dealt, start=1):
        term.append(2.0**-exponent)
    sums = sorted({sum(parts) for parts in product(*two_bits, *one_bit)})
    return [value / (sums[-1] or 1.0) for value in sums]


def power_of_two_levels(bits: int) -> list[float]:
    """The 2^bits magnitudes 0, ..., 1/8, 1/4, 1/2, 1; those below float32's smallest become 0 in the table."""
    return [0.0] + [2.0**-exponent for exponent in reversed(range(2**bits - 1))]


LEVEL_SETS = {"additive": additive_levels, "power_of_two": power_of_two_levels}


@cache
def level_table(name: str) -> np.ndarray:
    """The float32 magnitudes [width, 2^MAX_WIDTH] of a level set for widths 0 to MAX_WIDTH, padded with 1."""
    rows = [LEVEL_SETS[name](width) for width in range(MAX_WIDTH + 1)]
    return np.array([row + [1.0] * (2**MAX_WIDTH - len(row)) for row in rows]).astype(np.float32)
