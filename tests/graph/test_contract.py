from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO

from qresearch.graph import trace
from qresearch.graph.contract import as_matrices, contraction_of, output_channels

CASES = [name for name in ZOO if trace(*ZOO[name]).layers]


def calls(name):
    """(layer, weight, input, output) of every layer of a model, as the model itself computes them."""
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)

    def handler(call):
        output = call.contract(call.weight, call.input)
        return output, {"weight": call.weight, "input": call.input, "output": output}

    _, aux = graph.run(handler, params, x)
    for layer in graph.layers:
        found = aux[layer.name]
        yield layer, found["weight"][0], found["input"][0], found["output"][0]


@pytest.mark.parametrize("name", CASES)
def test_a_rebuilt_contraction_is_the_models_own_for_any_number_of_examples(name):
    for layer, weight, x, output in calls(name):
        contract = contraction_of(layer.contraction)
        np.testing.assert_allclose(contract(weight, x), output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_matrices_are_the_contraction(name):
    for layer, weight, x, output in calls(name):
        matrices = as_matrices(layer.contraction)
        split = matrices.split(weight)
        np.testing.assert_array_equal(matrices.join(split), weight)
        product = jnp.einsum("gnf,gfc->gnc", matrices.rows(x), split, precision="highest")
        assert product.size == output.size
        found, wanted = (np.sort(np.asarray(value, np.float64).ravel()) for value in (product, output))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_output_channels_carry_the_kernels_channels(name):
    for layer, weight, x, output in calls(name):
        channels = output_channels(layer.contraction)
        sizes = sorted(output.shape[axis] for axis in channels)
        assert sizes == sorted(weight.shape[axis] for axis in layer.contraction.channel_axes)
        first = layer.contraction.channel_axes[-1]
        zeroed = contraction_of(layer.contraction)(
            jnp.moveaxis(jnp.moveaxis(weight, first, 0).at[0].set(0), 0, first), x
        )
        changed = np.asarray(zeroed != output)
        other = tuple(axis for axis in range(output.ndim) if axis != channels[-1])
        assert changed.any(other).sum() <= 1 or layer.contraction.feature_groups > 1
