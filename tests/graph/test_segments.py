from __future__ import annotations

import jax
import numpy as np
import pytest
from graph.zoo import ZOO

from qresearch.graph import trace
from qresearch.graph.handlers import identity, record
from qresearch.graph.segments import segments
from qresearch.models import MODELS


def chained(parts, params, x, handler=identity):
    value, aux = x, {}
    for part in parts:
        value, found = part.run(handler, params, value)
        aux |= found
    return value, aux


@pytest.mark.parametrize("name", ZOO)
def test_segments_in_turn_are_the_function(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    if not graph.layers:
        return
    parts = segments(graph, params)
    assert [layer for part in parts for layer in part.layers] == [layer.name for layer in graph.layers]
    assert all(part.layers for part in parts)
    outputs, aux = jax.jit(lambda params, x: chained(parts, params, x, record))(params, x)
    wanted, recorded = jax.jit(lambda params, x: graph.run(record, params, x))(params, x)
    assert jax.tree.structure(outputs) == jax.tree.structure(wanted)
    for found, one in zip(jax.tree.leaves((outputs, aux)), jax.tree.leaves((wanted, recorded)), strict=True):
        np.testing.assert_allclose(found, one, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit])
def test_the_segments_of_a_residual_network_are_its_blocks(wrap):
    model = MODELS["resnet20"](10)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    graph = trace(wrap(model.apply), params, x)
    parts = segments(graph, params)
    assert [len(part.layers) for part in parts] == [1, *[2] * 9, 1]
    assert parts[1].layers == ("layer1/0/conv1/kernel", "layer1/0/conv2/kernel")
    shapes = [part.targets[0].aval.shape for part in parts]
    assert shapes[:5] == [(2, 32, 32, 16)] * 4 + [(2, 16, 16, 32)]
    assert shapes[-2:] == [(2, 8, 8, 64), (2, 10)] or shapes[-2:] == [(2, 64), (2, 10)]


def test_the_activation_belongs_to_the_layer_before_it():
    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) * 2.0

    params = {"a": np.eye(3, dtype=np.float32), "b": np.eye(3, dtype=np.float32)}
    first, second = segments(trace(fn, params, np.ones((2, 3), np.float32)), params)
    x = -np.ones((2, 3), np.float32)
    value, _ = first.run(identity, params, x)
    np.testing.assert_array_equal(value, np.zeros((2, 3)))
    np.testing.assert_array_equal(second.run(identity, params, value + 1)[0], 2 * np.ones((2, 3)))
