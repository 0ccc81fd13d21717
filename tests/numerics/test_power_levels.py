from __future__ import annotations

import numpy as np
import pytest
from conftest import golden_cases

from qresearch.numerics.power_levels import LEVEL_SETS, MAX_WIDTH, additive_levels, level_table, power_of_two_levels


def test_the_authors_built_the_same_levels():
    compared = 0
    for case, arrays in golden_cases("apot"):
        if "levels" in arrays:
            build = power_of_two_levels if case.get("additive") is False else additive_levels
            np.testing.assert_allclose(build(case["B"]), arrays["levels"], rtol=2e-7)
            compared += arrays["levels"].size
    print(f"compared {compared} levels")
    assert compared == 4 + 8 + 16 + 32 + 64 + 4 + 8


@pytest.mark.parametrize("bits", range(MAX_WIDTH + 1))
def test_additive_levels_are_distinct_sums_of_the_first_powers_of_two(bits):
    levels = np.array(additive_levels(bits))
    assert len(set(levels)) == len(levels) == 2**bits
    assert (np.diff(levels) > 0).all()
    assert levels[0] == 0
    assert levels[-1] == (1 if bits else 0)
    exponents = 3 * (bits // 2) + bits % 2
    largest = sum(2.0**-e for e in range(1, exponents + 1))  # all single powers occur, the largest sum has one per term
    assert levels[-1] * largest <= 1
    smallest = levels[1] if bits else 0.0
    ratios = levels / smallest if bits else levels
    np.testing.assert_allclose(ratios, np.rint(ratios), rtol=1e-12)  # whole multiples of the smallest power


@pytest.mark.parametrize("name", LEVEL_SETS)
def test_a_row_of_the_table_is_the_level_set_of_its_width(name):
    table = level_table(name)
    assert table.shape == (MAX_WIDTH + 1, 2**MAX_WIDTH)
    assert table.dtype == np.float32
    for width, row in enumerate(table):
        np.testing.assert_array_equal(row[: 2**width], np.float32(LEVEL_SETS[name](width)))
        assert (row[2**width :] == 1).all()
        assert (np.diff(row[: 2**width]) >= 0).all()
