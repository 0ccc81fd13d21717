"""Every method of the registry, by its name alone, in a model: calibrated, trained, float at 32 bits, one program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.qmodel import quantize_model
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import Rule, SiteRule

PARAMS = {"layer": jax.random.normal(jax.random.key(0), (12, 8)) / 3.0}
X = jax.random.normal(jax.random.key(2), (24, 12))


def network(params, x):
    return jax.nn.relu(x @ params["layer"])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_method_trains_a_model_in_one_program_for_all_widths(name):
    rule = Rule(weight=SiteRule(name), input=SiteRule(name))
    model, traces = quantize_model(network, PARAMS, X, [rule]), []

    @jax.jit
    def step(params, bits, key):
        traces.append(bits)
        qparams = model.init(params, X, bits)

        def loss(params, qparams):
            output = model.apply(params, qparams, X, bits, key)
            return jnp.mean((output - network(PARAMS, X)) ** 2), output

        gradients, output = jax.grad(loss, (0, 1), has_aux=True)(params, qparams)
        return gradients, output

    outputs = {}
    for width in (2.0, 4.0, 8.0, 32.0):
        bits = jnp.full((1, 2), width)
        (of_params, of_qparams), outputs[width] = step(PARAMS, bits, jax.random.key(3))
        for leaf in jax.tree.leaves((of_params, of_qparams)):
            assert np.isfinite(leaf).all(), width
        if width == 4.0:
            assert all((np.asarray(leaf) != 0).mean() > 0.5 for leaf in of_params.values())
    assert len(traces) == 1
    np.testing.assert_array_equal(outputs[32.0], jax.jit(network)(PARAMS, X))
    assert not np.array_equal(outputs[4.0], outputs[32.0])
