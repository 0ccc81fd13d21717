from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.numerics.search import count_below


def test_it_counts_as_numpy_does_with_ties_and_infinite_edges():
    edges = np.sort(np.random.default_rng(0).integers(-20, 20, 255)).astype(np.float32)
    edges[200:] = np.inf
    x = jnp.asarray(np.random.default_rng(1).integers(-25, 25, (30, 40)), jnp.float32)
    for ties in (False, True):
        wanted = np.searchsorted(edges, x, side="right" if ties else "left")
        found = jax.jit(count_below, static_argnums=2)(jnp.asarray(edges), x, ties)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, wanted)
