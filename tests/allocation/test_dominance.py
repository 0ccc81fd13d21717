from __future__ import annotations

import numpy as np
import pytest

from qresearch.allocation.dominance import nondominated


def beaten(points: np.ndarray) -> np.ndarray:
    """Whether another point is at least as good everywhere: better somewhere, or equal and earlier."""
    at_least = (points[:, :, None] <= points[:, None, :]).all(axis=0)
    equal = at_least & at_least.T
    first = np.tri(points.shape[1], k=-1, dtype=bool).T
    return (at_least & (~equal | first)).any(axis=0)


@pytest.mark.parametrize("constraints", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [4, 10**6])
def test_equals_brute_force(constraints, levels):
    for seed, count in enumerate((1, 2, 63, 64, 65, 130, 700)):
        random = np.random.default_rng(seed)
        cost = random.integers(0, levels, (constraints, count))
        loss = random.integers(0, levels, count).astype(float)
        kept = nondominated(cost, loss)
        wanted = np.flatnonzero(~beaten(np.concatenate([cost, loss[None]])))
        assert len(set(kept)) == len(kept)
        if constraints <= 2:
            assert set(kept) == set(wanted)
        else:  # some dominated points may stay
            assert set(kept) >= set(wanted)


def test_a_front_is_kept_whole():
    """Every point of cost + loss = constant is on the front, so the search would lose optima here."""
    cost = np.random.default_rng(0).permutation(300)
    kept = nondominated(np.stack([cost, np.zeros_like(cost)]), 300.0 - cost)
    assert sorted(kept) == list(range(300))
